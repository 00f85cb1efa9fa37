//! What a guest's CPU does next, from a few bytes.

use std::slice::ChunksExact;

use strait_devices::vfio::backend::IrqIndex;

use super::machine::{ECAM, Machine, POWER};

/// Bytes of one step.
pub(super) const SIZE: usize = 12;
/// More steps than these find nothing that fewer would not.
const MOST: usize = 2000;

/// Functions, there and not, as the upper bits of an ECAM offset: bus, device, function.
const PLACES: [(u64, u64, u64); 16] = [
    (1, 0, 0),
    (1, 0, 1),
    (2, 0, 0),
    (2, 0, 1),
    (0, 0, 0),
    (0, 1, 0),
    (0, 2, 0),
    (0, 31, 0),
    (1, 0, 0),
    (1, 0, 1),
    (2, 0, 0),
    (2, 0, 1),
    (3, 0, 0),
    (0, 1, 1),
    (1, 1, 0),
    (255, 31, 7),
];
/// Registers with a meaning in some function.
const REGISTERS: [u16; 64] = [
    0x00, 0x04, 0x05, 0x06, 0x0c, 0x0f, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x34, 0x3c, 0x3e,
    0x19, 0x1a, 0x3f, 0x40, 0x42, 0x44, 0x45, 0x47, 0x50, 0x52, 0x53, 0x54, 0x58, 0x5c, 0x60, 0x64,
    0x61, 0x63, 0x68, 0x6a, 0x6b, 0x6c, 0x70, 0x72, 0x73, 0x74, 0x78, 0x80, 0x84, 0x88, 0x89, 0x8a,
    0x90, 0xa8, 0xc0, 0xc4, 0xfc, 0x100, 0x104, 0x108, 0x10c, 0x150, 0x158, 0x160, 0x1a4, 0x1b4,
    0x1c4, 0xffc,
];
/// Widths of an access; KVM never reports the odd ones at once, and nothing may depend on that.
const WIDTHS: [usize; 8] = [1, 2, 4, 4, 8, 4, 2, 3];
/// Ports with a device behind them, and their neighbours.
const PORTS: [u16; 16] = [
    0x60, 0x64, 0x70, 0x71, 0x3f8, 0x3f9, 0x3fb, 0x3fc, 0x3fd, POWER, 0x604, 0x608, 0xcf8, 0xcf9,
    0xcfc, 0xcff,
];
/// Offsets into a BAR: the MSI-X table with its ends, the pending bits, the ends of pages.
const OFFSETS: [u64; 8] = [0, 0x2000, 0x200c, 0x23f0, 0x2800, 0x2fff, 0xffff, 0x1ffc];
/// What fails from now on in a device. Not its configuration space: the bus master bit has to be believed.
const FAILURES: [&str; 8] =
    ["reset", "triggers", "vector", "connect", "read 0", "write 0", "disable", "resample"];

/// One step.
pub(super) struct Step<'a>(&'a [u8]);

/// The steps of an input.
pub(super) fn steps(bytes: &[u8]) -> impl Iterator<Item = Step<'_>> {
    let steps: ChunksExact<'_, u8> = bytes.chunks_exact(SIZE);
    steps.take(MOST).map(Step)
}

impl Step<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn value(&self) -> [u8; 8] {
        std::array::from_fn(|n| self.byte(4 + n))
    }

    fn width(&self) -> usize {
        WIDTHS[usize::from(self.byte(0) >> 4 & 7)]
    }

    fn writes(&self) -> bool {
        self.byte(0) & 0x80 != 0
    }

    /// A register, one that is known or any.
    fn register(&self) -> u16 {
        let any = self.word(2);
        if any & 0x8000 == 0 { REGISTERS[usize::from(any) % REGISTERS.len()] } else { any & 0xfff }
    }

    fn place(&self) -> u64 {
        let (bus, device, function) = PLACES[usize::from(self.byte(1)) % PLACES.len()];
        bus << 20 | device << 15 | function << 12
    }

    /// Is this a reset of the machine, for which every CPU stops?
    pub(super) fn is_reset(&self) -> bool {
        self.byte(0) & 0xf == 15 && !self.opens()
    }

    /// Is RAM mapped for DMA from now on?
    pub(super) fn opens(&self) -> bool {
        self.byte(0) & 0xf == 15 && self.byte(1) & 1 != 0
    }

    /// Does it. A reset is for whoever runs the CPUs.
    pub(super) fn take(&self, machine: &Machine) {
        match self.byte(0) & 0xf {
            0..=5 => self.memory(machine, ECAM + self.place() + u64::from(self.register())),
            6 | 7 => self.by_ports(machine),
            8 | 9 => {
                let first = self.slot(machine);
                let offset = OFFSETS[usize::from(self.byte(2)) % OFFSETS.len()];
                self.memory(machine, first.wrapping_add(offset + u64::from(self.byte(3) & 0x1f)));
            }
            10 => self.memory(machine, u64::from_le_bytes(self.value())),
            11 => self.port(machine, PORTS[usize::from(self.byte(1)) % PORTS.len()]),
            12 => self.port(machine, self.word(2)),
            13 => self.device(machine),
            14 => drop(machine.serial.input(&self.value())),
            _ if self.opens() => machine.monitor.open(true),
            _ => {}
        }
    }

    fn memory(&self, machine: &Machine, address: u64) {
        let mut data = self.value();
        let data = &mut data[..self.width()];
        if self.writes() {
            machine.bus.mmio_write(address, data);
        } else {
            machine.bus.mmio_read(address, data);
        }
    }

    fn port(&self, machine: &Machine, port: u16) {
        let mut data = self.value();
        let data = &mut data[..self.width()];
        if self.writes() {
            machine.bus.pio_write(port, data);
        } else {
            machine.bus.pio_read(port, data);
        }
    }

    /// A register through CONFIG_ADDRESS and CONFIG_DATA.
    fn by_ports(&self, machine: &Machine) {
        let register = self.register();
        let function = (self.place() >> 12) as u32 & 0xffff;
        let address = 1 << 31 | function << 8 | u32::from(register) & 0xfc;
        machine.bus.pio_write(0xcf8, &address.to_le_bytes());
        self.port(machine, 0xcfc + register % 4);
    }

    /// Where a BAR is mapped or could be, at the start of its first page.
    fn slot(&self, machine: &Machine) -> u64 {
        let slots = machine.monitor.slots();
        let n = usize::from(self.byte(1));
        match slots.values().nth(n % (slots.len() + 1)) {
            // The part behind the table's page begins later in its BAR.
            Some((range, _)) => range.first() & !0xffff,
            None => 0xc000_0000 + (u64::from(self.byte(1) & 3) << 20),
        }
    }

    /// What the device does by itself.
    fn device(&self, machine: &Machine) {
        let Some(device) = machine.devices.get(usize::from(self.byte(1) & 3)) else { return };
        match self.byte(2) & 7 {
            0 => device.fail(FAILURES[usize::from(self.byte(3)) % FAILURES.len()]),
            1 => device.heal(),
            2 => drop(device.fire(IrqIndex::Intx, 0)),
            3 => drop(device.fire(IrqIndex::Msi, u32::from(self.byte(3) & 31))),
            _ => drop(device.fire(IrqIndex::Msix, u32::from(self.byte(3) & 63))),
        }
    }
}
