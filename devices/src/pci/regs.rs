//! Constants of the PCI specifications, and nothing of any vendor.
//!
//! "PCI" is PCI Local Bus 3.0, "Bridge" PCI-to-PCI Bridge Architecture 1.2, "PCIe" PCI Express Base 5.0, "PM"
//! PCI Bus Power Management 1.2. Offsets are in bytes; those of a capability are relative to its first byte.

/// Bytes of configuration space that conventional PCI knows (PCI 6.1).
pub const CONVENTIONAL_SIZE: u16 = 0x100;
/// Bytes of configuration space of a PCIe function (PCIe 7.2.2).
pub const CONFIG_SIZE: u16 = 0x1000;
/// The first extended capability (PCIe 7.6.1).
pub const EXTENDED_START: u16 = 0x100;
/// The header's end: no capability lies below (PCI 6.7).
pub const HEADER_SIZE: u16 = 0x40;
/// More capabilities than this cannot fit between 0x40 and 0xff: the bound of a walk.
pub const MAX_CAPABILITIES: usize = 48;
/// More extended capabilities than this cannot fit between 0x100 and 0xfff: the bound of a walk.
pub const MAX_EXTENDED_CAPABILITIES: usize = 480;

// The header, both types (PCI 6.1, 6.2).

/// Vendor ID, 2 bytes; 0xffff is no function.
pub const VENDOR_ID: u16 = 0x00;
/// Device ID, 2 bytes.
pub const DEVICE_ID: u16 = 0x02;
/// Command, 2 bytes (PCI 6.2.2).
pub const COMMAND: u16 = 0x04;
/// Status, 2 bytes (PCI 6.2.3).
pub const STATUS: u16 = 0x06;
/// Revision ID, 1 byte.
pub const REVISION_ID: u16 = 0x08;
/// Programming interface, 1 byte; the lowest of the class code's three.
pub const PROG_IF: u16 = 0x09;
/// Sub-class, 1 byte.
pub const SUBCLASS: u16 = 0x0a;
/// Base class, 1 byte.
pub const BASE_CLASS: u16 = 0x0b;
/// Cache line size, 1 byte, read-write for software, without effect on PCIe (PCIe 7.5.1.1.7).
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Latency timer, 1 byte, 0 on PCIe (PCIe 7.5.1.1.8).
pub const LATENCY_TIMER: u16 = 0x0d;
/// Header type, 1 byte.
pub const HEADER_TYPE: u16 = 0x0e;
/// Built-in self test, 1 byte.
pub const BIST: u16 = 0x0f;
/// First base address register, 4 bytes each: six in a type 0 header, two in a type 1 header (PCI 6.2.5).
pub const BAR0: u16 = 0x10;
/// Pointer to the first capability, 1 byte (PCI 6.7).
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line, 1 byte, software's scratch.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 1 byte: 0 none, 1 INTA to 4 INTD.
pub const INTERRUPT_PIN: u16 = 0x3d;

// Type 0 only.

/// CardBus CIS pointer, 4 bytes.
pub const CARDBUS_CIS: u16 = 0x28;
/// Subsystem vendor ID, 2 bytes.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem ID, 2 bytes.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Expansion ROM base address, 4 bytes (PCI 6.2.5.2).
pub const ROM_BAR: u16 = 0x30;
/// Min_Gnt, 1 byte.
pub const MIN_GNT: u16 = 0x3e;
/// Max_Lat, 1 byte.
pub const MAX_LAT: u16 = 0x3f;

// Type 1 only (Bridge 3.2.5).

