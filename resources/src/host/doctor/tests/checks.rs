//! Checks that look at one thing each, on hosts that have or lack it.
//!
//! Provenance: the two-card server of the fixture module with one thing changed; kernel versions
//! from the reports that the check names; no dump of a host.

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
fn host_whose_cores_run_two_threads_is_told_who_else_may_run_there() {
    let tree = Tree::two_cards();
    tree.file("/sys/devices/system/cpu/cpu0/topology/physical_package_id", "0\n");
    tree.file("/sys/devices/system/cpu/cpu0/topology/core_id", "0\n");
    let told = |tree: &Tree| -> Vec<String> {
        let found = findings(tree, &[]).into_iter().filter(|finding| finding.check == 39);
        found.map(|finding| finding.fact).filter(|fact| fact.contains("vCPU")).collect()
    };
    assert_eq!(told(&tree), [""; 0]);
    tree.file("/sys/devices/system/cpu/smt/active", "1\n");
    tree.file("/proc/sys/kernel/osrelease", "6.8.0\n");
    assert!(told(&tree)[0].contains("no other program runs there"));
    tree.file("/proc/sys/kernel/osrelease", "5.10.0\n");
    assert!(told(&tree)[0].contains("lets other programs run there"));
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

/// Config space of no real device: two extended capabilities, by the layouts of PCI Express Base 5.0, 7.6.3 and 10.5.1.
#[test]
fn ats_is_told_with_what_switching_it_off_costs() {
    let tree = Tree::two_cards();
    assert_eq!(worst(&tree, &["3b:00.0"], 49).level, Level::Skip);
    let config = |control: Option<u16>| {
        let mut config = vec![0; 4096];
        config[..4].copy_from_slice(&[0xde, 0x10, 0xb0, 0x20]);
        // A list of one entry, which leads to the other.
        config[0x100..0x104].copy_from_slice(&0x4001_0002_u32.to_le_bytes());
        if let Some(control) = control {
            config[0x400..0x404].copy_from_slice(&0x0001_000f_u32.to_le_bytes());
            config[0x406..0x408].copy_from_slice(&control.to_le_bytes());
        }
        tree.file(&format!("{GPU}/config"), config);
        let found = worst(&tree, &["3b:00.0"], 49);
        (found.level, found.fact, found.fix)
    };
    assert_eq!(config(None).0, Level::Pass);
    for (control, says) in [(0x8000, "(ATS is on)"), (0x0000, "(ATS, off now)")] {
        let (level, fact, fix) = config(Some(control));
        assert_eq!(level, Level::Info, "{fact}");
        assert!(
            fact.contains(says) && fix.contains("pci=noats") && fix.contains("slower"),
            "{fact}"
        );
    }
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz intel_iommu=on pci=realloc,noats quiet\n");
    assert_eq!(config(Some(0x8000)).0, Level::Pass);
}

/// An argument that was asked for and is not in force is told as others are.
#[test]
fn noats_in_a_file_alone_is_told() {
    let tree = Tree::two_cards();
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"pci=noats\"\n");
    let found = findings(&tree, &[]);
    let told = |finding: &&Finding| {
        finding.fact.starts_with("pci=noats is asked for in /etc/default/grub")
    };
    assert_eq!(found.iter().filter(told).map(|it| it.check).collect::<Vec<_>>(), [42]);
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

/// One image of 512 bytes for UEFI on x86-64, or for an old BIOS.
fn rom_image(device: u16, uefi: bool) -> Vec<u8> {
    let mut rom = vec![0_u8; 512];
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    if uefi {
        rom[4..12].copy_from_slice(&[0xf1, 0x0e, 0, 0, 0x0b, 0, 0x64, 0x86]);
    } else {
        rom[2] = 1;
    }
    rom[0x18] = 0x40;
    rom[0x40..0x44].copy_from_slice(b"PCIR");
    rom[0x44..0x46].copy_from_slice(&0x10de_u16.to_le_bytes());
    rom[0x46..0x48].copy_from_slice(&device.to_le_bytes());
    rom[0x4a] = 0x1c;
    rom[0x50] = 1;
    rom[0x54..0x56].copy_from_slice(&[if uefi { 3 } else { 0 }, 0x80]);
    if !uefi {
        rom[511] = rom.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    }
    rom
}

#[test]
fn rom_of_an_idle_device_is_read_and_judged() {
    let tree = Tree::two_cards();
    tree.remove(&format!("{GPU}/driver"));
    let judged = |rom: Vec<u8>| {
        tree.file(&format!("{GPU}/rom"), rom);
        let found = worst(&tree, &["3b:00.0"], 33);
        (found.level, found.fact)
    };
    let (level, fact) = judged(rom_image(0x1e07, true));
    assert_eq!((level, fact.contains("has an image for UEFI")), (Level::Pass, true), "{fact}");
    let (level, fact) = judged(rom_image(0x1e07, false));
    assert_eq!((level, fact.contains("no image for UEFI")), (Level::Info, true), "{fact}");
    let (level, fact) = judged(rom_image(0x1e04, true));
    assert_eq!(
        (level, fact.contains("for 10de:1e04, not for 10de:1e07")),
        (Level::Warn, true),
        "{fact}"
    );
    let mut damaged = rom_image(0x1e07, false);
    damaged[300] ^= 1;
    let (level, fact) = judged(damaged);
    assert_eq!((level, fact.contains("wrong checksum")), (Level::Warn, true), "{fact}");
    let (level, fact) = judged(vec![0x4d; 512]);
    assert_eq!((level, fact.contains("not sound")), (Level::Warn, true), "{fact}");
    let (level, fact) = judged(vec![0xff; 512]);
    assert_eq!(
        (level, fact.contains("there is nothing in its ROM")),
        (Level::Info, true),
        "{fact}"
    );
    tree.remove(&format!("{GPU}/rom"));
    assert!(worst(&tree, &["3b:00.0"], 33).fact.contains("has no ROM"));
}

#[test]
fn rom_of_a_device_that_a_driver_has_or_that_sleeps_is_left_alone() {
    let tree = Tree::two_cards();
    // What would be told if it were read.
    tree.file(&format!("{GPU}/rom"), vec![0x4d; 512]);
    let found = worst(&tree, &["3b:00.0"], 33);
    assert_eq!(
        (found.level, found.fact.contains("vfio-pci has the device")),
        (Level::Info, true),
        "{found:?}"
    );
    assert!(found.fix.contains("strait rom dump"), "{}", found.fix);
    tree.remove(&format!("{GPU}/driver"));
    tree.framebuffer("0000:3b:00.0", "efifb", "efi-framebuffer");
    assert!(worst(&tree, &["3b:00.0"], 33).fact.contains("the host draws on it"));
    tree.remove("/proc/iomem");
    tree.file(&format!("{GPU}/power_state"), "D3hot\n");
    assert!(worst(&tree, &["3b:00.0"], 33).fact.contains("sleeps"));
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
fn link_of_a_card_in_a_slot_that_can_less_is_told_as_the_slots_and_with_its_place() {
    let tree = Tree::two_cards();
    let (port, upper, lower) = ("0000:00:01.1", "0000:01:00.0", "0000:02:01.0");
    for (bdf, class, header_type, under) in [
        (port, 0x06_0400, 1, &[][..]),
        (upper, 0x06_0400, 1, &[port][..]),
        (lower, 0x06_0400, 1, &[port, upper][..]),
        ("0000:04:00.0", 0x03_0000, 0, &[port, upper, lower][..]),
    ] {
        let group = Some(5);
        tree.function(&Function { bdf, class, header_type, under, group, ..Function::default() });
    }
    let link = |bdf: &str, speed: &str, width: &str, max: &str| {
        for (name, value) in [
            ("current_link_speed", speed),
            ("current_link_width", width),
            ("max_link_speed", max),
            ("max_link_width", "16"),
        ] {
            tree.file(&format!("/sys/bus/pci/devices/{bdf}/{name}"), value);
        }
    };
    let fact = || worst(&tree, &["04:00.0"], 32).fact;
    link(port, "8.0 GT/s PCIe", "16", "8.0 GT/s PCIe");
    link(upper, "8.0 GT/s PCIe", "16", "16.0 GT/s PCIe");
    assert!(fact().contains("at 0000:01:00.0"), "{}", fact());
    assert!(fact().contains("the slot is slower than the card"), "{}", fact());
    link(upper, "2.5 GT/s PCIe", "16", "16.0 GT/s PCIe");
    assert!(fact().contains("idle downshift"), "{}", fact());
    link(upper, "8.0 GT/s PCIe", "4", "16.0 GT/s PCIe");
    assert!(fact().contains("and the slot can x16"), "{}", fact());
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
