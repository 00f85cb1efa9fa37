//! Where a guest's memory and port accesses go.
//!
//! Ranges come and go while vCPUs run (a guest moves its BARs), so a lookup copies the target out, drops the lock
//! and only then calls: a device may change the bus from within its own access.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::sync::{Arc, PoisonError, RwLock};

use strait_resources::range::AddressRange;
use vm_device::{
    DeviceMmio, DevicePio,
    bus::{self, BusRange, MmioAddress, MmioBus, PioAddress, PioBus},
};

/// A device in memory.
pub type MmioTarget = Arc<dyn DeviceMmio + Send + Sync>;
/// A device on I/O ports.
pub type PioTarget = Arc<dyn DevicePio + Send + Sync>;

/// Why a range cannot be on the bus.
#[derive(Debug, thiserror::Error)]
#[error("{range} cannot be on the bus: {source:?}")]
pub struct BusError {
    /// Which range.
    pub range: AddressRange,
    /// Overlap or overflow.
    source: Box<bus::Error>,
}

/// Both address spaces. Lock order: a leaf; nothing is called while it is held.
#[derive(Default)]
pub struct Bus {
    mmio: RwLock<MmioBus<MmioTarget>>,
    pio: RwLock<PioBus<PioTarget>>,
}

impl Bus {
    /// With nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device into memory.
    ///
    /// # Errors
    /// When something is there already.
    pub fn insert_mmio(&self, range: AddressRange, target: MmioTarget) -> Result<(), BusError> {
        let failed = |source| BusError { range, source: Box::new(source) };
        let at = BusRange::new(MmioAddress(range.first()), range.len()).map_err(failed)?;
        self.mmio
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .register(at, target)
            .map_err(failed)
    }

    /// Takes out what starts at `first`, if anything does.
    pub fn remove_mmio(&self, first: u64) {
        let removed = {
            let mut bus = self.mmio.write().unwrap_or_else(PoisonError::into_inner);
            let starts = bus.device(MmioAddress(first)).is_some_and(|(at, _)| at.base().0 == first);
            starts.then(|| bus.deregister(MmioAddress(first)))
        };
        // Outside the lock: what a target's end does may come back to this bus.
        drop(removed);
    }

    /// Puts a device onto ports.
    ///
    /// # Errors
    /// When something is there already, or the range leaves the 64 Ki ports.
    pub fn insert_pio(&self, range: AddressRange, target: PioTarget) -> Result<(), BusError> {
        let failed = |source| BusError { range, source: Box::new(source) };
        let (Ok(first), Ok(len)) = (u16::try_from(range.first()), u16::try_from(range.len()))
        else {
            return Err(failed(bus::Error::InvalidAccessLength(range.len() as usize)));
        };
        let at = BusRange::new(PioAddress(first), len).map_err(failed)?;
        self.pio
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .register(at, target)
            .map_err(failed)
    }

    /// Takes out what starts at `first`, if anything does.
    pub fn remove_pio(&self, first: u64) {
        let Ok(first) = u16::try_from(first) else { return };
        let removed = {
            let mut bus = self.pio.write().unwrap_or_else(PoisonError::into_inner);
            let starts = bus.device(PioAddress(first)).is_some_and(|(at, _)| at.base().0 == first);
            starts.then(|| bus.deregister(PioAddress(first)))
        };
        drop(removed);
    }

    /// Reads memory; all ones where no device is or where the access leaves it.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((base, target)) = self.find_mmio(address, data.len()) {
            target.mmio_read(base, address.saturating_sub(base.0), data);
        }
    }

    /// Writes memory; vanishes where no device is.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((base, target)) = self.find_mmio(address, data.len()) {
            target.mmio_write(base, address.saturating_sub(base.0), data);
        }
    }

    /// Reads ports; all ones where no device is.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((base, target)) = self.find_pio(port, data.len()) {
            target.pio_read(base, port.saturating_sub(base.0), data);
        }
    }

    /// Writes ports; vanishes where no device is.
    pub fn pio_write(&self, port: u16, data: &[u8]) {
        if let Some((base, target)) = self.find_pio(port, data.len()) {
            target.pio_write(base, port.saturating_sub(base.0), data);
        }
    }

    fn find_mmio(&self, address: u64, len: usize) -> Option<(MmioAddress, MmioTarget)> {
        let bus = self.mmio.read().unwrap_or_else(PoisonError::into_inner);
        let (range, target) = bus.check_access(MmioAddress(address), len).ok()?;
        Some((range.base(), Arc::clone(target)))
    }

    fn find_pio(&self, port: u16, len: usize) -> Option<(PioAddress, PioTarget)> {
        let bus = self.pio.read().unwrap_or_else(PoisonError::into_inner);
        let (range, target) = bus.check_access(PioAddress(port), len).ok()?;
        Some((range.base(), Arc::clone(target)))
    }
}

#[cfg(test)]
mod tests {
    use vm_device::bus::{MmioAddressOffset, PioAddressOffset};

    use super::*;

    struct Offset;

    impl DeviceMmio for Offset {
        fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
    }

    impl DevicePio for Offset {
        fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
    }

    fn range(first: u64, len: u64) -> AddressRange {
        AddressRange::new(first, len).unwrap()
    }

    #[test]
    fn access_reaches_the_device_with_its_offset_and_nothing_else() {
        let bus = Bus::new();
        bus.insert_mmio(range(0x1000, 0x10), Arc::new(Offset)).unwrap();
        let read = |address| {
            let mut data = [0u8; 4];
            bus.mmio_read(address, &mut data);
            data
        };
        assert_eq!(read(0x1004), [4; 4]);
        assert_eq!(read(0x0fff), [0xff; 4]);
        assert_eq!(read(0x100d), [0xff; 4], "an access that leaves the device");
        assert_eq!(read(u64::MAX - 1), [0xff; 4]);
        bus.remove_mmio(0x1000);
        assert_eq!(read(0x1004), [0xff; 4]);
    }

    #[test]
    fn port_at_the_end_of_the_address_space_works() {
        let bus = Bus::new();
        bus.insert_pio(range(0xfff8, 8), Arc::new(Offset)).unwrap();
        let mut data = [0u8; 1];
        bus.pio_read(0xffff, &mut data);
        assert_eq!(data, [7]);
        assert!(bus.insert_pio(range(0xffff, 2), Arc::new(Offset)).is_err());
    }

    #[test]
    fn removal_takes_only_what_starts_there() {
        let bus = Bus::new();
        bus.insert_mmio(range(0x1000, 0x10), Arc::new(Offset)).unwrap();
        bus.insert_pio(range(0x60, 5), Arc::new(Offset)).unwrap();
        bus.remove_mmio(0x1008);
        bus.remove_pio(0x64);
        let mut data = [0u8; 1];
        bus.mmio_read(0x1008, &mut data);
        assert_eq!(data, [8]);
        bus.pio_read(0x64, &mut data);
        assert_eq!(data, [4]);
    }

    #[test]
    fn overlap_is_an_error() {
        let bus = Bus::new();
        bus.insert_mmio(range(0x1000, 0x10), Arc::new(Offset)).unwrap();
        assert!(bus.insert_mmio(range(0x100f, 1), Arc::new(Offset)).is_err());
    }
}
