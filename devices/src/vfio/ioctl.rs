//! VFIO ioctls that vfio-ioctls lacks or whose errors it swallows (linux/vfio.h). Every function returns the
//! kernel's errno; parsing of what the kernel answers is bounded and safe.

#![allow(unsafe_code, reason = "ioctl(2) on VFIO file descriptors, poll(2) on eventfds")]

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

use std::{
    io, mem,
    os::fd::{AsRawFd, RawFd},
};

use strait_resources::{bdf::Bdf, range::AddressRange};
use vfio_bindings::bindings::vfio as sys;

use super::backend::{IrqIndex, IrqInfo, RegionInfo};
use vmm_sys_util::eventfd::EventFd;

/// Answers with capability chains are read again with as much room as the kernel asks for, up to this.
const MAX_ANSWER: usize = 64 * 1024;
/// Links followed in a capability chain.
const MAX_CAPABILITIES: usize = 64;

const fn request(offset: u32) -> libc::c_ulong {
    // _IO(VFIO_TYPE, VFIO_BASE + offset)
    (((sys::VFIO_TYPE as u32) << 8) | (sys::VFIO_BASE + offset)) as libc::c_ulong
}

const SET_IOMMU: libc::c_ulong = request(2);
const GROUP_SET_CONTAINER: libc::c_ulong = request(4);
const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: libc::c_ulong = request(9);
const DEVICE_SET_IRQS: libc::c_ulong = request(10);
const DEVICE_RESET: libc::c_ulong = request(11);
const DEVICE_GET_PCI_HOT_RESET_INFO: libc::c_ulong = request(12);
const DEVICE_PCI_HOT_RESET: libc::c_ulong = request(13);
// The container has its own meaning for the same numbers.
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);

/// A kernel structure that starts with `argsz`, in a buffer of 8-byte words so that it is aligned.
struct Answer {
    words: Vec<u64>,
}

impl Answer {
    /// Asks with the fixed part only, then again with the size the kernel names.
    fn ask(fd: RawFd, number: libc::c_ulong, fixed: &[u32]) -> io::Result<Self> {
        let mut size = fixed.len() * 4;
        loop {
            let mut answer = Self { words: vec![0; size.div_ceil(8)] };
            answer.put(0, u32::try_from(size).map_err(io::Error::other)?);
            for (index, value) in fixed.iter().enumerate().skip(1) {
                answer.put(index, *value);
            }
            // SAFETY: the buffer is `size` bytes at least and says so in `argsz`, its first word; the kernel
            // writes no more than that.
            unsafe { call(fd, number, answer.words.as_mut_ptr().cast()) }?;
            let wanted = answer.u32(0) as usize;
            if wanted <= size || size >= MAX_ANSWER {
                return Ok(answer);
            }
            size = wanted.min(MAX_ANSWER);
        }
    }

    fn put(&mut self, index: usize, value: u32) {
        if let Some(word) = self.words.get_mut(index / 2) {
            let shift = 32 * (index % 2);
            *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    /// The 32-bit value at a byte offset that is a multiple of 4; 0 outside.
    fn u32(&self, offset: usize) -> u32 {
        let word = self.words.get(offset / 8).copied().unwrap_or(0);
        (word >> (32 * (offset / 4 % 2))) as u32
    }

    /// The 64-bit value at a byte offset that is a multiple of 4; 0 outside.
    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset.saturating_add(4))) << 32
    }

    fn len(&self) -> usize {
        self.words.len() * 8
    }

    /// Offsets of the capabilities (`vfio_info_cap_header`: u16 id, u16 version, u32 next) with their ids.
    fn capabilities(&self, first: u32) -> Vec<(u16, usize)> {
        let mut found = Vec::new();
        let mut at = first as usize;
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 || !at.is_multiple_of(4) || at.saturating_add(8) > self.len() {
                break;
            }
            found.push((self.u32(at) as u16, at));
            at = self.u32(at + 4) as usize;
        }
        found
    }
}

