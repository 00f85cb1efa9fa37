//! The Linux host, read through a [`Sysroot`] and never changed.

pub mod check;
pub mod cpu;
pub mod driver;
#[cfg(test)]
pub(crate) mod fixture;
pub mod holders;
pub mod inventory;
pub mod iommu;
pub mod memory;
pub mod pci;
pub mod rom;
pub mod sysroot;

pub use sysroot::Sysroot;
