//! PCI Express capability (PCIe 7.5.3); offsets are relative to its first byte.

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
/// Device capabilities 2: routes AtomicOps; ports only.
pub const DEVICE_CAPABILITIES_2_ATOMIC_ROUTING: u32 = 1 << 6;
/// Device capabilities 2: completes AtomicOps of 32, 64 and 128 bits, a bit each.
pub const DEVICE_CAPABILITIES_2_ATOMIC_COMPLETER: u32 = 0x7 << 7;
/// Device capabilities 2: LTR.
pub const DEVICE_CAPABILITIES_2_LTR: u32 = 1 << 11;
/// Device capabilities 2: 10-bit tags as a requester.
pub const DEVICE_CAPABILITIES_2_TAGS_10_REQUESTER: u32 = 1 << 17;
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
/// Device control 2: AtomicOps do not leave by this port.
pub const DEVICE_CONTROL_2_ATOMIC_BLOCKED: u16 = 1 << 7;
/// Device control 2: ordering by ID, of requests and of completions.
pub const DEVICE_CONTROL_2_ID_ORDERING: u16 = 0x3 << 8;
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
