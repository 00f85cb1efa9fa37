use super::*;
use crate::host::fixture::{Function, Tree};

fn range(first: u64, last: u64) -> AddressRange {
    AddressRange::inclusive(first, last).unwrap()
}

/// A host whose IOMMU is off, with this ACPI table and command line.
fn off(table: Option<&str>, cmdline: &str) -> WhyOff {
    let tree = Tree::new();
    tree.file("/proc/cmdline", cmdline);
    tree.file("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : lm vmx\n");
    if let Some(table) = table {
        tree.file(&format!("{TABLES}/{table}"), table);
    }
    match state(&tree.sysroot()).unwrap() {
        State::Off(why) => why,
        State::On => panic!("no groups, and yet on"),
    }
}

#[test]
fn state_with_groups_is_on() {
    assert_eq!(state(&Tree::two_cards().sysroot()).unwrap(), State::On);
}

#[test]
fn state_with_nothing_but_groups_that_vfio_made_up_is_off() {
    let tree = Tree::new();
    tree.file("/proc/cpuinfo", "flags : lm vmx hypervisor\n");
    tree.function(&Function { driver: Some("vfio-pci"), group: Some(0), ..Function::default() });
    assert_eq!(state(&tree.sysroot()).unwrap(), State::On);
    tree.file("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    assert_eq!(state(&tree.sysroot()).unwrap(), State::Off(WhyOff::Guest));
    assert!(has_only_unsafe_groups(&tree.sysroot()).unwrap());
    let other = Function { bdf: "0000:00:03.0", group: Some(1), ..Function::default() };
    tree.function(&other);
    assert_eq!(groups(&tree.sysroot()).unwrap(), [1]);
    assert!(!has_only_unsafe_groups(&tree.sysroot()).unwrap());
    let of = |bdf: &str| pci::find(&tree.sysroot(), bdf.parse().unwrap()).unwrap().unwrap().group;
    assert_eq!((of("00:02.0"), of("00:03.0")), (None, Some(1)));
}

#[test]
fn state_without_acpi_table_blames_the_firmware() {
    assert_eq!(off(None, "quiet intel_iommu=on"), WhyOff::Firmware);
}

#[test]
fn state_without_argument_blames_the_argument_on_intel_only() {
    assert_eq!(off(Some("DMAR"), "quiet iommu=pt"), WhyOff::ArgumentMissing);
    assert_eq!(off(Some("DMAR"), "quiet intel_iommu=on,sm_on"), WhyOff::Refused);
    assert_eq!(off(Some("IVRS"), "quiet"), WhyOff::Refused);
}

#[test]
fn state_switched_off_by_argument_names_it() {
    let argument = |text: &str| WhyOff::ArgumentOff(text.to_owned());
    assert_eq!(off(Some("DMAR"), "intel_iommu=off"), argument("intel_iommu=off"));
    assert_eq!(off(Some("IVRS"), "amd_iommu=off"), argument("amd_iommu=off"));
    assert_eq!(off(Some("IVRS"), "iommu=soft,off"), argument("iommu=off"));
}

#[test]
fn state_in_a_guest_says_so() {
    let tree = Tree::new();
    tree.file("/proc/cpuinfo", "flags : lm vmx hypervisor\n");
    assert_eq!(state(&tree.sysroot()).unwrap(), State::Off(WhyOff::Guest));
}

#[test]
fn members_of_a_card_are_its_functions() {
    let found = members(&Tree::two_cards().sysroot(), 31).unwrap();
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|member| member.group == Some(31)));
}

#[test]
fn reserved_regions_kinds_are_told_apart() {
    let tree = Tree::new();
    tree.file(
        "/sys/kernel/iommu_groups/1/reserved_regions",
        "0x0000000000000000 0x0000000000ffffff direct-relaxable\n\
         0x00000000bb000000 0x00000000bf7fffff direct\n\
         0x00000000fee00000 0x00000000feefffff msi\n\
         0x000000fd00000000 0x000000ffffffffff reserved\n",
    );
    let regions = reserved_regions(&tree.sysroot(), 1).unwrap();
    use ReservedKind::{Direct, DirectRelaxable, Msi, Reserved};
    assert_eq!(
        regions.iter().map(|r| r.kind).collect::<Vec<_>>(),
        [DirectRelaxable, Direct, Msi, Reserved]
    );
    assert_eq!(regions[1].range, range(0xbb00_0000, 0xbf7f_ffff));
}

#[test]
fn reserved_regions_garbled_is_an_error() {
    let tree = Tree::new();
    tree.file("/sys/kernel/iommu_groups/1/reserved_regions", "0x2000 0x1000 msi\n");
    assert!(reserved_regions(&tree.sysroot(), 1).is_err());
}

