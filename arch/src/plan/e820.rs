//! The memory map as firmware would report it (ACPI 6.5, 15.1).

use strait_resources::range::AddressRange;

use super::Plan;
use crate::layout::{HIGH_MEMORY_START, LOW_MEMORY_END};

/// What a range of the memory map is; the value is the type in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum E820Kind {
    /// The guest's to use.
    Ram = 1,
    /// Neither RAM nor a place for BARs.
    Reserved = 2,
}

impl Plan {
    /// RAM less the legacy hole, then the legacy hole itself, ECAM and every hole as reserved. Ascending, disjoint.
    pub fn e820(&self) -> Vec<(AddressRange, E820Kind)> {
        let legacy = AddressRange::inclusive(LOW_MEMORY_END, HIGH_MEMORY_START - 1);
        let ram = self.ram.iter().flat_map(|range| range.subtract_all(legacy));
        let reserved = self.holes.iter().map(|hole| hole.range).chain([self.ecam]).chain(legacy);
        let mut map: Vec<_> = ram
            .map(|range| (range, E820Kind::Ram))
            .chain(reserved.map(|range| (range, E820Kind::Reserved)))
            .collect();
        map.sort();
        map
    }
}
