//! A descriptor kept for the time when there are no others.
//!
//! A listener whose client cannot be accepted stays readable: whoever watches it would look at it again and again. With
//! a descriptor to give up, the client is accepted and hung up on instead.

use std::{
    fs::File,
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Where even the spare one is gone: how long to leave the listener alone.
const REST: Duration = Duration::from_millis(100);

/// The descriptor, of a file that says nothing.
pub(crate) struct Spare(Option<File>);

impl Spare {
    /// Opens it.
    pub(crate) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// The next client. `None` when there is none, or no descriptor for it: then it is hung up on. `what` the listener is
    /// goes into the message about that, which is said once in the life of strait.
    pub(crate) fn accept(&mut self, listener: &UnixListener, what: &str) -> Option<UnixStream> {
        match listener.accept() {
            Ok((client, _)) => return Some(client),
            Err(error) if !is_short(&error) => return None,
            Err(error) => Self::tell(what, &error),
        }
        if self.0.take().is_none() {
            thread::sleep(REST);
        }
        drop(listener.accept());
        *self = Self::new();
        None
    }

    fn tell(what: &str, error: &io::Error) {
        static TOLD: AtomicBool = AtomicBool::new(false);
        if !TOLD.swap(true, Ordering::Relaxed) {
            log::warn!("{what} hangs up on its clients: {error}; look at ulimit -n");
        }
    }
}

/// Too few descriptors, or too little memory for one.
fn is_short(error: &io::Error) -> bool {
    let short = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    error.raw_os_error().is_some_and(|number| short.contains(&number))
}

#[cfg(test)]
mod tests {
    use std::{env, io::Read as _, process::Command};

    use rustix::process::{Resource, Rlimit, setrlimit};

    use super::*;

    /// Set in the child of the test: the child is the one without descriptors.
    const CHILD: &str = "STRAIT_TEST_SPARE";

    #[test]
    fn client_that_there_is_no_descriptor_for_is_hung_up_on_and_does_not_wait() {
        if env::var_os(CHILD).is_none() {
            let name = "spare::tests::client_that_there_is_no_descriptor_for_is_hung_up_on_and_does_not_wait";
            let child = Command::new(env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&child.stdout).into_owned();
            assert!(child.status.success() && told.contains("1 passed"), "{child:?}");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut clients =
            [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
        let mut spare = Spare::new();
        setrlimit(Resource::Nofile, Rlimit { current: Some(300), maximum: Some(300) }).unwrap();
        let mut full: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        for client in &mut clients {
            assert!(spare.accept(&listener, "the test").is_none());
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "hung up on");
        }
        full.clear();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(spare.accept(&listener, "the test").is_some(), "there are descriptors again");
    }
}
