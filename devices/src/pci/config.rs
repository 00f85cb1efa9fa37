//! Configuration space of functions that strait emulates itself: bytes, what of them can be written, what a one
//! clears.

use crate::pci::{function::ConfigAccess, regs};

/// 256 bytes, or 4 KiB of which the rest reads as zero: a function without extended capabilities.
#[derive(Clone)]
pub(super) struct ConfigSpace {
    bytes: [u8; regs::CONVENTIONAL_SIZE as usize],
    writable: [u8; regs::CONVENTIONAL_SIZE as usize],
    cleared_by_one: [u8; regs::CONVENTIONAL_SIZE as usize],
    last_capability: u16,
}

impl ConfigSpace {
    /// IDs, class and header type; everything read-only.
    pub(super) fn new((vendor, device): (u16, u16), class: u16, header: u8) -> Self {
        let nothing = [0; regs::CONVENTIONAL_SIZE as usize];
        let mut space = Self {
            bytes: nothing,
            writable: nothing,
            cleared_by_one: nothing,
            last_capability: regs::CAPABILITIES_POINTER,
        };
        space.set16(regs::VENDOR_ID, vendor);
        space.set16(regs::DEVICE_ID, device);
        space.set16(regs::SUBCLASS, class);
        space.set8(regs::HEADER_TYPE, header);
        space
    }

    /// Appends a capability of `size` bytes at `at` to the list.
    pub(super) fn add_capability(&mut self, id: u8, at: u16) {
        let link = self.last_capability;
        // The head of the list is a bare pointer; after it, the pointer is a capability's second byte.
        let link = if link == regs::CAPABILITIES_POINTER { link } else { link.saturating_add(1) };
        self.set8(link, at as u8);
        self.set8(at, id);
        self.last_capability = at;
        let status = self.get16(regs::STATUS) | regs::STATUS_CAPABILITIES;
        self.set16(regs::STATUS, status);
    }

    pub(super) fn get8(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn get16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.get8(at), self.get8(at.saturating_add(1))])
    }

    pub(super) fn get32(&self, at: u16) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at.saturating_add(2))) << 16
    }

    pub(super) fn set8(&mut self, at: u16, value: u8) {
        if let Some(byte) = self.bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
    }

    pub(super) fn set16(&mut self, at: u16, value: u16) {
        value.to_le_bytes().into_iter().zip(at..).for_each(|(byte, at)| self.set8(at, byte));
    }

    pub(super) fn set32(&mut self, at: u16, value: u32) {
        value.to_le_bytes().into_iter().zip(at..).for_each(|(byte, at)| self.set8(at, byte));
    }

    /// Lets the guest write the bits of `mask`.
    pub(super) fn allow16(&mut self, at: u16, mask: u16) {
        merge(&mut self.writable, at, &mask.to_le_bytes());
    }

    /// Likewise, 32 bits.
    pub(super) fn allow32(&mut self, at: u16, mask: u32) {
        merge(&mut self.writable, at, &mask.to_le_bytes());
    }

    /// Lets the guest clear the bits of `mask` by writing ones.
    pub(super) fn clear16(&mut self, at: u16, mask: u16) {
        merge(&mut self.cleared_by_one, at, &mask.to_le_bytes());
    }

    pub(super) fn read(&self, at: ConfigAccess) -> u32 {
        let mut value = [0; 4];
        for (byte, offset) in value.iter_mut().zip(at.offsets()) {
            *byte = self.get8(offset);
        }
        u32::from_le_bytes(value)
    }

    pub(super) fn write(&mut self, at: ConfigAccess, value: u32) {
        for (byte, offset) in value.to_le_bytes().into_iter().zip(at.offsets()) {
            let offset = usize::from(offset);
            let (Some(old), Some(writable), Some(cleared)) = (
                self.bytes.get_mut(offset),
                self.writable.get(offset),
                self.cleared_by_one.get(offset),
            ) else {
                return;
            };
            *old = ((*old & !writable) | (byte & writable)) & !(byte & cleared);
        }
    }
}

fn merge(masks: &mut [u8], at: u16, mask: &[u8]) {
    for (byte, at) in mask.iter().zip(usize::from(at)..) {
        if let Some(old) = masks.get_mut(at) {
            *old |= byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pci::regs::capability;

    fn at(offset: u16, len: u8) -> ConfigAccess {
        ConfigAccess::new(offset, len).unwrap()
    }

    #[test]
    fn writes_reach_only_the_bits_and_bytes_they_may() {
        let mut space = ConfigSpace::new((0x1234, 0x5678), 0x0600, 0);
        space.allow16(0x04, 0x0107);
        space.write(at(0x04, 4), 0xffff_ffff);
        assert_eq!(space.read(at(0x04, 4)), 0x0107);
        space.write(at(0x05, 1), 0);
        assert_eq!(space.read(at(0x04, 2)), 0x0007);
        space.write(at(0x00, 4), 0);
        assert_eq!(space.read(at(0x00, 4)), 0x5678_1234);
    }

    #[test]
    fn ones_clear_what_ones_clear() {
        let mut space = ConfigSpace::new((1, 1), 0x0600, 0);
        space.set16(0x06, 0xf910);
        space.clear16(0x06, 0xf900);
        space.write(at(0x06, 2), 0x8000);
        assert_eq!(space.read(at(0x06, 2)), 0x7910);
    }

    #[test]
    fn extended_space_reads_as_zero() {
        let space = ConfigSpace::new((1, 1), 0x0600, 0);
        assert_eq!(space.read(at(0x100, 4)), 0);
        assert_eq!(space.read(at(0xffc, 4)), 0);
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let mut space = ConfigSpace::new((1, 1), 0x0604, 1);
        space.add_capability(capability::PCIE, 0x40);
        space.add_capability(capability::PM, 0x80);
        assert_eq!(
            (space.get8(0x34), space.get8(0x40), space.get8(0x41)),
            (0x40, capability::PCIE, 0x80)
        );
        assert_eq!((space.get8(0x80), space.get8(0x81)), (capability::PM, 0));
        assert_ne!(space.get16(regs::STATUS) & regs::STATUS_CAPABILITIES, 0);
    }

    proptest! {
        /// However a dword is written, in bytes, words or at once, the same bits end up in it, and every width reads
        /// its own part of them.
        #[test]
        fn narrow_accesses_add_up_to_a_wide_one(
            old: u32, new: u32, writable: u32, cleared: u32, width in 0..3_u8,
        ) {
            let cleared = cleared & !writable;
            let mut space = ConfigSpace::new((1, 1), 0x0600, 0);
            space.set32(0x80, old);
            space.allow32(0x80, writable);
            space.clear16(0x80, cleared as u16);
            space.clear16(0x82, (cleared >> 16) as u16);
            let len = 1_u8 << width;
            let offsets = || (0..4_u16).step_by(len.into());
            for offset in offsets() {
                space.write(at(0x80 + offset, len), new >> (8 * offset));
            }
            let expected = (old & !writable | new & writable) & !(new & cleared);
            prop_assert_eq!(space.read(at(0x80, 4)), expected);
            for offset in offsets() {
                let at = at(0x80 + offset, len);
                prop_assert_eq!(space.read(at), expected >> (8 * offset) & at.all_ones());
            }
        }
    }
}
