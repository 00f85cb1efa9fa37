//! Checks that look at one thing each, on hosts that have or lack it.

use super::*;

const GPU: &str = "/sys/bus/pci/devices/0000:3b:00.0";

#[test]
fn kernel_known_for_trouble_is_told_by_its_exact_version() {
    let tree = Tree::two_cards();
    for (release, level) in [
        ("6.14.2-arch1-1", Level::Warn),
        ("6.12.23-1-lts", Level::Warn),
        ("6.14.20-generic", Level::Pass),
        ("6.1.0-31-amd64", Level::Pass),
    ] {
        tree.file("/proc/sys/kernel/osrelease", release);
        assert_eq!(worst(&tree, &[], 1).level, level, "{release}");
    }
}

#[test]
fn host_that_is_a_guest_is_told_so() {
    let tree = Tree::two_cards();
    let text = tree.sysroot().read("/proc/cpuinfo").unwrap();
    tree.file("/proc/cpuinfo", text.replace("fpu vme", "fpu hypervisor vme"));
    let found = worst(&tree, &[], 1);
    assert_eq!((found.level, found.fact.contains("nested")), (Level::Info, true));
}

#[test]
fn amd_interrupt_remapping_is_read_from_the_kernel_log() {
    let tree = Tree::two_cards();
    tree.remove("/sys/class/iommu/dmar0");
    tree.directory("/sys/class/iommu/ivhd0/amd-iommu");
    assert_eq!(worst(&tree, &[], 7).level, Level::Skip);
    tree.file("/dev/kmsg", "6,9,1,-;AMD-Vi: Interrupt remapping enabled\n");
    assert_eq!(worst(&tree, &[], 7).level, Level::Pass);
}

#[test]
fn iommu_narrower_than_the_cpu_is_told_in_bits() {
    let tree = Tree::two_cards();
    assert_eq!(worst(&tree, &["3b:00"], 8).level, Level::Pass);
    // Three levels of page tables and an MGAW of 39 bits.
    tree.file("/sys/class/iommu/dmar0/intel-iommu/cap", "c0000020660262\n");
    let found = worst(&tree, &["3b:00"], 8);
    assert_eq!(found.level, Level::Info);
    assert!(found.fact.contains("39 bits, the CPU 46"), "{}", found.fact);
}

#[test]
fn need_for_address_space_is_the_sum_over_the_chosen() {
    let found = worst(&Tree::two_cards(), &["3b:00", "d8:00.0"], 24);
    assert!(
        found.fact.contains("33.0 MiB below 4 GiB") && found.fact.contains("576.2 MiB"),
        "{}",
        found.fact
    );
}

/// A card of two functions behind a port, each in a group of its own and without a reset of its own.
fn card_without_reset() -> Tree {
    let tree = Tree::new();
    tree.host_basics();
    let under: &[&str] = &["0000:00:01.0"];
    let port =
        Function { bdf: "0000:00:01.0", class: 0x06_0400, header_type: 1, ..Function::default() };
    tree.function(&Function { group: Some(2), under: &[], ..port });
    for (bdf, group) in [("0000:01:00.0", Some(3)), ("0000:01:00.1", Some(4))] {
        let driver = Some("vfio-pci");
        tree.function(&Function { bdf, driver, group, under, ..Function::default() });
    }
    tree
}

#[test]
fn reset_of_a_whole_bus_needs_all_of_it_and_a_port_above() {
    let tree = card_without_reset();
    let found = worst(&tree, &["01:00.0"], 27);
    assert_eq!(found.level, Level::Warn);
    assert!(found.fact.contains("0000:01:00.1"), "{}", found.fact);
    assert_eq!(worst(&tree, &["01:00"], 27).level, Level::Pass);
    tree.file("/sys/bus/pci/devices/0000:01:00.0/reset_method", "flr\n");
    let found = worst(&tree, &["01:00.0"], 27);
    assert_eq!((found.level, found.fact.contains("by flr")), (Level::Pass, true));
    let flat = Tree::two_cards();
    assert!(worst(&flat, &["3b:00"], 27).fact.contains("keeps its state over guest reboots"));
}

#[test]
fn rom_that_the_firmware_ran_is_told_apart_from_one_that_it_did_not() {
    let tree = Tree::two_cards();
    let found = worst(&tree, &["3b:00.0"], 33);
    assert_eq!((found.level, found.fact.contains("512 KiB")), (Level::Pass, true), "{found:?}");
    tree.file(&format!("{GPU}/boot_vga"), "1\n");
    assert!(worst(&tree, &["3b:00.0"], 33).fact.contains("changed copy"));
    assert!(worst(&tree, &["03:00.0"], 33).fact.contains("no expansion ROM"));
}

