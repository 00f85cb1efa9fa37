//! The Linux host, read through a [`Sysroot`] and never changed.

pub mod aer;
pub mod atomics;
pub mod capabilities;
pub mod cgroup;
pub mod check;
pub mod cpu;
pub mod doctor;
pub mod driver;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod framebuffer;
pub mod holders;
pub mod interrupts;
pub mod inventory;
pub mod iommu;
pub mod kernel_log;
pub mod kernels;
pub mod memory;
pub mod needs;
pub mod pci;
pub mod reset;
pub mod rom;
pub mod smt;
pub mod sysroot;
pub mod trouble;

pub use sysroot::Sysroot;
