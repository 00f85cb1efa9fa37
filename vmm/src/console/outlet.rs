//! Bytes on their way to somebody who may stop reading: what the guest prints, and what strait says.
//!
//! Whoever has something to say puts it into memory and goes on; a thread of its own writes. A vCPU, the event loop or
//! the end of the machine never wait for a reader that way. `O_NONBLOCK` would not do: the flag belongs to the open file
//! description, which strait shares with the shell and with whoever else has the terminal or the pipe. Nor would poll(2)
//! before each write: somebody else may fill the pipe in between, and a file on a server that is away is always ready.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Bytes of one write: what a pipe takes as a whole. Small, so that progress shows at a slow reader.
const BATCH: usize = 4096;
/// Memory, in bytes, that is kept while nothing waits.
const KEPT: usize = 64 << 10;
/// Bytes of stack of the thread.
const STACK: usize = 64 << 10;
/// Until the next try, where somebody else made the file non-blocking.
const RETRY: Duration = Duration::from_millis(10);

/// Nothing is waited for that does not go on for so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// A reader that is slow, but reads, is waited for no longer.
const LONGEST: Duration = Duration::from_secs(10);
/// How often whoever waits looks whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// Something is amiss with the reader or the file; each kind is told once.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The reader does not keep up: from now on the oldest bytes that wait make room for new ones.
    Slow {
        /// How many bytes may wait.
        most: usize,
    },
    /// The system refuses a write. What is refused is lost; the next write is tried again.
    Refused {
        /// What the system says.
        error: io::Error,
        /// Bytes that were written before.
        written: u64,
    },
}

type Tell = Box<dyn Fn(&Trouble) + Send + Sync>;

/// Takes bytes and never waits.
#[derive(Clone)]
pub(crate) struct Outlet {
    shared: Arc<Shared>,
}

struct Shared {
    /// A leaf: nothing is written, told or locked while it is held.
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
    tell: Tell,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Bytes that the thread is writing.
    in_hand: usize,
    /// The thread waits for bytes.
    idle: bool,
    /// Nothing more is said: the thread ends with the last byte.
    closed: bool,
    written: u64,
    lost: u64,
    lost_messages: u64,
    told_slow: bool,
    told_refused: bool,
}

impl Outlet {
    /// Starts the thread that writes to `target`. `most`: bytes that may wait. `tell` hears of each kind of trouble once,
    /// in the thread that meets it.
    pub(crate) fn start(
        name: &str,
        most: usize,
        target: Box<dyn Write + Send>,
        tell: Tell,
    ) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), most, tell });
        let outlet = Self { shared: Arc::clone(&shared) };
        // Not joined: it may be inside a write that never ends, and the end of the process ends it.
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || shared.run(target))?;
        Ok(outlet)
    }

    /// Takes all of `bytes`; where there is no room, for the oldest ones that wait. Who comes back to look at a console
    /// wants to see what was said last.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let most = self.shared.most;
        let bytes = &bytes[bytes.len().saturating_sub(most)..];
        let mut state = self.shared.lock();
        let excess = (state.waiting.len() + bytes.len()).saturating_sub(most);
        state.waiting.drain(..excess);
        state.lost += excess as u64;
        state.waiting.extend(bytes);
        let slow = excess > 0 && !std::mem::replace(&mut state.told_slow, true);
        self.shared.woken(state);
        if slow {
            (self.shared.tell)(&Trouble::Slow { most });
        }
    }

    /// Takes a message whole or not at all; the next that is taken says how many were not.
    pub(crate) fn push_message(&self, message: &str) {
        let mut state = self.shared.lock();
        let missed = match state.lost_messages {
            0 => String::new(),
            count => format!("({count} messages are missing here: nobody read them)\n"),
        };
        if state.waiting.len() + missed.len() + message.len() > self.shared.most {
            state.lost_messages += 1;
            return;
        }
        state.lost_messages = 0;
        state.waiting.extend(missed.as_bytes());
        state.waiting.extend(message.as_bytes());
        self.shared.woken(state);
    }

    /// Waits until all is written, for as long as that goes on and `hurried` does not say otherwise. How many bytes were
    /// lost or are left.
    pub(crate) fn finish(&self, hurried: impl Fn() -> bool) -> u64 {
        let began = Instant::now();
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        let (mut seen, mut since) = (state.written, began);
        while state.in_hand > 0 || !state.waiting.is_empty() {
            if state.written != seen {
                (seen, since) = (state.written, Instant::now());
            }
            if since.elapsed() > PATIENCE || began.elapsed() > LONGEST || hurried() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, TICK);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.lost + (state.waiting.len() + state.in_hand) as u64
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A system call only where the thread waits: most bytes come while it writes others.
    fn woken(&self, mut state: MutexGuard<'_, State>) {
        if std::mem::take(&mut state.idle) {
            drop(state);
            self.changed.notify_all();
        }
    }

    fn run(&self, mut target: Box<dyn Write + Send>) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.next(&mut batch) {
            if let Err(error) = self.write(&mut target, &batch) {
                self.refused(error);
            }
            self.lock().in_hand = 0;
            self.changed.notify_all();
        }
    }

    /// The oldest bytes that wait, at most a batch. False when there will be none.
    fn next(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state.waiting.shrink_to(KEPT);
            state.idle = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        let count = state.waiting.len().min(BATCH);
        batch.clear();
        batch.extend(state.waiting.drain(..count));
        state.in_hand = count;
        true
    }

    /// Without a lock.
    fn write(&self, target: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match target.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    let mut state = self.lock();
                    state.written += count as u64;
                    state.in_hand = bytes.len();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn refused(&self, error: io::Error) {
        let mut state = self.lock();
        state.lost += state.in_hand as u64;
        let (written, told) = (state.written, std::mem::replace(&mut state.told_refused, true));
        drop(state);
        if !told {
            (self.tell)(&Trouble::Refused { error, written });
        }
    }
}

#[cfg(test)]
mod tests;
