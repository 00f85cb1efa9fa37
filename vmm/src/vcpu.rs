//! A virtual CPU: its state after power-on, its thread, its exits.

use std::{fmt::Write as _, io, sync::Arc, thread};

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_INTERNAL_ERROR_EMULATION, Msrs, kvm_debugregs,
    kvm_enable_cap, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use strait_arch::{msr::Hwcr, regs};
use strait_devices::bus::Bus;
use strait_resources::{codes, failure::Failure};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    control::{Control, Next, Request},
    memory::GuestRam,
    vm::kvm_failure,
};

/// Time-stamp counter: never written back, because a guest's clock must not jump in a reset.
const MSR_IA32_TSC: u32 = 0x10;
/// Bytes of code shown when a guest dies.
const CODE_BYTES: usize = 16;
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

/// Everything a reset puts back.
struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    lapic: kvm_lapic_state,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    run_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
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
        let power_on = PowerOn::read(&fd, lapic, msr_indices)?;
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
    pub(crate) fn start(mut self, parts: VcpuParts) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name(format!("vcpu{}", self.index)).stack_size(STACK).spawn(
            move || {
                if let Err(failure) = self.run(&parts) {
                    parts.control.request(Request::Crash(Box::new(failure)));
                    // The machine is over: wait here, as a vCPU that is stopped does.
                    let mut resets = 0;
                    while parts.control.checkpoint(&mut resets) != Next::Stop {
                        thread::park_timeout(std::time::Duration::from_millis(1));
                    }
                }
            },
        )
    }

    fn run(&mut self, parts: &VcpuParts) -> Result<(), Failure> {
        let (mut resets, mut stalls) = (0, 0);
        if let Some(boot) = &parts.boot {
            self.enter_at(boot)?;
        }
        loop {
            match parts.control.checkpoint(&mut resets) {
                Next::Run => {}
                Next::Stop => return Ok(()),
                Next::Reset => {
                    self.hwcr = Hwcr::default();
                    self.power_on.write(&self.fd)?;
                    if let Some(boot) = &parts.boot {
                        self.enter_at(boot)?;
                    }
                }
            }
            if stalls != parts.control.stalls() {
                stalls = parts.control.stalls();
                // Tells the guest's watchdogs; one without kvm-clock has nothing to be told by.
                let _ = self.fd.kvmclock_ctrl();
            }
            let end = match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    parts.bus.mmio_read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    parts.bus.mmio_write(address, data);
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    parts.bus.pio_read(port, data);
                    continue;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    parts.bus.pio_write(port, data);
                    continue;
                }
                // Registers that KVM leaves to strait: `Vm::answer_hwcr`.
                Ok(VcpuExit::X86Rdmsr(read)) if read.index == Hwcr::INDEX => {
                    *read.data = self.hwcr.read();
                    continue;
                }
                Ok(VcpuExit::X86Wrmsr(write)) if write.index == Hwcr::INDEX => {
                    *write.error = u8::from(!self.hwcr.write(write.data));
                    self.give_kvm_its_hwcr();
                    continue;
                }
                Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => continue,
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Ok(VcpuExit::Shutdown) => End::TripleFault,
                Ok(VcpuExit::InternalError) => End::Internal,
                Ok(VcpuExit::FailEntry(reason, _)) => End::Entry(reason),
                Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                    kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => {
                        parts.control.request(Request::PowerOff);
                        continue;
                    }
                    kvm_bindings::KVM_SYSTEM_EVENT_RESET => {
                        parts.control.request(Request::Reset);
                        continue;
                    }
                    _ => End::Exit(format!("system event {kind}")),
                },
                Ok(other) => End::Exit(format!("{other:?}")),
                Err(error) => End::Error(io::Error::from_raw_os_error(error.errno())),
            };
            return Err(self.describe(end, &parts.ram));
        }
    }

    fn give_kvm_its_hwcr(&self) {
        let Ok(msrs) = Msrs::from_entries(&[self.hwcr.for_kvm()]) else { return };
        if let Err(error) = self.fd.set_msrs(&msrs) {
            log::debug!("KVM does not take the guest's HWCR: {error}");
        }
    }

    fn enter_at(&self, (regs, sregs): &BootState) -> Result<(), Failure> {
        self.fd.set_sregs(sregs).map_err(kvm_failure("KVM_SET_SREGS"))?;
        self.fd.set_regs(regs).map_err(kvm_failure("KVM_SET_REGS"))
    }

    /// The end of a guest in words: why, where, what code was there, what to try.
    fn describe(&mut self, end: End, ram: &GuestRam) -> Failure {
        let index = self.index;
        let (code, cause, fix) = match &end {
            End::TripleFault => (
                &codes::E8001,
                format!("the guest triple-faulted on vCPU {index}"),
                "look at the last lines of the guest's console; a kernel for another CPU, too little RAM \
                 or reboot=t on its command line do this"
                    .to_owned(),
            ),
            End::Internal => {
                let (suberror, data) = self.internal_error();
                let what = if suberror == KVM_INTERNAL_ERROR_EMULATION {
                    "could not emulate an instruction"
                } else {
                    "met an internal error"
                };
                (
                    &codes::E8002,
                    format!("KVM {what} on vCPU {index} (suberror {suberror}, data {data:x?})"),
                    "the code bytes below name the instruction; if it touches a device's BAR with SSE or \
                     AVX, the guest's driver must use plain loads and stores there"
                        .to_owned(),
                )
            }
            End::Entry(reason) => (
                &codes::E8002,
                format!("the CPU refused to enter the guest on vCPU {index} (reason {reason:#x})"),
                "look at the host's kernel log (dmesg); update the host's kernel and microcode".to_owned(),
            ),
            End::Exit(exit) => (
                &codes::E8002,
                format!("KVM left the guest on vCPU {index} in a way strait does not know: {exit}"),
                "update strait, or report this with the host's kernel version".to_owned(),
            ),
            End::Error(error) if error.raw_os_error() == Some(libc::EFAULT) => (
                &codes::E8002,
                format!("the guest touched memory that the host could not provide on vCPU {index}"),
                "a passed device that is in D3 or was reset behind strait's back does this; see dmesg"
                    .to_owned(),
            ),
            End::Error(_) => (
                &codes::E8002,
                format!("KVM_RUN failed on vCPU {index}"),
                "look at the host's kernel log (dmesg)".to_owned(),
            ),
        };
        let mut failure = Failure::new(code, cause, fix);
        if let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            failure = failure
                .detail(format!(
                    "rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
                    regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
                ))
                .detail(format!("code at rip: {}", self.code_at(sregs.cs.base.wrapping_add(regs.rip), ram)));
        }
        match end {
            End::Error(error) => failure.source(error),
            _ => failure,
        }
    }

    /// The guest's bytes at a linear address, in hex.
    fn code_at(&self, linear: u64, ram: &GuestRam) -> String {
        let physical = match self.fd.translate_gva(linear) {
            Ok(translation) if translation.valid != 0 => translation.physical_address,
            _ => return "not mapped".to_owned(),
        };
        let mut code = [0u8; CODE_BYTES];
        match ram.memory().read(&mut code, GuestAddress(physical)) {
            Ok(read) => code[..read].iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x} ");
                text
            }),
            Err(_) => format!("at guest-physical {physical:#x}, which is not RAM"),
        }
    }

    #[allow(unsafe_code, reason = "reads the internal-error variant of kvm_run's union")]
    fn internal_error(&mut self) -> (u32, Vec<u64>) {
        // SAFETY: KVM has just left with KVM_EXIT_INTERNAL_ERROR, so this is the variant it filled in; both
        // fields are plain integers, valid for any bytes.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let count = (internal.ndata as usize).min(internal.data.len()).min(6);
        (internal.suberror, internal.data[..count].to_vec())
    }
}

