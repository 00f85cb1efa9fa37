//! The Linux host, read through a [`sysroot::Sysroot`] and never changed.

pub mod cpu;
#[cfg(test)]
pub(crate) mod fixture;
pub mod pci;
pub mod sysroot;
