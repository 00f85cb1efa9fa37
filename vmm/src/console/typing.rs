//! What is typed at the guest, from standard input or a socket to the serial port.
//!
//! A thread of its own reads: standard input may be a file, which cannot be watched, or a terminal or pipe that another
//! process reads too, which may be empty again when the read comes. `O_NONBLOCK` belongs to the open file description,
//! which others share. While the guest has no room, nothing is read, and whoever types waits.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, recv},
};
use strait_devices::legacy::serial::Serial;

use super::EscapeParser;
use crate::{
    control::{Control, Request},
    spare::Spare,
};

/// Bytes of one read.
const PIECE: usize = 4096;
/// Bytes of stack of the thread.
const STACK: usize = 64 << 10;

/// Who is connected, for output too.
pub(super) type Client = Arc<Mutex<Option<Arc<UnixStream>>>>;

/// Where bytes come from.
pub(super) enum Source {
    /// Standard input.
    Stdin {
        /// A descriptor of strait's own for it.
        file: File,
        /// Finds commands to strait among what a person types. `None` where it is no terminal: a pipe or a file may
        /// hold any byte, and all of them are the guest's.
        escape: Option<EscapeParser>,
    },
    /// Whoever connects; a new client replaces the one before.
    Socket {
        /// Accepts clients.
        listener: UnixListener,
        /// Who is connected.
        client: Client,
    },
}

/// The thread. Dropping this ends it before its next read.
pub(super) struct Typing {
    ending: Arc<AtomicBool>,
    wake: OwnedFd,
}

impl Typing {
    /// Starts it. `wake` is the eventfd that the port makes readable.
    pub(super) fn start(
        source: Source,
        port: Arc<Serial>,
        wake: &OwnedFd,
        control: Arc<Control>,
    ) -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let spare = match source {
            Source::Stdin { .. } => None,
            Source::Socket { .. } => Some(Spare::new()),
        };
        let typist = Typist {
            source,
            spare,
            port,
            control,
            wake: wake.try_clone()?,
            ending: Arc::clone(&ending),
            pending: Vec::new(),
            ended: false,
        };
        // Not joined: it may be inside a read of what another process has just read.
        thread::Builder::new()
            .name("typing".to_owned())
            .stack_size(STACK)
            .spawn(move || typist.run())?;
        Ok(Self { ending, wake: wake.try_clone()? })
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        wake(&self.wake);
    }
}

/// A counter that is full is readable, which is all that is wanted.
pub(super) fn wake(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

struct Typist {
    source: Source,
    /// For clients that there is no descriptor for.
    spare: Option<Spare>,
    port: Arc<Serial>,
    control: Arc<Control>,
    wake: OwnedFd,
    ending: Arc<AtomicBool>,
    /// What the port had no room for. Nothing is read before it has.
    pending: Vec<u8>,
    /// Standard input is at its end.
    ended: bool,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    read: bool,
    accept: bool,
}

impl Typist {
    fn run(mut self) {
        while !self.ending.load(Ordering::Acquire) {
            let taken = self.port.input(&self.pending);
            self.pending.drain(..taken.min(self.pending.len()));
            let again = self.port.attend();
            match self.wait(again) {
                Ok(Ready { read, accept }) => {
                    if read {
                        self.read();
                    }
                    if accept {
                        self.accept();
                    }
                }
                Err(error) => {
                    log::warn!("nothing more is typed at the guest: {error}");
                    return;
                }
            }
        }
    }

    fn wait(&self, limit: Option<Duration>) -> io::Result<Ready> {
        let client = match &self.source {
            Source::Stdin { .. } => None,
            Source::Socket { client, .. } => connected(client),
        };
        let reads = self.pending.is_empty() && !self.ended;
        let (source, listener): (Option<BorrowedFd<'_>>, _) = match &self.source {
            Source::Stdin { file, .. } => (Some(file.as_fd()), None),
            Source::Socket { listener, .. } => {
                (client.as_ref().map(|client| client.as_fd()), Some(listener.as_fd()))
            }
        };
        let source = source.filter(|_| reads);
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut watched = vec![PollFd::new(&self.wake, PollFlags::IN)];
        watched.extend(source.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        watched.extend(listener.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut watched, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut is_ready = watched.iter().map(|fd| !fd.revents().is_empty());
        if is_ready.next() == Some(true) {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        let read = source.is_some() && is_ready.next() == Some(true);
        let accept = listener.is_some() && is_ready.next() == Some(true);
        Ok(Ready { read, accept })
    }

    /// Reads once: what is ready may be gone with that.
    fn read(&mut self) {
        let mut buffer = [0; PIECE];
        let count = match &mut self.source {
            Source::Stdin { file, .. } => file.read(&mut buffer),
            Source::Socket { client, .. } => match connected(client) {
                Some(client) => recv(&*client, &mut buffer[..], RecvFlags::DONTWAIT)
                    .map(|(count, _)| count)
                    .map_err(io::Error::from),
                None => return,
            },
        };
        let bytes = match count {
            Ok(0) => return self.ended(),
            Ok(count) => &buffer[..count],
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => return,
                io::ErrorKind::WouldBlock => return thread::yield_now(),
                _ => return self.ended(),
            },
        };
        match &mut self.source {
            Source::Stdin { escape: Some(escape), .. } => {
                let typed = escape.feed(bytes);
                self.pending.extend(typed.guest);
                if typed.quit {
                    self.control.request(Request::Quit);
                }
            }
            Source::Stdin { escape: None, .. } | Source::Socket { .. } => {
                self.pending.extend(bytes);
            }
        }
    }

    fn ended(&mut self) {
        match &self.source {
            Source::Stdin { .. } => self.ended = true,
            Source::Socket { client, .. } => replace(client, None),
        }
    }

    fn accept(&mut self) {
        let Source::Socket { listener, client } = &self.source else { return };
        let Some(spare) = &mut self.spare else { return };
        if let Some(stream) = spare.accept(listener, "the serial socket") {
            replace(client, Some(stream));
        }
    }
}

pub(super) fn connected(client: &Client) -> Option<Arc<UnixStream>> {
    client.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Hangs up on the client before, inside whose socket a write may wait.
fn replace(client: &Client, stream: Option<UnixStream>) {
    let before = std::mem::replace(
        &mut *client.lock().unwrap_or_else(PoisonError::into_inner),
        stream.map(Arc::new),
    );
    if let Some(before) = before {
        let _ = before.shutdown(std::net::Shutdown::Both);
    }
}
