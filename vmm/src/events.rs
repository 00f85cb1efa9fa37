//! The main thread's event loop: what the user types, signals, requests of the machine, devices that die.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use strait_resources::{codes, failure::Failure};
use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    signal::register_signal_handler,
};

use crate::{
    config::Serial,
    console::EscapeParser,
    control::{Control, Request},
    inspect::socket::Socket,
};

/// Takes the bytes that go to the guest's serial port.
pub(crate) type Input = Box<dyn FnMut(&[u8]) + Send>;

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Waits for what concerns the whole machine.
pub(crate) struct EventLoop {
    manager: EventManager<Subscriber>,
    control: Arc<Control>,
}

impl EventLoop {
    /// Watches `control`, and the signals that end a program.
    pub(crate) fn new(control: &Arc<Control>) -> io::Result<Self> {
        let manager =
            EventManager::new().map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut events = Self { manager, control: Arc::clone(control) };
        let wake = control.event().try_clone()?;
        // Readable until the request is taken, so there is nothing to do but to wake up.
        events.add(wake, |_| Flow::Keep);
        let on_signal = Arc::clone(control);
        events.add(signals()?.try_clone()?, move |event| {
            let _ = event.read();
            on_signal.request(Request::Quit);
            Flow::Keep
        });
        Ok(events)
    }

    /// Connects where the user types with the guest's serial port.
    pub(crate) fn add_serial_input(&mut self, source: SerialInput, mut input: Input) {
        match source {
            SerialInput::None => {}
            SerialInput::Stdin => {
                let mut escape = EscapeParser::default();
                let control = Arc::clone(&self.control);
                self.add(io::stdin(), move |stdin| {
                    let Some(bytes) = read_some(&mut stdin.lock()) else { return Flow::Remove };
                    let typed = escape.feed(&bytes);
                    input(&typed.guest);
                    if typed.quit {
                        control.request(Request::Quit);
                    }
                    Flow::Keep
                });
            }
            SerialInput::Socket { listener, client } => {
                let shared = Arc::new(Mutex::new(input));
                let subscriber = Listener { listener, client, input: shared, current: None };
                self.manager.add_subscriber(Box::new(subscriber));
            }
        }
    }

    /// Answers who asks about the guest.
    pub(crate) fn add_socket(&mut self, socket: Socket) {
        self.add(socket, |socket| {
            socket.serve();
            Flow::Keep
        });
    }

    /// Ends the machine when `event` fires: a passed device is lost.
    pub(crate) fn add_device_error(&mut self, device: String, event: EventFd) {
        let control = Arc::clone(&self.control);
        self.add(event, move |event| {
            let _ = event.read();
            let cause = format!("{device} reported an unrecoverable error (PCIe AER)");
            let fix = "look at the host's kernel log for AER and IOMMU messages; check power, riser and heat";
            control.request(Request::Crash(Box::new(Failure::new(&codes::E8003, cause, fix))));
            Flow::Remove
        });
    }

    /// Ends the guest when the host wants a device back (its driver is being unbound).
    pub(crate) fn add_device_request(&mut self, device: String, event: EventFd) {
        let control = Arc::clone(&self.control);
        self.add(event, move |event| {
            let _ = event.read();
            log::warn!("the host wants {device} back: stopping the guest");
            control.request(Request::Quit);
            Flow::Remove
        });
    }

