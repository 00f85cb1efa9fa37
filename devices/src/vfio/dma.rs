//! What passed devices can reach by DMA: one legacy container (Documentation/driver-api/vfio.rst) shared by all
//! functions of a machine. A mapping holds what it maps, so that memory outlives its mapping by construction.

#![allow(unsafe_code, reason = "gives memory of this process to devices")]

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use strait_resources::{bdf::Bdf, codes, failure::Failure, range::AddressRange};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError, VfioOps};

use super::{ioctl, kernel::KernelDevice};
use crate::ports::HostMemory;

/// One address space for DMA.
pub struct DmaDomain {
    // In the order of tear-down: mappings before the container.
    ram: Mutex<Vec<RamMapping>>,
    taken: Arc<Intervals>,
    container: Arc<VfioContainer>,
}

/// Why VFIO did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// /dev/vfio/vfio.
    #[error("the VFIO container cannot be opened")]
    Container(#[source] VfioError),
    /// A group or device.
    #[error("{bdf} cannot be opened through VFIO")]
    Open {
        /// Which function.
        bdf: Bdf,
        /// What vfio-ioctls says.
        #[source]
        source: VfioError,
    },
    /// A device that opened but does not answer.
    #[error("{bdf} does not say what it has")]
    Query {
        /// Which function.
        bdf: Bdf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Guest RAM.
    #[error("guest RAM at {range} cannot be mapped for DMA")]
    Map {
        /// Where.
        range: AddressRange,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl DmaError {
    /// As a refusal with its code and what to do.
    pub fn into_failure(self) -> Failure {
        let cause = self.to_string();
        let (code, fix) = match &self {
            Self::Container(VfioError::OpenContainer(error)) => match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => (
                    &codes::E1003,
                    "give your user the nodes under /dev/vfio, or run as root".to_owned(),
                ),
                _ => (&codes::E1004, "load the modules: modprobe vfio-pci".to_owned()),
            },
            Self::Container(_) => {
                (&codes::E1004, "load the modules: modprobe vfio_iommu_type1".to_owned())
            }
            Self::Open { source: VfioError::OpenGroup(error, group), .. } => match error
                .raw_os_error()
            {
                Some(libc::EBUSY) => {
                    (&codes::E1107, format!("find who holds it: sudo fuser -v /dev/vfio/{group}"))
                }
                Some(libc::EACCES | libc::EPERM) => {
                    (&codes::E1003, format!("give your user /dev/vfio/{group}, or run as root"))
                }
                _ => (&codes::E1110, "bind every function of the group to vfio-pci".to_owned()),
            },
            Self::Open { source: VfioError::GroupViable, .. } => (
                &codes::E1103,
                "bind every function of its IOMMU group to vfio-pci, or unbind it from its driver"
                    .to_owned(),
            ),
            Self::Open { .. } | Self::Query { .. } => (
                &codes::E1110,
                "look at the host's kernel log (dmesg) for vfio-pci and IOMMU messages".to_owned(),
            ),
            Self::Map { source, .. } => match source.raw_os_error() {
                Some(libc::ENOMEM | libc::EDQUOT) => {
                    (&codes::E1306, "raise the locked-memory limit: ulimit -l unlimited".to_owned())
                }
                Some(libc::ENOSPC) => (
                    &codes::E1303,
                    "raise vfio_iommu_type1's dma_entry_limit, or use fewer memory ranges"
                        .to_owned(),
                ),
                _ => (&codes::E1303, "look at the host's kernel log (dmesg)".to_owned()),
            },
        };
        let failure = Failure::new(code, cause, fix);
        match self {
            Self::Container(source) | Self::Open { source, .. } => failure.source(source),
            Self::Query { source, .. } | Self::Map { source, .. } => failure.source(source),
        }
    }
}

impl DmaDomain {
    /// An empty domain. `kvm` is KVM's VFIO device, so that KVM knows of every group.
    pub fn new(kvm: Option<Arc<VfioDeviceFd>>) -> Result<Arc<Self>, DmaError> {
        let container = Arc::new(VfioContainer::new(kvm).map_err(DmaError::Container)?);
        Ok(Arc::new(Self { ram: Mutex::default(), taken: Arc::default(), container }))
    }

    /// Opens a function, with its group if it is the first of it. The kernel resets the device.
    pub fn open(self: &Arc<Self>, bdf: Bdf) -> Result<KernelDevice, DmaError> {
        let path = PathBuf::from(format!("/sys/bus/pci/devices/{bdf}"));
        let operations: Arc<dyn VfioOps> = Arc::clone(&self.container) as Arc<dyn VfioOps>;
        let device = VfioDevice::new(&path, operations, true)
            .map_err(|source| DmaError::Open { bdf, source })?;
        KernelDevice::new(bdf, device, Arc::clone(self))
            .map_err(|source| DmaError::Query { bdf, source })
    }

    /// What every device of the domain can address; empty when the kernel does not say. After the first
    /// [`DmaDomain::open`] only: before, the container has no IOMMU.
    pub fn iova_ranges(&self) -> io::Result<Vec<AddressRange>> {
        ioctl::iommu_info(&*self.container).map(|info| info.iova)
    }

    /// Maps guest RAM for the life of the domain; `owner` is kept until it is unmapped.
    pub fn map_ram(
        &self,
        range: AddressRange,
        memory: HostMemory,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), DmaError> {
        let mapping = self.map(range, memory).map_err(|source| DmaError::Map { range, source })?;
        let mut ram = self.ram.lock().expect("no panic while held");
        ram.push(RamMapping { _mapping: mapping, _owner: owner });
        Ok(())
    }

    /// Maps another device's BAR; the mapping ends with the value.
    pub fn map_p2p(&self, range: AddressRange, memory: HostMemory) -> io::Result<DmaMapping> {
        self.map(range, memory)
    }

    /// Unmaps guest RAM. Before the last device of the domain is closed: with the last group the container
    /// loses its IOMMU.
    pub fn unmap_ram(&self) {
        self.ram.lock().expect("no panic while held").clear();
    }

    fn map(&self, range: AddressRange, memory: HostMemory) -> io::Result<DmaMapping> {
        if range.len() != memory.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let taken = self.taken.take(range)?;
        // SAFETY: the memory stays mapped until the mapping is dropped: RAM because its owner is kept beside
        // the mapping, a BAR because the root complex drops mappings before the function whose BAR it is.
        // Guest memory is only ever accessed as volatile bytes.
        unsafe { ioctl::dma_map(&*self.container, range.first(), memory.address, memory.len) }?;
        Ok(DmaMapping { container: Arc::clone(&self.container), _taken: taken, range })
    }
}

struct RamMapping {
    // In the order of tear-down.
    _mapping: DmaMapping,
    _owner: Arc<dyn Any + Send + Sync>,
}

/// Memory that devices can reach, until this is dropped.
pub struct DmaMapping {
    container: Arc<VfioContainer>,
    range: AddressRange,
    _taken: Taken,
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        if let Err(error) = ioctl::dma_unmap(&*self.container, self.range.first(), self.range.len())
        {
            log::warn!("DMA mapping {} stays until strait ends: {error}", self.range);
        }
    }
}

/// Which IOVAs are in use: an overlap is refused here, with a name, before the kernel sees it.
#[derive(Default)]
struct Intervals(Mutex<BTreeMap<u64, u64>>);

impl Intervals {
    fn take(self: &Arc<Self>, range: AddressRange) -> io::Result<Taken> {
        let mut taken = self.0.lock().expect("no panic while held");
        let before = taken.range(..=range.last()).next_back();
        if let Some((first, last)) = before.filter(|(_, last)| **last >= range.first()) {
            let text = format!("{range} overlaps the DMA mapping {first:#x}-{last:#x}");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        taken.insert(range.first(), range.last());
        Ok(Taken { intervals: Arc::clone(self), first: range.first() })
    }
}

/// One interval in use, until this is dropped.
struct Taken {
    intervals: Arc<Intervals>,
    first: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.intervals.0.lock().expect("no panic while held").remove(&self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    #[test]
    fn interval_that_overlaps_is_refused_on_either_side() {
        let intervals = Arc::new(Intervals::default());
        let _held = intervals.take(range(0x1000, 0x1fff)).unwrap();
        for overlap in
            [range(0, 0x1000), range(0x1fff, 0x2fff), range(0x1400, 0x14ff), range(0, 0xffff)]
        {
            assert!(intervals.take(overlap).is_err(), "{overlap} was taken");
        }
        assert!(intervals.take(range(0x2000, 0x2fff)).is_ok());
    }

    #[test]
    fn interval_that_ended_can_be_taken_again() {
        let intervals = Arc::new(Intervals::default());
        drop(intervals.take(range(0, u64::MAX)).unwrap());
        assert!(intervals.take(range(0, 0)).is_ok());
    }
}
