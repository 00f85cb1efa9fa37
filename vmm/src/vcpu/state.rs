//! Everything that makes up a vCPU, read after its creation and put back by a reset.

#![allow(unsafe_code, reason = "KVM reads and writes XSAVE areas whose size it says elsewhere")]

use kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, KvmNestedStateBuffer, VcpuFd, VmFd};
use strait_arch::msr;

use super::BootState;

/// MSRs of one ioctl. KVM takes 255 at most.
const MSR_BATCH: usize = 128;

/// KVM did not take or give a part of a vCPU's state.
#[derive(Debug, thiserror::Error)]
#[error("{ioctl}: {source}")]
pub(super) struct StateError {
    /// Which, by its ioctl.
    pub(super) ioctl: &'static str,
    pub(super) source: kvm_ioctls::Error,
}

/// Everything a reset puts back. A CPU's own timers and pending interrupts, exceptions and start-up messages are among it.
pub(super) struct PowerOn {
    pub(super) sregs: kvm_sregs,
    regs: kvm_regs,
    fpu: Fpu,
    lapic: kvm_lapic_state,
    /// `None` on hosts without XSAVE.
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    run_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
    /// `None` where KVM has no nested virtualization.
    nested: Option<Box<KvmNestedStateBuffer>>,
}

/// x87, SSE, and with XSAVE everything that came after them.
enum Fpu {
    Xsave(Xsave),
    Legacy(Box<kvm_fpu>),
}

impl PowerOn {
    /// `lapic` is what the local APIC is set to after power-on, `listed` the MSRs of KVM's list.
    pub(super) fn read(
        vm: &VmFd,
        fd: &VcpuFd,
        lapic: kvm_lapic_state,
        listed: &[u32],
    ) -> Result<Self, StateError> {
        let nested = match vm.check_extension(Cap::NestedState) {
            true => {
                let mut state = Box::new(KvmNestedStateBuffer::empty());
                fd.nested_state(&mut state).map_err(failed("KVM_GET_NESTED_STATE"))?;
                Some(state)
            }
            false => None,
        };
        Ok(Self {
            sregs: fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            regs: fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
            fpu: Fpu::read(vm, fd)?,
            lapic,
            xcrs: fd.get_xcrs().ok(),
            debug: fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
            run_state: fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?,
            msrs: read_msrs(fd, listed)?,
            nested,
        })
    }

    /// No vCPU of the machine may run, and `fd` must be between two instructions: KVM would complete a pending access
    /// into the new registers.
    pub(super) fn write(&self, fd: &VcpuFd) -> Result<(), StateError> {
        // Out of a nested guest first: CR4 and EFER cannot be put back while VMX or SVM is in use.
        if let Some(nested) = &self.nested {
            fd.set_nested_state(nested).map_err(failed("KVM_SET_NESTED_STATE"))?;
        }
        // The question makes KVM act on INIT and SIPI that have come: one of them could start the CPU later. What the
        // answer is does not matter.
        let _ = fd.get_mp_state();
        // The run state before the rest: a halted CPU must not be woken by what follows.
        fd.set_mp_state(self.run_state).map_err(failed("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        // Special registers before the local APIC: its base and mode are among them.
        fd.set_sregs(&self.sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fpu.write(fd)?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&self.debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
        // The local APIC before the MSRs: IA32_TSC_DEADLINE is taken only in the timer mode that it belongs to.
        fd.set_lapic(&self.lapic).map_err(failed("KVM_SET_LAPIC"))?;
        write_msrs(fd, &self.msrs)?;
        // Last: what precedes may leave an exception or interrupt pending.
        fd.set_vcpu_events(&self.events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }
}

/// Puts the registers of a boot protocol into the boot CPU.
pub(super) fn enter_at(fd: &VcpuFd, (regs, sregs): &BootState) -> Result<(), StateError> {
    fd.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
    fd.set_regs(regs).map_err(failed("KVM_SET_REGS"))
}

impl Fpu {
    fn read(vm: &VmFd, fd: &VcpuFd) -> Result<Self, StateError> {
        if !vm.check_extension(Cap::Xsave) {
            return fd.get_fpu().map(Box::new).map(Self::Legacy).map_err(failed("KVM_GET_FPU"));
        }
        // 0 where KVM has no KVM_GET_XSAVE2: areas are one page there.
        let size = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let more = size.saturating_sub(size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
        let too_large = |_| kvm_ioctls::Error::new(libc::E2BIG);
        let mut area = Xsave::new(more).map_err(too_large).map_err(failed("KVM_GET_XSAVE2"))?;
        if size == 0 {
            // SAFETY: a plain KVM_GET_XSAVE fills the fixed part of the structure, all that `area` has; its length
            // beyond that, 0, stays.
            unsafe { area.as_mut_fam_struct() }.xsave =
                fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        } else {
            // SAFETY: `area` is as long as KVM_CAP_XSAVE2 says of this VM, and no feature that makes it longer is asked
            // for later.
            unsafe { fd.get_xsave2(&mut area) }.map_err(failed("KVM_GET_XSAVE2"))?;
        }
        Ok(Self::Xsave(area))
    }

    fn write(&self, fd: &VcpuFd) -> Result<(), StateError> {
        match self {
            Self::Legacy(fpu) => fd.set_fpu(fpu).map_err(failed("KVM_SET_FPU")),
            // SAFETY: `area` came from this vCPU, with the length that KVM gave for it.
            Self::Xsave(area) => unsafe { fd.set_xsave2(area) }.map_err(failed("KVM_SET_XSAVE")),
        }
    }
}

/// Every MSR that a guest can set and that KVM lets us read. The TSC is 0: KVM takes a 0 as "with the others", and counts
/// on from where the VM began, so that the guest's clock does not jump but what the guest wrote to it is gone.
fn read_msrs(fd: &VcpuFd, listed: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let unlisted = msr::unlisted().filter(|index| !listed.contains(index));
    let mut entries: Vec<kvm_msr_entry> = listed
        .iter()
        .copied()
        .chain(unlisted)
        .filter(|index| *index != msr::TSC)
        .map(|index| kvm_msr_entry { index, ..Default::default() })
        .collect();
    let mut read = vec![kvm_msr_entry { index: msr::TSC, data: 0, ..Default::default() }];
    while !entries.is_empty() {
        let mut batch = batch(&entries)?;
        // KVM stops at the first MSR it cannot read: keep what came, go on behind it.
        let asked = batch.as_slice().len();
        let count = fd.get_msrs(&mut batch).map_err(failed("KVM_GET_MSRS"))?.min(asked);
        read.extend_from_slice(&batch.as_slice()[..count]);
        entries.drain(..count + usize::from(count < asked));
    }
    Ok(read)
}

fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let batch = batch(rest)?;
        // KVM stops at the first MSR it does not take (some can be read only): go on behind it.
        let asked = batch.as_slice().len();
        let count = fd.set_msrs(&batch).map_err(failed("KVM_SET_MSRS"))?.min(asked);
        rest = &rest[count + usize::from(count < asked)..];
    }
    Ok(())
}

/// As many of `entries` as KVM takes at once.
fn batch(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(&entries[..entries.len().min(MSR_BATCH)])
        .map_err(|_| failed("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::E2BIG)))
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError { ioctl, source }
}