#[test]
fn dma_constraints_leave_the_interrupt_window_out_of_48_bits() {
    let found = dma_constraints(&Tree::two_cards().sysroot(), &[31, 94]).unwrap();
    assert_eq!(found.reserved, [range(0xfee0_0000, 0xfeef_ffff)]);
    assert_eq!(found.iova, [range(0, 0xfedf_ffff), range(0xfef0_0000, 0xffff_ffff_ffff)]);
}

#[test]
fn dma_constraints_take_the_narrowest_unit_of_the_groups() {
    let tree = Tree::two_cards();
    // 39 bits: MGAW 0x26, SAGAW bit 1, as desktop parts and QEMU's aw-bits=39 have.
    tree.file("/sys/class/iommu/dmar1/intel-iommu/cap", "260200\n");
    tree.file("/sys/class/iommu/dmar1/intel-iommu/ecap", "8\n");
    tree.link("/sys/bus/pci/devices/0000:3b:00.0/iommu", "../../virtual/iommu/dmar0");
    tree.link("/sys/bus/pci/devices/0000:d8:00.0/iommu", "../../virtual/iommu/dmar1");
    let end = |groups: &[u32]| {
        dma_constraints(&tree.sysroot(), groups).unwrap().iova.last().unwrap().last()
    };
    assert_eq!(end(&[31]), (1 << 48) - 1);
    assert_eq!(end(&[31, 94]), (1 << 39) - 1);
}

#[test]
fn dma_constraints_on_amd_keep_the_hypertransport_hole() {
    let tree = Tree::new();
    tree.function(&Function { group: Some(5), ..Function::default() });
    tree.file("/sys/class/iommu/ivhd0/amd-iommu/features", "1d:25bf732fa2295afe\n");
    tree.file(
        "/sys/kernel/iommu_groups/5/reserved_regions",
        "0xfee00000 0xfeefffff msi\n0xfd00000000 0xffffffffff reserved\n",
    );
    let found = dma_constraints(&tree.sysroot(), &[5]).unwrap();
    assert!(found.reserved.contains(&range(0xfd_0000_0000, 0xff_ffff_ffff)));
    assert!(found.iova.contains(&range(0xfef0_0000, 0xfc_ffff_ffff)));
}

#[test]
fn dma_constraints_may_use_relaxable_regions() {
    let tree = Tree::two_cards();
    tree.file("/sys/kernel/iommu_groups/31/reserved_regions", "0x0 0xffffff direct-relaxable\n");
    let found = dma_constraints(&tree.sysroot(), &[31]).unwrap();
    assert_eq!(found.iova[0].first(), 0);
}

#[test]
fn dma_constraints_without_groups_are_none() {
    let found = dma_constraints(&Tree::new().sysroot(), &[]).unwrap();
    assert_eq!(found, DmaConstraints::default());
}

#[test]
fn width_of_amd_units_is_in_the_second_register_of_the_file() {
    let tree = Tree::new();
    let width = |text: &str| {
        tree.file("/sys/class/iommu/ivhd0/amd-iommu/features", text);
        unit_width(&tree.sysroot(), "ivhd0").unwrap()
    };
    // QEMU's, as Linux 6.1 shows it: HATS is 2, six levels.
    assert_eq!(width("0:29d3\n"), 64);
    // Four and five levels.
    assert_eq!(width("0:21d3\n"), 48);
    assert_eq!(width("25d3\n"), 57);
}

#[test]
fn width_of_intel_units() {
    assert_eq!(intel_width(0x8d2_078c_106f_0466, 0xf0_20df), 48);
    assert_eq!(intel_width(0x26_0200, 8), 39);
    // A five-level scalable unit: MGAW 57, first level possible, so one bit less.
    assert_eq!(intel_width(0x38_0c00, 1 << 43 | 1 << 47), 56);
}

#[test]
fn interrupt_remapping_needs_every_unit_and_no_argument_against_it() {
    let tree = Tree::two_cards();
    let has = || has_interrupt_remapping(&tree.sysroot()).unwrap();
    assert_eq!(has(), Some(true));
    tree.file("/sys/class/iommu/dmar1/intel-iommu/ecap", "7\n");
    assert_eq!(has(), Some(false));
    tree.file("/sys/class/iommu/dmar1/intel-iommu/ecap", "f\n");
    tree.file("/proc/cmdline", "intremap=off");
    assert_eq!(has(), Some(false));
    assert_eq!(has_interrupt_remapping(&Tree::new().sysroot()).unwrap(), None);
}

#[test]
fn merge_joins_what_overlaps_and_sorts() {
    let merged = merge(vec![range(10, 19), range(0, 4), range(15, 30), range(16, 17)]);
    assert_eq!(merged, [range(0, 4), range(10, 30)]);
}
