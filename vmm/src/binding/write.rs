//! Writes to files of the kernel's, in a child process with a time limit each.
//!
//! A driver's unbind waits inside the kernel until the last program has closed its device, some drivers for ever
//! (NVIDIA's with "non-zero usage count"), and nothing ends such a wait, no signal and no time-out. So a child does
//! the writes, one after the other while all goes well. One that does not come back is left behind and reported, and
//! the next write gets a new child.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, BufRead, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use strait_resources::{
    failure::Failure,
    host::sysroot::Sysroot,
    journal::{Attribute, Write},
};

use super::inherited;
use crate::signals;

/// For what waits for a driver: unbinding a busy NVMe or GPU takes seconds.
const SLOW: Duration = Duration::from_secs(30);

/// For what only takes the device's lock.
const FAST: Duration = Duration::from_secs(10);

/// What the child says when no signal of others ends it any more.
const READY: &str = "ready";

/// How many children may die before they are ready, of a signal to the whole control group.
const TRIES: usize = 3;

/// What statfs(2) says of sysfs: SYSFS_MAGIC in linux/magic.h.
const SYSFS_MAGIC: i64 = 0x6265_6572;

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
    /// Writes, or tells within a limit that it does not come to an end.
    fn write(&self, write: &Write) -> Result<(), WriteError>;
    /// Loads a kernel module.
    fn load(&self, module: &str) -> io::Result<()>;
    /// Waits.
    fn pause(&self, time: Duration);
    /// Something will be written soon.
    fn ready(&self) {}
    /// Nothing is written for a while.
    fn rest(&self) {}
    /// Is strait to end? Looked at between two functions.
    fn is_to_end(&self) -> bool;
}

/// Writes to this host.
pub(super) struct ChildWriter {
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
        Self { command, worker: Mutex::default() }
    }

    /// A child that listens: the one that is kept, or a new one.
    fn worker(&self, kept: &mut Option<Worker>) -> io::Result<Worker> {
        let mut last = None;
        for _ in 0..TRIES {
            let mut worker = match kept.take() {
                Some(worker) => worker,
                None => Worker::start(&self.command)?,
            };
            match worker.is_ready() {
                Ok(()) => return Ok(worker),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("no child that writes")))
    }

    fn write_within(&self, write: &Write, limit: Duration) -> Result<(), WriteError> {
        let (path, value) = (write.to.to_string(), &write.value);
        log::info!("{path} <- {}", value.trim());
        let refused =
            |source| WriteError::Refused { path: path.clone(), value: value.clone(), source };
        let mut kept = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = self.worker(&mut kept).map_err(refused)?;
        match worker.write(&path, value, limit).map_err(refused)? {
            None => {
                let child = worker.leave_behind().id();
                Err(WriteError::Stuck { path, child })
            }
            Some(answer) => {
                *kept = Some(worker);
                answer.map_err(refused)
            }
        }
    }
}

impl Writer for ChildWriter {
    fn write(&self, write: &Write) -> Result<(), WriteError> {
        let limit = if write.to.waits_for_a_driver() { SLOW } else { FAST };
        self.write_within(write, limit)
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
        let mut child = Command::new(modprobe(&Sysroot::host()))
            .arg(module)
            // MODPROBE_OPTIONS, and whatever else an environment may say.
            .env_clear()
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

    fn is_to_end(&self) -> bool {
        signals::have_come()
    }
}

/// The program that the kernel itself loads modules with, which only root can name; never one found by PATH.
fn modprobe(sysroot: &Sysroot) -> String {
    const USUAL: [&str; 3] =
        ["/sbin/modprobe", "/usr/sbin/modprobe", "/run/current-system/sw/bin/modprobe"];
    let kernels = sysroot.read_if_present("/proc/sys/kernel/modprobe").ok().flatten();
    let programs = kernels.into_iter().chain(USUAL.map(str::to_owned));
    let mut there = programs.filter(|path| path.starts_with('/') && sysroot.exists(path));
    there.next().unwrap_or_else(|| USUAL[0].to_owned())
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
    /// It has said that it listens.
    ready: bool,
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
        Ok(Self { child: Some(child), socket, ready: false })
    }

    /// Nothing is asked of one that a signal could still end: then nobody would know what it has done.
    fn is_ready(&mut self) -> io::Result<()> {
        if self.ready {
            return Ok(());
        }
        match self.line(FAST)?.as_deref() {
            Some(READY) => self.ready = true,
            Some(_) => return Err(io::Error::other("the child that writes talks nonsense")),
            None => return Err(io::Error::other("the child that writes does not start")),
        }
        Ok(())
    }

    /// What the kernel answered; `None` when it has not within the limit.
    fn write(
        &mut self,
        path: &str,
        value: &str,
        limit: Duration,
    ) -> io::Result<Option<io::Result<()>>> {
        let request = [path.as_bytes(), value.as_bytes(), b""].join(&0u8);
        self.socket.write_all(&request)?;
        let Some(said) = self.line(limit)? else { return Ok(None) };
        match said.parse() {
            Ok(0) => Ok(Some(Ok(()))),
            Ok(number) => Ok(Some(Err(io::Error::from_raw_os_error(number)))),
            Err(_) => Err(io::Error::other("the child that writes talks nonsense")),
        }
    }

    /// One line that it says, without its end; `None` when it has not within the limit.
    fn line(&mut self, limit: Duration) -> io::Result<Option<String>> {
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
        Ok(Some(String::from_utf8_lossy(&said).trim().to_owned()))
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
/// or 0, goes to standard output, in a line. Only files that [`Attribute`] names are written to.
///
/// It outlives strait's signals, because strait puts drivers back with it, and ends with its input.
pub(crate) fn write_attributes() -> Result<u8, Failure> {
    inherited::outlive();
    serve(&mut io::stdin().lock(), &mut io::stdout(), |attribute| {
        open_in_sysfs(Path::new(&attribute.to_string()))
    });
    Ok(0)
}

/// Opens a file of the kernel's, and nothing that merely has its name: no link at its end, no other file system.
fn open_in_sysfs(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    match rustix::fs::fstatfs(&file)?.f_type as i64 {
        SYSFS_MAGIC => Ok(file),
        _ => Err(io::Error::from_raw_os_error(libc::EXDEV)),
    }
}

fn serve(
    input: &mut impl BufRead,
    output: &mut impl io::Write,
    open: impl Fn(&Attribute) -> io::Result<File>,
) {
    let mut next = || -> Option<Vec<u8>> {
        let mut word = Vec::new();
        input.read_until(0, &mut word).ok()?;
        (word.pop() == Some(0)).then_some(word)
    };
    let mut said = writeln!(output, "{READY}").and_then(|()| output.flush());
    // When nobody listens any more there is nobody to tell.
    while let (Ok(()), Some(path), Some(value)) = (&said, next(), next()) {
        let attribute = String::from_utf8_lossy(&path).parse::<Attribute>();
        let opened = attribute.map_err(|_| libc::EPERM).and_then(|attribute| {
            open(&attribute).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        });
        let number = opened.map_or_else(
            |number| number,
            |mut file| match file.write_all(&value) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            },
        );
        said = writeln!(output, "{number}").and_then(|()| output.flush());
    }
}

#[cfg(test)]
mod tests;
