//! Memslots of a real VM. Needs /dev/kvm, of any kind.

use std::fs::File;

use strait_resources::host::fixture::skipped;

use super::*;
use crate::{config::Pages, memory::GuestRam};

/// Bytes of a BAR.
const BAR: u64 = 0x4000;

#[test]
fn guest_that_reboots_1000_times_leaves_no_memslot() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return skipped("/dev/kvm cannot be opened");
    }
    let vm = Vm::new(&Host::open().unwrap()).unwrap();
    let slots = Memslots::new(&vm, None);
    // What BARs would be is as good as RAM here.
    let places = [0, 0x10_0000, 0x20_0000].map(|first| AddressRange::new(first, BAR).unwrap());
    let memory = GuestRam::new(&places, Pages::Default).unwrap();
    let ram: Vec<_> = memory.regions().collect();
    let (range, mapped) = ram[0];
    let _kept = slots.map_ram(range, mapped).unwrap();
    let mut free = Vec::new();
    for boot in 1..=1000 {
        let bars: Vec<_> = ram[1..]
            .iter()
            .map(|(range, memory)| slots.map(*range, *memory, Access::ReadWrite).unwrap())
            .collect();
        // A slot where one is already is refused, and its number comes back.
        let (range, memory) = ram[1];
        assert!(slots.map(range, memory, Access::ReadWrite).is_err());
        drop(bars);
        if [10, 1000].contains(&boot) {
            let next = slots.ids.allocate().unwrap();
            assert!(slots.ids.free(next));
            free.push(next);
        }
    }
    assert_eq!(free, [1, 1]);
}
