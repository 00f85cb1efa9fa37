//! The guest's serial console on the host.

mod escape;
mod terminal;

pub(crate) use escape::EscapeParser;
pub(crate) use terminal::{RawTerminal, restore};
