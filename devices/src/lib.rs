//! What the guest can touch: PCI, VFIO, the few legacy parts of a PC. Knows nothing of KVM.

pub mod bus;
pub mod legacy;
pub mod pci;
pub mod ports;
pub mod vfio;
