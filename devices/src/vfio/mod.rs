//! One passed-through function, from the kernel's VFIO interface to what the guest sees.

pub mod backend;
pub mod dma;
pub mod ioctl;
pub mod kernel;
