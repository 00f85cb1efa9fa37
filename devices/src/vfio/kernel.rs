//! [`VfioBackend`] over the kernel: one open device file. Regions are read and written with pread and pwrite,
//! interrupts and reset go through the ioctls of [`super::ioctl`], so that no errno is lost.

#![allow(unsafe_code, reason = "mmap of device regions")]

use std::{
    fs, io,
    os::fd::{AsRawFd, RawFd},
    ptr,
    sync::{Arc, Mutex},
};

use strait_resources::bdf::Bdf;
use vmm_sys_util::eventfd::EventFd;

use super::{
    backend::{IrqIndex, IrqInfo, RegionInfo, VfioBackend},
    dma::{DmaDomain, OpenDevice},
    ioctl::{self, Affected, IrqAction},
};
use crate::ports::HostMemory;

/// BARs, ROM, configuration space, VGA.
const REGIONS: u32 = 9;
const IRQS: [IrqIndex; 5] =
    [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix, IrqIndex::Error, IrqIndex::Request];
/// The largest page a BAR's mapping can use; aligning further buys nothing.
const MAX_ALIGN: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// One open device. Fields in the order of tear-down: mappings, which keep the device's file open, the device, then
/// what it hangs on.
pub struct KernelDevice {
    mappings: Mutex<Vec<Mapping>>,
    device: OpenDevice,
    bdf: Bdf,
    regions: Vec<(RegionInfo, u64)>,
    irqs: [IrqInfo; 5],
    can_reset: bool,
    _domain: Arc<DmaDomain>,
}

impl KernelDevice {
    /// Reads once what never changes: regions, interrupts, reset.
    pub(super) fn new(bdf: Bdf, device: OpenDevice, domain: Arc<DmaDomain>) -> io::Result<Self> {
        let regions =
            (0..REGIONS).map(|index| ioctl::region(&device, index)).collect::<Result<_, _>>()?;
        let mut irqs = [IrqInfo::default(); 5];
        for (info, index) in irqs.iter_mut().zip(IRQS) {
            *info = ioctl::irq(&device, index)?;
        }
        let can_reset = ioctl::can_reset(&device)?;
        let mappings = Mutex::default();
        Ok(Self { mappings, device, bdf, regions, irqs, can_reset, _domain: domain })
    }

    /// Which function of the host this is.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The IOMMU group that it came with.
    pub(super) fn group(&self) -> u32 {
        self.device.group()
    }

    /// What a reset of its slot or bus would reset, itself included.
    pub(super) fn hot_reset_info(&self) -> io::Result<Vec<Affected>> {
        ioctl::hot_reset_info(&self.device)
    }

    /// Resets its slot or bus, for which it takes every group in it.
    pub(super) fn hot_reset(&self, groups: &[RawFd]) -> io::Result<()> {
        ioctl::hot_reset(&self.device, groups)
    }

    /// Where in the device's file an access goes; refuses what leaves the region.
    fn place(&self, index: u32, offset: u64, len: usize) -> io::Result<i64> {
        let (region, start) = self.regions.get(index as usize).ok_or(io::ErrorKind::NotFound)?;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= region.size);
        let at = start.checked_add(offset).filter(|_| inside).ok_or(io::ErrorKind::InvalidInput)?;
        i64::try_from(at).map_err(io::Error::other)
    }

    fn set(&self, index: IrqIndex, start: u32, action: IrqAction<'_>) -> io::Result<()> {
        ioctl::set_irqs(&self.device, index, start, action)
    }
}

impl VfioBackend for KernelDevice {
    fn region(&self, index: u32) -> RegionInfo {
        self.regions.get(index as usize).map(|(info, _)| info.clone()).unwrap_or_default()
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.irqs.get(index as usize).copied().unwrap_or_default()
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = self.place(index, offset, data.len())?;
        // SAFETY: the buffer is `data`, and its length is passed with it.
        let read = unsafe {
            libc::pread(self.device.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), at)
        };
        whole(read, data.len())
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.place(index, offset, data.len())?;
        // SAFETY: the buffer is `data`, and its length is passed with it.
        let written =
            unsafe { libc::pwrite(self.device.as_raw_fd(), data.as_ptr().cast(), data.len(), at) };
        whole(written, data.len())
    }

    fn map(&self, index: u32, offset: u64, len: u64) -> io::Result<HostMemory> {
        let at = self.place(index, offset, usize::try_from(len).map_err(io::Error::other)?)?;
        let access = access(&self.region(index));
        let mapping = Mapping::new(self.device.as_raw_fd(), at, offset, len, access)?;
        let memory = HostMemory { address: mapping.address as usize, len };
        self.mappings.lock().expect("no panic while held").push(mapping);
        Ok(memory)
    }

    fn set_triggers(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let fds: Vec<RawFd> =
            triggers.iter().map(|trigger| trigger.map_or(-1, |event| event.as_raw_fd())).collect();
        self.set(index, start, IrqAction::Trigger(&fds))
    }

    fn host_config(&self) -> io::Result<Vec<u8>> {
        fs::read(format!("/sys/bus/pci/devices/{}/config", self.bdf))
    }

    fn disable_irqs(&self, index: IrqIndex) -> io::Result<()> {
        self.set(index, 0, IrqAction::Disable)
    }

    fn set_intx_unmask(&self, resample: Option<&EventFd>) -> io::Result<()> {
        let fd = resample.map_or(-1, |event| event.as_raw_fd());
        self.set(IrqIndex::Intx, 0, IrqAction::UnmaskOn(fd))
    }

    fn mask_intx(&self) -> io::Result<()> {
        self.set(IrqIndex::Intx, 0, IrqAction::Mask)
    }

    fn unmask_intx(&self) -> io::Result<()> {
        self.set(IrqIndex::Intx, 0, IrqAction::Unmask)
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> io::Result<()> {
        ioctl::reset(&self.device)
    }
}