/// Primary bus number, 1 byte.
pub const PRIMARY_BUS: u16 = 0x18;
/// Secondary bus number, 1 byte.
pub const SECONDARY_BUS: u16 = 0x19;
/// Subordinate bus number, 1 byte.
pub const SUBORDINATE_BUS: u16 = 0x1a;
/// Secondary latency timer, 1 byte, 0 on PCIe.
pub const SECONDARY_LATENCY: u16 = 0x1b;
/// I/O base, 1 byte: address bits 15:12 in 7:4, width in 3:0.
pub const IO_BASE: u16 = 0x1c;
/// I/O limit, 1 byte.
pub const IO_LIMIT: u16 = 0x1d;
/// Low nibble of `IO_BASE` and `IO_LIMIT`: the upper registers exist (32-bit decode).
pub const IO_DECODE_32: u8 = 0x01;
/// Secondary status, 2 bytes.
pub const SECONDARY_STATUS: u16 = 0x1e;
/// Memory base, 2 bytes: address bits 31:20 in 15:4.
pub const MEMORY_BASE: u16 = 0x20;
/// Memory limit, 2 bytes.
pub const MEMORY_LIMIT: u16 = 0x22;
/// Prefetchable memory base, 2 bytes: address bits 31:20 in 15:4, width in 3:0.
pub const PREFETCHABLE_BASE: u16 = 0x24;
/// Prefetchable memory limit, 2 bytes.
pub const PREFETCHABLE_LIMIT: u16 = 0x26;
/// Low nibble of the prefetchable registers: the upper halves exist.
pub const PREFETCHABLE_DECODE_64: u16 = 0x0001;
/// Upper 32 bits of the prefetchable base.
pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
/// Upper 32 bits of the prefetchable limit.
pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
/// Upper 16 bits of the I/O base.
pub const IO_BASE_UPPER: u16 = 0x30;
/// Upper 16 bits of the I/O limit.
pub const IO_LIMIT_UPPER: u16 = 0x32;
/// Expansion ROM of a bridge, 4 bytes.
pub const BRIDGE_ROM_BAR: u16 = 0x38;
/// Bridge control, 2 bytes (Bridge 3.2.5.18).
pub const BRIDGE_CONTROL: u16 = 0x3e;

// Command (PCI 6.2.2, PCIe 7.5.1.1.3).

/// Decode I/O BARs.
pub const COMMAND_IO: u16 = 1 << 0;
/// Decode memory BARs (MSE).
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// May issue memory requests, MSI among them (BME).
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Special cycles; 0 on PCIe.
pub const COMMAND_SPECIAL: u16 = 1 << 3;
/// Memory write and invalidate; 0 on PCIe.
pub const COMMAND_INVALIDATE: u16 = 1 << 4;
/// VGA palette snoop; 0 on PCIe.
pub const COMMAND_VGA_SNOOP: u16 = 1 << 5;
/// Parity error response.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// SERR# enable.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Fast back-to-back; 0 on PCIe.
pub const COMMAND_FAST_BACK: u16 = 1 << 9;
/// No INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

// Status (PCI 6.2.3, PCIe 7.5.1.1.4).

/// INTx is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// There is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Master data parity error, 1 clears.
pub const STATUS_MASTER_PARITY: u16 = 1 << 8;
/// Signalled target abort, 1 clears.
pub const STATUS_SIGNALLED_TARGET_ABORT: u16 = 1 << 11;
/// Received target abort, 1 clears.
pub const STATUS_RECEIVED_TARGET_ABORT: u16 = 1 << 12;
/// Received master abort, 1 clears.
pub const STATUS_RECEIVED_MASTER_ABORT: u16 = 1 << 13;
/// Signalled system error, 1 clears.
pub const STATUS_SIGNALLED_ERROR: u16 = 1 << 14;
/// Detected parity error, 1 clears.
pub const STATUS_PARITY: u16 = 1 << 15;
/// Every bit of Status that writing 1 clears.
pub const STATUS_CLEARABLE: u16 = STATUS_MASTER_PARITY
    | STATUS_SIGNALLED_TARGET_ABORT
    | STATUS_RECEIVED_TARGET_ABORT
    | STATUS_RECEIVED_MASTER_ABORT
    | STATUS_SIGNALLED_ERROR
    | STATUS_PARITY;

// Header type (PCI 6.2.1).

