//! The end of a guest, in words.

use std::{fmt::Write as _, io};

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};
use strait_resources::{codes, failure::Failure};
use vm_memory::{Bytes, GuestAddress};

use super::state::StateError;
use crate::memory::GuestRam;

/// Bytes of code shown when a guest dies.
const CODE_BYTES: usize = 16;

/// Why a vCPU cannot go on.
pub(super) enum End {
    TripleFault,
    Internal,
    Entry(u64),
    Exit(String),
    Error(io::Error),
    /// KVM does not take the state after power-on.
    State(StateError),
}

impl End {
    /// What an exit means after which the guest cannot go on.
    pub(super) fn of(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Self {
        match exit {
            Ok(VcpuExit::Shutdown) => Self::TripleFault,
            Ok(VcpuExit::InternalError) => Self::Internal,
            Ok(VcpuExit::FailEntry(reason, _)) => Self::Entry(reason),
            Ok(VcpuExit::SystemEvent(kind, _)) => Self::Exit(format!("system event {kind}")),
            Ok(other) => Self::Exit(format!("{other:?}")),
            Err(error) => Self::Error(io::Error::from_raw_os_error(error.errno())),
        }
    }

    /// The end of a guest in words: why, where, what code was there, what to try.
    pub(super) fn describe(self, index: usize, fd: &mut VcpuFd, ram: &GuestRam) -> Failure {
        let (code, cause, fix) = match &self {
            Self::TripleFault => (
                &codes::E8001,
                format!("the guest triple-faulted on vCPU {index}"),
                "look at the last lines of the guest's console; a kernel for another CPU, too little RAM \
                 or reboot=t on its command line do this"
                    .to_owned(),
            ),
            Self::Internal => {
                let (suberror, data) = internal_error(fd);
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
            Self::Entry(reason) => (
                &codes::E8002,
                format!("the CPU refused to enter the guest on vCPU {index} (reason {reason:#x})"),
                "look at the host's kernel log (dmesg); update the host's kernel and microcode".to_owned(),
            ),
            Self::Exit(exit) => (
                &codes::E8002,
                format!("KVM left the guest on vCPU {index} in a way strait does not know: {exit}"),
                "update strait, or report this with the host's kernel version".to_owned(),
            ),
            Self::Error(error) if error.raw_os_error() == Some(libc::EFAULT) => (
                &codes::E8002,
                format!("the guest touched memory that the host could not provide on vCPU {index}"),
                "a passed device that is in D3 or was reset behind strait's back does this; see dmesg"
                    .to_owned(),
            ),
            Self::State(error) => (
                &codes::E8005,
                format!("KVM refused {} while vCPU {index} was set to its state after power-on", error.ioctl),
                "look at the host's kernel log (dmesg), update the host's kernel; if the guest runs virtual \
                 machines itself, end them before it reboots"
                    .to_owned(),
            ),
            Self::Error(_) => (
                &codes::E8002,
                format!("KVM_RUN failed on vCPU {index}"),
                "look at the host's kernel log (dmesg)".to_owned(),
            ),
        };
        let mut failure = Failure::new(code, cause, fix);
        if let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) {
            failure = failure
                .detail(format!(
                    "rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
                    regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
                ))
                .detail(format!("code at rip: {}", code_at(fd, sregs.cs.base.wrapping_add(regs.rip), ram)));
        }
        match self {
            Self::Error(error) => failure.source(error),
            Self::State(error) => failure.source(error),
            _ => failure,
        }
    }
}

/// The guest's bytes at a linear address, in hex.
fn code_at(fd: &VcpuFd, linear: u64, ram: &GuestRam) -> String {
    let physical = match fd.translate_gva(linear) {
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
fn internal_error(fd: &mut VcpuFd) -> (u32, Vec<u64>) {
    // SAFETY: KVM has just left with KVM_EXIT_INTERNAL_ERROR, so this is the variant it filled in; both
    // fields are plain integers, valid for any bytes.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len()).min(6);
    (internal.suberror, internal.data[..count].to_vec())
}
