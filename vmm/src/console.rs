//! The guest's serial console on the host: a terminal, a file, or whoever connects to a socket.
//!
//! Nobody waits for who reads or types it: an [`outlet::Outlet`] takes what the guest prints, a thread brings what is
//! typed. When the reader does not keep up, the oldest bytes go.

mod escape;
mod modes;
pub(crate) mod outlet;
mod terminal;
mod typing;

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};
use strait_devices::legacy::serial::{Serial as Port, Wake};
use strait_resources::{codes, failure::Failure};

use self::{
    escape::EscapeParser,
    modes::Watched,
    outlet::{Outlet, Trouble},
    typing::{Client, Source, Typing, connected, wake},
};
use crate::{builder::internal, config::Serial, control::Control, signals};

pub(crate) use self::terminal::RawTerminal;

/// Bytes that the guest prints and nobody has read yet. More than a kernel says while it boots.
const MOST: usize = 1 << 20;

/// Both directions of the console. Dropping it puts the terminal back and stops reading.
pub(crate) struct Console {
    terminal: Option<RawTerminal>,
    /// The guest prints on a terminal, which may be left in any mode.
    has_modes: bool,
    source: Option<Source>,
    typing: Option<Typing>,
    outlet: Option<Outlet>,
    /// The port's, for whoever types.
    wake: OwnedFd,
    _file: Option<SocketFile>,
}

impl Console {
    /// Opens what `serial` names. Fails with E2101 when that cannot be had.
    pub(crate) fn open(serial: &Serial) -> Result<Self, Failure> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let wake = eventfd(0, flags).map_err(|e| internal("making an eventfd")(e.into()))?;
        let mut console = Self {
            terminal: None,
            has_modes: false,
            source: None,
            typing: None,
            outlet: None,
            wake,
            _file: None,
        };
        match serial {
            Serial::None => {}
            Serial::Stdio => {
                console.outlet =
                    Some(outlet("standard output", Box::new(standard(&io::stdout())?))?);
                console.has_modes = modes::matter();
                let escape = io::stdin().is_terminal().then(EscapeParser::default);
                console.source = Some(Source::Stdin { file: standard(&io::stdin())?, escape });
                console.terminal = RawTerminal::enter()
                    .map_err(internal("making the terminal pass every key on"))?;
            }
            Serial::File(path) => {
                let file = open(path).map_err(|error| cannot_make(path, error))?;
                console.outlet = Some(outlet(&path.display().to_string(), Box::new(file))?);
            }
            Serial::Socket(path) => {
                let listener = UnixListener::bind(path).map_err(|e| cannot_make(path, e))?;
                console._file = Some(SocketFile(path.clone()));
                listener.set_nonblocking(true).map_err(|e| cannot_make(path, e))?;
                let client = Client::default();
                let target = ToClient(Arc::clone(&client));
                console.outlet = Some(outlet(&path.display().to_string(), Box::new(target))?);
                console.source = Some(Source::Socket { listener, client });
            }
        }
        Ok(console)
    }

    /// Where the port's output goes. Never blocks.
    pub(crate) fn output(&self) -> Box<dyn Write + Send> {
        match &self.outlet {
            Some(outlet) if self.has_modes => Box::new(Watched(outlet.clone())),
            Some(outlet) => Box::new(outlet.clone()),
            None => Box::new(io::sink()),
        }
    }

    /// What the port wakes whoever types by.
    pub(crate) fn wake(&self) -> io::Result<Wake> {
        let event = self.wake.try_clone()?;
        Ok(Box::new(move || wake(&event)))
    }

    /// From now on what is typed reaches `port`, and `Ctrl-A x` on a terminal ends the machine of `control`.
    pub(crate) fn connect(&mut self, port: &Arc<Port>, control: &Arc<Control>) -> io::Result<()> {
        let Some(source) = self.source.take() else { return Ok(()) };
        let (port, control) = (Arc::clone(port), Arc::clone(control));
        self.typing = Some(Typing::start(source, port, &self.wake, control)?);
        Ok(())
    }

    /// The guest runs: every key is its own, those that make signals too.
    pub(crate) fn guest_runs(&mut self) -> io::Result<()> {
        self.terminal.as_mut().map_or(Ok(()), RawTerminal::take_signal_keys)
    }

    /// The guest is over: the terminal is as before, out of the modes that the guest has left, and what is typed is not
    /// for it.
    pub(crate) fn guest_is_over(&mut self) {
        self.typing = None;
        if let (Some(outlet), Some(undo)) = (&self.outlet, modes::undo()) {
            outlet.push(undo.as_bytes());
        }
        self.terminal = None;
    }

    /// Waits, though not for long, until what the guest printed has been read; says what was lost.
    pub(crate) fn finish(self) {
        let Some(outlet) = &self.outlet else { return };
        let before = signals::count();
        let lost = outlet.finish(|| signals::count() != before);
        if lost > 0 {
            log::warn!("[{}] {lost} bytes of the guest's console are lost", codes::E8004.id);
        }
    }
}

/// Puts the terminal back from wherever the program is, a panic too.
pub(crate) fn restore() {
    terminal::restore();
    modes::undo_now();
}

fn outlet(name: &str, target: Box<dyn Write + Send>) -> Result<Outlet, Failure> {
    let (name, code) = (name.to_owned(), codes::E8004.id);
    let tell = move |trouble: &Trouble| match trouble {
        Trouble::Slow { most } => log::warn!(
            "[{code}] nobody reads the guest's console ({name}) fast enough: the last {} KiB are kept, the guest goes on",
            most >> 10
        ),
        Trouble::Refused { error, written } => log::warn!(
            "[{code}] the guest's console cannot be written to {name} after {written} bytes: {error}; the guest goes on"
        ),
    };
    Outlet::start("console", MOST, target, Box::new(tell)).map_err(internal("starting a thread"))
}

/// A descriptor of our own: Rust's standard output keeps lines together, and a prompt has no newline; its standard input
/// takes more than it is asked for, which nobody would hear of.
fn standard(stream: &impl AsFd) -> Result<File, Failure> {
    let fd = stream.as_fd().try_clone_to_owned().map_err(|error| {
        let cause = "standard input or output is closed";
        Failure::new(&codes::E2101, cause, "use --serial none or --serial file=PATH").source(error)
    })?;
    Ok(File::from(fd))
}

/// For writing, and without waiting for whoever reads a FIFO or for a modem. The description is ours alone, so that the
/// flag may be changed.
fn open(path: &Path) -> io::Result<File> {
    let open = |read: bool| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new()
            .read(read)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(path)
    };
    let file = match open(false) {
        // A FIFO that nobody reads yet: with a reading end of our own it takes what it has room for.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => open(true)?,
        file => file?,
    };
    fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    Ok(file)
}

fn cannot_make(path: &Path, error: io::Error) -> Failure {
    let cause = format!("{} cannot be made for the serial port", path.display());
    let fix = "name a path in a directory that exists and is yours, not in use";
    Failure::new(&codes::E2101, cause, fix).source(error)
}

/// Writes to whoever is connected. Nobody is told what was printed before they came.
struct ToClient(Client);

impl Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A client that left takes all; one that does not read is waited for here and by nobody else.
        let written = connected(&self.0).map(|client| (&*client).write(bytes));
        match written {
            Some(Ok(count)) => Ok(count),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Some(Err(_)) | None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Goes with the console.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
