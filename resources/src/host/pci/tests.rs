//! Functions as sysfs tells of them.
//!
//! Provenance: the hosts of the fixture module; no dump of a host.

use super::*;
use crate::host::fixture::{Function, HOSTS, Tree};

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

#[test]
fn scan_two_card_server_finds_all_in_order() {
    let functions = scan(&Tree::two_cards().sysroot()).unwrap();
    let addresses: Vec<_> = functions.iter().map(|f| f.bdf.to_string()).collect();
    assert_eq!(addresses.len(), 9);
    assert_eq!(addresses[0], "0000:03:00.0");
    assert_eq!(addresses[8], "0000:d8:00.3");
}

#[test]
fn find_gpu_reads_identity_and_bars() {
    let gpu = find(&Tree::two_cards().sysroot(), bdf("3b:00.0")).unwrap().unwrap();
    assert_eq!((gpu.vendor, gpu.device, gpu.revision), (0x10de, 0x1e07, 0xa1));
    assert_eq!((gpu.subsystem_vendor, gpu.subsystem_device), (0x1458, 0x37a9));
    assert!(gpu.class.is_display() && !gpu.is_bridge() && gpu.is_on_vfio() && !gpu.is_dead());
    assert_eq!((gpu.group, gpu.numa_node), (Some(31), Some(0)));
    let bar = |index, kind, size| BarSpec { index: BarIndex::new(index).unwrap(), kind, size };
    let prefetchable = BarKind::Memory64 { prefetchable: true };
    assert_eq!(
        gpu.bars,
        [
            bar(0, BarKind::Memory32 { prefetchable: false }, 16 << 20),
            bar(1, prefetchable, 256 << 20),
            bar(3, prefetchable, 32 << 20),
            bar(5, BarKind::Io, 128),
            bar(6, BarKind::Rom, 512 << 10),
        ]
    );
    assert_eq!(gpu.unassigned, []);
}

#[test]
fn find_bar_without_an_address_is_listed_as_unassigned() {
    let tree = Tree::new();
    let resources: &[_] = &[(0, 0, 0xffff, 0x40200), (2, 0x1000, 0x1fff, 0x2000_0000 | 0x40200)];
    tree.function(&Function { resources, ..Function::default() });
    let function = find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap();
    assert_eq!(function.unassigned, [BarIndex::new(0).unwrap(), BarIndex::new(2).unwrap()]);
}

#[test]
fn find_bar_with_impossible_length_is_not_taken() {
    let tree = Tree::new();
    let resources: &[_] = &[
        (0, 0x1000, 0x1fff - 1, 0x40200),
        (1, 0x2000, 0x1000, 0x40200),
        (2, 0, u64::MAX, 0x40200),
    ];
    tree.function(&Function { resources, ..Function::default() });
    assert_eq!(find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap().bars, []);
}

#[test]
fn find_garbled_resource_table_is_an_error_that_names_it() {
    let tree = Tree::new();
    tree.function(&Function::default());
    tree.file("/sys/bus/pci/devices/0000:00:02.0/resource", "what is this");
    let error = find(&tree.sysroot(), bdf("00:02.0")).unwrap_err();
    assert!(error.to_string().contains("0000:00:02.0/resource"), "{error}");
}

#[test]
fn find_link_reset_and_power_are_read_when_there() {
    let tree = Tree::new();
    tree.function(&Function::default());
    for (name, value) in [
        ("current_link_speed", "2.5 GT/s PCIe"),
        ("current_link_width", "16"),
        ("max_link_speed", "8.0 GT/s PCIe"),
        ("max_link_width", "16"),
        ("reset_method", "flr bus"),
        ("power_state", "D0"),
    ] {
        tree.file(&format!("/sys/bus/pci/devices/0000:00:02.0/{name}"), value);
    }
    let function = find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap();
    let link = function.link.unwrap();
    assert_eq!((link.speed.as_str(), link.max_speed.as_str()), ("2.5 GT/s PCIe", "8.0 GT/s PCIe"));
    assert_eq!((link.width, link.max_width), (16, 16));
    assert!(link.is_reduced());
    assert_eq!(function.reset_methods, ["flr", "bus"]);
    assert_eq!(function.power_state.as_deref(), Some("D0"));
}

#[test]
fn find_unknown_link_is_none() {
    let tree = Tree::new();
    tree.function(&Function::default());
    for (name, value) in [
        ("current_link_speed", "Unknown"),
        ("current_link_width", "0"),
        ("max_link_speed", "Unknown"),
        ("max_link_width", "255"),
    ] {
        tree.file(&format!("/sys/bus/pci/devices/0000:00:02.0/{name}"), value);
    }
    assert_eq!(find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap().link, None);
}

