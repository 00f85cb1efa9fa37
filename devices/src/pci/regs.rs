//! Constants of the PCI specifications, and nothing of any vendor.
//!
//! "PCI" is PCI Local Bus 3.0, "Bridge" PCI-to-PCI Bridge Architecture 1.2, "PCIe" PCI Express Base 5.0, "PM"
//! PCI Bus Power Management 1.2. Offsets are in bytes; those of a capability are relative to its first byte.

pub mod capability;
pub mod extended;
pub mod pcie;

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
