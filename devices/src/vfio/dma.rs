//! What passed devices can reach by DMA: one legacy container (Documentation/driver-api/vfio.rst) shared by all
//! functions of a machine, several groups in it and several functions in a group. A mapping holds what it maps,
//! so that memory outlives its mapping by construction.
//!
//! A container has an IOMMU from the first open device to the last. When the last one closes, the kernel drops
//! every mapping by itself, after the device has stopped: the order that we want, so nothing is unmapped before.
//!
//! vfio-ioctls opens groups by the way, but gives a group back with the first of its devices that closes, not with
//! the last: who closes what is decided here.

#![allow(unsafe_code, reason = "gives memory of this process to devices")]

mod closing;
mod error;
mod space;

use std::{
    any::Any,
    fs, io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use strait_resources::{bdf::Bdf, range::AddressRange};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError, VfioOps};

use self::space::{Space, Taken};
pub use self::{
    closing::{close, is_closing},
    error::DmaError,
};
use super::{ioctl, kernel::KernelDevice};
use crate::ports::HostMemory;

/// One address space for DMA. Lock order: `ram`, then the container's `space`, which is a leaf.
pub struct DmaDomain {
    ram: Mutex<Vec<Ram>>,
    container: Arc<Container>,
}

/// The container and what is known of it.
struct Container {
    vfio: Arc<VfioContainer>,
    space: Mutex<Space>,
}

/// Guest RAM, mapped for as long as there are devices. In the order of tear-down.
struct Ram {
    mapping: DmaMapping,
    memory: HostMemory,
    _owner: Arc<dyn Any + Send + Sync>,
}

/// What devices of a group can address, as the kernel says; empty when it does not. Nobody may have the group open. No
/// device is opened, so none is reset.
pub fn iova_ranges_of(group: u32) -> io::Result<Vec<AddressRange>> {
    let open = |path: &str| fs::OpenOptions::new().read(true).write(true).open(path);
    let (container, group) = (open("/dev/vfio/vfio")?, open(&format!("/dev/vfio/{group}"))?);
    ioctl::join(&group, &container)?;
    Ok(ioctl::iommu_info(&container)?.iova)
}

impl DmaDomain {
    /// An empty domain. `kvm` is KVM's VFIO device, so that KVM knows of every group.
    pub fn new(kvm: Option<Arc<VfioDeviceFd>>) -> Result<Arc<Self>, DmaError> {
        let vfio = Arc::new(VfioContainer::new(kvm).map_err(DmaError::Container)?);
        let container = Arc::new(Container { vfio, space: Mutex::default() });
        Ok(Arc::new(Self { ram: Mutex::default(), container }))
    }

    /// Opens a function, with its group if it is the first of it. The kernel resets the device. RAM that lost its
    /// mapping with the last device is mapped again.
    pub fn open(self: &Arc<Self>, bdf: Bdf) -> Result<KernelDevice, DmaError> {
        let mut ram = self.ram.lock().expect("no panic while held");
        let device = self.container.open(bdf)?;
        for ram in ram.iter_mut().filter(|ram| !ram.mapping.is_live()) {
            let range = ram.mapping.taken.range;
            ram.mapping = self
                .container
                .map(range, ram.memory)
                .map_err(|source| DmaError::Map { range, source })?;
        }
        KernelDevice::new(bdf, device, Arc::clone(self))
            .map_err(|source| DmaError::Query { bdf, source })
    }

    /// What every device of the domain can address; empty when the kernel does not say. After the first
    /// [`DmaDomain::open`] only: before, the container has no IOMMU.
    pub fn iova_ranges(&self) -> io::Result<Vec<AddressRange>> {
        self.iommu_info().map(|info| info.iova)
    }

    /// Everything that the IOMMU says of itself. After the first [`DmaDomain::open`] only.
    pub fn iommu_info(&self) -> io::Result<ioctl::IommuInfo> {
        ioctl::iommu_info(&*self.container.vfio)
    }

    /// Maps guest RAM for the life of the domain; `owner` is kept as long. After the first [`DmaDomain::open`].
    pub fn map_ram(
        &self,
        range: AddressRange,
        memory: HostMemory,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), DmaError> {
        let mut ram = self.ram.lock().expect("no panic while held");
        let mapping =
            self.container.map(range, memory).map_err(|source| DmaError::Map { range, source })?;
        ram.push(Ram { mapping, memory, _owner: owner });
        Ok(())
    }

    /// Maps another device's BAR; the mapping ends with the value. The BAR must decode: the kernel has no pages
    /// to map otherwise (EFAULT).
    pub fn map_p2p(&self, range: AddressRange, memory: HostMemory) -> io::Result<DmaMapping> {
        self.container.map(range, memory)
    }

    /// Takes guest RAM away from the devices, the last range first, and forgets it.
    pub fn unmap_ram(&self) {
        let mut ram = self.ram.lock().expect("no panic while held");
        while ram.pop().is_some() {}
    }
}

