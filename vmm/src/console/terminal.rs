//! The terminal as the guest's serial console: every key counts at once while there is a guest, and all is restored on
//! every way out.

use std::{
    io::{self, IsTerminal, stdin},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was before; `Some` while it is changed. Global because a panic must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal as it is for a guest as long as it lives.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Keys are passed on at once and not shown, but those that make signals still do: a guest that is being started is
    /// ended by Ctrl-C. `None` when standard input is no terminal: nothing to change then.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut changed = before.clone();
        changed.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        *lock() = Some(before);
        let terminal = Self(());
        tcsetattr(stdin(), OptionalActions::Now, &changed)?;
        Ok(Some(terminal))
    }

    /// The keys that make signals are the guest's too.
    pub(crate) fn take_signal_keys(&mut self) -> io::Result<()> {
        let Some(before) = lock().clone() else { return Ok(()) };
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays cooked: the guest's newlines come with carriage returns, strait's own do not.
        raw.output_modes = before.output_modes;
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back if it is changed. Safe to call at any time, from a panic hook too.
pub(super) fn restore() {
    let before = lock().take();
    if let Some(before) = before {
        // Nothing is left to try when a terminal that was there goes away.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

fn lock() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}
