//! The option ROM: the device's own, a file's, or none.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use strait_resources::bar::{BarIndex, BarKind, BarSpec};

use crate::vfio::{
    attach::AttachError,
    backend::{RegionInfo, VfioBackend},
};

/// The largest ROM that a ROM BAR can show (PCI 6.2.5.2).
const MAX_SIZE: u64 = 16 << 20;
/// The smallest.
const MIN_SIZE: u64 = 2 << 10;
/// VFIO's region of the ROM.
const REGION: u32 = BarIndex::ROM.get() as u32;

/// Where the guest's option ROM comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RomSource {
    /// From the device, if it has one.
    #[default]
    Device,
    /// From nowhere: no ROM BAR.
    Off,
    /// These bytes, 1 byte to 16 MiB.
    Bytes(Vec<u8>),
}

impl RomSource {
    /// The ROM BAR that goes with it.
    pub(crate) fn spec(&self, backend: &dyn VfioBackend) -> Result<Option<BarSpec>, AttachError> {
        let len = match self {
            Self::Off => return Ok(None),
            Self::Bytes(bytes) => {
                let len = bytes.len() as u64;
                if len == 0 || len > MAX_SIZE {
                    return Err(AttachError::Rom(bytes.len()));
                }
                len
            }
            Self::Device => match backend.region(REGION) {
                RegionInfo { size, readable: true, .. } if (1..=MAX_SIZE).contains(&size) => size,
                _ => return Ok(None),
            },
        };
        let size = len.next_power_of_two().max(MIN_SIZE);
        Ok(Some(BarSpec { index: BarIndex::ROM, kind: BarKind::Rom, size }))
    }
}

/// The bytes behind the ROM BAR, read from the device once, when the guest first looks.
#[derive(Debug)]
pub(crate) struct Rom {
    source: RomSource,
    image: Option<Vec<u8>>,
}

impl Rom {
    pub(crate) fn new(source: RomSource) -> Self {
        Self { source, image: None }
    }

    /// Reads at `offset`; all ones behind the end. An error is a device that refuses its ROM, told once: from
    /// then on it reads as all ones.
    pub(crate) fn read(
        &mut self,
        backend: &dyn VfioBackend,
        offset: u64,
        data: &mut [u8],
    ) -> std::io::Result<()> {
        let mut outcome = Ok(());
        let image = self.image.get_or_insert_with(|| {
            match std::mem::replace(&mut self.source, RomSource::Off) {
                RomSource::Off => Vec::new(),
                RomSource::Bytes(bytes) => bytes,
                RomSource::Device => {
                    let size = backend.region(REGION).size.min(MAX_SIZE);
                    let mut bytes = vec![0xff; size as usize];
                    outcome = backend.region_read(REGION, 0, &mut bytes);
                    if outcome.is_ok() { bytes } else { Vec::new() }
                }
            }
        });
        data.fill(0xff);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(rest) = image.get(start..) {
            let len = rest.len().min(data.len());
            data[..len].copy_from_slice(&rest[..len]);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::fake::FakeDevice;

    #[test]
    fn bytes_are_padded_with_ones_to_a_power_of_two() {
        let device = FakeDevice::new();
        let source = RomSource::Bytes(vec![0x55; 3000]);
        assert_eq!(source.spec(&device).unwrap().unwrap().size, 4096);
        let mut data = [0; 4];
        Rom::new(source).read(&device, 2998, &mut data).unwrap();
        assert_eq!(data, [0x55, 0x55, 0xff, 0xff]);
        assert_eq!(device.calls(), [""; 0]);
    }

    #[test]
    fn device_is_read_once_and_only_when_asked() {
        let device = FakeDevice::new().region(REGION, &[0xaa; 2048]);
        let mut rom = Rom::new(RomSource::Device);
        let mut data = [0; 2];
        for offset in [0, 2046, 2047, u64::MAX] {
            rom.read(&device, offset, &mut data).unwrap();
        }
        assert_eq!(device.calls(), ["read 6 0x0 2048"]);
        rom.read(&device, 2047, &mut data).unwrap();
        assert_eq!(data, [0xaa, 0xff]);
    }

    #[test]
    fn device_without_a_rom_region_has_no_rom_bar() {
        let device = FakeDevice::new();
        assert_eq!(RomSource::Device.spec(&device).unwrap(), None);
        let device = FakeDevice::new().region(REGION, &[0; 512]);
        assert_eq!(RomSource::Device.spec(&device).unwrap().unwrap().size, 2048);
        assert_eq!(RomSource::Off.spec(&device).unwrap(), None);
    }

    #[test]
    fn refused_rom_reads_as_ones_and_is_told_once() {
        let device = FakeDevice::new().region(REGION, &[0xaa; 2048]).failing("read 6");
        let mut rom = Rom::new(RomSource::Device);
        let mut data = [0; 2];
        assert!(rom.read(&device, 0, &mut data).is_err());
        assert!(rom.read(&device, 0, &mut data).is_ok());
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn impossible_files_are_refused() {
        let device = FakeDevice::new();
        for len in [0, MAX_SIZE as usize + 1] {
            assert!(RomSource::Bytes(vec![0; len]).spec(&device).is_err());
        }
    }
}
