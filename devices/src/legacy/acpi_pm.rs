//! ACPI power management block: PM1 event and control registers, the PM timer (ACPI 6.5, 4.8.3).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};

use crate::{legacy::LegacyDevice, ports::MachineControl};

/// Ports from the first on.
pub const SIZE: u64 = 12;

const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = 4;
const TIMER: u16 = 8;

const CONTROL_SCI_ENABLE: u16 = 1;
const CONTROL_SLEEP_TYPE: u16 = 7 << 10;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
/// Soft off is type 0, as on a q35; the DSDT says so.
const SOFT_OFF: u16 = 0;

/// 3.579545 MHz; 24 bits are counted, as the FADT says.
const TIMER_HZ: u128 = 3_579_545;
const TIMER_MASK: u32 = 0xff_ffff;

/// The block.
pub struct AcpiPm {
    control: Arc<dyn MachineControl>,
    began: Instant,
    registers: Mutex<Registers>,
}

#[derive(Default)]
struct Registers {
    enable: u16,
    control: u16,
}

impl AcpiPm {
    /// Powers off through `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self { control, began: Instant::now(), registers: Mutex::default() }
    }

    fn timer(&self) -> u32 {
        let ticks = self.began.elapsed().as_nanos().saturating_mul(TIMER_HZ) / 1_000_000_000;
        ticks as u32 & TIMER_MASK
    }

    /// All registers as bytes. Nothing ever happens here by itself, so the status is always 0.
    fn snapshot(&self) -> [u8; SIZE as usize] {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; SIZE as usize];
        let parts: [(u16, &[u8]); 3] = [
            (ENABLE, &registers.enable.to_le_bytes()),
            (CONTROL, &(registers.control | CONTROL_SCI_ENABLE).to_le_bytes()),
            (TIMER, &self.timer().to_le_bytes()),
        ];
        for (at, part) in parts {
            bytes.iter_mut().skip(at.into()).zip(part).for_each(|(byte, value)| *byte = *value);
        }
        bytes
    }
}

impl LegacyDevice for AcpiPm {
    /// The timer runs on.
    fn reset(&self) {
        *self.registers.lock().unwrap_or_else(PoisonError::into_inner) = Registers::default();
    }
}

impl DevicePio for AcpiPm {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let bytes = self.snapshot();
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let [low, high] = match *data {
            [low, high] => [low, high],
            [low, high, ..] => [low, high],
            _ => return,
        };
        let value = u16::from_le_bytes([low, high]);
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            ENABLE => registers.enable = value,
            STATUS => {
                if let [_, _, low, high] = *data {
                    registers.enable = u16::from_le_bytes([low, high]);
                }
            }
            CONTROL => {
                // The enable bit starts the transition and reads as 0.
                registers.control = value & CONTROL_SLEEP_TYPE;
                let off =
                    value & CONTROL_SLEEP_ENABLE != 0 && value & CONTROL_SLEEP_TYPE == SOFT_OFF;
                drop(registers);
                if off {
                    self.control.power_off();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Offs(AtomicUsize);

    impl MachineControl for Offs {
        fn power_off(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn reset(&self) {}
    }

    fn read(pm: &AcpiPm, offset: u16, len: usize) -> u32 {
        let mut data = [0u8; 4];
        pm.pio_read(PioAddress(0x600), offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    #[test]
    fn sleep_type_0_with_the_enable_bit_powers_off_once() {
        let offs = Arc::new(Offs::default());
        let pm = AcpiPm::new(Arc::clone(&offs) as Arc<dyn MachineControl>);
        pm.pio_write(PioAddress(0x600), CONTROL, &0x0001_u16.to_le_bytes());
        pm.pio_write(PioAddress(0x600), CONTROL, &0x3400_u16.to_le_bytes());
        assert_eq!(offs.0.load(Ordering::Relaxed), 0, "no sleep, and sleep of another type");
        pm.pio_write(PioAddress(0x600), CONTROL, &0x2001_u16.to_le_bytes());
        assert_eq!(offs.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn reset_leaves_nothing_of_what_the_guest_wrote() {
        let pm = AcpiPm::new(Arc::new(Offs::default()));
        let fresh = pm.snapshot();
        pm.pio_write(PioAddress(0x600), ENABLE, &0x0120_u16.to_le_bytes());
        pm.pio_write(PioAddress(0x600), CONTROL, &0x1400_u16.to_le_bytes());
        assert_ne!(pm.snapshot()[..usize::from(TIMER)], fresh[..usize::from(TIMER)]);
        pm.reset();
        assert_eq!(pm.snapshot()[..usize::from(TIMER)], fresh[..usize::from(TIMER)]);
    }

    #[test]
    fn acpi_mode_is_always_on() {
        let pm = AcpiPm::new(Arc::new(Offs::default()));
        assert_eq!(read(&pm, CONTROL, 2), 1);
    }

    #[test]
    fn timer_counts_up_in_24_bits() {
        let pm = AcpiPm::new(Arc::new(Offs::default()));
        let first = read(&pm, TIMER, 4);
        std::thread::sleep(std::time::Duration::from_millis(2));
        let later = read(&pm, TIMER, 4);
        let ticks = later.wrapping_sub(first) & TIMER_MASK;
        assert!(ticks >= 7000, "2 ms are 7159 ticks, counted {ticks}");
        assert_eq!(later & !TIMER_MASK, 0);
    }

    #[test]
    fn status_and_enable_can_be_written_together() {
        let pm = AcpiPm::new(Arc::new(Offs::default()));
        pm.pio_write(PioAddress(0x600), STATUS, &[0xff, 0xff, 0x20, 0x01]);
        assert_eq!(read(&pm, STATUS, 4), 0x0120_0000);
    }
}
