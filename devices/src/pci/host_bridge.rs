//! Host bridge: an Intel 82G33's, as on a q35, with the one register that firmware and operating systems look for:
//! PCIEXBAR, which says where ECAM is (Intel 3 Series datasheet, 5.1.20).

use strait_resources::range::AddressRange;

use crate::pci::{config::ConfigSpace, function::ConfigAccess, regs};

const ID: (u16, u16) = (0x8086, 0x29c0);
const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u64 = 1;
/// Programmable attribute map and the rest of what firmware writes and reads back: 0x90..=0x9f.
const PAM: std::ops::Range<u16> = 0x90..0xa0;

/// The function at 00:00.0.
pub(super) struct HostBridge {
    config: ConfigSpace,
    ecam: AddressRange,
}

impl HostBridge {
    /// ECAM enabled at `ecam`, which may end before the 256 MiB that the register names: there are no more buses.
    pub(super) fn new(ecam: AddressRange) -> Self {
        let mut config = ConfigSpace::new(ID, regs::CLASS_HOST_BRIDGE, regs::HEADER_TYPE_0);
        config.allow16(
            regs::COMMAND,
            regs::COMMAND_MASTER | regs::COMMAND_MEMORY | regs::COMMAND_SERR,
        );
        let value = ecam.first() | PCIEXBAR_ENABLE;
        config.set32(PCIEXBAR, value as u32);
        config.set32(PCIEXBAR + 4, (value >> 32) as u32);
        config.allow32(PCIEXBAR, 0xf000_0007 | 0x0c00_0000);
        config.allow32(PCIEXBAR + 4, 0xf);
        for at in PAM.step_by(4) {
            config.allow32(at, u32::MAX);
        }
        Self { config, ecam }
    }

    /// Where ECAM is now; `None` when it is off.
    pub(super) fn ecam(&self) -> Option<AddressRange> {
        let value = u64::from(self.config.get32(PCIEXBAR))
            | u64::from(self.config.get32(PCIEXBAR + 4)) << 32;
        let len: u64 = match value >> 1 & 3 {
            0 => 256 << 20,
            1 => 128 << 20,
            2 => 64 << 20,
            _ => return None,
        };
        let base = value & 0xf_ffff_ffff & !len.wrapping_sub(1);
        if value & PCIEXBAR_ENABLE == 0 {
            None
        } else if base == self.ecam.first() && len == 256 << 20 {
            Some(self.ecam)
        } else {
            AddressRange::new(base, len)
        }
    }
}

impl HostBridge {
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
        *self = Self::new(self.ecam);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> HostBridge {
        HostBridge::new(AddressRange::new(0xe000_0000, 3 << 20).unwrap())
    }

    fn write(bridge: &mut HostBridge, offset: u16, value: u32) {
        bridge.config_write(ConfigAccess::new(offset, 4).unwrap(), value);
    }

    #[test]
    fn ecam_is_where_the_plan_put_it_until_firmware_moves_it() {
        let mut bridge = bridge();
        assert_eq!(bridge.ecam(), AddressRange::new(0xe000_0000, 3 << 20));
        write(&mut bridge, PCIEXBAR, 0xb000_0001);
        assert_eq!(bridge.ecam(), AddressRange::new(0xb000_0000, 256 << 20));
        write(&mut bridge, PCIEXBAR, 0xb400_0005);
        assert_eq!(bridge.ecam(), AddressRange::new(0xb400_0000, 64 << 20));
        bridge.reset();
        assert_eq!(bridge.ecam(), AddressRange::new(0xe000_0000, 3 << 20));
    }

    #[test]
    fn ecam_can_be_turned_off_and_a_reserved_length_is_off_too() {
        let mut bridge = bridge();
        write(&mut bridge, PCIEXBAR, 0xe000_0000);
        assert_eq!(bridge.ecam(), None);
        write(&mut bridge, PCIEXBAR, 0xe000_0007);
        assert_eq!(bridge.ecam(), None);
    }
}
