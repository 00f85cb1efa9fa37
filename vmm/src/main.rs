//! strait: a KVM monitor that hands whole PCI devices to a guest.
fn main() {}
