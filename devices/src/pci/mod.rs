//! PCI Express: configuration space, root complex, root ports.

pub mod function;
pub mod regs;
