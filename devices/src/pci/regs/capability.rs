//! Capability identifiers (PCI Code and ID Assignment 1.11, 2).

/// Power management.
pub const PM: u8 = 0x01;
/// AGP.
pub const AGP: u8 = 0x02;
/// Vital product data.
pub const VPD: u8 = 0x03;
/// Slot identification.
pub const SLOT_ID: u8 = 0x04;
/// MSI.
pub const MSI: u8 = 0x05;
/// CompactPCI hot swap.
pub const HOT_SWAP: u8 = 0x06;
/// PCI-X.
pub const PCIX: u8 = 0x07;
/// HyperTransport.
pub const HYPERTRANSPORT: u8 = 0x08;
/// Vendor specific; its third byte is its length.
pub const VENDOR: u8 = 0x09;
/// Debug port.
pub const DEBUG_PORT: u8 = 0x0a;
/// CompactPCI resource control.
pub const COMPACT_PCI: u8 = 0x0b;
/// Hot plug controller.
pub const HOT_PLUG: u8 = 0x0c;
/// Subsystem IDs of a bridge.
pub const SSVID: u8 = 0x0d;
/// AGP 8x.
pub const AGP8X: u8 = 0x0e;
/// Secure device.
pub const SECURE: u8 = 0x0f;
/// PCI Express.
pub const PCIE: u8 = 0x10;
/// MSI-X.
pub const MSIX: u8 = 0x11;
/// SATA data and index.
pub const SATA: u8 = 0x12;
/// Advanced features.
pub const ADVANCED_FEATURES: u8 = 0x13;
/// Enhanced allocation: BARs elsewhere than in the header.
pub const ENHANCED_ALLOCATION: u8 = 0x14;
/// Flattening portal bridge.
pub const FLATTENING_PORTAL: u8 = 0x15;