/// The layout without the multi-function bit.
pub const HEADER_LAYOUT: u8 = 0x7f;
/// An ordinary function.
pub const HEADER_TYPE_0: u8 = 0x00;
/// A PCI-to-PCI bridge.
pub const HEADER_TYPE_1: u8 = 0x01;
/// There are functions beside function 0.
pub const HEADER_MULTI_FUNCTION: u8 = 0x80;

// Base address registers (PCI 6.2.5.1).

/// Bytes of one BAR register.
pub const BAR_SIZE: u16 = 4;
/// I/O, not memory.
pub const BAR_IO: u32 = 1 << 0;
/// Address bits of an I/O BAR.
pub const BAR_IO_MASK: u32 = !0x3;
/// Memory type field: 0 is 32 bit.
pub const BAR_MEMORY_TYPE: u32 = 0x6;
/// Memory type: 64 bit, the next register holds the upper half.
pub const BAR_MEMORY_64: u32 = 0x4;
/// Reads have no side effect.
pub const BAR_PREFETCHABLE: u32 = 1 << 3;
/// Address bits of a memory BAR.
pub const BAR_MEMORY_MASK: u32 = !0xf;
/// The ROM decodes, if Command lets memory decode (PCI 6.2.5.2).
pub const ROM_ENABLE: u32 = 1 << 0;
/// Address bits of a ROM BAR.
pub const ROM_MASK: u32 = !0x7ff;

// Bridge control (Bridge 3.2.5.18, PCIe 7.5.1.3.13).

/// Parity error response on the secondary side.
pub const BRIDGE_CONTROL_PARITY: u16 = 1 << 0;
/// Forward SERR#.
pub const BRIDGE_CONTROL_SERR: u16 = 1 << 1;
/// Do not forward ISA I/O.
pub const BRIDGE_CONTROL_ISA: u16 = 1 << 2;
/// Forward VGA's legacy ranges.
pub const BRIDGE_CONTROL_VGA: u16 = 1 << 3;
/// VGA with 16-bit decode.
pub const BRIDGE_CONTROL_VGA_16: u16 = 1 << 4;
/// While set, hot reset on the secondary bus.
pub const BRIDGE_CONTROL_RESET: u16 = 1 << 6;

// Class codes (PCI Code and ID Assignment 1.11), base class << 8 | sub-class.

/// Display controller's base class.
pub const CLASS_DISPLAY: u8 = 0x03;
/// Host bridge.
pub const CLASS_HOST_BRIDGE: u16 = 0x0600;
/// ISA bridge.
pub const CLASS_ISA_BRIDGE: u16 = 0x0601;
/// PCI-to-PCI bridge.
pub const CLASS_PCI_BRIDGE: u16 = 0x0604;

/// Capability identifiers (PCI Code and ID Assignment 1.11, 2).
pub mod capability {
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
}

/// Extended capability identifiers (PCI Code and ID Assignment 1.11, 3).
pub mod extended {
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
}

/// Power management capability (PM 3.2).
pub mod pm {
    /// Bytes.
    pub const SIZE: u16 = 8;
    /// Power management capabilities, 2 bytes.
    pub const CAPABILITIES: u16 = 0x02;
    /// Control and status, 2 bytes.
    pub const CONTROL: u16 = 0x04;
    /// Bridge extensions, 1 byte.
    pub const BRIDGE: u16 = 0x06;
    /// Data, 1 byte.
    pub const DATA: u16 = 0x07;
    /// Capabilities: version 3 in bits 2:0 (PM 1.2).
    pub const VERSION_3: u16 = 0x3;
    /// Capabilities: PME# from D0, D1, D2, D3hot, D3cold in bits 15:11.
    pub const CAPABILITIES_PME: u16 = 0xf800;
    /// Control: power state.
    pub const CONTROL_STATE: u16 = 0x3;
    /// Control: D3hot.
    pub const STATE_D3HOT: u16 = 0x3;
    /// Control: D3hot to D0 keeps the context, no soft reset.
    pub const CONTROL_NO_SOFT_RESET: u16 = 1 << 3;
    /// Control: PME# enable.
    pub const CONTROL_PME_ENABLE: u16 = 1 << 8;
    /// Control: data select.
    pub const CONTROL_DATA_SELECT: u16 = 0x1e00;
    /// Control: PME# status, 1 clears.
    pub const CONTROL_PME_STATUS: u16 = 1 << 15;
}

