//! What the lab is doing: one line rewritten on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Is a rewritable line on the terminal right now?
static OPEN_LINE: AtomicBool = AtomicBool::new(false);

/// A step under way. Dropping it ends its line.
pub(crate) struct Progress {
    what: String,
    since: Instant,
    shown: Duration,
    terminal: bool,
}

impl Progress {
    /// Says what begins now.
    pub(crate) fn start(what: impl Into<String>) -> Self {
        let this = Self {
            what: what.into(),
            since: Instant::now(),
            shown: Duration::ZERO,
            terminal: stderr().is_terminal(),
        };
        if this.terminal {
            this.draw("");
        } else {
            eprintln!("lab: {}", this.what);
        }
        this
    }

    /// Refreshes the line; cheap enough to call in every turn of a waiting loop.
    pub(crate) fn tick(&mut self, note: &str) {
        let elapsed = self.since.elapsed();
        if self.terminal && elapsed.saturating_sub(self.shown) >= Duration::from_millis(250) {
            self.shown = elapsed;
            self.draw(note);
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    fn draw(&self, note: &str) {
        eprint!("\r\x1b[Klab: {} ({:.0} s) {note}", self.what, self.seconds());
        OPEN_LINE.store(true, Ordering::Relaxed);
        // A terminal that cannot be written to has nobody watching it.
        drop(stderr().flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        clear_line();
    }
}

/// A line that stays.
pub(crate) fn say(line: impl AsRef<str>) {
    clear_line();
    eprintln!("lab: {}", line.as_ref());
}

/// A result line that stays, on standard output.
pub(crate) fn result(line: impl AsRef<str>) {
    clear_line();
    println!("{}", line.as_ref());
}

fn clear_line() {
    if OPEN_LINE.swap(false, Ordering::Relaxed) {
        eprint!("\r\x1b[K");
    }
}