/// A register access is whole or it failed.
fn whole(count: isize, len: usize) -> io::Result<()> {
    match usize::try_from(count) {
        Ok(count) if count == len => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// What a mapping of the region may do: VFIO refuses a mapping that could do more.
fn access(region: &RegionInfo) -> libc::c_int {
    let read = if region.readable { libc::PROT_READ } else { libc::PROT_NONE };
    let write = if region.writable { libc::PROT_WRITE } else { libc::PROT_NONE };
    read | write
}

/// A mapped part of a region, inside a reservation that gave it its alignment.
struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

// SAFETY: the pointer is only kept to be unmapped; nothing is accessed through it here.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps so that host-virtual address and region offset agree modulo the largest page that fits: the kernel
    /// can then fault a BAR in by 2 MiB or 1 GiB, which makes mapping a large BAR cheap.
    fn new(fd: RawFd, at: i64, offset: u64, len: u64, access: libc::c_int) -> io::Result<Self> {
        if len == 0 || !len.is_multiple_of(PAGE) || !offset.is_multiple_of(PAGE) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let align = (1 << len.ilog2()).clamp(PAGE, MAX_ALIGN);
        let total = len.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?;
        let total = usize::try_from(total).map_err(io::Error::other)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, none, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = reserved as usize;
        let skip = (offset % align).wrapping_sub(start as u64 % align) % align;
        let first = start + skip as usize;
        // SAFETY: [first, first + len) lies inside the reservation, which is ours alone.
        let address = unsafe {
            libc::mmap(first as *mut _, len, access, libc::MAP_SHARED | libc::MAP_FIXED, fd, at)
        };
        let error = io::Error::last_os_error();
        let failed = address == libc::MAP_FAILED;
        let tail = if failed { start } else { first + len };
        // SAFETY: what is given back is the part of the reservation before and after the mapping, or all of it.
        unsafe {
            if !failed && first > start {
                libc::munmap(reserved, first - start);
            }
            if start + total > tail {
                libc::munmap(tail as *mut _, start + total - tail);
            }
        }
        if failed { Err(error) } else { Ok(Self { address, len }) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` and unmapped only here. Memslots and DMA mappings over it are gone: they are
        // dropped before the function that owns the backend.
        unsafe { libc::munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn mapping_agrees_with_its_offset_modulo_its_size() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 0x60_0000]).unwrap();
        let align = |file: &File, at: i64, offset: u64, len: u64| {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let mapping = Mapping::new(file.as_raw_fd(), at, offset, len, access).unwrap();
            // SAFETY: the first byte of a live mapping of a file that is long enough.
            assert_eq!(unsafe { *mapping.address.cast::<u8>() }, 7);
            mapping.address as u64
        };
        assert_eq!(align(&file, 0, 0, 0x40_0000) % 0x40_0000, 0);
        assert_eq!(align(&file, 0x1000, 0x1000, 0x20_0000) % 0x20_0000, 0x1000);
        assert_eq!(align(&file, 0x2000, 0, 0x3000) % 0x2000, 0);
    }

    #[test]
    fn mapping_of_nothing_or_of_part_of_a_page_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for (offset, len) in [(0, 0), (0, 0x800), (0x800, 0x1000)] {
            let refused = Mapping::new(file.as_raw_fd(), 0, offset, len, libc::PROT_READ);
            assert_eq!(refused.err().and_then(|e| e.raw_os_error()), Some(libc::EINVAL));
        }
    }

    #[test]
    fn mapping_of_a_read_only_region_cannot_be_written() {
        let region = RegionInfo { readable: true, ..RegionInfo::default() };
        assert_eq!(access(&region), libc::PROT_READ);
        let region = RegionInfo { readable: true, writable: true, ..RegionInfo::default() };
        assert_eq!(access(&region), libc::PROT_READ | libc::PROT_WRITE);
    }

    #[test]
    fn short_access_is_an_error() {
        assert_eq!(whole(2, 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(whole(4, 4).is_ok());
    }
}