/// MSI capability (PCI 6.8.1, PCIe 7.7.1).
pub mod msi {
    /// Message control, 2 bytes.
    pub const CONTROL: u16 = 0x02;
    /// Message address, 4 bytes, bits 1:0 are 0.
    pub const ADDRESS: u16 = 0x04;
    /// Upper half of the address, with 64-bit addresses only.
    pub const ADDRESS_UPPER: u16 = 0x08;
    /// Message data, 2 bytes, with 32-bit addresses.
    pub const DATA_32: u16 = 0x08;
    /// Message data, 2 bytes, with 64-bit addresses.
    pub const DATA_64: u16 = 0x0c;
    /// Mask bits, 4 bytes, with 32-bit addresses.
    pub const MASK_32: u16 = 0x0c;
    /// Mask bits, 4 bytes, with 64-bit addresses.
    pub const MASK_64: u16 = 0x10;
    /// Pending bits, 4 bytes, with 32-bit addresses.
    pub const PENDING_32: u16 = 0x10;
    /// Pending bits, 4 bytes, with 64-bit addresses.
    pub const PENDING_64: u16 = 0x14;
    /// Control: enable.
    pub const CONTROL_ENABLE: u16 = 1 << 0;
    /// Control: log2 of the vectors the function can use, bits 3:1.
    pub const CONTROL_CAPABLE: u16 = 0x7 << 1;
    /// Shift of `CONTROL_CAPABLE`.
    pub const CONTROL_CAPABLE_SHIFT: u16 = 1;
    /// Control: log2 of the vectors software grants, bits 6:4.
    pub const CONTROL_ENABLED: u16 = 0x7 << 4;
    /// Shift of `CONTROL_ENABLED`.
    pub const CONTROL_ENABLED_SHIFT: u16 = 4;
    /// Control: 64-bit addresses.
    pub const CONTROL_64: u16 = 1 << 7;
    /// Control: mask and pending bits exist.
    pub const CONTROL_MASKABLE: u16 = 1 << 8;
    /// Control: extended message data capable.
    pub const CONTROL_EXTENDED_DATA: u16 = 1 << 9;
    /// Control: extended message data enable.
    pub const CONTROL_EXTENDED_DATA_ENABLE: u16 = 1 << 10;
    /// log2 of the most vectors the field may name: 32.
    pub const MAX_LOG2: u16 = 5;

