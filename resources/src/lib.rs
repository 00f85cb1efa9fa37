//! What there is to give: this host's devices and memory, the guest's addresses and numbers.

pub mod bar;
pub mod bdf;
pub mod civil;
pub mod codes;
pub mod failure;
pub mod host;
pub mod journal;
pub mod names;
pub mod nearest;
pub mod range;
pub mod selector;
pub mod size;
pub mod window;