impl Container {
    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().expect("no panic while held")
    }

    fn open(self: &Arc<Self>, bdf: Bdf) -> Result<OpenDevice, DmaError> {
        let sysfs = PathBuf::from(format!("/sys/bus/pci/devices/{bdf}"));
        let group = group_of(&sysfs).map_err(|source| DmaError::NoGroup { bdf, source })?;
        let handle =
            Arc::new(Handle { vfio: Arc::clone(&self.vfio), apart: AtomicBool::default() });
        let operations: Arc<dyn VfioOps> = Arc::clone(&handle) as Arc<dyn VfioOps>;
        let mut space = self.space();
        match VfioDevice::new(&sysfs, operations, true) {
            Ok(device) => {
                space.device_came(group);
                drop(space);
                let (device, container) = (ManuallyDrop::new(device), Arc::clone(self));
                Ok(OpenDevice { device, handle, sysfs, group, container })
            }
            Err(source) => {
                // The group was opened before the device and nobody gives it back now.
                if !matches!(
                    source,
                    VfioError::InvalidPath
                        | VfioError::OpenGroup(..)
                        | VfioError::GetGroupStatus
                        | VfioError::GroupViable
                        | VfioError::GroupSetContainer
                        | VfioError::ContainerSetIOMMU(_)
                        | VfioError::SetDeviceAttr(_)
                ) {
                    space.device_came(group);
                }
                Err(DmaError::Open { bdf, group, source })
            }
        }
    }

    fn map(self: &Arc<Self>, range: AddressRange, memory: HostMemory) -> io::Result<DmaMapping> {
        if range.len() != memory.len {
            let text = format!("{} bytes cannot be mapped at {range}", memory.len);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // Held to the end: the last device must not close between the note and the mapping.
        let mut space = self.space();
        let taken = space.take(range)?;
        // SAFETY: the memory stays mapped until the mapping is dropped: RAM because its owner is kept beside
        // the mapping, a BAR because the root complex drops mappings before the function whose BAR it is.
        // Guest memory is only ever accessed as volatile bytes.
        let mapped =
            unsafe { ioctl::dma_map(&*self.vfio, range.first(), memory.address, memory.len) };
        match mapped {
            Ok(()) => Ok(DmaMapping { taken, container: Arc::clone(self) }),
            Err(error) => {
                space.release(&taken);
                Err(error)
            }
        }
    }
}

/// The number of a function's IOMMU group.
fn group_of(sysfs: &Path) -> io::Result<u32> {
    let link = fs::read_link(sysfs.join("iommu_group"))?;
    let number = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("{} is no IOMMU group", link.display())))
}

/// Memory that devices can reach, until this is dropped.
pub struct DmaMapping {
    taken: Taken,
    container: Arc<Container>,
}

impl DmaMapping {
    fn is_live(&self) -> bool {
        self.container.space().is_live(&self.taken)
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        let mut space = self.container.space();
        if !space.is_live(&self.taken) {
            return;
        }
        let range = self.taken.range;
        match ioctl::dma_unmap(&*self.container.vfio, range.first(), range.len()) {
            Ok(()) => space.release(&self.taken),
            Err(error) => log::warn!("DMA mapping {range} stays until strait ends: {error}"),
        }
    }
}

/// The container as one device knows it.
struct Handle {
    vfio: Arc<VfioContainer>,
    /// The device has no business with its group any more.
    apart: AtomicBool,
}

impl VfioOps for Handle {
    /// A device whose handle is no container leaves everything as it is when it is dropped.
    fn as_any(&self) -> &dyn Any {
        if self.apart.load(Ordering::Relaxed) { self } else { &*self.vfio }
    }
}

/// A device of the container, open until this is dropped.
pub(super) struct OpenDevice {
    device: ManuallyDrop<VfioDevice>,
    handle: Arc<Handle>,
    sysfs: PathBuf,
    group: u32,
    container: Arc<Container>,
}

impl OpenDevice {
    /// The IOMMU group that it came with.
    pub(super) fn group(&self) -> u32 {
        self.group
    }
}

impl AsRawFd for OpenDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // Held to the end: no mapping is made or ended while the kernel drops them all.
        let mut space = self.container.space();
        // SAFETY: taken out once, here; the field is not used again.
        let device = unsafe { ManuallyDrop::take(&mut self.device) };
        let last = space.is_last_of(self.group);
        let left_open = || {
            // So do the mappings: for them the device stays.
            log::warn!("{} is gone from the host; its group stays open", self.sysfs.display());
        };
        // vfio-ioctls looks the group up in sysfs and panics when the device was pulled from the host, which it may be
        // after we have looked, too.
        let pulled = !group_of(&self.sysfs).is_ok_and(|group| group == self.group);
        if last && !pulled {
            match close(device) {
                true => space.device_left(self.group),
                false => left_open(),
            }
            return;
        }
        let fd = device.as_raw_fd();
        self.handle.apart.store(true, Ordering::Relaxed);
        drop(device);
        // SAFETY: a device that is apart from its container does not close its descriptor; we are the only owner.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        match last {
            true => left_open(),
            false => space.device_left(self.group),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn group_is_the_last_part_of_the_link() {
        let sysfs = tempfile::tempdir().unwrap();
        symlink("../../../kernel/iommu_groups/17", sysfs.path().join("iommu_group")).unwrap();
        assert_eq!(group_of(sysfs.path()).unwrap(), 17);
    }

    #[test]
    fn group_without_a_link_or_with_a_wrong_one_is_an_error() {
        let sysfs = tempfile::tempdir().unwrap();
        assert_eq!(group_of(sysfs.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink("../nonsense", sysfs.path().join("iommu_group")).unwrap();
        assert!(group_of(sysfs.path()).is_err());
    }
}
