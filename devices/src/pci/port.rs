//! PCIe root port: what every passed device sits behind. Its link is the host's, so that drivers that look at the
//! port see the bandwidth there really is.

use strait_resources::{bdf::Bdf, range::AddressRange};

use crate::pci::{
    config::ConfigSpace,
    function::ConfigAccess,
    regs::{self, capability, msi, pcie, pm},
};

/// Red Hat's generic root port: bound by class in every operating system, and no chipset's errata are applied to it,
/// as they would be to a real one's.
const ID: (u16, u16) = (0x1b36, 0x000c);
const PCIE_AT: u16 = 0x40;
const PM_AT: u16 = 0x80;
const MSI_AT: u16 = 0x90;

/// What a root port is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPortParts {
    /// Where it is on bus 0.
    pub at: Bdf,
    /// Other functions share its device number.
    pub multifunction: bool,
    /// Secondary and subordinate bus.
    pub secondary: u8,
    /// I/O window, 4 KiB granular.
    pub io: Option<AddressRange>,
    /// Non-prefetchable window, 1 MiB granular, below 4 GiB.
    pub memory: Option<AddressRange>,
    /// Prefetchable window, 1 MiB granular.
    pub prefetchable: Option<AddressRange>,
    /// Physical slot number.
    pub slot: u16,
    /// The link as it is on the host.
    pub link: Link,
    /// Bits of device capabilities 2: AtomicOps that the host's path to memory routes and completes.
    pub atomics: u32,
}

/// A PCIe link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Generation: 1 is 2.5 GT/s, 2 is 5, up to 6, 64 GT/s.
    pub speed: u8,
    /// Lanes, 1..=32.
    pub width: u8,
}

impl Default for Link {
    /// What a device without a link (a root complex integrated one) is shown with.
    fn default() -> Self {
        Self { speed: 1, width: 1 }
    }
}

/// The port's configuration space.
pub(super) struct RootPort {
    parts: RootPortParts,
    config: ConfigSpace,
    bus_reset: bool,
}

impl RootPort {
    pub(super) fn new(parts: RootPortParts) -> Self {
        let header =
            regs::HEADER_TYPE_1 | if parts.multifunction { regs::HEADER_MULTI_FUNCTION } else { 0 };
        let mut config = ConfigSpace::new(ID, regs::CLASS_PCI_BRIDGE, header);
        config.allow16(
            regs::COMMAND,
            regs::COMMAND_IO
                | regs::COMMAND_MEMORY
                | regs::COMMAND_MASTER
                | regs::COMMAND_PARITY
                | regs::COMMAND_SERR
                | regs::COMMAND_INTX_DISABLE,
        );
        config.clear16(regs::STATUS, regs::STATUS_CLEARABLE);
        config.allow16(regs::CACHE_LINE_SIZE, 0x00ff);
        config.set8(regs::SECONDARY_BUS, parts.secondary);
        config.set8(regs::SUBORDINATE_BUS, parts.secondary);
        config.allow32(regs::PRIMARY_BUS, 0x00ff_ffff);
        windows(&mut config, &parts);
        config.clear16(regs::SECONDARY_STATUS, regs::STATUS_CLEARABLE);
        config.allow16(regs::INTERRUPT_LINE, 0x00ff);
        config.allow16(
            regs::BRIDGE_CONTROL,
            regs::BRIDGE_CONTROL_PARITY
                | regs::BRIDGE_CONTROL_SERR
                | regs::BRIDGE_CONTROL_ISA
                | regs::BRIDGE_CONTROL_VGA
                | regs::BRIDGE_CONTROL_VGA_16
                | regs::BRIDGE_CONTROL_RESET,
        );
        express(&mut config, &parts);
        power(&mut config);
        interrupts(&mut config);
        Self { parts, config, bus_reset: false }
    }

    /// The bus behind the port as the guest has numbered it.
    pub(super) fn secondary(&self) -> u8 {
        self.config.get8(regs::SECONDARY_BUS)
    }

