//! The keyboard controller's reset line, which is all that is left of it: port 0x64, command 0xFE.

use std::sync::{Arc, Mutex, PoisonError};

use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_superio::{I8042Device, Trigger};

use crate::ports::MachineControl;

/// From the data port, 0x60, to the command port, 0x64.
const COMMAND: PioAddressOffset = 4;

struct ResetLine(Arc<dyn MachineControl>);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.reset();
        Ok(())
    }
}

/// Ports 0x60 to 0x64. Those between belong to the timer, which is KVM's.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl I8042 {
    /// Resets through `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(control))))
    }
}

impl DevicePio for I8042 {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // Nothing is in its buffers: status 0, data 0.
        if let ([byte], 0 | COMMAND) = (data, offset) {
            *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset as u8);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let ([byte], 0 | COMMAND) = (data, offset) {
            let Ok(()) =
                self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset as u8, *byte);
        }
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
        device.pio_write(PioAddress(0x60), 4, &[0xd1]);
        device.pio_write(PioAddress(0x60), 0, &[0xfe]);
        assert_eq!(resets.0.load(Ordering::Relaxed), 0);
        device.pio_write(PioAddress(0x60), 4, &[0xfe]);
        assert_eq!(resets.0.load(Ordering::Relaxed), 1);
    }
}