    /// Bytes of the capability with this message control.
    pub const fn size(control: u16) -> u16 {
        match (control & CONTROL_64 != 0, control & CONTROL_MASKABLE != 0) {
            (false, false) => 0x0a,
            (true, false) => 0x0e,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }
}

/// MSI-X capability and table (PCI 6.8.2, PCIe 7.7.2).
pub mod msix {
    /// Bytes of the capability.
    pub const SIZE: u16 = 0x0c;
    /// Message control, 2 bytes.
    pub const CONTROL: u16 = 0x02;
    /// Table offset and BAR, 4 bytes.
    pub const TABLE: u16 = 0x04;
    /// Pending bit array offset and BAR, 4 bytes.
    pub const PBA: u16 = 0x08;
    /// Control: vectors minus one, bits 10:0.
    pub const CONTROL_TABLE_SIZE: u16 = 0x7ff;
    /// Control: every vector is masked.
    pub const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
    /// Control: enable.
    pub const CONTROL_ENABLE: u16 = 1 << 15;
    /// `TABLE`, `PBA`: which BAR.
    pub const BAR: u32 = 0x7;
    /// `TABLE`, `PBA`: offset in the BAR, a multiple of 8.
    pub const OFFSET: u32 = !0x7;
    /// Bytes of a table entry.
    pub const ENTRY_SIZE: u64 = 16;
    /// In an entry: address, lower half.
    pub const ENTRY_ADDRESS: u64 = 0;
    /// In an entry: address, upper half.
    pub const ENTRY_ADDRESS_UPPER: u64 = 4;
    /// In an entry: data.
    pub const ENTRY_DATA: u64 = 8;
    /// In an entry: vector control.
    pub const ENTRY_CONTROL: u64 = 12;
    /// Vector control: masked.
    pub const ENTRY_MASKED: u32 = 1 << 0;
}

/// Vital product data capability (PCI appendix I).
pub mod vpd {
    /// Bytes.
    pub const SIZE: u16 = 8;
    /// Address, 2 bytes.
    pub const ADDRESS: u16 = 0x02;
    /// Address: the transfer is complete (read) or to be done (write).
    pub const ADDRESS_FLAG: u16 = 1 << 15;
    /// Data, 4 bytes.
    pub const DATA: u16 = 0x04;
}

/// Subsystem IDs of a bridge (Bridge 1.2, 3.2.5: capability 0x0d).
pub mod ssvid {
    /// Bytes.
    pub const SIZE: u16 = 8;
    /// Subsystem vendor ID, 2 bytes.
    pub const VENDOR: u16 = 0x04;
    /// Subsystem ID, 2 bytes.
    pub const DEVICE: u16 = 0x06;
}

/// Advanced features capability (PCI AF ECN): FLR for conventional PCI.
pub mod af {
    /// Bytes.
    pub const SIZE: u16 = 6;
    /// Capabilities, 1 byte.
    pub const CAPABILITIES: u16 = 0x03;
    /// Capabilities: transactions pending.
    pub const CAPABILITIES_TP: u8 = 1 << 0;
    /// Capabilities: FLR.
    pub const CAPABILITIES_FLR: u8 = 1 << 1;
    /// Control, 1 byte.
    pub const CONTROL: u16 = 0x04;
    /// Control: initiate FLR.
    pub const CONTROL_FLR: u8 = 1 << 0;
}

/// PCI Express capability (PCIe 7.5.3).
pub mod pcie {
    /// Bytes of a version 2 structure.
    pub const SIZE: u16 = 0x3c;
    /// Bytes of a version 1 endpoint's structure.
    pub const SIZE_V1_ENDPOINT: u16 = 0x14;
    /// PCI Express capabilities, 2 bytes (7.5.3.2).
    pub const CAPABILITIES: u16 = 0x02;
    /// Capabilities: structure version.
    pub const CAPABILITIES_VERSION: u16 = 0x000f;
    /// Capabilities: device/port type.
    pub const CAPABILITIES_TYPE: u16 = 0x00f0;
    /// Shift of `CAPABILITIES_TYPE`.
    pub const CAPABILITIES_TYPE_SHIFT: u16 = 4;
    /// Type: endpoint.
    pub const TYPE_ENDPOINT: u16 = 0x0;
    /// Type: legacy endpoint.
    pub const TYPE_LEGACY_ENDPOINT: u16 = 0x1;
    /// Type: root port.
    pub const TYPE_ROOT_PORT: u16 = 0x4;
    /// Type: upstream port of a switch.
    pub const TYPE_UPSTREAM: u16 = 0x5;
    /// Type: downstream port of a switch.
    pub const TYPE_DOWNSTREAM: u16 = 0x6;
    /// Type: PCIe to PCI bridge.
    pub const TYPE_PCI_BRIDGE: u16 = 0x7;
    /// Type: PCI to PCIe bridge.
    pub const TYPE_PCIE_BRIDGE: u16 = 0x8;
    /// Type: root complex integrated endpoint.
    pub const TYPE_RC_ENDPOINT: u16 = 0x9;
    /// Type: root complex event collector.
    pub const TYPE_RC_EVENT_COLLECTOR: u16 = 0xa;
    /// Capabilities: the port leads to a slot.
    pub const CAPABILITIES_SLOT: u16 = 1 << 8;
    /// Capabilities: MSI vector of the port's own events.
    pub const CAPABILITIES_MESSAGE: u16 = 0x1f << 9;