    /// Has the guest just ended a reset of the secondary bus? Asked once for each.
    pub(super) fn take_bus_reset(&mut self) -> bool {
        std::mem::take(&mut self.bus_reset)
    }
}

/// Windows as the plan has them; a window that is not there has its base above its limit (PCI-to-PCI Bridge 1.2,
/// 3.2.5.6 to 3.2.5.10).
fn windows(config: &mut ConfigSpace, parts: &RootPortParts) {
    let (io_base, io_limit) =
        parts.io.map_or((0xf000, 0x0fff), |range| (range.first(), range.last()));
    config.set8(regs::IO_BASE, (io_base >> 8) as u8 & 0xf0);
    config.set8(regs::IO_LIMIT, (io_limit >> 8) as u8 & 0xf0);
    config.allow16(regs::IO_BASE, 0xf0f0);

    let (base, limit) =
        parts.memory.map_or((0xfff0_0000, 0x000f_ffff), |range| (range.first(), range.last()));
    config.set16(regs::MEMORY_BASE, (base >> 16) as u16 & 0xfff0);
    config.set16(regs::MEMORY_LIMIT, (limit >> 16) as u16 & 0xfff0);
    config.allow32(regs::MEMORY_BASE, 0xfff0_fff0);

    let (base, limit) = parts
        .prefetchable
        .map_or((0xfff0_0000, 0x000f_ffff), |range| (range.first(), range.last()));
    let low = |address: u64| (address >> 16) as u16 & 0xfff0 | regs::PREFETCHABLE_DECODE_64;
    config.set16(regs::PREFETCHABLE_BASE, low(base));
    config.set16(regs::PREFETCHABLE_LIMIT, low(limit));
    config.allow32(regs::PREFETCHABLE_BASE, 0xfff0_fff0);
    config.set32(regs::PREFETCHABLE_BASE_UPPER, (base >> 32) as u32);
    config.set32(regs::PREFETCHABLE_LIMIT_UPPER, (limit >> 32) as u32);
    config.allow32(regs::PREFETCHABLE_BASE_UPPER, u32::MAX);
    config.allow32(regs::PREFETCHABLE_LIMIT_UPPER, u32::MAX);
}

