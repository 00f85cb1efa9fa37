//! What VFIO's regions mean as BARs, and which parts of them the guest may reach without an exit.

use strait_resources::{
    bar::{BarIndex, BarKind, BarSpec},
    range::{AddressRange, align_down, align_up},
};

use crate::{
    pci::{caps::read32, function::DirectArea, msix::MsixLayout, regs},
    ports::{Access, HostMemory},
    vfio::{
        attach::{AttachError, read_config},
        backend::{RegionInfo, VfioBackend},
        rom::RomSource,
    },
};

/// The host's page: the unit of memslots and mappings.
const PAGE: u64 = 4096;

/// The BARs of a device and the ROM that goes with `rom`, by ascending index: what the address plan is made
/// from. Sizes come from VFIO's region info and kinds from the register's low bits; nothing is written to the
/// device.
pub fn presented_bars(
    backend: &dyn VfioBackend,
    rom: &RomSource,
) -> Result<Vec<BarSpec>, AttachError> {
    let config = read_config(backend)?;
    let mut bars = Vec::new();
    let mut indices = 0..6;
    while let Some(index) = indices.next() {
        let register = read32(&config, regs::BAR0 + index * regs::BAR_SIZE).unwrap_or(0);
        let kind = kind(register);
        if matches!(kind, BarKind::Memory64 { .. }) {
            indices.next();
        }
        let size = backend.region(index.into()).size;
        let Some(bar) = BarIndex::new(index as u8).filter(|_| size != 0) else { continue };
        let (smallest, largest) = match kind {
            BarKind::Io => (4, 1 << 16),
            BarKind::Memory64 { .. } if index < 5 => (16, 1 << 62),
            _ => (16, 1 << 31),
        };
        if size > largest {
            return Err(crate::pci::bar::BarError::Size { bar, size }.into());
        }
        let size = size.next_power_of_two().max(smallest);
        bars.push(BarSpec { index: bar, kind, size });
    }
    bars.extend(rom.spec(backend)?);
    Ok(bars)
}

fn kind(register: u32) -> BarKind {
    let prefetchable = register & regs::BAR_PREFETCHABLE != 0;
    if register & regs::BAR_IO != 0 {
        BarKind::Io
    } else if register & regs::BAR_MEMORY_TYPE == regs::BAR_MEMORY_64 {
        BarKind::Memory64 { prefetchable }
    } else {
        BarKind::Memory32 { prefetchable }
    }
}

/// Maps what VFIO lets map of a BAR and returns the parts for memslots. The mapping is not cut: VFIO's areas are
/// mapped exactly as named (a vGPU's must be), and only the pages with MSI-X table or pending bits are left out
/// of what the guest reaches.
pub(crate) fn map_direct(
    backend: &dyn VfioBackend,
    spec: BarSpec,
    msix: Option<&MsixLayout>,
) -> Result<Vec<DirectArea>, AttachError> {
    let bar = spec.index;
    let index = u32::from(bar.get());
    let region = backend.region(index);
    let in_memory = matches!(spec.kind, BarKind::Memory32 { .. } | BarKind::Memory64 { .. });
    if !in_memory || !region.mappable || !region.readable || spec.size < PAGE {
        return Ok(Vec::new());
    }
    let access = if region.writable { Access::ReadWrite } else { Access::ReadOnly };
    let holes: Vec<AddressRange> =
        msix.into_iter().flat_map(|layout| layout.in_bar(bar)).filter_map(whole_pages).collect();

    let mut direct = Vec::new();
    for area in mappable_areas(&region, spec.size) {
        let pieces = area.subtract_all(holes.iter().copied());
        if pieces.is_empty() {
            continue;
        }
        let (offset, len) = (area.first(), area.len());
        let memory = backend.map(index, offset, len).map_err(|source| AttachError::Map {
            bar,
            offset,
            len,
            source,
        })?;
        direct.extend(pieces.into_iter().filter_map(|piece| part(memory, offset, piece, access)));
    }
    Ok(direct)
}

