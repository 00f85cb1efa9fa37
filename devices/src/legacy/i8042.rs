//! The keyboard controller's reset line, which is all that is left of it: port 0x64, command 0xFE.

use std::sync::{Arc, Mutex, PoisonError};

use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_superio::{I8042Device, Trigger};

use crate::{legacy::LegacyDevice, ports::MachineControl};

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;

struct ResetLine(Arc<dyn MachineControl>);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.reset();
        Ok(())
    }
}

/// Ports 0x60 and 0x64; what lies between belongs to the timer, which is KVM's.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl I8042 {
    /// Resets through `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(control))))
    }
}

impl LegacyDevice for I8042 {
    /// It has no registers that keep what is written.
    fn reset(&self) {}
}

impl DevicePio for I8042 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // Nothing is in its buffers: status 0, data 0.
        if let ([byte], Some(register)) = (data, register(base, offset)) {
            *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(register);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let ([byte], Some(register)) = (data, register(base, offset)) {
            let Ok(()) =
                self.0.lock().unwrap_or_else(PoisonError::into_inner).write(register, *byte);
        }
    }
}

/// vm-superio counts its registers from the data port.
fn register(base: PioAddress, offset: PioAddressOffset) -> Option<u8> {
    match base.0.checked_add(offset)? {
        DATA => Some(0),
        COMMAND => Some((COMMAND - DATA) as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Resets(AtomicUsize);

    impl MachineControl for Resets {
        fn power_off(&self) {}
        fn reset(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_the_reset_command_resets() {
        let resets = Arc::new(Resets::default());
        let device = I8042::new(Arc::clone(&resets) as Arc<dyn MachineControl>);
        device.pio_write(PioAddress(0x64), 0, &[0xd1]);
        device.pio_write(PioAddress(0x60), 0, &[0xfe]);
        assert_eq!(resets.0.load(Ordering::Relaxed), 0);
        device.pio_write(PioAddress(0x64), 0, &[0xfe]);
        assert_eq!(resets.0.load(Ordering::Relaxed), 1);
    }
}
