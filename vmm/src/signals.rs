//! What signals mean to a strait that has a machine, or a device that is not where it was: those that would end it where
//! it stands end it in order instead, and the others do nothing.
//!
//! SIGKILL, SIGSTOP and faults of strait's own (SIGSEGV, SIGBUS, SIGILL, SIGABRT) stay as they are. Handlers and not
//! `SIG_IGN`: what is ignored stays so in programs that strait starts.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use vmm_sys_util::{
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
    signal::{SIGRTMAX, SIGRTMIN, register_signal_handler},
};

/// They end a program. SIGXCPU is the soft limit of CPU time, SIGPWR a power supply that fails.
const ENDING: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU, libc::SIGPWR];

/// They would end a program, and mean nothing to this one. With SIGXFSZ the write that is beyond the limit fails too,
/// and says so. Rust's start ignores SIGPIPE already.
const MEANINGLESS: [libc::c_int; 8] = [
    libc::SIGXFSZ,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGSTKFLT,
];

static SIGNALLED: OnceLock<EventFd> = OnceLock::new();
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// From now on signals that end a program are kept for [`count`] and for the event loop, which may come later, and no
/// longer end strait where it stands.
pub(crate) fn hold() -> io::Result<()> {
    event().map(drop)
}

/// How many signals to end have come since [`hold`].
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// Is strait to end?
pub(crate) fn have_come() -> bool {
    count() > 0
}

/// An eventfd that signals to end make readable; the same as [`hold`].
pub(crate) fn event() -> io::Result<&'static EventFd> {
    extern "C" fn note(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        COUNT.fetch_add(1, Ordering::Release);
        // Only write(2), which a signal handler may call.
        if let Some(event) = SIGNALLED.get() {
            let _ = event.write(1);
        }
    }
    if SIGNALLED.get().is_none() {
        let _ = SIGNALLED.set(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        ignore_the_meaningless()?;
        for signal in ENDING {
            handle(signal, note)?;
        }
    }
    SIGNALLED.get().ok_or_else(|| io::Error::other("no eventfd for signals"))
}

/// From now on signals that mean nothing to strait do nothing.
fn ignore_the_meaningless() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    // The first real-time signal brings vCPUs out of the guest, and has a handler of its own.
    let real_time = SIGRTMIN() + 1..=SIGRTMAX();
    MEANINGLESS.into_iter().chain(real_time).try_for_each(|signal| handle(signal, nothing))
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn handle(signal: libc::c_int, handler: Handler) -> io::Result<()> {
    register_signal_handler(signal, handler)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

#[cfg(test)]
mod tests {
    use std::{env, fs::File, io::Write as _, process::Command, sync::Arc, thread, time::Duration};

    use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, kill_process, setrlimit};

    use super::*;
    use crate::{
        control::{Control, Request},
        events::EventLoop,
    };

    /// Set in the child of a test: the child is the one who is signalled.
    const CHILD: &str = "STRAIT_TEST_SIGNALS";

    /// Runs the test `name` of this module once more, in a process of its own.
    fn in_a_child(name: &str) {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("signals::tests::{name}"), "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success() && told.contains("1 passed"), "{child:?}");
    }

    fn is_child() -> bool {
        env::var_os(CHILD).is_some()
    }

    fn send(signal: Signal) {
        let me: Pid = getpid();
        kill_process(me, signal).unwrap();
    }

    #[test]
    fn signals_that_end_a_program_are_counted_and_others_do_nothing() {
        if !is_child() {
            return in_a_child("signals_that_end_a_program_are_counted_and_others_do_nothing");
        }
        hold().unwrap();
        for signal in
            [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::PIPE, Signal::XFSZ, Signal::VTALARM]
        {
            send(signal);
        }
        assert!(!have_come());
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            send(signal);
        }
        // To a process of several threads a signal comes when it comes.
        while count() < 4 {
            std::thread::yield_now();
        }
        assert!(event().unwrap().read().is_ok());
    }

    fn event_loop() -> EventLoop {
        EventLoop::new(&Arc::new(Control::new().unwrap())).unwrap()
    }

    /// A kernel on a server that is away, memory that is long in coming: all of it is waited for in this way.
    #[test]
    fn signal_ends_a_wait_for_what_never_comes() {
        if !is_child() {
            return in_a_child("signal_ends_a_wait_for_what_never_comes");
        }
        hold().unwrap();
        let mut events = event_loop();
        let later = thread::spawn(|| {
            thread::sleep(Duration::from_millis(50));
            send(Signal::TERM);
        });
        let came = events.wait_until(|| false, || ()).unwrap();
        assert!(matches!(came, Some(Request::Quit)), "{came:?}");
        later.join().unwrap();
    }

    #[test]
    fn signal_before_there_is_an_event_loop_ends_its_first_wait() {
        if !is_child() {
            return in_a_child("signal_before_there_is_an_event_loop_ends_its_first_wait");
        }
        hold().unwrap();
        send(Signal::TERM);
        while !have_come() {
            thread::yield_now();
        }
        let came = event_loop().wait_until(|| false, || ()).unwrap();
        assert!(matches!(came, Some(Request::Quit)), "{came:?}");
    }

    /// No guest begins to run after it.
    #[test]
    fn signal_between_two_waits_ends_the_next_whatever_that_waits_for_is_there() {
        if !is_child() {
            return in_a_child(
                "signal_between_two_waits_ends_the_next_whatever_that_waits_for_is_there",
            );
        }
        hold().unwrap();
        let mut events = event_loop();
        assert!(events.wait_until(|| true, || ()).unwrap().is_none());
        send(Signal::TERM);
        while !have_come() {
            thread::yield_now();
        }
        let came = events.wait_until(|| true, || ()).unwrap();
        assert!(matches!(came, Some(Request::Quit)), "{came:?}");
    }

    #[test]
    fn write_beyond_the_limit_of_a_file_is_an_error_and_no_death() {
        if !is_child() {
            return in_a_child("write_beyond_the_limit_of_a_file_is_an_error_and_no_death");
        }
        hold().unwrap();
        let limit = Rlimit { current: Some(4096), maximum: None };
        setrlimit(Resource::Fsize, limit).unwrap();
        let path = env::temp_dir().join(format!("strait-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let error = file.write_all(&[b'x'; 8192]).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    }
}