/// Why a vCPU cannot go on.
enum End {
    TripleFault,
    Internal,
    Entry(u64),
    Exit(String),
    Error(io::Error),
}

/// What a vCPU thread works with.
pub(crate) struct VcpuParts {
    /// When to run.
    pub(crate) control: Arc<Control>,
    /// Where its exits go.
    pub(crate) bus: Arc<Bus>,
    /// To show code when the guest dies.
    pub(crate) ram: Arc<GuestRam>,
    /// For the boot CPU: where it starts.
    pub(crate) boot: Option<BootState>,
}

impl PowerOn {
    fn read(fd: &VcpuFd, lapic: kvm_lapic_state, msr_indices: &[u32]) -> Result<Self, Failure> {
        Ok(Self {
            regs: fd.get_regs().map_err(kvm_failure("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(kvm_failure("KVM_GET_SREGS"))?,
            fpu: fd.get_fpu().map_err(kvm_failure("KVM_GET_FPU"))?,
            lapic,
            // Hosts without XSAVE have none.
            xcrs: fd.get_xcrs().ok(),
            debug: fd.get_debug_regs().map_err(kvm_failure("KVM_GET_DEBUGREGS"))?,
            events: fd.get_vcpu_events().map_err(kvm_failure("KVM_GET_VCPU_EVENTS"))?,
            run_state: fd.get_mp_state().map_err(kvm_failure("KVM_GET_MP_STATE"))?,
            msrs: read_msrs(fd, msr_indices)?,
        })
    }

    fn write(&self, fd: &VcpuFd) -> Result<(), Failure> {
        // The run state first: a halted CPU must not be woken by what follows.
        fd.set_mp_state(self.run_state).map_err(kvm_failure("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(kvm_failure("KVM_SET_REGS"))?;
        // Special registers before the local APIC: its base and mode are among them.
        fd.set_sregs(&self.sregs).map_err(kvm_failure("KVM_SET_SREGS"))?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(kvm_failure("KVM_SET_XCRS"))?;
        }
        fd.set_fpu(&self.fpu).map_err(kvm_failure("KVM_SET_FPU"))?;
        fd.set_debug_regs(&self.debug).map_err(kvm_failure("KVM_SET_DEBUGREGS"))?;
        let mut rest = self.msrs.as_slice();
        while !rest.is_empty() {
            let batch = Msrs::from_entries(rest).map_err(|e| {
                Failure::new(&codes::E9001, format!("too many MSRs: {e:?}"), "report this")
            })?;
            // KVM stops at the first MSR it does not take (some can be read only): go on behind it.
            let written = fd.set_msrs(&batch).map_err(kvm_failure("KVM_SET_MSRS"))?;
            rest = rest.get(written + 1..).unwrap_or_default();
        }
        fd.set_lapic(&self.lapic).map_err(kvm_failure("KVM_SET_LAPIC"))?;
        fd.set_vcpu_events(&self.events).map_err(kvm_failure("KVM_SET_VCPU_EVENTS"))
    }
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

/// Every MSR of the list that KVM lets us read, except the TSC.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Failure> {
    let mut entries: Vec<kvm_msr_entry> = indices
        .iter()
        .filter(|index| **index != MSR_IA32_TSC)
        .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
        .collect();
    let mut read = Vec::with_capacity(entries.len());
    while !entries.is_empty() {
        let mut batch = Msrs::from_entries(&entries).map_err(|e| {
            Failure::new(&codes::E9001, format!("too many MSRs: {e:?}"), "report this")
        })?;
        // KVM stops at the first MSR it cannot read: keep what came, go on behind it.
        let count =
            fd.get_msrs(&mut batch).map_err(kvm_failure("KVM_GET_MSRS"))?.min(entries.len());
        read.extend_from_slice(&batch.as_slice()[..count]);
        entries.drain(..(count + 1).min(entries.len()));
    }
    Ok(read)
}
