//! Vital product data (PCI appendix I): a guest reads the card's EEPROM and does not write it. What it wrote would
//! outlive it, and the host.

use super::{VfioFunction, config::splice};
use crate::pci::regs::vpd;

/// The address register as the guest sees it.
#[derive(Debug)]
pub(super) struct Vpd {
    /// The capability's offset in configuration space.
    at: u16,
    /// The address register while no transfer of the guest's is in the device.
    address: Option<u16>,
}

/// What a write of the guest comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing yet, or nothing at all.
    None,
    /// The device is to fetch the data at this address: to be written to the address register.
    Fetch(u16),
    /// The guest wanted to write to the EEPROM.
    Refused,
}

impl Vpd {
    pub(super) fn new(at: u16) -> Self {
        Self { at, address: None }
    }

    /// As after a reset: nothing is under way.
    pub(super) fn reset(&mut self) {
        self.address = None;
    }

    /// The address register where the device has `device`.
    fn address(&self, device: u16) -> u16 {
        self.address.unwrap_or(device)
    }

    /// The guest has written the address register, to `value` now; `starts`: with the byte that starts a transfer.
    fn write_address(&mut self, value: u16, starts: bool) -> Effect {
        if !starts {
            self.address = Some(value);
            return Effect::None;
        }
        if value & vpd::ADDRESS_FLAG != 0 {
            // Reads as done, which is when the flag is 0: a guest that waits for it must not wait for ever.
            self.address = Some(value & !vpd::ADDRESS_FLAG);
            return Effect::Refused;
        }
        self.address = None;
        Effect::Fetch(value)
    }
}

impl VfioFunction {
    /// One run of a read of address or data.
    pub(super) fn read_vpd(&mut self, offset: u16, bytes: &mut [u8]) {
        self.read_live(offset, bytes);
        let Some(Vpd { at, address: Some(address) }) = &self.vpd else { return };
        let address = address.to_le_bytes();
        for (at, byte) in (offset.saturating_sub(at.saturating_add(vpd::ADDRESS))..).zip(bytes) {
            *byte = address.get(usize::from(at)).copied().unwrap_or(*byte);
        }
    }

    /// One run of a write of address or data.
    pub(super) fn write_vpd(&mut self, offset: u16, bytes: &[u8]) {
        let Some(at) = self.vpd.as_ref().map(|vpd| vpd.at.saturating_add(vpd::ADDRESS)) else {
            return;
        };
        let relative = offset.saturating_sub(at);
        // Data that is written waits for a transfer that never comes.
        if relative >= 2 {
            return;
        }
        let mut device = [0; 2];
        self.read_hardware(at, &mut device);
        let Some(state) = &mut self.vpd else { return };
        let value = splice(state.address(u16::from_le_bytes(device)), relative, bytes);
        let starts = usize::from(relative).saturating_add(bytes.len()) > 1;
        match state.write_address(value, starts) {
            Effect::None => {}
            Effect::Fetch(address) => self.write_hardware(at, &address.to_le_bytes()),
            Effect::Refused => self
                .warnings
                .once("vital product data is not written", &"it would outlive the guest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_reaches_the_device_and_its_flag_comes_from_there() {
        let mut vpd = Vpd::new(0x60);
        assert_eq!(vpd.write_address(0x0010, true), Effect::Fetch(0x0010));
        assert_eq!(vpd.address(0x8010), 0x8010);
    }

    #[test]
    fn write_is_refused_and_reads_as_done() {
        let mut vpd = Vpd::new(0x60);
        assert_eq!(vpd.write_address(0x8010, true), Effect::Refused);
        assert_eq!(vpd.address(0x1234), 0x0010);
    }

    #[test]
    fn address_in_two_bytes_starts_with_the_second() {
        let mut vpd = Vpd::new(0x60);
        assert_eq!(vpd.write_address(0x8010, false), Effect::None);
        assert_eq!(vpd.address(0), 0x8010);
        assert_eq!(vpd.write_address(0x0010, true), Effect::Fetch(0x0010));
    }
}
