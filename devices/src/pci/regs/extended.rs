//! Extended capability identifiers (PCI Code and ID Assignment 1.11, 3).

/// End of the list, or a hidden entry at its head.
pub const NULL: u16 = 0x0000;
/// Advanced error reporting.
pub const AER: u16 = 0x0001;
/// Virtual channel.
pub const VC: u16 = 0x0002;
/// Device serial number.
pub const SERIAL_NUMBER: u16 = 0x0003;
/// Power budgeting.
pub const POWER_BUDGETING: u16 = 0x0004;
/// Root complex link declaration.
pub const RC_LINK: u16 = 0x0005;
/// Root complex internal link control.
pub const RC_INTERNAL_LINK: u16 = 0x0006;
/// Root complex event collector.
pub const RC_EVENT_COLLECTOR: u16 = 0x0007;
/// Multi-function virtual channel.
pub const MFVC: u16 = 0x0008;
/// Virtual channel, the other identifier.
pub const VC9: u16 = 0x0009;
/// Root complex register block.
pub const RCRB: u16 = 0x000a;
/// Vendor specific.
pub const VENDOR: u16 = 0x000b;
/// Access control services.
pub const ACS: u16 = 0x000d;
/// Alternative routing ID.
pub const ARI: u16 = 0x000e;
/// Address translation services.
pub const ATS: u16 = 0x000f;
/// Single-root I/O virtualisation.
pub const SRIOV: u16 = 0x0010;
/// Multi-root I/O virtualisation.
pub const MRIOV: u16 = 0x0011;
/// Multicast.
pub const MULTICAST: u16 = 0x0012;
/// Page request interface.
pub const PRI: u16 = 0x0013;
/// Resizable BAR.
pub const REBAR: u16 = 0x0015;
/// Dynamic power allocation.
pub const DPA: u16 = 0x0016;
/// TLP processing hints requester.
pub const TPH: u16 = 0x0017;
/// Latency tolerance reporting.
pub const LTR: u16 = 0x0018;
/// Secondary PCI Express: lane equalisation at 8 GT/s.
pub const SECONDARY_PCIE: u16 = 0x0019;
/// Protocol multiplexing.
pub const PMUX: u16 = 0x001a;
/// Process address space ID.
pub const PASID: u16 = 0x001b;
/// LN requester.
pub const LN: u16 = 0x001c;
/// Downstream port containment.
pub const DPC: u16 = 0x001d;
/// L1 PM substates.
pub const L1_SUBSTATES: u16 = 0x001e;
/// Precision time measurement.
pub const PTM: u16 = 0x001f;
/// PCI Express over M-PHY.
pub const MPHY: u16 = 0x0020;
/// Function readiness status queueing.
pub const FRS_QUEUEING: u16 = 0x0021;
/// Readiness time reporting.
pub const READINESS_TIME: u16 = 0x0022;
/// Designated vendor specific.
pub const DVSEC: u16 = 0x0023;
/// Resizable BARs of virtual functions.
pub const VF_REBAR: u16 = 0x0024;
/// Data link feature.
pub const DATA_LINK: u16 = 0x0025;
/// Physical layer 16 GT/s.
pub const PHYSICAL_16: u16 = 0x0026;
/// Lane margining at the receiver.
pub const LANE_MARGINING: u16 = 0x0027;
/// Hierarchy ID.
pub const HIERARCHY_ID: u16 = 0x0028;
/// Native PCIe enclosure management.
pub const NPEM: u16 = 0x0029;
/// Physical layer 32 GT/s.
pub const PHYSICAL_32: u16 = 0x002a;
/// Alternate protocol.
pub const ALTERNATE_PROTOCOL: u16 = 0x002b;
/// System firmware intermediary.
pub const SFI: u16 = 0x002c;
/// Shadow functions.
pub const SHADOW_FUNCTIONS: u16 = 0x002d;
/// Data object exchange.
pub const DOE: u16 = 0x002e;
/// Integrity and data encryption.
pub const IDE: u16 = 0x0030;
/// Physical layer 64 GT/s.
pub const PHYSICAL_64: u16 = 0x0031;
/// Flit logging.
pub const FLIT_LOGGING: u16 = 0x0032;
/// Flit performance measurement.
pub const FLIT_PERFORMANCE: u16 = 0x0033;
/// Flit error injection.
pub const FLIT_ERROR_INJECTION: u16 = 0x0034;

/// Advanced error reporting (PCIe 7.8.4); offsets are relative to its first byte, registers have 4 bytes.
pub mod aer {
    /// Bytes, with the registers that only root ports have and the log of TLP prefixes.
    pub const SIZE: u16 = 0x48;
    /// Uncorrectable error status, 1 clears.
    pub const UNCORRECTABLE_STATUS: u16 = 0x04;
    /// Uncorrectable error mask.
    pub const UNCORRECTABLE_MASK: u16 = 0x08;
    /// Uncorrectable error severity: which errors are fatal.
    pub const UNCORRECTABLE_SEVERITY: u16 = 0x0c;
    /// Correctable error status, 1 clears.
    pub const CORRECTABLE_STATUS: u16 = 0x10;
    /// Correctable error mask.
    pub const CORRECTABLE_MASK: u16 = 0x14;
    /// Capabilities and control.
    pub const CONTROL: u16 = 0x18;
    /// Control: ECRC generation enable, ECRC check enable, multiple header recording enable.
    pub const CONTROL_WRITABLE: u32 = 1 << 6 | 1 << 8 | 1 << 10;
    /// What the device has seen last: header log, then registers of root ports, then TLP prefixes.
    pub const LOG: u16 = 0x1c;
}

/// Power budgeting (PCIe 7.8.1).
pub mod power_budgeting {
    /// Bytes.
    pub const SIZE: u16 = 0x10;
    /// Data select, 1 byte: which entry the data register shows.
    pub const DATA_SELECT: u16 = 0x04;
}

/// Access control services (PCIe 7.7.8).
pub mod acs {
    /// Bytes without the egress control vector.
    pub const SIZE: u16 = 0x08;
    /// Capabilities, 2 bytes: egress control in bit 5, the size of its vector in bits in 15:8, where 0 is 256.
    pub const CAPABILITIES: u16 = 0x04;
    /// Capabilities: there is an egress control vector.
    pub const EGRESS_CONTROL: u16 = 1 << 5;
}

/// Resizable BAR, and the same of virtual functions (PCIe 7.8.6, 7.8.7).
pub mod rebar {
    /// First control register, 4 bytes: how many entries of 8 bytes there are in bits 7:5.
    pub const CONTROL: u16 = 0x08;
}

/// Vendor-specific and designated vendor-specific (PCIe 7.9.5, 7.9.6).
pub mod vendor {
    /// Bytes at least: the two headers.
    pub const SIZE: u16 = 0x08;
    /// Second header, 4 bytes: the length in bytes is in bits 31:20.
    pub const HEADER: u16 = 0x04;
}
