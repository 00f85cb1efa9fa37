//! What the guest can touch: PCI, VFIO, the few legacy parts of a PC. Knows nothing of KVM.

pub mod pci;
pub mod ports;
pub mod vfio;
