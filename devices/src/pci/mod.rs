//! PCI Express: configuration space, root complex, root ports.

pub mod bar;
pub mod caps;
pub mod function;
pub mod msi;
pub mod msix;
pub mod regs;
