//! Where BARs are: which of them decode, at which addresses, and who waits for whom.
//!
//! A guest moves BARs one register at a time, several at once, through addresses where another BAR still is. Nothing
//! here fails for it: a BAR that cannot be where it wants to be waits, and is tried again after each change. What is
//! mapped stays while its address stays, also when the guest turns decoding off for a while (every sizing of a BAR
//! does), and goes when it really moves, when somebody else needs the addresses, or when the function cannot answer.

use std::collections::BTreeMap;

use strait_resources::range::AddressRange;

/// Who a BAR belongs to: function (in the root complex's numbering) and register.
pub(super) type Key = (usize, u8);

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Take it out of the guest's address space.
    Unmap(Key),
    /// Put it there.
    Map(Key, AddressRange),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    io: bool,
    size: u64,
    /// Where it decodes now; `None` while it does not.
    wanted: Option<AddressRange>,
    mapped: Option<AddressRange>,
}

/// Every BAR of every function.
#[derive(Default)]
pub(super) struct Apertures {
    entries: BTreeMap<Key, Entry>,
    /// Memory where no BAR may be: RAM, ECAM, chipset.
    forbidden: Vec<AddressRange>,
    /// Last address of memory that there is.
    last: u64,
}

/// The last port.
const LAST_PORT: u64 = 0xffff;

impl Apertures {
    /// BARs may be anywhere below `2^physical_bits` except in `forbidden`.
    pub(super) fn new(forbidden: Vec<AddressRange>, physical_bits: u8) -> Self {
        let last = 1_u64
            .checked_shl(u32::from(physical_bits))
            .map_or(u64::MAX, |end| end.saturating_sub(1));
        Self { entries: BTreeMap::new(), forbidden, last }
    }

    /// A BAR of `size` bytes that decodes nowhere yet.
    pub(super) fn add(&mut self, key: Key, io: bool, size: u64) {
        self.entries.insert(key, Entry { io, size, wanted: None, mapped: None });
    }

    /// The BAR decodes at `address` now, or nowhere.
    pub(super) fn place(&mut self, key: Key, address: Option<u64>) {
        let last = self.last;
        if let Some(entry) = self.entries.get_mut(&key) {
            let limit = if entry.io { LAST_PORT } else { last };
            // A BAR at 0 is one that nobody has given an address.
            entry.wanted = address
                .filter(|address| *address != 0 && address.is_multiple_of(entry.size.max(1)))
                .and_then(|address| AddressRange::new(address, entry.size))
                .filter(|range| range.last() <= limit);
        }
    }

    /// The function cannot answer: its mapping goes even if nobody needs the addresses.
    pub(super) fn withdraw(&mut self, key: Key) -> Option<Op> {
        let entry = self.entries.get_mut(&key)?;
        entry.wanted = None;
        entry.mapped.take().map(|_| Op::Unmap(key))
    }

