//! The kick: a signal that brings a vCPU's thread out of KVM_RUN and that cannot be lost.
//!
//! A plain signal is lost when it arrives after the thread has looked whether it is wanted and before it is in
//! KVM_RUN. So the signal's handler sets `kvm_run.immediate_exit`, with which KVM_RUN returns EINTR at once
//! (Documentation/virt/kvm/api.rst, 5), and both sides keep to this order:
//!
//! ```text
//! whoever kicks                     the vCPU's thread
//! K1  attention = true              V1  immediate_exit = 0
//! K2  send the signal               V2  look at attention; when true: stand at the checkpoint, then V1 again
//!                                   V3  KVM_RUN
//! ```
//!
//! The handler runs in the vCPU's thread, and K1 is visible to it. It runs
//! - before V1: `immediate_exit` is cleared again, but V2 comes later than the handler and sees K1;
//! - between V1 and V2, or V2 and V3: nothing clears the flag before V3, which returns at once; the next V2 sees K1;
//! - during V3: the pending signal itself ends KVM_RUN; the next V2 sees K1.
//!
//! So one signal for each vCPU is enough, and the thread stands at its checkpoint after at most one exit.

#![allow(unsafe_code, reason = "a signal handler writes kvm_run.immediate_exit of its thread")]

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr,
    sync::atomic::{AtomicPtr, AtomicU8, Ordering, compiler_fence},
    thread::JoinHandle,
};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, null in other threads. Constant and without a destructor,
    /// so that a signal handler may look at it at any time.
    static IMMEDIATE_EXIT: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// A vCPU that the thread which made this value runs, and that a [`kick`] of this thread brings out of the guest.
pub(super) struct Kickable {
    fd: VcpuFd,
    /// In `fd`'s mapping of `kvm_run`. The pointer also keeps this value in its thread.
    immediate_exit: *mut u8,
}

impl Kickable {
    /// From now on kicks of the calling thread are for this vCPU.
    pub(super) fn new(mut fd: VcpuFd) -> Self {
        let immediate_exit = &raw mut fd.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.with(|own| own.store(immediate_exit, Ordering::Relaxed));
        Self { fd, immediate_exit }
    }

    /// V1: kicks that came before are answered by the look at `attention` that follows.
    pub(super) fn rearm(&self) {
        set(self.immediate_exit, 0);
    }

    /// V3: runs the guest until an exit or a kick.
    pub(super) fn enter(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// Lets KVM complete the instruction whose access the last exit was, and nothing more: EINTR when it is complete.
    /// Any other exit is a further access of the same instruction.
    pub(super) fn complete(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        set(self.immediate_exit, 1);
        self.fd.run()
    }
}

/// The compiler keeps the order of this and of what is before and after, as a signal handler of this thread sees it.
fn set(immediate_exit: *mut u8, value: u8) {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the caller holds a pointer that was taken from a mapping of `kvm_run` which still exists; the byte is
    // accessed atomically by this program, and read by the kernel.
    unsafe { AtomicU8::from_ptr(immediate_exit) }.store(value, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

impl Deref for Kickable {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.fd
    }
}

impl DerefMut for Kickable {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        // Before the mapping goes.
        IMMEDIATE_EXIT.with(|own| own.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

/// K2: one signal to each thread that still runs. `attention` is set already.
pub(crate) fn kick(threads: &[JoinHandle<()>]) {
    for thread in threads.iter().filter(|thread| !thread.is_finished()) {
        // Fails only for a thread that has just ended.
        let _ = thread.kill(SIGRTMIN());
    }
}

/// Makes the kick's signal do what the module says instead of ending the process. Once, before any vCPU thread.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let _ = IMMEDIATE_EXIT.try_with(|own| {
            let own = own.load(Ordering::Relaxed);
            if !own.is_null() {
                set(own, 1);
            }
        });
    }
    register_signal_handler(SIGRTMIN(), interrupt)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