/// PCIe capability of a root port with an occupied slot and no hot plug (PCIe Base 5.0, 7.5.3).
fn express(config: &mut ConfigSpace, parts: &RootPortParts) {
    let at = |register: u16| PCIE_AT.saturating_add(register);
    config.add_capability(capability::PCIE, PCIE_AT);
    let kind = 2 | pcie::TYPE_ROOT_PORT << pcie::CAPABILITIES_TYPE_SHIFT | pcie::CAPABILITIES_SLOT;
    config.set16(at(pcie::CAPABILITIES), kind);
    config.set32(at(pcie::DEVICE_CAPABILITIES), pcie::DEVICE_CAPABILITIES_ROLE_BASED_ERRORS);
    config.allow16(
        at(pcie::DEVICE_CONTROL),
        pcie::DEVICE_CONTROL_ERRORS
            | pcie::DEVICE_CONTROL_RELAXED
            | pcie::DEVICE_CONTROL_PAYLOAD
            | pcie::DEVICE_CONTROL_NO_SNOOP
            | pcie::DEVICE_CONTROL_READ_REQUEST,
    );
    config.clear16(at(pcie::DEVICE_STATUS), pcie::DEVICE_STATUS_CLEARABLE);
    let atomics =
        pcie::DEVICE_CAPABILITIES_2_ATOMIC_ROUTING | pcie::DEVICE_CAPABILITIES_2_ATOMIC_COMPLETER;
    config.set32(at(pcie::DEVICE_CAPABILITIES_2), parts.atomics & atomics);

    let (speed, width) = (parts.link.speed.clamp(1, 6), parts.link.width.clamp(1, 32));
    let link = u32::from(speed) | u32::from(width) << pcie::LINK_CAPABILITIES_WIDTH_SHIFT;
    let port = u32::from(parts.slot & 0xff) << pcie::LINK_CAPABILITIES_PORT_SHIFT;
    config.set32(at(pcie::LINK_CAPABILITIES), link | pcie::LINK_CAPABILITIES_DLL_ACTIVE | port);
    config.allow16(
        at(pcie::LINK_CONTROL),
        pcie::LINK_CONTROL_COMMON_CLOCK | pcie::LINK_CONTROL_EXTENDED_SYNCH,
    );
    config.set16(at(pcie::LINK_STATUS), link as u16 | pcie::LINK_STATUS_DLL_ACTIVE);

    let number = u32::from(parts.slot & 0x1fff) << pcie::SLOT_CAPABILITIES_NUMBER_SHIFT;
    config.set32(at(pcie::SLOT_CAPABILITIES), number | pcie::SLOT_CAPABILITIES_NO_COMPLETION);
    config.set16(at(pcie::SLOT_STATUS), pcie::SLOT_STATUS_PRESENT);
    config.clear16(at(pcie::SLOT_STATUS), pcie::SLOT_STATUS_CLEARABLE);
    config.allow16(at(pcie::ROOT_CONTROL), pcie::ROOT_CONTROL_WRITABLE);

    let speeds = (1_u32 << speed).saturating_sub(1) << pcie::LINK_CAPABILITIES_2_SPEEDS_SHIFT;
    config.set32(at(pcie::LINK_CAPABILITIES_2), speeds);
    config.set16(at(pcie::LINK_CONTROL_2), u16::from(speed));
    config.allow16(at(pcie::LINK_CONTROL_2), pcie::LINK_CONTROL_2_SPEED);
}

/// D0 and D3hot, nothing lost in between.
fn power(config: &mut ConfigSpace) {
    config.add_capability(capability::PM, PM_AT);
    config.set16(PM_AT + pm::CAPABILITIES, pm::VERSION_3);
    config.set16(PM_AT + pm::CONTROL, pm::CONTROL_NO_SOFT_RESET);
    config.allow16(PM_AT + pm::CONTROL, pm::CONTROL_STATE | pm::CONTROL_PME_ENABLE);
}

/// One 64-bit MSI vector, which the port never sends: operating systems want an interrupt for the services of a port.
fn interrupts(config: &mut ConfigSpace) {
    config.add_capability(capability::MSI, MSI_AT);
    config.set16(MSI_AT + msi::CONTROL, msi::CONTROL_64);
    config.allow16(MSI_AT + msi::CONTROL, msi::CONTROL_ENABLE | msi::CONTROL_ENABLED);
    config.allow32(MSI_AT + msi::ADDRESS, 0xffff_fffc);
    config.allow32(MSI_AT + msi::ADDRESS_UPPER, u32::MAX);
    config.allow16(MSI_AT + msi::DATA_64, u16::MAX);
}

impl RootPort {
    /// The value, right-aligned.
    pub(super) fn config_read(&self, at: ConfigAccess) -> u32 {
        self.config.read(at)
    }

