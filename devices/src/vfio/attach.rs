//! What attaching a function starts from, and how it can fail.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use strait_resources::bar::BarIndex;

use crate::{
    pci::{bar::BarError, caps::read16, regs},
    vfio::backend::{CONFIG_REGION, VfioBackend},
};

/// Why a function cannot be attached. Names no device: the caller knows which.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// VFIO offers less than a header.
    #[error("the configuration space has only {0} bytes")]
    ConfigSize(u64),
    /// It cannot be read.
    #[error("the configuration space cannot be read")]
    Config(#[source] io::Error),
    /// All ones where the class is: the device has fallen off the bus.
    #[error("the device does not answer: its configuration space reads as all ones")]
    Dead,
    /// A bridge or something newer.
    #[error("the function has a header of type {0:#x}, and only type 0 can be passed")]
    Header(u8),
    /// The device's BARs, or the addresses for them, cannot be.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// A BAR that VFIO calls mappable cannot be mapped.
    #[error("{bar} cannot be mapped at offset {offset:#x}, {len:#x} bytes")]
    Map {
        /// Which.
        bar: BarIndex,
        /// Bytes from its start.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The decode bits of Command cannot be set.
    #[error("the device's Command register cannot be written")]
    Command(#[source] io::Error),
    /// A ROM file that no ROM BAR can show.
    #[error("a ROM of {0} bytes: it must have 1 byte to 16 MiB")]
    Rom(usize),
}

/// IDs to show to the guest instead of the device's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: Option<u16>,
    /// Device ID.
    pub device: Option<u16>,
    /// Subsystem vendor ID.
    pub subsystem_vendor: Option<u16>,
    /// Subsystem ID.
    pub subsystem: Option<u16>,
}

impl Identity {
    /// The same, with `own` (vendor and device ID as the host's kernel knows them) for what reads ffffh and is not chosen.
    /// A virtual function's registers read so in hardware (PCI Express Base 6.0, 9.3.4.1.1), and a guest that sees that
    /// finds no device. vfio-pci puts the IDs in; a driver of a vendor's own need not.
    pub(crate) fn completed(self, config: &[u8], own: (u16, u16)) -> Self {
        let absent = |at| read16(config, at) == Some(0xffff);
        Self {
            vendor: self.vendor.or(absent(regs::VENDOR_ID).then_some(own.0)),
            device: self.device.or(absent(regs::DEVICE_ID).then_some(own.1)),
            ..self
        }
    }
}

/// All of configuration space, read once: 64 to 4096 bytes of a living endpoint.
pub(crate) fn read_config(backend: &dyn VfioBackend) -> Result<Vec<u8>, AttachError> {
    let size = backend.region(CONFIG_REGION).size;
    if size < regs::HEADER_SIZE.into() {
        return Err(AttachError::ConfigSize(size));
    }
    let mut config = vec![0xff; size.min(regs::CONFIG_SIZE.into()) as usize];
    backend.region_read(CONFIG_REGION, 0, &mut config).map_err(AttachError::Config)?;
    if !answers(config.get(usize::from(regs::REVISION_ID)..).unwrap_or_default()) {
        return Err(AttachError::Dead);
    }
    let kind = config.get(usize::from(regs::HEADER_TYPE)).copied().unwrap_or(0);
    match kind & regs::HEADER_LAYOUT {
        regs::HEADER_TYPE_0 => Ok(config),
        other => Err(AttachError::Header(other)),
    }
}

/// Does the device answer? Asks a register that the kernel does not answer itself: it has vendor and device IDs from
/// its own tables, but revision and class come from the device.
pub fn is_alive(backend: &dyn VfioBackend) -> bool {
    let mut class = [0xff; 4];
    let read = backend.region_read(CONFIG_REGION, regs::REVISION_ID.into(), &mut class);
    read.is_ok() && answers(&class)
}

/// The same, for a device that comes out of a reset: it gets so much time. Some answer with all ones for a while.
pub fn comes_alive(backend: &dyn VfioBackend, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        match is_alive(backend) {
            true => return true,
            false if Instant::now() >= end => return false,
            false => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Is there a device behind these bytes of revision and class?
fn answers(class: &[u8]) -> bool {
    class.iter().take(4).any(|&byte| byte != 0xff)
}