    /// Waits for the next request.
    pub(crate) fn wait(&mut self) -> io::Result<Request> {
        loop {
            if let Some(request) = self.control.take_request() {
                return Ok(request);
            }
            self.manager.run().map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
    }

    /// Waits until `ready`, which a [`Control::nudge`] may come with, or for a request that comes before.
    pub(crate) fn wait_until(
        &mut self,
        ready: impl Fn() -> bool,
        mut tick: impl FnMut(),
    ) -> io::Result<Option<Request>> {
        const TICK_MS: i32 = 100;
        loop {
            if let Some(request) = self.control.take_request() {
                return Ok(Some(request));
            }
            if ready() {
                return Ok(None);
            }
            tick();
            self.manager
                .run_with_timeout(TICK_MS)
                .map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
    }

    fn add<F: AsRawFd + Send + 'static>(
        &mut self,
        source: F,
        handle: impl FnMut(&mut F) -> Flow + Send + 'static,
    ) {
        self.manager.add_subscriber(Box::new(Watched { source, handle }));
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Keep,
    Remove,
}

/// One readable file and what to do about it.
struct Watched<F, H> {
    source: F,
    handle: H,
}

impl<F: AsRawFd, H: FnMut(&mut F) -> Flow> MutEventSubscriber for Watched<F, H> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if (self.handle)(&mut self.source) == Flow::Remove {
            let _ = ops.remove(Events::empty_raw(events.fd()));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // A regular file or /dev/null cannot be polled (EPERM): as standard input it has nothing to say.
        if let Err(error) = ops.add(Events::new(&self.source, EventSet::IN)) {
            log::debug!("fd {} is not watched: {error:?}", self.source.as_raw_fd());
        }
    }
}

/// A UNIX socket for the serial port: one client at a time, a new one replaces the old.
struct Listener {
    listener: UnixListener,
    client: Client,
    input: Arc<Mutex<Input>>,
    current: Option<UnixStream>,
}

type Client = Arc<Mutex<Option<UnixStream>>>;

impl Listener {
    fn set_client(&mut self, stream: Option<UnixStream>, ops: &mut EventOps<'_>) {
        if let Some(old) = self.current.take() {
            let _ = ops.remove(Events::empty(&old));
        }
        let writer = stream.as_ref().and_then(|stream| stream.try_clone().ok());
        *self.client.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = writer;
        self.current = stream.filter(|stream| ops.add(Events::new(stream, EventSet::IN)).is_ok());
    }
}

impl MutEventSubscriber for Listener {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.listener.as_raw_fd() {
            if let Ok((stream, _)) = self.listener.accept() {
                let _ = stream.set_nonblocking(true);
                self.set_client(Some(stream), ops);
            }
            return;
        }
        let Some(stream) = self.current.as_mut() else { return };
        match read_some(stream) {
            Some(bytes) => (self.input.lock().unwrap_or_else(|p| p.into_inner()))(&bytes),
            None => self.set_client(None, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            log::warn!("the serial socket cannot be watched: {error:?}");
        }
    }
}

/// `None` at the end of the input. One read, so that a ready source never blocks.
fn read_some(source: &mut impl Read) -> Option<Vec<u8>> {
    let mut buffer = [0u8; 256];
    match source.read(&mut buffer) {
        Ok(0) => None,
        Ok(count) => Some(buffer[..count].to_vec()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Some(Vec::new())
        }
        Err(_) => None,
    }
}

/// Where the serial port's input comes from.
pub(crate) enum SerialInput {
    /// Nowhere.
    None,
    /// Standard input.
    Stdin,
    /// Whoever connects.
    Socket {
        /// Accepts clients.
        listener: UnixListener,
        /// The one that is connected, for output.
        client: Client,
    },
}

/// Opens both directions of the serial port. Fails with E2101 when the file or socket cannot be made.
pub(crate) fn open_serial(
    serial: &Serial,
) -> Result<(SerialInput, Box<dyn Write + Send>), Failure> {
    match serial {
        Serial::None => Ok((SerialInput::None, Box::new(io::sink()))),
        Serial::Stdio => Ok((SerialInput::Stdin, Box::new(Unbuffered(stdout_file()?)))),
        Serial::File(path) => {
            let file = File::create(path).map_err(|e| cannot_make(path, e))?;
            Ok((SerialInput::None, Box::new(Unbuffered(file))))
        }
        Serial::Socket(path) => {
            let listener = UnixListener::bind(path).map_err(|e| cannot_make(path, e))?;
            listener.set_nonblocking(true).map_err(|e| cannot_make(path, e))?;
            let client: Client = Arc::default();
            let output = SocketOutput { client: Arc::clone(&client), path: path.clone() };
            Ok((SerialInput::Socket { listener, client }, Box::new(output)))
        }
    }
}

fn cannot_make(path: &Path, error: io::Error) -> Failure {
    let cause = format!("{} cannot be made for the serial port", path.display());
    Failure::new(
        &codes::E2101,
        cause,
        "name a path in a directory that exists and is yours, not in use",
    )
    .source(error)
}

/// Standard output without Rust's line buffer: a prompt has no newline.
fn stdout_file() -> Result<File, Failure> {
    let fd: OwnedFd = io::stdout().as_fd().try_clone_to_owned().map_err(|error| {
        let cause = "standard output is closed";
        Failure::new(&codes::E2101, cause, "use --serial none or --serial file=PATH").source(error)
    })?;
    Ok(File::from(fd))
}

/// A guest must not die because nobody reads its console any more.
struct Unbuffered(File);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).or(Ok(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to the connected client; without one, or to one that does not read, bytes are dropped.
struct SocketOutput {
    client: Client,
    path: PathBuf,
}

impl Write for SocketOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(stream) = self.client.lock().unwrap_or_else(|p| p.into_inner()).as_mut() {
            let _ = stream.write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SocketOutput {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP are kept for the event loop, which may come later, and no longer end strait
/// where it stands.
pub(crate) fn hold_signals() -> io::Result<()> {
    signals().map(drop)
}

/// Has one of them come since [`hold_signals`]?
pub(crate) fn was_signalled() -> bool {
    signals().is_ok_and(|event| event.read().is_ok())
}

/// An eventfd that SIGINT, SIGTERM and SIGHUP make readable.
fn signals() -> io::Result<&'static EventFd> {
    static SIGNALLED: OnceLock<EventFd> = OnceLock::new();
    extern "C" fn note(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // Only write(2), which a signal handler may call.
        if let Some(event) = SIGNALLED.get() {
            let _ = event.write(1);
        }
    }
    if SIGNALLED.get().is_none() {
        let _ = SIGNALLED.set(EventFd::new(EFD_NONBLOCK)?);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            register_signal_handler(signal, note)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
    }
    SIGNALLED.get().ok_or_else(|| io::Error::other("no eventfd for signals"))
}
