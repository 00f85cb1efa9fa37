//! One passed-through function, from the kernel's VFIO interface to what the guest sees.

pub mod attach;
pub mod backend;
pub mod bars;
pub mod dma;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fake;
pub mod function;
pub mod hot_reset;
pub mod ioctl;
mod irqs;
pub mod kernel;
pub mod life;
pub mod policy;
pub mod rom;
mod vectors;
