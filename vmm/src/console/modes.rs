//! Modes that a guest's output leaves a terminal in, and the way out of them.
//!
//! A guest that ends amid an editor leaves the alternate screen, a hidden cursor, a mouse that types. Who has printed no
//! control sequence has set no mode, and gets none either: a log of a terminal stays as the guest wrote it.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Ends a sequence that the guest did not (CAN). Then: the cursor kept (DECSC) over the way out of the alternate screen,
/// which restores one; no mouse, no focus events, no bracketed paste; cursor keys and keypad as usual.
const LEAVE: &str =
    "\x18\x1b7\x1b[?1049l\x1b[?1000;1002;1003;1004;1005;1006;1015l\x1b[?2004l\x1b[?1l\x1b>";
/// The terminal's own soft reset (DECSTR: margins, origin, insert mode, character sets). It turns automatic wrap off on
/// terminals that follow DEC to the letter.
const SOFT: &str = "\x1b[!p\x1b[?7h";
/// Instead of that on Linux's console, which prints the p where the kernel is older: margins, the cursor kept; insert mode;
/// automatic wrap.
const SOFT_LINUX: &str = "\x1b7\x1b[r\x1b8\x1b[4l\x1b[?7h";
/// Character sets, colours and attributes (SGR 0), the cursor shown.
const PLAIN: &str = "\x0f\x1b(B\x1b[0m\x1b[?25h";

/// The guest has written to a terminal what may have set a mode. Global because a panic must find it.
static MAY_BE_SET: AtomicBool = AtomicBool::new(false);
/// A terminal that takes nothing for so long is left as it is.
const LIMIT: Duration = Duration::from_millis(200);

/// Is standard output a terminal that has modes?
pub(super) fn matter() -> bool {
    io::stdout().is_terminal() && way_out(&term()).is_some()
}

/// What the guest prints on its way to a terminal with modes.
pub(super) struct Watched<W>(pub(super) W);

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.iter().any(|byte| sets_modes(*byte)) {
            MAY_BE_SET.store(true, Ordering::Relaxed);
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What puts the terminal right, once, if the guest may have changed it.
pub(super) fn undo() -> Option<String> {
    MAY_BE_SET.swap(false, Ordering::Relaxed).then(|| way_out(&term())).flatten()
}

/// The same, written at once: for a panic, which does not wait for a terminal that takes nothing.
pub(super) fn undo_now() {
    let Some(way_out) = undo() else { return };
    let (done, is_done) = mpsc::channel();
    let write = move || {
        // Nothing is left to try.
        let _ = io::stdout().write_all(way_out.as_bytes()).and_then(|()| io::stdout().flush());
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = is_done.recv_timeout(LIMIT);
    }
}

fn term() -> String {
    env::var("TERM").unwrap_or_default()
}

/// For a terminal of this type; `None` for one that has no modes.
fn way_out(term: &str) -> Option<String> {
    match term {
        "" | "dumb" => None,
        "linux" => Some([LEAVE, SOFT_LINUX, PLAIN].concat()),
        _ => Some([LEAVE, SOFT, PLAIN].concat()),
    }
}

/// Does it begin a control sequence, or choose a character set? ESC, SO, and the 8-bit controls (ECMA-48, 8).
fn sets_modes(byte: u8) -> bool {
    matches!(byte, 0x1b | 0x0e | 0x80..=0x9f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_sets_no_mode_and_controls_may() {
        assert!(!b"\r\n\tLinux version 6.12\x08 \x07".iter().any(|byte| sets_modes(*byte)));
        for byte in [0x1b, 0x0e, 0x9b, 0x90] {
            assert!(sets_modes(byte), "{byte:#x}");
        }
    }

    #[test]
    fn way_out_is_in_the_words_of_the_terminal() {
        assert_eq!((way_out(""), way_out("dumb")), (None, None));
        let xterm = way_out("xterm-256color").unwrap();
        // The cursor must not be restored to where nobody saved it.
        assert!(xterm.find("\x1b7").unwrap() < xterm.find("\x1b[?1049l").unwrap());
        // What soft reset turns off comes behind it.
        assert!(xterm.find("\x1b[!p").unwrap() < xterm.find("\x1b[?7h").unwrap());
        assert!(xterm.ends_with("\x1b[0m\x1b[?25h"));
        assert!(!way_out("linux").unwrap().contains("!p"));
    }
}
