//! What a running strait tells of itself: one line of JSON to whoever connects to its socket.
//!
//! - `guest`: the line; what the monitor knows and nobody outside can see.
//! - `socket`: /run/strait/vm/PID-START.sock, made by a run and found by `strait inspect`.
//! - `facts`: the same with what the host's kernel knows; `verdict`: what follows from both.

pub(crate) mod facts;
pub(crate) mod guest;
pub(crate) mod socket;
pub(crate) mod verdict;
