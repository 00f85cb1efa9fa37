//! The terminal as the guest's serial console: raw while the guest runs, restored on every way out.

use std::{
    io::{self, IsTerminal, stdin},
    sync::Mutex,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was before; `Some` while it is raw. Global because a panic must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Ctrl-A, which starts a command to strait; twice, it goes to the guest.
const ESCAPE: u8 = 0x01;

/// Keeps the terminal raw as long as it lives.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// `None` when standard input is no terminal: nothing to change then.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays cooked: the guest's newlines come with carriage returns, strait's own do not.
        raw.output_modes = before.output_modes;
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        *BEFORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(before);
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back if it is raw. Safe to call at any time, from a panic hook too.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(before) = before {
        // Nothing is left to try when a terminal that was there goes away.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

/// What came of a few typed bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the guest.
    pub(crate) guest: Vec<u8>,
    /// Ctrl-A x was typed: end strait.
    pub(crate) quit: bool,
}

/// Finds `Ctrl-A x` (quit) and `Ctrl-A Ctrl-A` (one Ctrl-A for the guest) in what is typed.
#[derive(Debug, Default)]
pub(crate) struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes what was typed; an escape may be split over two calls.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match (self.escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => {
                    typed.quit = true;
                    self.escaped = false;
                }
                (true, ESCAPE) => {
                    typed.guest.push(ESCAPE);
                    self.escaped = false;
                }
                (true, other) => {
                    typed.guest.extend([ESCAPE, other]);
                    self.escaped = false;
                }
                (false, other) => typed.guest.push(other),
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_split_over_two_reads_quits() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"ls\x01"), Typed { guest: b"ls".to_vec(), quit: false });
        assert_eq!(parser.feed(b"x"), Typed { guest: vec![], quit: true });
    }

    #[test]
    fn escape_twice_reaches_the_guest_once() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"a\x01\x01x"), Typed { guest: b"a\x01x".to_vec(), quit: false });
    }

    #[test]
    fn escape_with_another_key_goes_through_whole() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"\x01c"), Typed { guest: b"\x01c".to_vec(), quit: false });
    }
}
