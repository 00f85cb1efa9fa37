//! One write to a file of the kernel's, in a child process with a time limit.
//!
//! A driver's unbind waits inside the kernel until the last program has closed its device, some drivers for ever
//! (NVIDIA's with "non-zero usage count"), and nothing ends such a wait, no signal and no time-out. So a child does
//! the write. One that does not come back is left behind and reported.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
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
}

/// Writes to this host.
pub(super) struct ChildWriter {
    sysroot: Sysroot,
    /// The program and its first words; path and value follow.
    command: Vec<OsString>,
}

impl ChildWriter {
    pub(super) fn new() -> Self {
        // The file may have been replaced since this process started; the link leads to what runs.
        let command = ["/proc/self/exe", "write-attribute"];
        Self { sysroot: Sysroot::host(), command: command.map(OsString::from).to_vec() }
    }

    fn spawn(&self, path: &str, value: &str) -> io::Result<Child> {
        let [program, words @ ..] = self.command.as_slice() else {
            return Err(io::Error::other("no program"));
        };
        Command::new(program)
            .args(words)
            .arg(self.sysroot.path(path))
            .arg(value)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C on the terminal must not hit it between two steps.
            .process_group(0)
            .spawn()
    }
}

impl Writer for ChildWriter {
    fn write(&self, path: &str, value: &str, limit: Duration) -> Result<(), WriteError> {
        log::info!("{path} <- {}", value.trim());
        let refused =
            |source| WriteError::Refused { path: path.to_owned(), value: value.to_owned(), source };
        let mut child = self.spawn(path, value).map_err(refused)?;
        match wait(&mut child, limit).map_err(refused)? {
            None => Err(WriteError::Stuck { path: path.to_owned(), child: child.id() }),
            Some(true) => Ok(()),
            Some(false) => {
                let mut said = String::new();
                if let Some(mut output) = child.stdout.take() {
                    output.read_to_string(&mut said).map_err(refused)?;
                }
                Err(refused(match said.trim().parse() {
                    Ok(number) => io::Error::from_raw_os_error(number),
                    Err(_) => io::Error::other("the child that writes died"),
                }))
            }
        }
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

/// What the child does. It tells an error by its number, on standard output.
pub(crate) fn write_attribute(path: &Path, value: &str) -> Result<u8, Failure> {
    let mut open = OpenOptions::new();
    let written = open.write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    let Err(error) = written else { return Ok(0) };
    // When nobody listens any more there is nobody to tell.
    let _ = write!(io::stdout(), "{}", error.raw_os_error().unwrap_or(0));
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(script: &str) -> ChildWriter {
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        ChildWriter { sysroot: Sysroot::host(), command }
    }

    #[test]
    fn write_that_hangs_is_left_behind_in_bounded_time() {
        let begin = Instant::now();
        let error = writer("sleep 30").write("/x", "y", Duration::from_millis(200)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10));
        let WriteError::Stuck { child, path } = error else { panic!("{error}") };
        assert_eq!(path, "/x");
        // It is still there: strait does not end what sits in a driver.
        assert!(Path::new(&format!("/proc/{child}")).exists());
        Command::new("kill").arg(child.to_string()).status().unwrap();
    }

    #[test]
    fn write_that_is_refused_tells_what_the_kernel_said() {
        let error = writer("printf 16; exit 1").write("/x", "y", FAST).unwrap_err();
        let WriteError::Refused { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(16));
        writer("exit 0").write("/x", "y", FAST).unwrap();
    }

    #[test]
    fn write_attribute_writes_and_reports() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("attribute");
        std::fs::write(&file, "").unwrap();
        assert_eq!(write_attribute(&file, "on").unwrap(), 0);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "on");
        assert_eq!(write_attribute(&dir.path().join("absent"), "on").unwrap(), 1);
    }
}