    /// What the guest may not write vanishes.
    pub(super) fn config_write(&mut self, at: ConfigAccess, value: u32) {
        let in_reset = |config: &ConfigSpace| {
            config.get16(regs::BRIDGE_CONTROL) & regs::BRIDGE_CONTROL_RESET != 0
        };
        let before = in_reset(&self.config);
        self.config.write(at, value);
        // What is behind comes out of the reset when the bit goes back to 0.
        self.bus_reset |= before && !in_reset(&self.config);
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    fn parts() -> RootPortParts {
        RootPortParts {
            at: Bdf::new(0, 0, 1, 0).unwrap(),
            multifunction: false,
            secondary: 5,
            io: Some(range(0x2000, 0x2fff)),
            memory: Some(range(0x9000_0000, 0x90ff_ffff)),
            prefetchable: Some(range(0x80_0000_0000, 0x87_ffff_ffff)),
            slot: 3,
            link: Link { speed: 4, width: 16 },
            atomics: 0x180,
        }
    }

    fn read(port: &mut RootPort, offset: u16, len: u8) -> u32 {
        port.config_read(ConfigAccess::new(offset, len).unwrap())
    }

    fn write(port: &mut RootPort, offset: u16, len: u8, value: u32) {
        port.config_write(ConfigAccess::new(offset, len).unwrap(), value);
    }

    #[test]
    fn windows_are_programmed_as_planned() {
        let mut port = RootPort::new(parts());
        assert_eq!(read(&mut port, regs::PRIMARY_BUS, 4), 0x0005_0500);
        assert_eq!(read(&mut port, regs::IO_BASE, 2), 0x2020);
        assert_eq!(read(&mut port, regs::MEMORY_BASE, 4), 0x90f0_9000);
        assert_eq!(read(&mut port, regs::PREFETCHABLE_BASE, 4), 0xfff1_0001);
        assert_eq!(read(&mut port, regs::PREFETCHABLE_BASE_UPPER, 4), 0x80);
        assert_eq!(read(&mut port, regs::PREFETCHABLE_LIMIT_UPPER, 4), 0x87);
    }

    #[test]
    fn windows_that_are_not_there_have_their_base_above_their_limit() {
        let mut port =
            RootPort::new(RootPortParts { io: None, memory: None, prefetchable: None, ..parts() });
        assert_eq!(read(&mut port, regs::IO_BASE, 2), 0x00f0);
        assert_eq!(read(&mut port, regs::MEMORY_BASE, 4), 0x0000_fff0);
        assert_eq!(read(&mut port, regs::PREFETCHABLE_BASE, 4), 0x0001_fff1);
        assert_eq!(read(&mut port, regs::PREFETCHABLE_LIMIT_UPPER, 4), 0);
    }

    #[test]
    fn link_is_the_hosts() {
        let mut port = RootPort::new(parts());
        assert_eq!(read(&mut port, PCIE_AT + pcie::LINK_STATUS, 2) & 0x3ff, 0x104);
        assert_eq!(read(&mut port, PCIE_AT + pcie::LINK_CAPABILITIES_2, 4), 0x1e);
    }

    #[test]
    fn atomic_operations_are_those_of_the_hosts_path_and_nothing_else() {
        let mut port = RootPort::new(parts());
        assert_eq!(read(&mut port, PCIE_AT + pcie::DEVICE_CAPABILITIES_2, 4), 0x180);
        let mut port = RootPort::new(RootPortParts { atomics: u32::MAX, ..parts() });
        assert_eq!(read(&mut port, PCIE_AT + pcie::DEVICE_CAPABILITIES_2, 4), 0x3c0);
        write(&mut port, PCIE_AT + pcie::DEVICE_CAPABILITIES_2, 4, 0);
        assert_eq!(read(&mut port, PCIE_AT + pcie::DEVICE_CAPABILITIES_2, 4), 0x3c0);
    }

    #[test]
    fn bus_reset_is_reported_once_when_the_bit_goes_back_to_zero() {
        let mut port = RootPort::new(parts());
        write(&mut port, regs::BRIDGE_CONTROL, 2, u32::from(regs::BRIDGE_CONTROL_RESET));
        assert!(!port.take_bus_reset());
        write(&mut port, regs::BRIDGE_CONTROL, 2, 0);
        assert!(port.take_bus_reset());
        assert!(!port.take_bus_reset());
    }

    #[test]
    fn bus_numbers_are_the_guests_until_a_reset() {
        let mut port = RootPort::new(parts());
        write(&mut port, regs::PRIMARY_BUS, 4, 0x00ff_0900);
        assert_eq!(port.secondary(), 9);
        port.reset();
        assert_eq!(port.secondary(), 5);
    }
}