/// # Safety
/// `argument` must be what the ioctl `number` expects.
unsafe fn call(fd: RawFd, number: libc::c_ulong, argument: *mut libc::c_void) -> io::Result<i32> {
    // SAFETY: as the caller promises.
    let result = unsafe { libc::ioctl(fd, number, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Does the device have a function reset (`VFIO_DEVICE_FLAGS_RESET`)?
pub(super) fn can_reset(fd: &impl AsRawFd) -> io::Result<bool> {
    let answer = Answer::ask(fd.as_raw_fd(), DEVICE_GET_INFO, &[0; 5])?;
    Ok(answer.u32(4) & sys::VFIO_DEVICE_FLAGS_RESET != 0)
}

/// Resets the function; the kernel's errno when it could not.
pub(super) fn reset(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { call(fd.as_raw_fd(), DEVICE_RESET, std::ptr::null_mut()) }.map(drop)
}

/// A function that a reset of a slot or bus resets too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affected {
    pub(super) bdf: Bdf,
    pub(super) group: u32,
}

/// Bytes before the list in struct vfio_pci_hot_reset_info: argsz, flags, count.
const HOT_RESET_HEADER: usize = 12;
/// Functions in one slot or below one bus: more are not believed.
const MAX_AFFECTED: usize = MAX_ANSWER / 8;

/// Every function that a reset of the device's slot or bus resets, itself included. ENODEV when neither can be
/// reset.
pub(super) fn hot_reset_info(fd: &impl AsRawFd) -> io::Result<Vec<Affected>> {
    let mut room = 8;
    loop {
        let size = HOT_RESET_HEADER + 8 * room;
        let mut answer = Answer { words: vec![0; size.div_ceil(8)] };
        answer.put(0, u32::try_from(size).map_err(io::Error::other)?);
        let argument = answer.words.as_mut_ptr().cast();
        // SAFETY: the buffer is `size` bytes at least and says so in `argsz`, its first word; the kernel writes no
        // more than that.
        match unsafe { call(fd.as_raw_fd(), DEVICE_GET_PCI_HOT_RESET_INFO, argument) } {
            Ok(_) => return affected(&answer),
            // Too little room; the count says how much it takes.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < MAX_AFFECTED => {
                room = (answer.u32(8) as usize).clamp(room + 1, MAX_AFFECTED);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The list: { u32 group_id, u16 segment, u8 bus, u8 devfn }[]
fn affected(answer: &Answer) -> io::Result<Vec<Affected>> {
    if answer.u32(4) & sys::VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0 {
        let text = "the kernel names devices by iommufd and not by group";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let room = answer.len().saturating_sub(HOT_RESET_HEADER) / 8;
    let count = (answer.u32(8) as usize).min(room);
    (0..count)
        .map(|n| {
            let at = HOT_RESET_HEADER + 8 * n;
            let [low, high, bus, devfn] = answer.u32(at + 4).to_le_bytes();
            let segment = u32::from(u16::from_le_bytes([low, high]));
            let bdf = Bdf::new(segment, bus, devfn >> 3, devfn & 7);
            let bdf = bdf.ok_or_else(|| io::Error::other("a device number above 31"))?;
            Ok(Affected { bdf, group: answer.u32(at) })
        })
        .collect()
}

/// Resets the device's slot or bus. `groups` are descriptors of every group that has a function in it.
pub(super) fn hot_reset(fd: &impl AsRawFd, groups: &[RawFd]) -> io::Result<()> {
    let mut words = hot_reset_request(groups)?;
    // SAFETY: `words` is a whole struct vfio_pci_hot_reset with its descriptors, and `argsz` says how long it is.
    unsafe { call(fd.as_raw_fd(), DEVICE_PCI_HOT_RESET, words.as_mut_ptr().cast()) }.map(drop)
}

/// struct vfio_pci_hot_reset: argsz, flags, count, i32 group_fds[]
fn hot_reset_request(groups: &[RawFd]) -> io::Result<Vec<u32>> {
    let size = u32::try_from(HOT_RESET_HEADER + 4 * groups.len()).map_err(io::Error::other)?;
    let mut words = vec![size, 0, u32::try_from(groups.len()).map_err(io::Error::other)?];
    words.extend(groups.iter().map(|fd| fd.cast_unsigned()));
    Ok(words)
}

/// A region and where it starts in the device's file. A region that the device lacks has size 0.
pub(super) fn region(fd: &impl AsRawFd, index: u32) -> io::Result<(RegionInfo, u64)> {
    // struct vfio_region_info: argsz, flags, index, cap_offset, u64 size, u64 offset
    let answer =
        match Answer::ask(fd.as_raw_fd(), DEVICE_GET_REGION_INFO, &[0, 0, index, 0, 0, 0, 0, 0]) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Ok(Default::default());
            }
            Err(error) => return Err(error),
        };
    Ok((region_info(&answer), answer.u64(24)))
}

fn region_info(answer: &Answer) -> RegionInfo {
    let (flags, size) = (answer.u32(4), answer.u64(16));
    let mappable = flags & sys::VFIO_REGION_INFO_FLAG_MMAP != 0;
    let mut areas = if mappable && size > 0 { vec![(0, size)] } else { Vec::new() };
    if flags & sys::VFIO_REGION_INFO_FLAG_CAPS != 0 {
        for (id, at) in answer.capabilities(answer.u32(12)) {
            if u32::from(id) == sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP {
                areas = sparse_areas(answer, at, size);
            }
        }
    }
    RegionInfo {
        size,
        readable: flags & sys::VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & sys::VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable,
        areas,
    }
}

/// struct vfio_region_info_cap_sparse_mmap: header, u32 nr_areas, u32 reserved, { u64 offset, u64 size }[]
fn sparse_areas(answer: &Answer, at: usize, region: u64) -> Vec<(u64, u64)> {
    let room = answer.len().saturating_sub(at + 16) / 16;
    let count = (answer.u32(at + 8) as usize).min(room);
    (0..count)
        .map(|n| (answer.u64(at + 16 + n * 16), answer.u64(at + 24 + n * 16)))
        .filter(|(offset, len)| {
            *len > 0 && offset.checked_add(*len).is_some_and(|end| end <= region)
        })
        .collect()
}

/// An IRQ index; one that the device lacks has no vectors.
pub(super) fn irq(fd: &impl AsRawFd, index: IrqIndex) -> io::Result<IrqInfo> {
    // struct vfio_irq_info: argsz, flags, index, count
    let answer = match Answer::ask(fd.as_raw_fd(), DEVICE_GET_IRQ_INFO, &[0, 0, index as u32, 0]) {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(IrqInfo::default()),
        Err(error) => return Err(error),
    };
    let flags = answer.u32(4);
    let usable = flags & sys::VFIO_IRQ_INFO_EVENTFD != 0;
    Ok(IrqInfo {
        count: if usable { answer.u32(12) } else { 0 },
        automasked: flags & sys::VFIO_IRQ_INFO_AUTOMASKED != 0,
        no_resize: flags & sys::VFIO_IRQ_INFO_NORESIZE != 0,
    })
}

/// What to do with vectors (`VFIO_DEVICE_SET_IRQS`).
#[derive(Clone, Copy, Debug)]
pub(super) enum IrqAction<'a> {
    /// Signal these eventfds; -1 disconnects a vector.
    Trigger(&'a [RawFd]),
    /// Unmask INTx when this eventfd is signalled; -1 undoes it.
    UnmaskOn(RawFd),
    /// Mask INTx.
    Mask,
    /// Unmask INTx.
    Unmask,
    /// Turn the index off.
    Disable,
}

/// Applies `action` to the vectors of `index` from `start` on.
pub(super) fn set_irqs(
    fd: &impl AsRawFd,
    index: IrqIndex,
    start: u32,
    action: IrqAction<'_>,
) -> io::Result<()> {
    let mut words = irq_set(index, start, action)?;
    // SAFETY: `words` is a whole struct vfio_irq_set with its data, and `argsz` says how long it is.
    unsafe { call(fd.as_raw_fd(), DEVICE_SET_IRQS, words.as_mut_ptr().cast()) }.map(drop)
}

/// struct vfio_irq_set: argsz, flags, index, start, count, data[]
fn irq_set(index: IrqIndex, start: u32, action: IrqAction<'_>) -> io::Result<Vec<u32>> {
    let (flags, count, data): (u32, usize, &[RawFd]) = match action {
        IrqAction::Trigger(fds) => {
            (sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_TRIGGER, fds.len(), fds)
        }
        IrqAction::UnmaskOn(ref fd) => (
            sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_UNMASK,
            1,
            std::slice::from_ref(fd),
        ),
        IrqAction::Mask => (sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_MASK, 1, &[]),
        IrqAction::Unmask => {
            (sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_UNMASK, 1, &[])
        }
        IrqAction::Disable => {
            (sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_TRIGGER, 0, &[])
        }
    };
    let count = u32::try_from(count).map_err(io::Error::other)?;
    let size = u32::try_from(20 + 4 * data.len()).map_err(io::Error::other)?;
    let mut words = vec![size, flags, index as u32, start, count];
    // A descriptor is an i32 in the same four bytes.
    words.extend(data.iter().map(|fd| fd.cast_unsigned()));
    Ok(words)
}

/// What the container's IOMMU says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IommuInfo {
    /// What devices can address; empty when the kernel does not say.
    pub iova: Vec<AddressRange>,
    /// Page sizes as a bitmap.
    pub page_sizes: u64,
    /// DMA mappings that may still be made, when the kernel says.
    pub mappings_left: Option<u32>,
}

/// Puts a group into a container, which then has the group's IOMMU, without opening a device of it.
pub(super) fn join(group: &impl AsRawFd, container: &impl AsRawFd) -> io::Result<()> {
    let mut fd: i32 = container.as_raw_fd();
    let argument = (&raw mut fd).cast();
    // SAFETY: the argument is a pointer to a descriptor, which outlives the call.
    unsafe { call(group.as_raw_fd(), GROUP_SET_CONTAINER, argument) }?;
    // SAFETY: the argument is a number.
    unsafe { call(container.as_raw_fd(), SET_IOMMU, sys::VFIO_TYPE1v2_IOMMU as *mut _) }.map(drop)
}

/// Asks a container; after its first group only.
pub(super) fn iommu_info(fd: &impl AsRawFd) -> io::Result<IommuInfo> {
    // struct vfio_iommu_type1_info: argsz, flags, u64 iova_pgsizes, u32 cap_offset, u32 pad
    Ok(parse_iommu_info(&Answer::ask(fd.as_raw_fd(), IOMMU_GET_INFO, &[0; 6])?))
}

fn parse_iommu_info(answer: &Answer) -> IommuInfo {
    let mut info = IommuInfo { page_sizes: answer.u64(8), ..Default::default() };
    if answer.u32(4) & sys::VFIO_IOMMU_INFO_CAPS == 0 {
        return info;
    }
    for (id, at) in answer.capabilities(answer.u32(16)) {
        match u32::from(id) {
            sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                // header, u32 nr_iovas, u32 reserved, { u64 start, u64 end }[]
                let room = answer.len().saturating_sub(at + 16) / 16;
                let count = (answer.u32(at + 8) as usize).min(room);
                info.iova = (0..count)
                    .filter_map(|n| {
                        AddressRange::inclusive(
                            answer.u64(at + 16 + n * 16),
                            answer.u64(at + 24 + n * 16),
                        )
                    })
                    .collect();
            }
            sys::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.mappings_left = Some(answer.u32(at + 8)),
            _ => {}
        }
    }
    info
}

/// Gives `len` bytes of this process at `address` to the container's devices at `iova`.
///
/// # Safety
/// The memory must stay mapped and must not be referenced as Rust data until [`dma_unmap`].
pub(super) unsafe fn dma_map(
    fd: &impl AsRawFd,
    iova: u64,
    address: usize,
    len: u64,
) -> io::Result<()> {
    let mut map = sys::vfio_iommu_type1_dma_map {
        argsz: mem::size_of::<sys::vfio_iommu_type1_dma_map>() as u32,
        flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: address as u64,
        iova,
        size: len,
    };
    // SAFETY: a whole structure of the kind; what it gives away is the caller's promise.
    unsafe { call(fd.as_raw_fd(), IOMMU_MAP_DMA, (&raw mut map).cast()) }.map(drop)
}

/// Takes the range away from the devices again.
pub(super) fn dma_unmap(fd: &impl AsRawFd, iova: u64, len: u64) -> io::Result<()> {
    let mut unmap = sys::vfio_iommu_type1_dma_unmap {
        argsz: mem::size_of::<sys::vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size: len,
        ..Default::default()
    };
    // SAFETY: a whole structure of the kind.
    unsafe { call(fd.as_raw_fd(), IOMMU_UNMAP_DMA, (&raw mut unmap).cast()) }?;
    if unmap.size == len { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
}

/// Which of these have a signal that nobody has read: one poll(2), which takes nothing.
pub(super) fn signalled(events: &[&EventFd]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = events
        .iter()
        .map(|event| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    if polled.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: the list is `polled`, and its length is passed with it.
    let found = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
    if found < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(polled.iter().map(|polled| polled.revents & libc::POLLIN != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u32]) -> Answer {
        let mut answer = Answer { words: vec![0; bytes.len().div_ceil(2)] };
        for (index, value) in bytes.iter().enumerate() {
            answer.put(index, *value);
        }
        answer
    }

    #[test]
    fn region_with_sparse_areas_keeps_those_inside_the_region() {
        let caps = sys::VFIO_REGION_INFO_FLAG_MMAP | sys::VFIO_REGION_INFO_FLAG_CAPS;
        let sparse = [1 | 1 << 16, 0, 2, 0, 0x1000, 0, 0x1000, 0, 0x3000, 0, 0x2000, 0];
        let mut words = vec![80, caps, 0, 32, 0x4000, 0, 0, 0];
        words.extend(sparse);
        assert_eq!(region_info(&answer(&words)).areas, [(0x1000, 0x1000)]);
    }

    #[test]
    fn capability_chain_with_a_cycle_ends() {
        let words = [48, sys::VFIO_IOMMU_INFO_CAPS, 0x1000, 0, 24, 0, 9, 24, 0, 0, 0, 0];
        assert_eq!(parse_iommu_info(&answer(&words)).iova, []);
    }

    #[test]
    fn iova_ranges_longer_than_the_answer_are_cut() {
        let mut words = vec![64, sys::VFIO_IOMMU_INFO_CAPS, 0x1000, 0, 24, 0];
        words.extend([1 | 1 << 16, 0, 1000, 0, 0, 0, 0xfedf_ffff, 0]);
        let info = parse_iommu_info(&answer(&words));
        assert_eq!(info.iova, [AddressRange::inclusive(0, 0xfedf_ffff).unwrap()]);
    }

    #[test]
    fn affected_functions_are_read_from_the_packed_list() {
        let words = [28, 0, 2, 17, 0x003b_0001, 18, 0x083c_0000, 0];
        let found = affected(&answer(&words)).unwrap();
        let function = |text: &str, group| Affected { bdf: text.parse().unwrap(), group };
        assert_eq!(found, [function("0001:3b:00.0", 17), function("0000:3c:01.0", 18)]);
    }

    #[test]
    fn affected_functions_beyond_the_answer_are_not_made_up() {
        assert_eq!(affected(&answer(&[20, 0, 1000, 17])).unwrap(), []);
        assert!(affected(&answer(&[20, 1, 1, 17, 0, 0])).is_err());
    }

    #[test]
    fn hot_reset_request_names_every_group() {
        assert_eq!(hot_reset_request(&[7, 9]).unwrap(), [20, 0, 2, 7, 9]);
    }

    #[test]
    fn irq_set_says_its_length_and_start() {
        let words = irq_set(IrqIndex::Msix, 3, IrqAction::Trigger(&[7, -1])).unwrap();
        let flags = sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
        assert_eq!(words, [28, flags, 2, 3, 2, 7, u32::MAX]);
    }

    #[test]
    fn irq_set_to_disable_has_no_vectors() {
        let words = irq_set(IrqIndex::Msi, 0, IrqAction::Disable).unwrap();
        assert_eq!((words[0], words[4]), (20, 0));
    }
}
