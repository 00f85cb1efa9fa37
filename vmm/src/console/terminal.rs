//! The terminal as the guest's serial console: raw while the guest runs, restored on every way out.

use std::{
    io::{self, IsTerminal, stdin},
    sync::Mutex,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was before; `Some` while it is raw. Global because a panic must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

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
