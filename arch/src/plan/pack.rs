//! Packing BARs into bridge windows and windows into address space.
//!
//! A port's BARs of one kind become a block: naturally aligned sizes, largest first from an aligned base, leave no gap.
//! Blocks go by falling alignment to the lowest address that holds them, so the small ones fill what alignment left.

use strait_resources::{
    bar::{BarKind, BarSpec},
    bdf::Bdf,
    range::{AddressRange, align_down, align_up},
};

/// Granularity of a bridge's memory windows (PCI-to-PCI Bridge 1.2, 3.2.5.8).
pub(super) const MEMORY_WINDOW: u64 = 1 << 20;
/// Granularity of a bridge's I/O window (PCI-to-PCI Bridge 1.2, 3.2.5.6).
pub(super) const IO_WINDOW: u64 = 1 << 12;
/// Two memory BARs never share a page: a page is what KVM and the IOMMU map.
const PAGE: u64 = 1 << 12;

/// One BAR of the request, with where it came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// Position of the port in the request.
    pub(super) port: usize,
    /// Position of the function in its port.
    pub(super) function: usize,
    /// Position of the BAR in its function.
    pub(super) bar: usize,
    pub(super) host: Bdf,
    pub(super) spec: BarSpec,
}

impl Item {
    /// How much address space it takes, and its alignment: its size, a page at least for memory.
    fn slot(&self) -> u64 {
        if self.spec.kind == BarKind::Io { self.spec.size } else { self.spec.size.max(PAGE) }
    }
}

/// The BARs of one port that share a window.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) port: usize,
    /// Bytes, a multiple of the granularity.
    pub(super) size: u64,
    /// A power of two.
    pub(super) align: u64,
    /// Each BAR with its offset from the start of the block.
    items: Vec<(Item, u64)>,
}

impl Block {
    /// `None` when the sum does not fit in 64 bits. `items` is not empty and all of one port.
    fn new(mut items: Vec<Item>, granularity: u64) -> Option<Self> {
        items.sort_by_key(|item| (std::cmp::Reverse(item.slot()), item.function, item.bar));
        let first = items.first()?;
        let (port, align) = (first.port, first.slot().max(granularity));
        let mut end = 0_u64;
        let mut placed = Vec::with_capacity(items.len());
        for item in items {
            placed.push((item, end));
            end = end.checked_add(item.slot())?;
        }
        Some(Self { port, size: align_up(end, granularity)?, align, items: placed })
    }

    /// The BARs at their addresses, once the block is at `window`.
    pub(super) fn bars(&self, window: AddressRange) -> impl Iterator<Item = (Item, AddressRange)> {
        self.items.iter().filter_map(move |&(item, offset)| {
            let first = window.first().checked_add(offset)?;
            Some((item, AddressRange::new(first, item.spec.size)?))
        })
    }
}

/// One block a port, by falling alignment and size. `None` when a sum does not fit in 64 bits.
pub(super) fn blocks(items: &[Item], granularity: u64) -> Option<Vec<Block>> {
    let mut blocks = items
        .chunk_by(|a, b| a.port == b.port)
        .map(|of_port| Block::new(of_port.to_vec(), granularity))
        .collect::<Option<Vec<_>>>()?;
    blocks.sort_by_key(|block| std::cmp::Reverse((block.align, block.size)));
    Some(blocks)
}

/// Free address space, part of it better than the rest.
#[derive(Clone, Debug)]
pub(super) struct Space {
    preferred: Vec<AddressRange>,
    all: Vec<AddressRange>,
}

impl Space {
    /// `all` is ascending and disjoint; the part of it inside `preferred` is taken first.
    pub(super) fn new(all: Vec<AddressRange>, preferred: &[AddressRange]) -> Self {
        Self { preferred: intersect(&all, preferred), all }
    }

    /// Takes the lowest place for `size` bytes at `align`, from the preferred part if any of it fits.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<AddressRange> {
        let place =
            lowest(&self.preferred, size, align).or_else(|| lowest(&self.all, size, align))?;
        for free in [&mut self.preferred, &mut self.all] {
            *free = free.iter().flat_map(|range| range.subtract(place)).collect();
        }
        Some(place)
    }

    /// A place for every block, in their order, or for none.
    pub(super) fn take_all(mut self, blocks: &[Block]) -> Option<Vec<AddressRange>> {
        blocks.iter().map(|block| self.take(block.size, block.align)).collect()
    }
}

