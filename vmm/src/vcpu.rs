//! A virtual CPU: its state after power-on, its thread, its exits.

mod access;
mod end;
mod kick;
mod state;

use std::{io, sync::Arc, thread};

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, Msrs, kvm_enable_cap, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use strait_arch::{msr::Hwcr, regs};
use strait_devices::bus::Bus;
use strait_resources::{codes, failure::Failure};

pub(crate) use self::kick::{install_kick_handler, kick};
use self::{
    end::End,
    kick::Kickable,
    state::{PowerOn, StateError},
};
use crate::{
    control::{Control, Next, Request, Seat},
    memory::GuestRam,
    vm::kvm_failure,
};

/// Bytes of stack of a thread. The default of 2 MiB may be aligned so that the kernel gives it a huge page.
pub(crate) const STACK: usize = 256 << 10;

/// How the boot CPU starts; the others wait for its INIT and SIPI.
pub(crate) type BootState = (kvm_regs, kvm_sregs);

/// One vCPU before its thread runs.
pub(crate) struct Vcpu {
    index: usize,
    fd: VcpuFd,
    power_on: PowerOn,
    tsc_khz: Option<u32>,
    hwcr: Hwcr,
}

impl Vcpu {
    /// Creates vCPU `index` with its APIC id, its CPUID, which `cpuid` makes when told the TSC's frequency in kHz
    /// (known only once there is a vCPU), and its initial MSRs. `msr_indices` are KVM's. `hidden`: the guest must not
    /// be able to talk to KVM.
    pub(crate) fn new(
        vm: &VmFd,
        index: usize,
        apic_id: u32,
        cpuid: impl FnOnce(Option<u32>) -> Result<CpuId, Failure>,
        hidden: bool,
        msr_indices: &[u32],
    ) -> Result<Self, Failure> {
        // KVM takes the APIC id from the number a vCPU is created with.
        let fd = vm.create_vcpu(u64::from(apic_id)).map_err(kvm_failure("KVM_CREATE_VCPU"))?;
        if hidden {
            enforce_cpuid(&fd);
        }
        let tsc_khz = fd.get_tsc_khz().ok().filter(|khz| *khz != 0);
        let cpuid = cpuid(tsc_khz)?;
        fd.set_cpuid2(&cpuid).map_err(kvm_failure("KVM_SET_CPUID2"))?;
        let vmx = strait_arch::cpuid::has_vmx(cpuid.as_slice());
        let initial_msrs = &strait_arch::msr::initial(vmx);
        let msrs = Msrs::from_entries(initial_msrs).map_err(|e| {
            Failure::new(&codes::E9001, format!("too many MSRs: {e:?}"), "report this")
        })?;
        fd.set_msrs(&msrs).map_err(kvm_failure("KVM_SET_MSRS"))?;
        let mut lapic = fd.get_lapic().map_err(kvm_failure("KVM_GET_LAPIC"))?;
        regs::set_local_interrupts(&mut lapic);
        fd.set_lapic(&lapic).map_err(kvm_failure("KVM_SET_LAPIC"))?;
        let power_on = PowerOn::read(vm, &fd, lapic, msr_indices)
            .map_err(|error| kvm_failure(error.ioctl)(error.source))?;
        Ok(Self { index, fd, power_on, tsc_khz, hwcr: Hwcr::default() })
    }

    /// How fast its TSC runs, in kHz, where KVM tells.
    pub(crate) const fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz
    }

    /// KVM's state after power-on: what a boot protocol's register state starts from.
    pub(crate) fn power_on_sregs(&self) -> kvm_sregs {
        self.power_on.sregs
    }

    /// Starts the thread, which waits at its first checkpoint. `boot` is what a reset and the first start
    /// put into the boot CPU's registers.
    pub(crate) fn start(self, parts: VcpuParts) -> io::Result<thread::JoinHandle<()>> {
        let name = format!("vcpu{}", self.index);
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let VcpuParts { mut seat, control, bus, ram, boot } = parts;
            let Self { index, fd, power_on, hwcr, .. } = self;
            let mut running =
                Running { fd: Kickable::new(fd), power_on, hwcr, bus, boot, amid_access: false };
            if let Err(end) = running.run(&mut seat, &control) {
                let failure = end.describe(index, &mut running.fd, &ram);
                control.request(Request::Crash(Box::new(failure)));
                // The machine is over.
                seat.wait_for_stop();
            }
        })
    }
}

/// How far KVM runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Up to the next exit or kick.
    Exit,
    /// To the end of the instruction of the last exit.
    Completed,
}

/// A vCPU in its thread.
struct Running {
    fd: Kickable,
    power_on: PowerOn,
    hwcr: Hwcr,
    bus: Arc<Bus>,
    boot: Option<BootState>,
    /// KVM has the answer to the last exit still to put into the guest's registers or memory, when it is next entered.
    amid_access: bool,
}