    /// Device capabilities, 4 bytes (7.5.3.3).
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// Device capabilities: Max_Payload_Size supported, 128 << n bytes.
    pub const DEVICE_CAPABILITIES_PAYLOAD: u32 = 0x7;
    /// Device capabilities: phantom functions.
    pub const DEVICE_CAPABILITIES_PHANTOM: u32 = 0x3 << 3;
    /// Device capabilities: 8-bit tags.
    pub const DEVICE_CAPABILITIES_EXTENDED_TAG: u32 = 1 << 5;
    /// Device capabilities: role-based error reporting, 1 since PCIe 1.1.
    pub const DEVICE_CAPABILITIES_ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// Device capabilities: function level reset.
    pub const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
    /// Device control, 2 bytes (7.5.3.4).
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// Device control: reporting of the four error kinds.
    pub const DEVICE_CONTROL_ERRORS: u16 = 0xf;
    /// Device control: relaxed ordering.
    pub const DEVICE_CONTROL_RELAXED: u16 = 1 << 4;
    /// Device control: Max_Payload_Size.
    pub const DEVICE_CONTROL_PAYLOAD: u16 = 0x7 << 5;
    /// Device control: 8-bit tags.
    pub const DEVICE_CONTROL_EXTENDED_TAG: u16 = 1 << 8;
    /// Device control: phantom functions.
    pub const DEVICE_CONTROL_PHANTOM: u16 = 1 << 9;
    /// Device control: auxiliary power.
    pub const DEVICE_CONTROL_AUX: u16 = 1 << 10;
    /// Device control: no snoop.
    pub const DEVICE_CONTROL_NO_SNOOP: u16 = 1 << 11;
    /// Device control: Max_Read_Request_Size.
    pub const DEVICE_CONTROL_READ_REQUEST: u16 = 0x7 << 12;
    /// Device control: initiate FLR, on functions that can.
    pub const DEVICE_CONTROL_FLR: u16 = 1 << 15;
    /// Device status, 2 bytes (7.5.3.5).
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// Device status: what writing 1 clears.
    pub const DEVICE_STATUS_CLEARABLE: u16 = 0xf;
    /// Device status: transactions pending.
    pub const DEVICE_STATUS_PENDING: u16 = 1 << 5;

    /// Link capabilities, 4 bytes (7.5.3.6).
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// Link capabilities: largest speed, as an index into link capabilities 2's vector: 1 is 2.5 GT/s.
    pub const LINK_CAPABILITIES_SPEED: u32 = 0xf;
    /// Link capabilities: largest width.
    pub const LINK_CAPABILITIES_WIDTH: u32 = 0x3f << 4;
    /// Shift of `LINK_CAPABILITIES_WIDTH`.
    pub const LINK_CAPABILITIES_WIDTH_SHIFT: u32 = 4;
    /// Link capabilities: ASPM support.
    pub const LINK_CAPABILITIES_ASPM: u32 = 0x3 << 10;
    /// Link capabilities: clock power management.
    pub const LINK_CAPABILITIES_CLOCK_PM: u32 = 1 << 18;
    /// Link capabilities: data link layer active is reported.
    pub const LINK_CAPABILITIES_DLL_ACTIVE: u32 = 1 << 20;
    /// Link capabilities: bandwidth notification.
    pub const LINK_CAPABILITIES_BANDWIDTH: u32 = 1 << 21;
    /// Link capabilities: ASPM optionality compliance, 1 on everything new.
    pub const LINK_CAPABILITIES_ASPM_OPTIONAL: u32 = 1 << 22;
    /// Link capabilities: port number.
    pub const LINK_CAPABILITIES_PORT_SHIFT: u32 = 24;
    /// Link control, 2 bytes (7.5.3.7).
    pub const LINK_CONTROL: u16 = 0x10;
    /// Link control: ASPM.
    pub const LINK_CONTROL_ASPM: u16 = 0x3;
    /// Link control: link disable.
    pub const LINK_CONTROL_DISABLE: u16 = 1 << 4;
    /// Link control: retrain; reads 0.
    pub const LINK_CONTROL_RETRAIN: u16 = 1 << 5;
    /// Link control: common clock.
    pub const LINK_CONTROL_COMMON_CLOCK: u16 = 1 << 6;
    /// Link control: extended synch.
    pub const LINK_CONTROL_EXTENDED_SYNCH: u16 = 1 << 7;
    /// Link control: clock power management.
    pub const LINK_CONTROL_CLOCK_PM: u16 = 1 << 8;
    /// Link status, 2 bytes (7.5.3.8).
    pub const LINK_STATUS: u16 = 0x12;
    /// Link status: speed.
    pub const LINK_STATUS_SPEED: u16 = 0xf;
    /// Link status: negotiated width.
    pub const LINK_STATUS_WIDTH: u16 = 0x3f << 4;
    /// Shift of `LINK_STATUS_WIDTH`.
    pub const LINK_STATUS_WIDTH_SHIFT: u16 = 4;
    /// Link status: training.
    pub const LINK_STATUS_TRAINING: u16 = 1 << 11;
    /// Link status: slot clock.
    pub const LINK_STATUS_SLOT_CLOCK: u16 = 1 << 12;
    /// Link status: data link layer active.
    pub const LINK_STATUS_DLL_ACTIVE: u16 = 1 << 13;
    /// Link status: bandwidth management and autonomous bandwidth, 1 clears.
    pub const LINK_STATUS_CLEARABLE: u16 = 0x3 << 14;

