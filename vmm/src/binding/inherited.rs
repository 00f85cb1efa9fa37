//! Descriptors that a child process did not ask for.

#![allow(unsafe_code, reason = "close_range(2)")]

/// The first descriptor that is none of the standard ones.
const FIRST: libc::c_uint = 3;

/// Closes everything but standard input, output and error. A child that waits in a driver for ever must not keep what
/// strait had open; whatever was forgotten to be marked close-on-exec ends here. To be called first, by a process that
/// has opened nothing yet.
pub(super) fn close() {
    // SAFETY: closes descriptors that nothing in this process owns: it has just been started and has opened none.
    let closed = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if closed != 0 {
        // Kernels before 5.9. Then close-on-exec alone has to do.
        log::debug!("close_range: {}", std::io::Error::last_os_error());
    }
}
