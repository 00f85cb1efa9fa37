//! PCI Express: configuration space, root complex, root ports.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod access;
mod apertures;
pub mod bar;
pub mod caps;
mod config;
pub mod function;
mod host_bridge;
mod lpc;
pub mod msi;
pub mod msix;
pub mod port;
pub mod regs;
pub mod root;
mod shared;
