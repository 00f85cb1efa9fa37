//! Which I/O virtual addresses are in use, and since when: an overlap is refused here, with a name, before the
//! kernel sees it, and a mapping that the kernel ended by itself is not ended again.

use std::{collections::BTreeMap, io};

use strait_resources::range::AddressRange;

/// Bookkeeping of one container. Pure.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// First and last address of each mapping.
    taken: BTreeMap<u64, u64>,
    /// How many devices are open of each group in the container, which has an IOMMU while there is a group.
    groups: BTreeMap<u32, usize>,
    /// How often the last group left and the kernel dropped every mapping with it.
    era: u64,
}

/// One entry of a [`Space`].
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) range: AddressRange,
    era: u64,
}

impl Space {
    pub(super) fn device_came(&mut self, group: u32) {
        *self.groups.entry(group).or_default() += 1;
    }

    /// Is no other device of the group open?
    pub(super) fn is_last_of(&self, group: u32) -> bool {
        self.groups.get(&group) == Some(&1)
    }

    /// The group leaves the container with its last device. With the last group the kernel takes the IOMMU off the
    /// container and drops what was mapped.
    pub(super) fn device_left(&mut self, group: u32) {
        if !self.is_last_of(group) {
            self.groups.entry(group).and_modify(|devices| *devices = devices.saturating_sub(1));
            return;
        }
        self.groups.remove(&group);
        if self.groups.is_empty() {
            self.taken.clear();
            self.era += 1;
        }
    }

    /// Notes a mapping that is about to be made.
    pub(super) fn take(&mut self, range: AddressRange) -> io::Result<Taken> {
        if self.groups.is_empty() {
            let text = "the container has no IOMMU before a device is open";
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        }
        let before = self.taken.range(..=range.last()).next_back();
        if let Some((first, last)) = before.filter(|(_, last)| **last >= range.first()) {
            let text = format!("{range} overlaps the DMA mapping {first:#x}-{last:#x}");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        self.taken.insert(range.first(), range.last());
        Ok(Taken { range, era: self.era })
    }

    /// Does the kernel still have this mapping?
    pub(super) fn is_live(&self, taken: &Taken) -> bool {
        taken.era == self.era
    }

    /// Forgets a mapping that is gone. One that the kernel would not end is not forgotten: nothing else may
    /// be promised its addresses.
    pub(super) fn release(&mut self, taken: &Taken) {
        if self.is_live(taken) {
            self.taken.remove(&taken.range.first());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    fn with_device() -> Space {
        let mut space = Space::default();
        space.device_came(17);
        space
    }

    #[test]
    fn space_without_a_device_takes_nothing() {
        let refusal = Space::default().take(range(0, 0xfff)).unwrap_err();
        assert_eq!(refusal.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn interval_that_overlaps_is_refused_on_either_side() {
        let mut space = with_device();
        space.take(range(0x1000, 0x1fff)).unwrap();
        for overlap in
            [range(0, 0x1000), range(0x1fff, 0x2fff), range(0x1400, 0x14ff), range(0, 0xffff)]
        {
            assert!(space.take(overlap).is_err(), "{overlap} was taken");
        }
        assert!(space.take(range(0x2000, 0x2fff)).is_ok());
    }

    #[test]
    fn interval_that_ended_can_be_taken_again() {
        let mut space = with_device();
        let taken = space.take(range(0, u64::MAX)).unwrap();
        space.release(&taken);
        assert!(space.take(range(0, 0)).is_ok());
    }

    #[test]
    fn mappings_end_with_the_last_group_only() {
        let mut space = with_device();
        space.device_came(18);
        let taken = space.take(range(0, 0xfff)).unwrap();
        space.device_left(17);
        assert!(space.is_live(&taken));
        space.device_left(18);
        assert!(!space.is_live(&taken));
    }

    #[test]
    fn group_leaves_with_its_last_device_only() {
        let mut space = with_device();
        space.device_came(17);
        let taken = space.take(range(0, 0xfff)).unwrap();
        assert!(!space.is_last_of(17));
        space.device_left(17);
        assert!(space.is_last_of(17) && space.is_live(&taken));
    }

    #[test]
    fn release_of_an_ended_mapping_leaves_its_successor() {
        let mut space = with_device();
        let old = space.take(range(0, 0xfff)).unwrap();
        space.device_left(17);
        space.device_came(17);
        let new = space.take(range(0, 0xfff)).unwrap();
        space.release(&old);
        assert!(space.is_live(&new));
        assert!(space.take(range(0, 0xfff)).is_err());
    }

    proptest! {
        #[test]
        fn taken_intervals_never_share_an_address(
            wanted in proptest::collection::vec((0u64..64, 0u64..16), 1..40),
        ) {
            let mut space = with_device();
            let mut held: Vec<AddressRange> = Vec::new();
            for (first, len) in wanted {
                let wanted = range(first, first + len);
                let free = held.iter().all(|other| !other.overlaps(wanted));
                prop_assert_eq!(space.take(wanted).is_ok(), free);
                if free {
                    held.push(wanted);
                }
            }
        }
    }
}