#[test]
fn numa_node_comes_with_its_cpus_and_free_memory() {
    let tree = Tree::two_cards();
    assert_eq!(worst(&tree, &["3b:00.0"], 34).level, Level::Pass);
    for node in 0..2 {
        let at = format!("/sys/devices/system/node/node{node}");
        tree.file(&format!("{at}/cpulist"), format!("{}-{}\n", node * 8, node * 8 + 7));
        tree.file(&format!("{at}/meminfo"), format!("Node {node} MemFree:  {} kB\n", 1 << 20));
    }
    tree.file(&format!("{GPU}/numa_node"), "1\n");
    let found = worst(&tree, &["3b:00.0"], 34);
    assert!(found.fact.contains("node 1 of 2, with CPUs 8-15 and 1 GiB free"), "{}", found.fact);
    tree.file(&format!("{GPU}/numa_node"), "-1\n");
    assert!(worst(&tree, &["3b:00.0"], 34).fact.contains("does not tell"));
}

#[test]
fn claim_at_boot_is_found_wherever_modprobe_and_udev_look() {
    for (file, text) in [
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07\n"),
        ("/usr/lib/modprobe.d/vfio.conf", "options vfio-pci ids=1002:73bf,10DE:1E07\n"),
        (
            "/run/udev/rules.d/9.rules",
            "KERNEL==\"0000:3b:00.0\", ATTR{driver_override}=\"vfio-pci\"\n",
        ),
        ("/proc/cmdline", "quiet vfio-pci.ids=10de:1e07\n"),
    ] {
        let tree = Tree::two_cards();
        assert_eq!(worst(&tree, &["3b:00.0"], 41).level, Level::Info);
        tree.file(file, text);
        assert_eq!(worst(&tree, &["3b:00.0"], 41).level, Level::Pass, "{file}");
        tree.remove(&format!("{GPU}/driver"));
        tree.link(&format!("{GPU}/driver"), "../../../bus/pci/drivers/nouveau");
        tree.directory("/etc/initramfs-tools");
        let found = worst(&tree, &["3b:00.0"], 41);
        assert_eq!(found.level, Level::Warn, "{file}");
        assert!(found.fact.contains(file) && found.fact.contains("nouveau has it"), "{found:?}");
        assert!(found.fix.contains("update-initramfs -u"), "{}", found.fix);
    }
    let tree = Tree::two_cards();
    tree.file("/etc/modprobe.d/vfio.conf", "# options vfio-pci ids=10de:1e07\n");
    assert_eq!(worst(&tree, &["3b:00.0"], 41).level, Level::Info);
}

#[test]
fn r80_vgpu_types_what_is_made_of_them_and_a_missing_module_are_told() {
    let tree = Tree::two_cards();
    let kind = format!("{GPU}/mdev_supported_types/nvidia-63");
    tree.file(&format!("{kind}/name"), "GRID P4-1Q\n");
    tree.file(&format!("{kind}/available_instances"), "7\n");
    let found = worst(&tree, &["3b:00.0"], 45);
    assert!(found.level == Level::Warn && found.fact.contains("nvidia_vgpu_vfio"), "{found:?}");
    tree.directory("/sys/module/nvidia_vgpu_vfio");
    let found = worst(&tree, &["3b:00.0"], 45);
    assert_eq!(
        (found.level, found.details),
        (Level::Info, vec!["nvidia-63 GRID P4-1Q: 7 more".to_owned()])
    );
    tree.link(&format!("{kind}/devices/c2177883-f1bb"), "../../../c2177883-f1bb");
    let found = worst(&tree, &["3b:00.0"], 45);
    assert_eq!(found.level, Level::Warn);
    assert!(found.fix.ends_with("c2177883-f1bb/remove"), "{}", found.fix);
    tree.file(&format!("{GPU}/nvidia/current_vgpu_type"), "0\n");
    let texts: Vec<String> = findings(&tree, &["3b:00.0"]).into_iter().map(|f| f.fact).collect();
    assert!(texts.iter().any(|fact| fact == "no vGPU type is set on it"));
}

#[test]
fn r19_idle_link_is_no_warning_and_a_narrow_one_is_told_as_the_slots() {
    let tree = Tree::two_cards();
    for (name, value) in [
        ("current_link_speed", "2.5 GT/s PCIe"),
        ("current_link_width", "16"),
        ("max_link_speed", "8.0 GT/s PCIe"),
        ("max_link_width", "16"),
    ] {
        tree.file(&format!("{GPU}/{name}"), value);
    }
    let found = worst(&tree, &["3b:00.0"], 32);
    assert_eq!(found.level, Level::Info);
    assert!(found.fact.contains("2.5 GT/s PCIe x16 of 8.0 GT/s PCIe"), "{}", found.fact);
    assert!(found.fact.contains("idle downshift is normal"), "{}", found.fact);
    tree.file(&format!("{GPU}/current_link_width"), "4");
    assert!(worst(&tree, &["3b:00.0"], 32).fact.contains("fewer lanes"));
}

#[test]
fn r22_card_that_its_maker_supports_late_in_guests_is_information() {
    let tree = Tree::two_cards();
    let about = |bdf: &str| {
        let found = findings(&tree, &[bdf]);
        found.into_iter().find(|finding| finding.check == 12 && finding.fact.contains("465"))
    };
    let found = about("3b:00.0").expect("nothing about the driver");
    assert_eq!(found.level, Level::Info);
    assert!(about("3b:00.1").is_none() && about("03:00.0").is_none());
}