    /// Slot capabilities, 4 bytes (7.5.3.9).
    pub const SLOT_CAPABILITIES: u16 = 0x14;
    /// Slot capabilities: physical slot number.
    pub const SLOT_CAPABILITIES_NUMBER_SHIFT: u32 = 19;
    /// Slot capabilities: no command completed interrupt.
    pub const SLOT_CAPABILITIES_NO_COMPLETION: u32 = 1 << 18;
    /// Slot control, 2 bytes (7.5.3.10).
    pub const SLOT_CONTROL: u16 = 0x18;
    /// Slot status, 2 bytes (7.5.3.11).
    pub const SLOT_STATUS: u16 = 0x1a;
    /// Slot status: what writing 1 clears.
    pub const SLOT_STATUS_CLEARABLE: u16 = 0x11f;
    /// Slot status: a card is present.
    pub const SLOT_STATUS_PRESENT: u16 = 1 << 6;

    /// Root control, 2 bytes (7.5.3.12).
    pub const ROOT_CONTROL: u16 = 0x1c;
    /// Root control: every writable bit but CRS visibility.
    pub const ROOT_CONTROL_WRITABLE: u16 = 0xf;
    /// Root capabilities, 2 bytes (7.5.3.13).
    pub const ROOT_CAPABILITIES: u16 = 0x1e;
    /// Root status, 4 bytes (7.5.3.14).
    pub const ROOT_STATUS: u16 = 0x20;
    /// Root status: PME status, 1 clears.
    pub const ROOT_STATUS_PME: u32 = 1 << 16;