fn lowest(free: &[AddressRange], size: u64, align: u64) -> Option<AddressRange> {
    free.iter().find_map(|range| {
        let place = AddressRange::new(align_up(range.first(), align)?, size)?;
        range.encloses(place).then_some(place)
    })
}

/// What is in both lists; both ascending and disjoint, and so is the result.
pub(super) fn intersect(a: &[AddressRange], b: &[AddressRange]) -> Vec<AddressRange> {
    a.iter().flat_map(|x| b.iter().filter_map(|y| x.intersect(*y))).collect()
}

/// The same addresses as ascending, disjoint ranges that do not touch.
pub(super) fn normalise(ranges: &[AddressRange]) -> Vec<AddressRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort();
    let mut merged: Vec<AddressRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.first() <= last.last().saturating_add(1) => {
                *last = hull(*last, range);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The smallest range with both inside.
pub(super) fn hull(a: AddressRange, b: AddressRange) -> AddressRange {
    AddressRange::inclusive(a.first().min(b.first()), a.last().max(b.last())).unwrap_or(a)
}

/// The part of `range` between multiples of `align` (a power of two).
pub(super) fn shrink(range: AddressRange, align: u64) -> Option<AddressRange> {
    let first = align_up(range.first(), align)?;
    // The end can be 2^64 only for the range that ends at the last address: one unit too few there, harmless.
    let end = align_down(range.last().saturating_add(1), align);
    AddressRange::inclusive(first, end.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use strait_resources::bar::BarIndex;

    use super::*;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    fn item(port: usize, bar: usize, size: u64) -> Item {
        let kind = BarKind::Memory32 { prefetchable: false };
        let index = BarIndex::new(u8::try_from(bar).unwrap()).unwrap();
        let host = Bdf::new(0, 1, 0, 0).unwrap();
        Item { port, function: 0, bar, host, spec: BarSpec { index, kind, size } }
    }

    #[test]
    fn block_of_mixed_sizes_has_no_gap_but_the_page_rule() {
        let all = blocks(&[item(0, 0, 16), item(0, 1, 1 << 21), item(0, 2, 8192)], MEMORY_WINDOW);
        let block = &all.unwrap()[0];

        assert_eq!((block.size, block.align), (3 << 20, 1 << 21));
        let bars: Vec<_> = block.bars(range(0x4000_0000, 0x402f_ffff)).map(|(_, at)| at).collect();
        assert_eq!(
            bars,
            [
                range(0x4000_0000, 0x401f_ffff),
                range(0x4020_0000, 0x4020_1fff),
                range(0x4020_2000, 0x4020_200f)
            ]
        );
    }

    #[test]
    fn blocks_past_64_bits_are_none() {
        assert!(blocks(&[item(0, 0, 1 << 63), item(0, 1, 1 << 63)], MEMORY_WINDOW).is_none());
    }

    #[test]
    fn space_prefers_the_better_part_even_when_it_is_higher() {
        let mut space = Space::new(vec![range(0, 0xffff)], &[range(0x8000, 0x9fff)]);

        assert_eq!(space.take(0x2000, 0x1000), Some(range(0x8000, 0x9fff)));
        assert_eq!(space.take(0x2000, 0x1000), Some(range(0, 0x1fff)));
        assert_eq!(space.take(0x8000, 0x8000), None);
    }

    #[test]
    fn normalise_merges_what_touches_up_to_the_last_address() {
        let all = [range(10, u64::MAX), range(0, 9), range(5, 6)];
        assert_eq!(normalise(&all), [range(0, u64::MAX)]);
    }

    #[test]
    fn shrink_to_less_than_a_unit_is_none() {
        assert_eq!(shrink(range(1, 0x2ffe), 0x1000), Some(range(0x1000, 0x1fff)));
        assert_eq!(shrink(range(1, 0x1ffe), 0x1000), None);
    }
}