impl Running {
    fn run(&mut self, seat: &mut Seat, control: &Control) -> Result<(), End> {
        let mut stalls = 0;
        if let Some(boot) = &self.boot {
            state::enter_at(&self.fd, boot).map_err(End::State)?;
        }
        loop {
            self.fd.rearm();
            if seat.is_wanted() {
                self.complete(seat, control)?;
                match seat.checkpoint() {
                    Next::Run => {}
                    Next::Stop => return Ok(()),
                    Next::Reset => self.reset().map_err(End::State)?,
                }
                // Kicks that came meanwhile are answered.
                continue;
            }
            if stalls != control.stalls() {
                stalls = control.stalls();
                // Tells the guest's watchdogs; one without kvm-clock has nothing to be told by.
                let _ = self.fd.kvmclock_ctrl();
            }
            self.amid_access = self.run_once(seat, control, Until::Exit)?;
        }
    }

    /// Makes KVM complete the instruction whose access strait has answered. Before registers are read or written: the
    /// answer would go into whatever is in them then (Documentation/virt/kvm/api.rst, 5, on KVM_EXIT_IO and KVM_EXIT_MMIO).
    fn complete(&mut self, seat: &Seat, control: &Control) -> Result<(), End> {
        while self.amid_access {
            self.amid_access = self.run_once(seat, control, Until::Completed)?;
        }
        Ok(())
    }

    /// Lets KVM run once and answers the exit. `true`: the exit was an access, which KVM has yet to complete.
    fn run_once(&mut self, seat: &Seat, control: &Control, until: Until) -> Result<bool, End> {
        // What a reset has overtaken must not reach the devices, which are as after power-on already.
        let stale = until == Until::Completed && seat.is_reset();
        let exit = match until {
            Until::Exit => self.fd.enter(),
            Until::Completed => self.fd.complete(),
        };
        match exit {
            Ok(VcpuExit::MmioRead(_, data)) if stale => data.fill(0xff),
            Ok(VcpuExit::MmioRead(address, data)) => self.bus.mmio_read(address, data),
            Ok(VcpuExit::MmioWrite(..)) if stale => {}
            Ok(VcpuExit::MmioWrite(address, data)) => self.bus.mmio_write(address, data),
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                access::serve_port(&mut self.fd, &self.bus, || !stale && !seat.is_reset());
            }
            // Registers that KVM leaves to strait: `Vm::answer_hwcr`.
            Ok(VcpuExit::X86Rdmsr(read)) if read.index == Hwcr::INDEX => {
                *read.data = self.hwcr.read();
            }
            Ok(VcpuExit::X86Wrmsr(write)) if write.index == Hwcr::INDEX => {
                *write.error = u8::from(!self.hwcr.write(write.data));
                self.give_kvm_its_hwcr();
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => return Ok(false),
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                control.request(Request::PowerOff);
                return Ok(false);
            }
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _)) => {
                control.request(Request::Reset);
                return Ok(false);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(false),
            exit => return Err(End::of(exit)),
        }
        Ok(true)
    }

    /// Back to the state after power-on.
    fn reset(&mut self) -> Result<(), StateError> {
        self.hwcr = Hwcr::default();
        self.power_on.write(&self.fd)?;
        self.boot.as_ref().map_or(Ok(()), |boot| state::enter_at(&self.fd, boot))
    }

    fn give_kvm_its_hwcr(&self) {
        let Ok(msrs) = Msrs::from_entries(&[self.hwcr.for_kvm()]) else { return };
        if let Err(error) = self.fd.set_msrs(&msrs) {
            log::debug!("KVM does not take the guest's HWCR: {error}");
        }
    }
}

/// What a vCPU thread works with.
pub(crate) struct VcpuParts {
    /// When to run.
    pub(crate) seat: Seat,
    /// Takes what the guest wants of the whole machine.
    pub(crate) control: Arc<Control>,
    /// Where its exits go.
    pub(crate) bus: Arc<Bus>,
    /// To show code when the guest dies.
    pub(crate) ram: Arc<GuestRam>,
    /// For the boot CPU: where it starts.
    pub(crate) boot: Option<BootState>,
}

/// KVM's paravirtual MSRs answer only as far as CPUID announces them: a guest that must not see KVM must not be able to
/// talk to it either.
fn enforce_cpuid(fd: &VcpuFd) {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
    cap.args[0] = 1;
    // Kernels before 5.10 cannot; nothing that looks for a hypervisor looks there.
    if let Err(error) = fd.enable_cap(&cap) {
        log::info!("KVM's MSRs stay reachable for the guest: {error}");
    }
}

#[cfg(test)]
mod tests;