    /// Device capabilities 2, 4 bytes (7.5.3.15).
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// Device capabilities 2: completion timeout ranges.
    pub const DEVICE_CAPABILITIES_2_TIMEOUT_RANGES: u32 = 0xf;
    /// Device capabilities 2: completion timeout disable.
    pub const DEVICE_CAPABILITIES_2_TIMEOUT_DISABLE: u32 = 1 << 4;
    /// Device capabilities 2: ARI forwarding.
    pub const DEVICE_CAPABILITIES_2_ARI: u32 = 1 << 5;
    /// Device capabilities 2: atomic routing, 32, 64 and 128-bit completer.
    pub const DEVICE_CAPABILITIES_2_ATOMICS: u32 = 0xf << 6;
    /// Device capabilities 2: LTR.
    pub const DEVICE_CAPABILITIES_2_LTR: u32 = 1 << 11;
    /// Device capabilities 2: 10-bit tags, completer and requester.
    pub const DEVICE_CAPABILITIES_2_TAGS_10: u32 = 0x3 << 16;
    /// Device capabilities 2: OBFF.
    pub const DEVICE_CAPABILITIES_2_OBFF: u32 = 0x3 << 18;
    /// Device control 2, 2 bytes (7.5.3.16).
    pub const DEVICE_CONTROL_2: u16 = 0x28;
    /// Device control 2: completion timeout value.
    pub const DEVICE_CONTROL_2_TIMEOUT: u16 = 0xf;
    /// Device control 2: completion timeout disable.
    pub const DEVICE_CONTROL_2_TIMEOUT_DISABLE: u16 = 1 << 4;
    /// Device control 2: ARI forwarding.
    pub const DEVICE_CONTROL_2_ARI: u16 = 1 << 5;
    /// Device control 2: atomic requester.
    pub const DEVICE_CONTROL_2_ATOMIC_REQUESTER: u16 = 1 << 6;
    /// Device control 2: LTR.
    pub const DEVICE_CONTROL_2_LTR: u16 = 1 << 10;
    /// Device control 2: 10-bit tags requester.
    pub const DEVICE_CONTROL_2_TAGS_10: u16 = 1 << 12;
    /// Device control 2: OBFF.
    pub const DEVICE_CONTROL_2_OBFF: u16 = 0x3 << 13;
    /// Link capabilities 2, 4 bytes (7.5.3.18).
    pub const LINK_CAPABILITIES_2: u16 = 0x2c;
    /// Link capabilities 2: supported speeds, one bit each from 2.5 GT/s up, from bit 1.
    pub const LINK_CAPABILITIES_2_SPEEDS_SHIFT: u32 = 1;
    /// Link control 2, 2 bytes (7.5.3.19).
    pub const LINK_CONTROL_2: u16 = 0x30;
    /// Link control 2: target link speed.
    pub const LINK_CONTROL_2_SPEED: u16 = 0xf;
    /// Link status 2, 2 bytes (7.5.3.20).
    pub const LINK_STATUS_2: u16 = 0x32;
    /// Slot capabilities 2, 4 bytes.
    pub const SLOT_CAPABILITIES_2: u16 = 0x34;
    /// Slot control 2, 2 bytes.
    pub const SLOT_CONTROL_2: u16 = 0x38;
    /// Slot status 2, 2 bytes.
    pub const SLOT_STATUS_2: u16 = 0x3a;
}

/// An extended capability's header (PCIe 7.6.3), 4 bytes.
pub mod extended_header {
    /// Identifier, bits 15:0.
    pub const fn id(header: u32) -> u16 {
        (header & 0xffff) as u16
    }

    /// Version, bits 19:16.
    pub const fn version(header: u32) -> u8 {
        (header >> 16 & 0xf) as u8
    }

    /// Offset of the next one, bits 31:20; below 0x100 is the end.
    pub const fn next(header: u32) -> u16 {
        (header >> 20) as u16 & 0xffc
    }

    /// A header.
    pub const fn new(id: u16, version: u8, next: u16) -> u32 {
        id as u32 | (version as u32 & 0xf) << 16 | (next as u32 & 0xffc) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_size_by_address_width_and_masking() {
        assert_eq!(msi::size(0), 0x0a);
        assert_eq!(msi::size(msi::CONTROL_64), msi::DATA_64 + 2);
        assert_eq!(msi::size(msi::CONTROL_MASKABLE), msi::PENDING_32 + 4);
        assert_eq!(msi::size(msi::CONTROL_64 | msi::CONTROL_MASKABLE), msi::PENDING_64 + 4);
    }

    #[test]
    fn extended_header_takes_apart_what_it_put_together() {
        let header = extended_header::new(extended::SRIOV, 1, 0x148);
        assert_eq!(header, 0x1481_0010);
        assert_eq!(extended_header::id(header), extended::SRIOV);
        assert_eq!(extended_header::version(header), 1);
        assert_eq!(extended_header::next(header), 0x148);
    }
}
