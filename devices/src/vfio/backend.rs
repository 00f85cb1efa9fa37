//! The one seam to the kernel's VFIO device interface (linux/vfio.h, Documentation/driver-api/vfio.rst).

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::ports::HostMemory;

/// VFIO's region index of configuration space; 0..=5 are BARs, 6 the ROM.
pub const CONFIG_REGION: u32 = 7;

/// VFIO's IRQ index (`VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum IrqIndex {
    /// The INTx pin.
    Intx = 0,
    /// MSI.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// The device reported an unrecoverable error.
    Error = 3,
    /// The host wants the device back.
    Request = 4,
}

/// What VFIO says about a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 is a region that is not there.
    pub size: u64,
    /// Reads work.
    pub readable: bool,
    /// Writes work.
    pub writable: bool,
    /// Some of it can be mapped.
    pub mappable: bool,
    /// What can be mapped, as (offset, length): the whole region unless the kernel names sparse areas.
    pub areas: Vec<(u64, u64)>,
}

/// What VFIO says about an IRQ index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Vectors; 0 is an interrupt type that the device lacks.
    pub count: u32,
    /// The kernel masks it when it fires (level INTx).
    pub automasked: bool,
    /// Vectors cannot be added while others are enabled (kernels without dynamic MSI-X).
    pub no_resize: bool,
}

/// One open VFIO device. Errors carry the kernel's errno.
pub trait VfioBackend: Send + Sync {
    /// A region by VFIO index; an unimplemented one has size 0.
    fn region(&self, index: u32) -> RegionInfo;
    /// An IRQ index.
    fn irq(&self, index: IrqIndex) -> IrqInfo;
    /// Reads all of `data` or fails.
    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` or fails.
    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Maps part of a region into this process; the mapping lives as long as the backend.
    fn map(&self, index: u32, offset: u64, len: u64) -> io::Result<HostMemory>;
    /// Connects vectors from `start` on to eventfds; `None` disconnects one vector.
    fn set_triggers(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()>;
    /// The function's configuration space as the host's kernel reads it, without what VFIO hides: 256 or 4096 bytes
    /// for root, 64 for others.
    fn host_config(&self) -> io::Result<Vec<u8>>;
    /// Turns the whole index off.
    fn disable_irqs(&self, index: IrqIndex) -> io::Result<()>;
    /// The kernel unmasks INTx when `resample` is signalled; `None` undoes it.
    fn set_intx_unmask(&self, resample: Option<&EventFd>) -> io::Result<()>;
    /// Masks INTx now.
    fn mask_intx(&self) -> io::Result<()>;
    /// Unmasks INTx now.
    fn unmask_intx(&self) -> io::Result<()>;
    /// Does the device have a function reset?
    fn can_reset(&self) -> bool;
    /// Resets the function.
    fn reset(&self) -> io::Result<()>;
}
