//! Guest RAM: where it comes from on the host.
//!
//! Anonymous private memory by default, aligned to 2 MiB and advised to be huge: a memfd gets no transparent
//! huge pages on a stock host. Or pages of the host's hugetlb pool, when asked.

#![allow(unsafe_code, reason = "mmap and madvise of guest RAM")]

use std::{
    io, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use strait_devices::ports::HostMemory;
use strait_resources::{
    codes,
    failure::Failure,
    range::{AddressRange, align_up},
};
use vm_memory::{
    GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder,
};

use crate::config::Pages;

/// Faulted in at once: a huge page.
const PIECE: usize = 2 << 20;

/// All RAM of one machine.
pub(crate) struct GuestRam {
    pages: Pages,
    areas: Vec<Area>,
    memory: GuestMemoryMmap,
}

/// One range of RAM and the memory behind it.
struct Area {
    range: AddressRange,
    /// Bytes of memory: the range, and the rest of its last page.
    len: usize,
    reservation: Reservation,
}

/// Addresses of this process that are ours until this is dropped.
struct Reservation {
    /// Where they begin, and how many they are.
    whole: (usize, usize),
    /// The first that is aligned as asked.
    start: usize,
}

impl GuestRam {
    /// Reserves memory for each range; nothing is faulted in. E1307 when the hugetlb pool is too small, E1301
    /// when the host does not have as much at all.
    pub(crate) fn new(ranges: &[AddressRange], pages: Pages) -> Result<Arc<Self>, Failure> {
        let areas = ranges
            .iter()
            .map(|range| Area::new(*range, pages).map_err(|error| no_memory(*range, pages, error)))
            .collect::<Result<Vec<_>, _>>()?;
        let regions = areas.iter().map(Area::region).collect::<Result<Vec<_>, Failure>>()?;
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|error| {
            Failure::new(&codes::E9001, "guest RAM has an impossible layout", "report this")
                .source(error)
        })?;
        Ok(Arc::new(Self { pages, areas, memory }))
    }

    /// For whoever writes into the guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Each range with the memory behind it.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (AddressRange, HostMemory)> {
        self.areas
            .iter()
            .map(|area| (area.range, HostMemory { address: area.start(), len: area.range.len() }))
    }

    /// What ranges of RAM are made of, in bytes.
    pub(crate) fn granule(&self) -> u64 {
        self.pages.granule()
    }

    /// Faults `part` of [`GuestRam::regions`] in, whatever is in it and whoever uses it: a device needs all of it.
    /// `ending`: the rest is not needed any more.
    pub(crate) fn populate(&self, part: HostMemory, ending: &AtomicBool) -> io::Result<()> {
        let len = usize::try_from(part.len).map_err(io::Error::other)?;
        let inside = |area: &Area| {
            let offset = part.address.checked_sub(area.start());
            let end = offset.and_then(|offset| (offset as u64).checked_add(part.len));
            end.is_some_and(|end| end <= area.range.len())
        };
        if !self.areas.iter().any(inside) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The kernel holds the lock of this process's address space for the whole of one call, and whoever maps something
        // meanwhile waits, with all who come after: the thread that builds the machine, and the guest's page faults.
        // From the top down, so that whoever comes from below meets it once.
        let piece = PIECE.max(self.granule() as usize);
        (0..len)
            .step_by(piece)
            .rev()
            .take_while(|_| !ending.load(Ordering::Relaxed))
            .try_for_each(|at| populate(part.address + at, piece.min(len - at)))
    }
}

/// `range` and the memory behind it, in pieces of `size`.
pub(crate) fn pieces(
    range: AddressRange,
    memory: HostMemory,
    size: u64,
) -> impl Iterator<Item = (AddressRange, HostMemory)> {
    (0..memory.len).step_by(size as usize).filter_map(move |at| {
        let len = (memory.len - at).min(size);
        let range = AddressRange::new(range.first().checked_add(at)?, len)?;
        Some((range, HostMemory { address: memory.address.checked_add(at as usize)?, len }))
    })
}