#[test]
fn find_link_of_a_virtual_function_is_that_of_its_physical_function() {
    let (_, make, _) = *HOSTS.iter().find(|(name, ..)| *name == "sriov-nic").unwrap();
    let found = |address| find(&make().sysroot(), bdf(address)).unwrap().unwrap().link.unwrap();
    assert_eq!(found("18:02.1"), found("18:00.0"));
    assert_eq!((found("18:02.1").speed.as_str(), found("18:02.1").width), ("8.0 GT/s PCIe", 8));
}

#[test]
fn find_bridge_and_dead_function_are_told_by_the_header() {
    let tree = Tree::new();
    tree.function(&Function { header_type: 0x81, class: 0x06_0400, ..Function::default() });
    let port = find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap();
    assert!(port.is_bridge() && port.header == Header::Bridge);
    tree.file("/sys/bus/pci/devices/0000:00:02.0/config", [0xff; 64]);
    assert!(find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap().is_dead());
}

#[test]
fn find_virtual_function_with_ids_of_all_ones_lives_until_all_of_its_header_is() {
    let tree = Tree::new();
    tree.function(&Function { id: (0x8086, 0x154c), ..Function::default() });
    let config = "/sys/bus/pci/devices/0000:00:02.0/config";
    let raw = [[0xff; 4], [0x04, 0, 0x10, 0], [0x02, 0, 0, 0x02], [0; 4]].concat();
    tree.file(config, [raw, vec![0; 48]].concat());
    let function = || find(&tree.sysroot(), bdf("00:02.0")).unwrap().unwrap();
    assert!(!function().is_dead());
    assert_eq!(function().id(), "8086:154c");
    tree.link("/sys/bus/pci/devices/0000:00:02.0/physfn", "../0000:00:02.7");
    tree.file(config, [0xff; 64]);
    assert!(function().is_dead());
    // Too short to know.
    tree.file(config, [0xff; 4]);
    assert!(!function().is_dead());
}

#[test]
fn scan_finds_what_is_behind_a_vmd_and_says_so() {
    let tree = Tree::new();
    tree.function(&Function { bdf: "0000:00:0e.0", group: Some(8), ..Function::default() });
    let vmd = "/sys/devices/pci0000:00/0000:00:0e.0";
    let disk = format!("{vmd}/pci10000:e0/10000:e0:06.0/10000:e1:00.0");
    tree.directory(&disk);
    tree.link("/sys/bus/pci/devices/10000:e1:00.0", &format!("../../../../{}", &disk[1..]));
    tree.function(&Function { bdf: "10000:e1:00.0", group: Some(8), ..Function::default() });
    let found = scan(&tree.sysroot()).unwrap();
    let behind: Vec<_> = found.iter().map(|f| (f.bdf.to_string(), f.behind)).collect();
    let expected = [("0000:00:0e.0", None), ("10000:e1:00.0", Some(bdf("00:0e.0")))];
    assert_eq!(behind, expected.map(|(bdf, behind)| (bdf.to_owned(), behind)));
}

#[test]
fn scan_never_leaves_out_what_it_cannot_read() {
    let tree = Tree::new();
    tree.function(&Function::default());
    tree.file("/sys/bus/pci/devices/0000:00:02.0/numa_node", "-1\n");
    assert_eq!(scan(&tree.sysroot()).unwrap()[0].numa_node, None);
    tree.link("/sys/bus/pci/devices/0000:00:02.0/physfn", "../what");
    assert!(scan(&tree.sysroot()).unwrap_err().to_string().contains("physfn"));
    tree.remove("/sys/bus/pci/devices/0000:00:02.0");
    tree.directory("/sys/bus/pci/devices/0000:00:02-0");
    let error = scan(&tree.sysroot()).unwrap_err();
    assert!(error.to_string().contains("/sys/bus/pci/devices"), "{error}");
}

#[test]
fn slot_functions_leaves_the_twin_card_out() {
    let found = slot_functions(&Tree::two_cards().sysroot(), bdf("3b:00.2")).unwrap();
    assert_eq!(found, [0, 1, 2, 3].map(|n| bdf("3b:00.0").with_function(n).unwrap()));
}

#[test]
fn find_absent_is_none() {
    assert_eq!(find(&Tree::new().sysroot(), bdf("3b:00.0")).unwrap(), None);
    assert!(scan(&Tree::new().sysroot()).unwrap().is_empty());
}

#[test]
fn vfio_drivers_are_told_from_others() {
    assert!(["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"].into_iter().all(is_vfio_driver));
    assert!(!["nouveau", "pci-stub", "vfio"].into_iter().any(is_vfio_driver));
}
