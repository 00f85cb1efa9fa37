//! LPC bridge at 00:1f.0: an ICH9's, with what firmware and operating systems read: where the power management block
//! and the root complex registers are (Intel ICH9 datasheet, chapter 13). It decodes nothing itself.

use crate::pci::{config::ConfigSpace, function::ConfigAccess, regs};

const ID: (u16, u16) = (0x8086, 0x2918);
const PMBASE: u16 = 0x40;
const ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u16 = 1 << 7;
/// PIRQ routing: firmware writes it; the pins go to the I/O APIC whatever it says.
const PIRQ: [u16; 2] = [0x60, 0x68];
const RCBA: u16 = 0xf0;

/// The function at 00:1f.0.
pub(super) struct Lpc {
    config: ConfigSpace,
    power: u16,
    root_complex: u32,
}

impl Lpc {
    /// `power`: the PM block's first port. `root_complex`: address of the root complex registers.
    pub(super) fn new(power: u16, root_complex: u32) -> Self {
        let mut config = ConfigSpace::new(ID, regs::CLASS_ISA_BRIDGE, regs::HEADER_TYPE_0);
        config.allow16(regs::COMMAND, 0x0107);
        config.set32(PMBASE, u32::from(power) | 1);
        config.set16(ACPI_CONTROL, ACPI_ENABLE);
        config.allow16(ACPI_CONTROL, 0x87);
        for routing in PIRQ {
            config.set32(routing, 0x8080_8080);
            config.allow32(routing, 0x8f8f_8f8f);
        }
        config.set32(RCBA, root_complex | 1);
        Self { config, power, root_complex }
    }
}

impl Lpc {
    /// The value, right-aligned.
    pub(super) fn config_read(&self, at: ConfigAccess) -> u32 {
        self.config.read(at)
    }

    /// What the guest may not write vanishes.
    pub(super) fn config_write(&mut self, at: ConfigAccess, value: u32) {
        self.config.write(at, value);
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.power, self.root_complex);
    }
}
