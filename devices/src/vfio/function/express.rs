//! Device Control and Device Control 2 (PCIe 7.5.3.4, 7.5.3.16): registers of which some bits are the guest's, some the
//! host's. What a device sends up its path has to be what the host's ports understand and what the host's error handler
//! is to hear of; the guest's root port knows nothing of either.

use super::{VfioFunction, config::splice};
use crate::{
    pci::{
        caps::read16,
        regs::pcie::{
            DEVICE_CONTROL_2_ATOMIC_REQUESTER, DEVICE_CONTROL_2_ID_ORDERING,
            DEVICE_CONTROL_2_TIMEOUT, DEVICE_CONTROL_2_TIMEOUT_DISABLE, DEVICE_CONTROL_AUX,
            DEVICE_CONTROL_ERRORS, DEVICE_CONTROL_EXTENDED_TAG, DEVICE_CONTROL_NO_SNOOP,
            DEVICE_CONTROL_PAYLOAD, DEVICE_CONTROL_READ_REQUEST, DEVICE_CONTROL_RELAXED,
        },
    },
    vfio::policy::Landmarks,
};

/// A control register of 16 bits. Bits in no mask keep the value that the host gave them.
#[derive(Debug)]
pub(super) struct SharedControl {
    /// Its offset in configuration space.
    at: u16,
    /// The register when the function was attached.
    host: u16,
    /// Bits that the guest writes and reads in a copy: the device keeps the host's.
    copied: u16,
    /// Bits that reach the device.
    passed: u16,
    /// Bits that the guest may turn off and, where the host has them on, on again.
    limited: u16,
    /// The guest's copy.
    guest: u16,
}

impl SharedControl {
    /// Device Control. Payload and read request sizes are the kernel's affair, which checks them.
    pub(super) fn device(config: &[u8], landmarks: &Landmarks) -> Option<Self> {
        let at = landmarks.device_control?;
        Some(Self {
            at,
            host: read16(config, at)?,
            copied: DEVICE_CONTROL_ERRORS | DEVICE_CONTROL_AUX,
            passed: DEVICE_CONTROL_PAYLOAD | DEVICE_CONTROL_READ_REQUEST,
            // A host clears these where its ports have errata, or cannot take the tags.
            limited: DEVICE_CONTROL_RELAXED | DEVICE_CONTROL_EXTENDED_TAG | DEVICE_CONTROL_NO_SNOOP,
            guest: 0,
        })
    }

    /// Device Control 2. LTR, OBFF, 10-bit tags and TLP prefixes stay as the host has them.
    pub(super) fn device_2(config: &[u8], landmarks: &Landmarks, atomics: bool) -> Option<Self> {
        let at = landmarks.device_control_2?;
        let atomic = if atomics { DEVICE_CONTROL_2_ATOMIC_REQUESTER } else { 0 };
        Some(Self {
            at,
            host: read16(config, at)?,
            copied: 0,
            passed: DEVICE_CONTROL_2_TIMEOUT | DEVICE_CONTROL_2_TIMEOUT_DISABLE | atomic,
            limited: DEVICE_CONTROL_2_ID_ORDERING,
            guest: 0,
        })
    }

    /// What the guest reads while the device has `device`.
    fn read(&self, device: u16) -> u16 {
        device & !self.copied | self.guest & self.copied
    }

    /// The guest writes `value`. What the device gets.
    fn write(&mut self, value: u16) -> u16 {
        self.guest = value & self.copied;
        let kept = !(self.passed | self.limited);
        self.host & kept | value & self.passed | value & self.host & self.limited
    }

    /// As after a reset: no error is reported, as far as the guest can tell.
    pub(super) fn reset(&mut self) {
        self.guest = 0;
    }
}

