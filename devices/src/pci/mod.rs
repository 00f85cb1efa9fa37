//! PCI Express: configuration space, root complex, root ports.

pub mod function;