/// VFIO's areas as whole pages inside region and BAR, ascending and disjoint. Anything else is a kernel's slip.
fn mappable_areas(region: &RegionInfo, size: u64) -> Vec<AddressRange> {
    let mut areas: Vec<AddressRange> = region
        .areas
        .iter()
        .filter_map(|&(offset, len)| {
            let end = offset.checked_add(len)?.min(region.size).min(size);
            let (first, end) = (align_up(offset, PAGE)?, align_down(end, PAGE));
            AddressRange::new(first, end.checked_sub(first)?)
        })
        .collect();
    areas.sort_unstable();
    let mut last: Option<u64> = None;
    areas.retain(|area| {
        let disjoint = last.is_none_or(|last| last < area.first());
        if disjoint {
            last = Some(area.last());
        }
        disjoint
    });
    areas
}

/// The pages that a range touches.
fn whole_pages(range: AddressRange) -> Option<AddressRange> {
    AddressRange::inclusive(align_down(range.first(), PAGE), range.last() | (PAGE - 1))
}

/// `piece` of a mapping that starts at `offset` of the BAR.
fn part(
    memory: HostMemory,
    offset: u64,
    piece: AddressRange,
    access: Access,
) -> Option<DirectArea> {
    let into = usize::try_from(piece.first().checked_sub(offset)?).ok()?;
    let address = memory.address.checked_add(into)?;
    let memory = HostMemory { address, len: piece.len() };
    Some(DirectArea { offset: piece.first(), memory, access })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vfio::fake::{FAKE_MEMORY, FakeDevice};

    fn bar(index: u8) -> BarIndex {
        BarIndex::new(index).unwrap()
    }

    fn spec(size: u64) -> BarSpec {
        BarSpec { index: bar(0), kind: BarKind::Memory32 { prefetchable: false }, size }
    }

    fn layout(table: u64, pba: u64, vectors: u16) -> MsixLayout {
        MsixLayout {
            vectors,
            table_bar: bar(0),
            table: AddressRange::new(table, u64::from(vectors) * 16).unwrap(),
            pba_bar: bar(0),
            pba: AddressRange::new(pba, crate::pci::msix::pba_bytes(vectors)).unwrap(),
        }
    }

    fn offsets(direct: &[DirectArea]) -> Vec<(u64, u64)> {
        direct.iter().map(|area| (area.offset, area.memory.len)).collect()
    }

    #[test]
    fn kinds_come_from_low_bits_and_sizes_from_regions() {
        let device = FakeDevice::new()
            .config32(0x10, 0xf000_0000)
            .empty_region(0, 16 << 20)
            .config32(0x14, 0xc)
            .empty_region(1, 32 << 30)
            .config32(0x1c, 0x4)
            .empty_region(3, 0x100)
            .config32(0x24, 0xe001)
            .empty_region(5, 0x80)
            .empty_region(6, 0x8_0000);
        let wide = |prefetchable| BarKind::Memory64 { prefetchable };
        let expected = [
            (0, BarKind::Memory32 { prefetchable: false }, 16 << 20),
            (1, wide(true), 32 << 30),
            (3, wide(false), 0x100),
            (5, BarKind::Io, 0x80),
            (6, BarKind::Rom, 0x8_0000),
        ]
        .map(|(index, kind, size)| BarSpec { index: bar(index), kind, size });
        assert_eq!(presented_bars(&device, &RomSource::Device).unwrap(), expected);
        assert!(device.calls().iter().all(|call| !call.starts_with("write")));
    }

    #[test]
    fn wide_bar_of_size_zero_still_takes_two_registers() {
        let device =
            FakeDevice::new().config32(0x10, 0x4).config32(0x14, 0x1).empty_region(1, 0x100);
        assert_eq!(presented_bars(&device, &RomSource::Off).unwrap(), []);
    }

    #[test]
    fn narrow_bar_above_two_gigabytes_is_refused() {
        let device = FakeDevice::new().empty_region(0, 4 << 30);
        assert!(presented_bars(&device, &RomSource::Off).is_err());
    }

    #[test]
    fn table_and_pba_pages_are_carved_out_of_one_mapping() {
        let device = FakeDevice::new().empty_region(0, 0x1_0000);
        let layout = layout(0x2ff0, 0x5000, 2);
        let direct = map_direct(&device, spec(0x1_0000), Some(&layout)).unwrap();
        assert_eq!(offsets(&direct), [(0, 0x2000), (0x4000, 0x1000), (0x6000, 0xa000)]);
        assert_eq!(direct[1].memory.address, FAKE_MEMORY + 0x4000);
        assert_eq!(device.calls(), ["map 0 0x0 0x10000"]);
    }

    #[test]
    fn sparse_areas_are_mapped_as_named() {
        let device = FakeDevice::new()
            .empty_region(0, 0x1_0000)
            .areas(0, &[(0x8000, 0x8000), (0, 0x1000), (0x2000, 0x800)]);
        let direct = map_direct(&device, spec(0x1_0000), None).unwrap();
        assert_eq!(offsets(&direct), [(0, 0x1000), (0x8000, 0x8000)]);
        assert_eq!(device.calls(), ["map 0 0x0 0x1000", "map 0 0x8000 0x8000"]);
    }

    #[test]
    fn region_that_cannot_be_written_is_mapped_for_reading_alone() {
        let device = FakeDevice::new().empty_region(0, 0x1_0000).read_only(0);
        let direct = map_direct(&device, spec(0x1_0000), None).unwrap();
        assert_eq!(direct.iter().map(|area| area.access).collect::<Vec<_>>(), [Access::ReadOnly]);
        let device = FakeDevice::new().empty_region(0, 0x1_0000);
        let direct = map_direct(&device, spec(0x1_0000), None).unwrap();
        assert_eq!(direct[0].access, Access::ReadWrite);
    }

    #[test]
    fn areas_past_the_end_or_overlapping_are_cut() {
        let device = FakeDevice::new()
            .empty_region(0, 0x4000)
            .areas(0, &[(0, 0x3000), (0x1000, u64::MAX), (0x2000, 0x9000)]);
        let direct = map_direct(&device, spec(0x4000), None).unwrap();
        assert_eq!(offsets(&direct), [(0, 0x3000)]);
    }

    #[test]
    fn small_unmappable_and_io_bars_have_no_direct_area() {
        let device = FakeDevice::new().empty_region(0, 0x100);
        assert_eq!(map_direct(&device, spec(0x100), None).unwrap(), []);
        let device = FakeDevice::new().empty_region(0, 0x4000).areas(0, &[]);
        assert_eq!(map_direct(&device, spec(0x4000), None).unwrap(), []);
        let device = FakeDevice::new().empty_region(0, 0x1_0000);
        let io = BarSpec { kind: BarKind::Io, ..spec(0x1_0000) };
        assert_eq!(map_direct(&device, io, None).unwrap(), []);
    }

    #[test]
    fn bar_that_is_all_table_is_not_mapped() {
        let device = FakeDevice::new().empty_region(0, 0x1000);
        let layout = layout(0, 0x800, 2);
        assert_eq!(map_direct(&device, spec(0x1000), Some(&layout)).unwrap(), []);
        assert_eq!(device.calls(), [""; 0]);
    }

    #[test]
    fn failed_mapping_names_bar_and_range() {
        let device = FakeDevice::new().empty_region(0, 0x1000).failing("map 0");
        let error = map_direct(&device, spec(0x1000), None).unwrap_err();
        assert_eq!(error.to_string(), "BAR 0 cannot be mapped at offset 0x0, 0x1000 bytes");
    }

    proptest! {
        #[test]
        fn direct_areas_never_touch_table_or_pba(
            pages in 0u32..8,
            table in 0u64..0x8000,
            pba in 0u64..0x8000,
            vectors in 1u16..=2048,
            areas in proptest::collection::vec((0u64..0x9000, 0u64..0x9000), 0..6),
        ) {
            let size = PAGE << pages;
            let device = FakeDevice::new().empty_region(0, size).areas(0, &areas);
            let layout = layout(table & !7, pba & !7, vectors);
            let direct = map_direct(&device, spec(size), Some(&layout)).unwrap();
            for area in direct {
                let range = AddressRange::new(area.offset, area.memory.len).unwrap();
                prop_assert!(range.last() < size);
                prop_assert!(area.offset.is_multiple_of(PAGE) && area.memory.len.is_multiple_of(PAGE));
                for hole in layout.in_bar(bar(0)) {
                    prop_assert!(!range.overlaps(hole));
                }
            }
        }
    }
}
