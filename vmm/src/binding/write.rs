//! Writes to files of the kernel's, in a child process with a time limit each.
//!
//! A driver's unbind waits inside the kernel until the last program has closed its device, some drivers for ever
//! (NVIDIA's with "non-zero usage count"), and nothing ends such a wait, no signal and no time-out. So a child does
//! the writes, one after the other while all goes well. One that does not come back is left behind and reported, and
//! the next write gets a new child.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io::{self, BufRead, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use strait_resources::{failure::Failure, host::sysroot::Sysroot};

/// For what waits for a driver: unbinding a busy NVMe or GPU takes seconds.
pub(super) const SLOW: Duration = Duration::from_secs(30);

/// For what only takes the device's lock.
pub(super) const FAST: Duration = Duration::from_secs(10);

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The kernel said no.
    #[error("cannot write '{}' to {path}", value.trim())]
    Refused {
        /// Which file.
        path: String,
        /// What was written.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel says nothing.
    #[error("writing to {path} does not come to an end (child process {child})")]
    Stuck {
        /// Which file.
        path: String,
        /// Who waits.
        child: u32,
    },
}

/// What changes the kernel's state; the tests have one of their own.
pub(super) trait Writer {
    /// Writes `value` to `path` within `limit`.
    fn write(&self, path: &str, value: &str, limit: Duration) -> Result<(), WriteError>;
    /// Loads a kernel module.
    fn load(&self, module: &str) -> io::Result<()>;
    /// Waits.
    fn pause(&self, time: Duration);
    /// Something will be written soon.
    fn ready(&self) {}
    /// Nothing is written for a while.
    fn rest(&self) {}
}

/// Writes to this host.
pub(super) struct ChildWriter {
    sysroot: Sysroot,
    /// The program and its words.
    command: Vec<OsString>,
    /// The child at work: starting one costs more than most writes.
    worker: Mutex<Option<Worker>>,
}

impl ChildWriter {
    pub(super) fn new() -> Self {
        // The file may have been replaced since this process started; the link leads to what runs.
        Self::with(["/proc/self/exe", "write-attributes"].map(OsString::from).to_vec())
    }

    fn with(command: Vec<OsString>) -> Self {
        Self { sysroot: Sysroot::host(), command, worker: Mutex::default() }
    }
}

impl Writer for ChildWriter {
    fn write(&self, path: &str, value: &str, limit: Duration) -> Result<(), WriteError> {
        log::info!("{path} <- {}", value.trim());
        let refused =
            |source| WriteError::Refused { path: path.to_owned(), value: value.to_owned(), source };
        let mut kept = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = match kept.take() {
            Some(worker) => worker,
            None => Worker::start(&self.command).map_err(refused)?,
        };
        match worker.write(&self.sysroot.path(path), value, limit).map_err(refused)? {
            None => {
                Err(WriteError::Stuck { path: path.to_owned(), child: worker.leave_behind().id() })
            }
            Some(answer) => {
                *kept = Some(worker);
                answer.map_err(refused)
            }
        }
    }