impl VfioFunction {
    /// One run of a read of either register.
    pub(super) fn read_control(&mut self, offset: u16, bytes: &mut [u8]) {
        self.read_live(offset, bytes);
        let Some(control) = self.control_at(offset) else { return };
        // Absent space reads as ones, the guest's copy too.
        if bytes.iter().all(|byte| *byte == 0xff) {
            return;
        }
        let relative = offset.saturating_sub(control.at);
        let shown = control.read(splice(0, relative, bytes)).to_le_bytes();
        for (byte, shown) in bytes.iter_mut().zip(shown.into_iter().skip(relative.into())) {
            *byte = shown;
        }
    }

    /// One run of a write to either register. The device is left alone where nothing changes for it.
    pub(super) fn write_control(&mut self, offset: u16, bytes: &[u8]) {
        let Some(at) = self.control_at(offset).map(|control| control.at) else { return };
        let mut device = [0; 2];
        self.read_hardware(at, &mut device);
        let device = u16::from_le_bytes(device);
        let Some(control) = self.control_at(offset) else { return };
        let value = splice(control.read(device), offset.saturating_sub(at), bytes);
        let value = control.write(value);
        if value != device {
            self.write_hardware(at, &value.to_le_bytes());
        }
    }

    fn control_at(&mut self, offset: u16) -> Option<&mut SharedControl> {
        let both = self.device_control.iter_mut().chain(&mut self.device_control_2);
        both.into_iter().find(|control| offset.checked_sub(control.at).is_some_and(|at| at < 2))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn control(host: u16) -> SharedControl {
        let landmarks = Landmarks { device_control: Some(2), ..Landmarks::default() };
        let [low, high] = host.to_le_bytes();
        SharedControl::device(&[0, 0, low, high], &landmarks).unwrap()
    }

    #[test]
    fn error_reporting_and_auxiliary_power_are_the_guests_in_a_copy_only() {
        let mut control = control(0x0007);
        assert_eq!(control.write(DEVICE_CONTROL_AUX | 0x8), 0x0007);
        assert_eq!(control.read(0x0007), DEVICE_CONTROL_AUX | 0x8);
        control.reset();
        assert_eq!(control.read(0x0007), 0);
    }

    #[test]
    fn ordering_and_tags_go_off_and_on_only_where_the_host_has_them_on() {
        let both = DEVICE_CONTROL_RELAXED | DEVICE_CONTROL_EXTENDED_TAG | DEVICE_CONTROL_NO_SNOOP;
        let mut control = control(DEVICE_CONTROL_RELAXED);
        assert_eq!(control.write(both), DEVICE_CONTROL_RELAXED);
        assert_eq!(control.write(0), 0);
    }

    #[test]
    fn atomic_requests_take_a_path_that_completes_them() {
        let landmarks = Landmarks { device_control_2: Some(0), ..Landmarks::default() };
        for (atomics, reaches) in [(true, 0x0040), (false, 0)] {
            let mut control = SharedControl::device_2(&[0, 0], &landmarks, atomics).unwrap();
            assert_eq!(control.write(DEVICE_CONTROL_2_ATOMIC_REQUESTER), reaches);
        }
    }

    proptest! {
        #[test]
        fn ltr_obff_tags_and_prefixes_stay_the_hosts(host: u16, value: u16, atomics: bool) {
            const HOSTS: u16 = 0xfca0;
            let landmarks = Landmarks { device_control_2: Some(0), ..Landmarks::default() };
            let mut control =
                SharedControl::device_2(&host.to_le_bytes(), &landmarks, atomics).unwrap();
            prop_assert_eq!(control.write(value) & HOSTS, host & HOSTS);
        }

        #[test]
        fn errors_phantom_functions_and_power_stay_the_hosts(host: u16, value: u16) {
            const HOSTS: u16 = DEVICE_CONTROL_ERRORS | DEVICE_CONTROL_AUX | 1 << 9;
            prop_assert_eq!(control(host).write(value) & HOSTS, host & HOSTS);
        }
    }
}