impl Area {
    fn new(range: AddressRange, pages: Pages) -> io::Result<Self> {
        let (pool, advice) = match pages {
            Pages::Default => (0, Some(libc::MADV_HUGEPAGE)),
            Pages::Huge2M => (libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, None),
            Pages::Huge1G => (libc::MAP_HUGETLB | libc::MAP_HUGE_1GB, None),
        };
        // A range may end inside a page of the pool; the rest of that page is nobody's.
        let len = align_up(range.len(), pages.granule()).ok_or(io::ErrorKind::OutOfMemory)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let reservation = Reservation::new(len, pages.granule() as usize)?;
        // Without MAP_NORESERVE: a host that cannot give this much says so here, by an error, and not later, by
        // ending a process of its choice.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | pool;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: [start, start + len) lies inside the reservation, which is ours alone.
        let address = unsafe { libc::mmap(reservation.start as *mut _, len, access, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let area = Self { range, len, reservation };
        // The first two are advice: a kernel without them is slower or dumps more.
        advice.into_iter().for_each(|advice| area.advise(advice));
        area.advise(libc::MADV_DONTDUMP);
        // A child would share the pages until one side writes, and a device would go on with the wrong copy.
        area.advise(libc::MADV_DONTFORK);
        Ok(area)
    }

    fn start(&self) -> usize {
        self.reservation.start
    }

    fn advise(&self, advice: libc::c_int) {
        // All of it: pages of a pool cannot be split, and part of one would be refused.
        // SAFETY: the mapping made by `new`; no advice given here changes contents.
        let result = unsafe { libc::madvise(self.start() as *mut _, self.len, advice) };
        if result != 0 {
            log::debug!("madvise({advice}): {}", io::Error::last_os_error());
        }
    }

    fn region(&self) -> Result<GuestRegionMmap, Failure> {
        let impossible =
            || Failure::new(&codes::E9001, "guest RAM has an impossible layout", "report this");
        // SAFETY: [start, start + len) is a mapping of ours that lives as long as the area, which `GuestRam`
        // keeps beside the region; vm-memory does not unmap what it was given.
        let region: MmapRegion = unsafe {
            MmapRegionBuilder::new(self.range.len() as usize)
                .with_raw_mmap_pointer(self.start() as *mut u8)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
                .build()
        }
        .map_err(|error| impossible().source(error))?;
        GuestRegionMmap::new(region, GuestAddress(self.range.first())).ok_or_else(impossible)
    }
}

impl Reservation {
    /// `len` bytes at a multiple of `align`, which is a power of two. Nothing is behind them yet.
    fn new(len: usize, align: usize) -> io::Result<Self> {
        let total = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = address as usize;
        Ok(Self { whole: (base, total), start: base.next_multiple_of(align) })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: made by `new`, unmapped only here, with all that was mapped into it. Memslots and DMA mappings
        // hold the `GuestRam` or are dropped before it.
        unsafe { libc::munmap(self.whole.0 as *mut _, self.whole.1) };
    }
}

/// Faults pages of guest RAM in for writing, without touching what is in them.
fn populate(start: usize, len: usize) -> io::Result<()> {
    // SAFETY: inside guest RAM, which outlives the workers; contents stay as they are.
    if unsafe { libc::madvise(start as *mut _, len, libc::MADV_POPULATE_WRITE) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // Kernels before 5.14: a write that changes nothing, page by page, and in one piece: the guest may be running.
    for page in (start..start + len).step_by(4096) {
        // SAFETY: a byte of guest RAM, which is only ever accessed as atomic or volatile bytes.
        unsafe { AtomicU8::from_ptr(page as *mut u8) }.fetch_or(0, Ordering::Relaxed);
    }
    Ok(())
}

fn no_memory(range: AddressRange, pages: Pages, error: io::Error) -> Failure {
    let mib = range.len() >> 20;
    let (code, cause, fix) = match pages {
        Pages::Default => (
            &codes::E1301,
            format!("the host does not grant {mib} MiB for guest RAM"),
            "give the guest less with --memory; or look at ulimit -v and vm.overcommit_memory"
                .to_owned(),
        ),
        Pages::Huge2M | Pages::Huge1G => {
            let kib = pages.granule() >> 10;
            let need = range.len().div_ceil(pages.granule());
            (
                &codes::E1307,
                format!(
                    "the host's pool has too few free {kib} KiB pages for {mib} MiB of guest RAM"
                ),
                format!(
                    "echo {need} | sudo tee /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
                ),
            )
        }
    };
    Failure::new(code, cause, fix).source(error)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn two_ranges() -> [AddressRange; 2] {
        [AddressRange::new(0, 8 << 20).unwrap(), AddressRange::new(1 << 32, 4 << 20).unwrap()]
    }

    #[test]
    fn ram_is_aligned_to_huge_pages_and_readable_at_its_guest_address() {
        let ram = GuestRam::new(&two_ranges(), Pages::Default).unwrap();
        assert!(ram.regions().all(|(_, memory)| memory.address.is_multiple_of(2 << 20)));
        let last = GuestAddress((1 << 32) + (4 << 20) - 8);
        ram.memory().write_obj(0x1234_5678_u64, last).unwrap();
        assert_eq!(ram.memory().read_obj::<u64>(last).unwrap(), 0x1234_5678);
        assert!(ram.memory().read_obj::<u64>(GuestAddress(8 << 20)).is_err());
    }

    #[test]
    fn populate_makes_every_page_resident_and_keeps_contents() {
        let ram = GuestRam::new(&two_ranges(), Pages::Default).unwrap();
        ram.memory().write_obj(7_u8, GuestAddress(0x1000)).unwrap();
        ram.regions().for_each(|(_, memory)| ram.populate(memory, &AtomicBool::default()).unwrap());
        for (_, memory) in ram.regions() {
            let mut resident = vec![0u8; (memory.len / 4096) as usize];
            // SAFETY: a live mapping, and a vector with a byte for each of its pages.
            let result = unsafe {
                libc::mincore(memory.address as *mut _, memory.len as usize, resident.as_mut_ptr())
            };
            assert_eq!(result, 0);
            assert!(resident.iter().all(|page| page & 1 == 1));
        }
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 7);
    }

    #[test]
    fn populate_refuses_what_is_not_guest_ram() {
        let ram = GuestRam::new(&two_ranges(), Pages::Default).unwrap();
        let never = AtomicBool::default();
        for (_, HostMemory { address, len }) in ram.regions() {
            let beyond = HostMemory { address: address + 4096, len };
            assert!(ram.populate(beyond, &never).is_err());
            let before = HostMemory { address: address - 4096, len: 4096 };
            assert!(ram.populate(before, &never).is_err());
        }
    }

    #[test]
    fn pieces_cover_memory_without_a_gap() {
        for (len, size) in
            [(200 << 20, 16 << 20), (3 << 30, 1 << 30), ((5 << 29) + 0x1000, 1 << 30)]
        {
            let memory = HostMemory { address: 0x7f00_0000_0000, len };
            let range = AddressRange::new(0x80_0000_0000, len).unwrap();
            let mut next = (range.first(), memory.address as u64);
            for (range, memory) in pieces(range, memory, size) {
                assert_eq!((range.first(), memory.address as u64), next);
                assert!(range.len() == memory.len && memory.len <= size);
                next = (range.last() + 1, memory.address as u64 + memory.len);
            }
            assert_eq!(next, (range.last() + 1, memory.address as u64 + memory.len));
        }
    }

    #[test]
    fn ram_is_advised_huge_neither_dumped_nor_inherited_and_accounted_for() {
        let ram = GuestRam::new(&two_ranges(), Pages::Default).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for (_, memory) in ram.regions() {
            let mapping = smaps.split_once(&format!("{:x}-", memory.address)).unwrap().1;
            let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags: ")).unwrap();
            let has = |flag| flags.split(' ').any(|word| word == flag);
            assert!(has("hg") && has("dd") && has("dc") && !has("nr"), "{flags}");
        }
    }

    #[test]
    fn advice_is_for_the_whole_of_the_last_page() {
        let ranges = [AddressRange::new(0, 3 << 20).unwrap()];
        let ram = GuestRam::new(&ranges, Pages::Default).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = ram.areas[0].start();
        // One mapping: advice for a part of it would have made two.
        let whole = format!("{start:x}-{:x} ", start + (4 << 20));
        let mapping = smaps.split_once(&whole).expect("two pages of 2 MiB").1;
        let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags: ")).unwrap();
        assert!(flags.split(' ').any(|word| word == "dd"), "{flags}");
    }

    #[test]
    fn reservation_starts_aligned_and_holds_its_length() {
        let reserved = Reservation::new(3 << 30, 1 << 30).unwrap();
        assert!(reserved.start.is_multiple_of(1 << 30));
        let (base, total) = reserved.whole;
        assert!(base <= reserved.start && reserved.start + (3 << 30) <= base + total);
    }

    #[test]
    fn ram_that_no_host_has_is_refused() {
        let absurd = [AddressRange::new(0, 1 << 47).unwrap()];
        let failure = GuestRam::new(&absurd, Pages::Default).err().unwrap();
        assert_eq!(failure.code.id, "E1301");
    }

    #[test]
    fn huge_pages_that_the_pool_lacks_are_refused_with_the_command() {
        let absurd = [AddressRange::new(0, 1 << 45).unwrap()];
        let Err(failure) = GuestRam::new(&absurd, Pages::Huge2M) else {
            panic!("a pool of 32 TiB")
        };
        assert_eq!(failure.code.id, "E1307");
        assert!(failure.fix.contains("hugepages-2048kB"));
    }
}