    fn ready(&self) {
        let mut kept = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            match Worker::start(&self.command) {
                Ok(worker) => *kept = Some(worker),
                // The write will try again, and tell.
                Err(error) => log::debug!("starting the child that writes: {error}"),
            }
        }
    }

    fn rest(&self) {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn load(&self, module: &str) -> io::Result<()> {
        let mut child = Command::new("modprobe")
            .arg(module)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match wait(&mut child, SLOW)? {
            Some(true) => Ok(()),
            Some(false) => Err(io::Error::other(format!("modprobe {module} failed"))),
            None => Err(io::Error::other(format!("modprobe {module} does not end"))),
        }
    }

    fn pause(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// Did it succeed? `None`: it is still at it.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<bool>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A child that writes what it is told to.
struct Worker {
    /// `None` when it was left behind.
    child: Option<Child>,
    socket: UnixStream,
}

impl Worker {
    fn start(command: &[OsString]) -> io::Result<Self> {
        let [program, words @ ..] = command else { return Err(io::Error::other("no program")) };
        let (socket, theirs) = UnixStream::pair()?;
        let output = theirs.try_clone()?;
        let child = Command::new(program)
            .args(words)
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(output))
            .stderr(Stdio::null())
            // Ctrl-C on the terminal must not hit it between two steps.
            .process_group(0)
            .spawn()?;
        Ok(Self { child: Some(child), socket })
    }

    /// What the kernel answered; `None` when it has not within the limit.
    fn write(
        &mut self,
        path: &Path,
        value: &str,
        limit: Duration,
    ) -> io::Result<Option<io::Result<()>>> {
        let request = [path.as_os_str().as_bytes(), value.as_bytes(), b""].join(&0u8);
        self.socket.write_all(&request)?;
        let end = Instant::now() + limit;
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut byte = [0];
            match self.socket.read(&mut byte) {
                Ok(0) => return Err(io::Error::other("the child that writes died")),
                Ok(_) => said.extend(byte),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        match String::from_utf8_lossy(&said).trim().parse() {
            Ok(0) => Ok(Some(Ok(()))),
            Ok(number) => Ok(Some(Err(io::Error::from_raw_os_error(number)))),
            Err(_) => Err(io::Error::other("the child that writes talks nonsense")),
        }
    }

    /// It sits in a driver: nobody waits for it any more.
    fn leave_behind(mut self) -> Child {
        self.child.take().expect("a worker has its child until it is left behind")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input is the end of the child; one that was left behind is not waited for.
        let Some(child) = &mut self.child else { return };
        let ended = self.socket.shutdown(std::net::Shutdown::Both).and_then(|()| child.wait());
        if let Err(error) = ended {
            log::debug!("waiting for the child that writes: {error}");
        }
    }
}

/// What the child does: paths and values come on standard input, a NUL after each, and the number of the kernel's error,
/// or 0, goes to standard output, in a line.
pub(crate) fn write_attributes() -> Result<u8, Failure> {
    serve(&mut io::stdin().lock(), &mut io::stdout());
    Ok(0)
}

fn serve(input: &mut impl BufRead, output: &mut impl io::Write) {
    let mut next = || -> Option<Vec<u8>> {
        let mut word = Vec::new();
        input.read_until(0, &mut word).ok()?;
        (word.pop() == Some(0)).then_some(word)
    };
    while let (Some(path), Some(value)) = (next(), next()) {
        let open = OpenOptions::new().write(true).open(OsStr::from_bytes(&path));
        let written = open.and_then(|mut file| file.write_all(&value));
        let number = written.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        // When nobody listens any more there is nobody to tell.
        if writeln!(output, "{number}").and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(script: &str) -> ChildWriter {
        ChildWriter::with(["sh", "-c", script].map(OsString::from).to_vec())
    }

    #[test]
    fn write_that_hangs_is_left_behind_in_bounded_time() {
        let begin = Instant::now();
        let writer = writer("sleep 30");
        for path in ["/x", "/y"] {
            let error = writer.write(path, "y", Duration::from_millis(200)).unwrap_err();
            let WriteError::Stuck { child, path: stuck } = error else { panic!("{error}") };
            assert_eq!(stuck, path);
            // It is still there: strait does not end what sits in a driver.
            assert!(Path::new(&format!("/proc/{child}")).exists());
            Command::new("kill").arg(child.to_string()).status().unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn write_that_is_refused_tells_what_the_kernel_said() {
        let error = writer("echo 16; read x").write("/x", "y", FAST).unwrap_err();
        let WriteError::Refused { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(16));
        let died = writer("exit 0").write("/x", "y", FAST).unwrap_err();
        assert!(matches!(died, WriteError::Refused { .. }), "{died}");
    }

    #[test]
    fn one_child_does_many_writes_until_it_may_rest() {
        let writer = writer("echo 0; echo 0; exec sleep 30 <&0 >/dev/null");
        writer.write("/x", "y", FAST).unwrap();
        let child =
            || writer.worker.lock().unwrap().as_ref().map(|w| w.child.as_ref().unwrap().id());
        let first = child();
        writer.write("/x", "\n", FAST).unwrap();
        assert!(first.is_some());
        assert_eq!(child(), first);
        Command::new("kill").arg(first.unwrap().to_string()).status().unwrap();
        writer.rest();
        assert_eq!(child(), None);
        writer.ready();
        let early = child();
        writer.ready();
        writer.write("/x", "y", FAST).unwrap();
        assert!(early.is_some());
        assert_eq!(child(), early);
        Command::new("kill").arg(early.unwrap().to_string()).status().unwrap();
        writer.rest();
    }

    #[test]
    fn child_writes_each_value_whole_and_reports_each() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["override", "power"] {
            std::fs::write(at(name), "").unwrap();
        }
        let mut said = Vec::new();
        let request = format!("{}\0\n\0{}\0on\0{}\0x\0", at("override"), at("absent"), at("power"));
        serve(&mut request.as_bytes(), &mut said);
        assert_eq!(String::from_utf8(said).unwrap(), "0\n2\n0\n");
        assert_eq!(std::fs::read_to_string(at("override")).unwrap(), "\n");
        assert_eq!(std::fs::read_to_string(at("power")).unwrap(), "x");
        // Half a request is none.
        serve(&mut format!("{}\0no", at("power")).as_bytes(), &mut Vec::new());
        assert_eq!(std::fs::read_to_string(at("power")).unwrap(), "x");
    }
}
