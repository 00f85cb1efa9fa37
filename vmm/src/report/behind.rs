//! Messages of a strait that has a machine: whoever says something, a vCPU among them, does not wait until standard error
//! takes it.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anstream::AutoStream;

use crate::{console::outlet::Outlet, signals};

/// Bytes of messages that nobody has read yet; the messages after that are counted.
const MOST: usize = 256 << 10;

static WANTED: AtomicBool = AtomicBool::new(false);
/// With the first message; `None` where there is no thread for it.
static OUTLET: OnceLock<Option<Outlet>> = OnceLock::new();

/// From now on nobody waits for standard error.
pub(crate) fn never_wait() {
    WANTED.store(true, Ordering::Relaxed);
}

/// One message, whole, so that those of several threads do not mix. When standard error is gone there is nobody to tell.
pub(super) fn say(text: &str) {
    let outlet = match WANTED.load(Ordering::Relaxed) {
        true => OUTLET.get_or_init(outlet).as_ref(),
        false => None,
    };
    match outlet {
        Some(outlet) => outlet.push_message(&for_standard_error(text)),
        None => drop(anstream::stderr().lock().write_all(text.as_bytes())),
    }
}

/// Waits, though not for long, until what was said has been read.
pub(crate) fn finish() {
    if let Some(Some(outlet)) = OUTLET.get() {
        let before = signals::count();
        outlet.finish(|| signals::count() != before);
    }
}

fn outlet() -> Option<Outlet> {
    let file = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    // There is no other place to tell troubles of this one.
    Outlet::start("log", MOST, Box::new(file), Box::new(|_| ())).ok()
}

/// Without colours where they are not wanted.
fn for_standard_error(text: &str) -> String {
    let mut plain = AutoStream::new(Vec::new(), AutoStream::choice(&io::stderr()));
    // Into memory.
    let _ = plain.write_all(text.as_bytes());
    String::from_utf8_lossy(&plain.into_inner()).into_owned()
}
