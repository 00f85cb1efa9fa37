//! Descriptors and signals that a child process did not ask for.

#![allow(unsafe_code, reason = "close_range(2)")]

/// The first descriptor that is none of the standard ones.
const FIRST: libc::c_uint = 3;

/// For a child that must do its work although a service manager sends every process of the unit the signal that ends strait
/// (KillMode=control-group): it goes on, and has nothing open but what it was given.
pub(super) fn outlive() {
    close();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGALRM] {
        if let Err(error) = vmm_sys_util::signal::block_signal(signal) {
            log::debug!("signal {signal} is not blocked: {error:?}");
        }
    }
}

/// Closes everything but standard input, output and error. A child that waits in a driver for ever must not keep what
/// strait had open; whatever was forgotten to be marked close-on-exec ends here. To be called first, by a process that
/// has opened nothing yet.
fn close() {
    // SAFETY: closes descriptors that nothing in this process owns: it has just been started and has opened none.
    let closed = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if closed != 0 {
        // Kernels before 5.9. Then close-on-exec alone has to do.
        log::debug!("close_range: {}", std::io::Error::last_os_error());
    }
}
