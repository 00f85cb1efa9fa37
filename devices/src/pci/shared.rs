//! A function behind a lock, as its slot and its ranges on the bus have it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strait_resources::bar::BarIndex;
use vm_device::{
    DeviceMmio, DevicePio,
    bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset},
};

use crate::pci::function::{BarChanges, BarLayout, ConfigAccess, PciFunction};

/// A function, shared by its slot and by the ranges it has on the bus.
pub(super) type Shared = Arc<Mutex<dyn PciFunction>>;

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A boxed function as a function, so that the mutex around it can be unsized.
pub(super) struct Boxed(Box<dyn PciFunction>);

impl Boxed {
    pub(super) fn shared(function: Box<dyn PciFunction>) -> Shared {
        Arc::new(Mutex::new(Self(function)))
    }
}

impl PciFunction for Boxed {
    fn bars(&self) -> Vec<BarLayout> {
        self.0.bars()
    }
    fn config_read(&mut self, at: ConfigAccess) -> u32 {
        self.0.config_read(at)
    }
    fn config_write(&mut self, at: ConfigAccess, value: u32) -> BarChanges {
        self.0.config_write(at, value)
    }
    fn settled(&mut self) -> BarChanges {
        self.0.settled()
    }
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.0.bar_read(bar, offset, data);
    }
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.0.bar_write(bar, offset, data);
    }
    fn reset(&mut self) -> BarChanges {
        self.0.reset()
    }
}

/// A BAR on the bus.
pub(super) struct Bar {
    function: Shared,
    bar: BarIndex,
}

impl Bar {
    pub(super) fn new(function: &Shared, bar: BarIndex) -> Self {
        Self { function: Arc::clone(function), bar }
    }
}

impl DeviceMmio for Bar {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, offset, data);
    }
}

impl DevicePio for Bar {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, u64::from(offset), data);
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, u64::from(offset), data);
    }
}