    /// What has to be done to get as many BARs as possible to where they want to be.
    pub(super) fn settle(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        // Everything that moves goes first, so that two BARs can swap.
        for (key, entry) in &mut self.entries {
            if entry.wanted.is_some() && entry.mapped.is_some() && entry.mapped != entry.wanted {
                entry.mapped = None;
                ops.push(Op::Unmap(*key));
            }
        }
        let waiting: Vec<(Key, bool, AddressRange)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.mapped.is_none())
            .filter_map(|(key, entry)| Some((*key, entry.io, entry.wanted?)))
            .collect();
        for (key, io, range) in waiting {
            if !io && self.forbidden.iter().any(|forbidden| forbidden.overlaps(range)) {
                continue;
            }
            let in_the_way: Vec<(Key, bool)> = self
                .entries
                .iter()
                .filter(|(_, entry)| entry.io == io)
                .filter(|(_, entry)| entry.mapped.is_some_and(|mapped| mapped.overlaps(range)))
                .map(|(key, entry)| (*key, entry.wanted.is_some()))
                .collect();
            if in_the_way.iter().any(|(_, decodes)| *decodes) {
                continue;
            }
            for (stale, _) in in_the_way {
                if let Some(entry) = self.entries.get_mut(&stale) {
                    entry.mapped = None;
                    ops.push(Op::Unmap(stale));
                }
            }
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.mapped = Some(range);
                ops.push(Op::Map(key, range));
            }
        }
        ops
    }

    /// Memory where no BAR may be from now on (ECAM moved); what is there waits. Returns what to take out.
    pub(super) fn forbid(&mut self, forbidden: Vec<AddressRange>) -> Vec<Op> {
        self.forbidden = forbidden;
        let mut ops = Vec::new();
        for (key, entry) in &mut self.entries {
            let hit = |range: AddressRange| {
                self.forbidden.iter().any(|forbidden| forbidden.overlaps(range))
            };
            if !entry.io && entry.mapped.is_some_and(hit) {
                entry.mapped = None;
                ops.push(Op::Unmap(*key));
            }
        }
        ops
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u64, len: u64) -> AddressRange {
        AddressRange::new(first, len).unwrap()
    }

    fn three() -> Apertures {
        let mut apertures = Apertures::new(vec![range(0, 0x8000_0000)], 40);
        (0..3).for_each(|n| apertures.add((n, 0), false, 0x1000));
        apertures
    }

    #[test]
    fn decode_off_and_on_at_the_same_address_costs_nothing() {
        let mut apertures = three();
        apertures.place((0, 0), Some(0x9000_0000));
        assert_eq!(apertures.settle(), [Op::Map((0, 0), range(0x9000_0000, 0x1000))]);
        apertures.place((0, 0), None);
        assert_eq!(apertures.settle(), []);
        apertures.place((0, 0), Some(0x9000_0000));
        assert_eq!(apertures.settle(), []);
    }

    #[test]
    fn two_bars_swap_through_an_overlap() {
        let mut apertures = three();
        let (a, b) = (0x9000_0000, 0x9000_1000);
        apertures.place((0, 0), Some(a));
        apertures.place((1, 0), Some(b));
        apertures.settle();
        apertures.place((0, 0), Some(b));
        assert_eq!(apertures.settle(), [Op::Unmap((0, 0))], "waits for the other");
        apertures.place((1, 0), Some(a));
        assert_eq!(
            apertures.settle(),
            [
                Op::Unmap((1, 0)),
                Op::Map((0, 0), range(b, 0x1000)),
                Op::Map((1, 0), range(a, 0x1000))
            ]
        );
    }

    #[test]
    fn stale_mapping_gives_way() {
        let mut apertures = three();
        apertures.place((0, 0), Some(0x9000_0000));
        apertures.settle();
        apertures.place((0, 0), None);
        apertures.place((1, 0), Some(0x9000_0000));
        let ops = [Op::Unmap((0, 0)), Op::Map((1, 0), range(0x9000_0000, 0x1000))];
        assert_eq!(apertures.settle(), ops);
    }

    #[test]
    fn addresses_that_cannot_be_are_never_mapped() {
        let mut apertures = three();
        for address in [0, 0x1000, 0x9000_0800, 1 << 40, u64::MAX, 0x7fff_f000] {
            apertures.place((0, 0), Some(address));
            assert_eq!(apertures.settle(), [], "{address:#x}");
        }
    }

    #[test]
    fn ports_and_memory_do_not_meet() {
        let mut apertures = Apertures::new(vec![range(0, 0x8000_0000)], 40);
        apertures.add((0, 0), true, 0x20);
        apertures.place((0, 0), Some(0x2000));
        assert_eq!(apertures.settle(), [Op::Map((0, 0), range(0x2000, 0x20))]);
        apertures.place((0, 0), Some(0x1_0000));
        assert_eq!(apertures.settle(), []);
    }

    #[test]
    fn function_that_cannot_answer_loses_its_mapping_at_once() {
        let mut apertures = three();
        apertures.place((0, 0), Some(0x9000_0000));
        apertures.settle();
        assert_eq!(apertures.withdraw((0, 0)), Some(Op::Unmap((0, 0))));
        assert_eq!(apertures.withdraw((0, 0)), None);
    }

    #[derive(Clone, Debug)]
    struct Write {
        bar: usize,
        address: Option<u64>,
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let write =
            (0..6_usize, proptest::option::weighted(0.8, 0..12_u64)).prop_map(|(bar, page)| {
                Write { bar, address: page.map(|page| 0x9000_0000 + page * 0x1000) }
            });
        proptest::collection::vec(write, 1..60)
    }

    /// Sizes of the six BARs of the random machine.
    const SIZES: [u64; 6] = [0x1000, 0x1000, 0x2000, 0x2000, 0x4000, 0x1000];

    fn machine() -> Apertures {
        let mut apertures = Apertures::new(vec![range(0x9000_5000, 0x1000)], 40);
        (0..6).for_each(|n| apertures.add((n, 0), false, SIZES[n]));
        apertures
    }

    proptest! {
        #[test]
        fn mappings_never_overlap_and_ops_tell_the_whole_story(writes in writes()) {
            let mut apertures = machine();
            let mut mapped: BTreeMap<Key, AddressRange> = BTreeMap::new();
            for write in &writes {
                apertures.place((write.bar, 0), write.address);
                for op in apertures.settle() {
                    match op {
                        Op::Unmap(key) => prop_assert!(mapped.remove(&key).is_some()),
                        Op::Map(key, range) => {
                            prop_assert!(mapped.values().all(|other| !other.overlaps(range)));
                            prop_assert!(!range.overlaps(AddressRange::new(0x9000_5000, 0x1000).unwrap()));
                            prop_assert!(mapped.insert(key, range).is_none());
                        }
                    }
                }
            }
        }

        #[test]
        fn end_is_that_of_a_fresh_machine_when_nothing_overlaps(writes in writes()) {
            let mut apertures = machine();
            for write in &writes {
                apertures.place((write.bar, 0), write.address);
                apertures.settle();
            }
            let wanted: Vec<AddressRange> = apertures.entries.values().filter_map(|entry| entry.wanted).collect();
            let overlap = wanted.iter().enumerate().any(|(n, a)| wanted[..n].iter().any(|b| a.overlaps(*b)));
            prop_assume!(!overlap);
            let mut fresh = machine();
            for (key, entry) in &apertures.entries {
                fresh.place(*key, entry.wanted.map(AddressRange::first));
            }
            fresh.settle();
            for (key, entry) in &apertures.entries {
                if entry.wanted.is_some() {
                    prop_assert_eq!(entry.mapped, fresh.entries[key].mapped);
                }
            }
        }
    }
}
