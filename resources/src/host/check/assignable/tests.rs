//! What can be passed, and why not.
//!
//! Provenance: functions by hand on the hosts of the fixture module; no dump of a host.

use super::*;
use crate::{
    bdf::Bdf,
    host::{
        check::{Allowed, bindable},
        fixture::{Function, HOSTS, Tree},
    },
};

const NIC: Function<'static> = Function {
    bdf: "0000:00:02.0",
    id: (0x8086, 0x10d3),
    class: 0x02_0000,
    driver: Some("vfio-pci"),
    group: Some(7),
    resources: &[],
    header_type: 0,
    under: &[],
};

/// A good host with these functions beside the two cards.
fn with(functions: &[Function<'_>]) -> Tree {
    let tree = Tree::two_cards();
    functions.iter().for_each(|function| tree.function(function));
    tree
}

fn check(tree: &Tree, addresses: &[&str]) -> Result<Vec<Warning>, Failure> {
    let find = |text: &&str| {
        let bdf: Bdf = text.parse().unwrap();
        pci::find(&tree.sysroot(), bdf).unwrap().unwrap()
    };
    assignable(&tree.sysroot(), &addresses.iter().map(find).collect::<Vec<_>>())
}

/// The VMD at 00:0e.0 with a port and a drive behind it, as Linux shows them on an 11th generation notebook: one group.
fn vmd(driver: &'static str) -> Tree {
    let tree = Tree::two_cards();
    let home = "/sys/devices/pci0000:00/0000:00:0e.0";
    tree.directory(home);
    tree.link("/sys/bus/pci/devices/0000:00:0e.0", &format!("../../../{}", &home[5..]));
    let (vmd, port) = ("0000:00:0e.0", "pci10000:e0/10000:e0:06.0");
    tree.function(&Function { bdf: vmd, class: 0x01_0400, driver: Some(driver), ..NIC });
    if driver == "vmd" {
        let drive = Function { bdf: "10000:e1:00.0", class: 0x01_0802, ..NIC };
        let (class, header_type) = (0x06_0400, 1);
        let bridge = Function { bdf: "10000:e0:06.0", class, header_type, ..NIC };
        tree.function(&Function {
            driver: Some("pcieport"),
            under: &[vmd, "pci10000:e0"],
            ..bridge
        });
        tree.function(&Function { driver: Some("nvme"), under: &[vmd, port], ..drive });
    }
    tree
}

#[test]
fn drive_behind_a_vmd_is_refused_with_the_vmd_to_pass_in_its_place() {
    let tree = vmd("vmd");
    let failure = check(&tree, &["10000:e1:00.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1124");
    assert!(failure.cause.starts_with("10000:e1:00.0 is behind 0000:00:0e.0"), "{}", failure.cause);
    assert!(failure.fix.contains("--vfio 00:0e.0"), "{}", failure.fix);
    assert!(failure.fix.contains("switch VMD off in the firmware"), "{}", failure.fix);
    let port = check(&tree, &["10000:e0:06.0"]).unwrap_err();
    assert_eq!(port.code.id, "E1108");
}

#[test]
fn vmd_goes_with_all_that_is_behind_it_and_nothing_of_that_is_taken_by_itself() {
    let tree = vmd("vmd");
    let found = pci::find(&tree.sysroot(), "00:0e.0".parse().unwrap()).unwrap().unwrap();
    assert_eq!(iommu::members(&tree.sysroot(), 7).unwrap().len(), 3);
    let taken = bindable(&tree.sysroot(), &[found], &Allowed::default()).unwrap();
    let taken: Vec<_> = taken.take.iter().map(|t| t.function.bdf.to_string()).collect();
    assert_eq!(taken, ["0000:00:0e.0"]);
    assert!(check(&vmd("vfio-pci"), &["00:0e.0"]).unwrap().is_empty());
}

#[test]
fn group_with_a_device_of_another_bus_at_work_is_refused_by_its_name() {
    let tree = with(&[NIC]);
    let device = "/sys/devices/platform/AMDI0040:00";
    tree.directory(device);
    tree.link(
        "/sys/kernel/iommu_groups/7/devices/AMDI0040:00",
        "../../../../devices/platform/AMDI0040:00",
    );
    assert!(check(&tree, &["00:02.0"]).unwrap().is_empty());
    tree.link(&format!("{device}/driver"), "../../../bus/platform/drivers/sdhci-acpi");
    let failure = check(&tree, &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1103");
    assert!(failure.cause.contains("AMDI0040:00") && failure.cause.contains("sdhci-acpi"));
}

#[test]
fn device_in_vfios_no_iommu_mode_is_refused_whoever_asks() {
    let tree = with(&[NIC]);
    let found = || pci::find(&tree.sysroot(), "00:02.0".parse().unwrap()).unwrap().unwrap();
    tree.remove("/dev/vfio/7");
    tree.file("/dev/vfio/noiommu-7", "");
    // The cards beside it have an IOMMU.
    let failure = check(&tree, &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1109");
    assert!(failure.cause.contains("no-IOMMU mode"), "{}", failure.cause);
    let bind = || bindable(&tree.sysroot(), &[found()], &Allowed::default()).unwrap_err();
    assert_eq!(bind().code.id, "E1109");
    for group in [12, 31, 94] {
        tree.file(&format!("/sys/kernel/iommu_groups/{group}/name"), "vfio-noiommu\n");
    }
    assert_eq!(bind().code.id, "E1001");
}

#[test]
fn virtual_functions_of_a_real_card_pass_though_their_ids_read_as_ones() {
    let (_, make, _) = *HOSTS.iter().find(|(name, ..)| *name == "sriov-nic").unwrap();
    let tree = make();
    let config = tree.sysroot().read_bytes("/sys/bus/pci/devices/0000:18:02.3/config").unwrap();
    assert_eq!(config[..4], [0xff; 4]);
    assert!(check(&tree, &["18:02.3"]).unwrap().is_empty());
    assert_eq!(check(&tree, &["18:02.0"]).unwrap_err().code.id, "E1102");
    tree.file("/sys/bus/pci/devices/0000:18:02.3/config", [0xff; 4096]);
    assert_eq!(check(&tree, &["18:02.3"]).unwrap_err().code.id, "E1401");
}

const CARD: [&str; 4] = ["3b:00.0", "3b:00.1", "3b:00.2", "3b:00.3"];

#[test]
fn whole_card_on_vfio_passes_without_a_warning() {
    assert!(check(&with(&[]), &CARD).unwrap().is_empty());
}

#[test]
fn r28_one_function_of_a_card_warns_of_the_three_left() {
    let warnings = check(&with(&[]), &["3b:00.0"]).unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!((warnings[0].code.id, warnings[0].code.exit), ("E1111", 0));
    assert_eq!(warnings[0].details.len(), 3);
    assert_eq!(warnings[0].fix, "--vfio 0000:3b:00 passes all of them");
}

#[test]
fn sibling_in_a_group_of_its_own_on_the_host_is_no_warning() {
    let port = Function { bdf: "0000:00:02.1", group: Some(8), driver: Some("e1000e"), ..NIC };
    assert!(check(&with(&[NIC, port]), &["00:02.0"]).unwrap().is_empty());
}

#[test]
fn r25_function_on_a_host_driver_names_it_and_the_commands() {
    let failure =
        check(&with(&[Function { driver: Some("e1000e"), ..NIC }]), &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1102");
    assert_eq!(failure.cause, "0000:00:02.0 is held by the host driver e1000e");
    for line in [
        "echo vfio-pci > /sys/bus/pci/devices/0000:00:02.0/driver_override",
        "echo 0000:00:02.0 > /sys/bus/pci/devices/0000:00:02.0/driver/unbind",
        "echo 0000:00:02.0 > /sys/bus/pci/drivers_probe",
    ] {
        assert!(failure.details.iter().any(|detail| detail == line), "{:?}", failure.details);
    }
}

#[test]
fn function_without_driver_is_told_to_bind_without_unbinding() {
    let failure = check(&with(&[Function { driver: None, ..NIC }]), &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1102");
    assert!(failure.cause.contains("no driver"));
    assert!(failure.details.iter().all(|line| !line.contains("unbind")), "{:?}", failure.details);
}

#[test]
fn all_functions_on_host_drivers_come_in_one_refusal() {
    let second = Function { bdf: "0000:00:02.1", driver: Some("ixgbe"), ..NIC };
    let tree = with(&[Function { driver: Some("e1000e"), ..NIC }, second]);
    let failure = check(&tree, &["00:02.0", "00:02.1"]).unwrap_err();
    assert!(failure.cause.ends_with("and 1 more are not on vfio-pci"), "{}", failure.cause);
    assert!(
        failure.details.iter().any(|line| line.contains("0000:00:02.1") && line.ends_with("ixgbe"))
    );
    assert_eq!(failure.details.iter().filter(|line| *line == "modprobe vfio-pci").count(), 1);
}

#[test]
fn function_the_host_lives_on_says_what_would_be_lost() {
    let tree = with(&[Function { driver: Some("e1000e"), ..NIC }]);
    tree.directory("/sys/bus/pci/devices/0000:00:02.0/net/eno1");
    tree.link("/sys/class/net/eno1", "../../bus/pci/devices/0000:00:02.0/net/eno1");
    tree.file("/proc/net/route", "Iface\neno1 00000000 0100A8C0 0003 0 0 0 00000000 0 0 0\n");
    let failure = check(&tree, &["00:02.0"]).unwrap_err();
    let right = "0000:00:02.0 -> eno1 -> the host's default route";
    assert!(failure.details.iter().any(|line| line.contains(right)), "{:?}", failure.details);
    // Lines that take it would hurt.
    assert!(failure.details.iter().all(|line| !line.starts_with("echo")), "{:?}", failure.details);
    assert!(failure.fix.contains("another way to the network"), "{}", failure.fix);
}

#[test]
fn r29_group_with_foreign_members_lists_every_one_with_its_driver() {
    let audio = Function { bdf: "0000:00:02.1", driver: Some("snd_hda_intel"), ..NIC };
    let disk = Function { bdf: "0000:00:03.0", driver: Some("nvme"), ..NIC };
    let failure = check(&with(&[NIC, audio, disk]), &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1103");
    assert!(failure.cause.contains("group 7 of 0000:00:02.0"), "{}", failure.cause);
    for (member, driver) in [("0000:00:02.1", "snd_hda_intel"), ("0000:00:03.0", "nvme")] {
        let listed = |line: &String| line.starts_with(member) && line.ends_with(driver);
        assert!(failure.details.iter().any(listed), "{:?}", failure.details);
    }
}

#[test]
fn r29_group_with_a_mounted_disk_offers_no_commands() {
    let disk = Function { bdf: "0000:00:03.0", driver: Some("nvme"), ..NIC };
    let tree = with(&[NIC, disk]);
    tree.file("/sys/bus/pci/devices/0000:00:03.0/nvme/nvme0/nvme0n1/dev", "259:0\n");
    tree.link("/sys/block/nvme0n1", "../bus/pci/devices/0000:00:03.0/nvme/nvme0/nvme0n1");
    tree.file("/proc/self/mountinfo", "25 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
    let failure = check(&tree, &["00:02.0"]).unwrap_err();
    assert_eq!(failure.code.id, "E1103");
    assert!(failure.details.iter().any(|line| line.contains("nvme0n1 -> mounted on /")));
    assert!(failure.details.iter().all(|line| !line.starts_with("echo")), "{:?}", failure.details);
}

#[test]
fn r30_group_with_bridge_stub_and_driverless_members_is_viable() {
    let bridge = Function {
        bdf: "0000:00:01.0",
        class: 0x06_0400,
        driver: Some("pcieport"),
        header_type: 1,
        ..NIC
    };
    let stub = Function { bdf: "0000:00:03.0", driver: Some("pci-stub"), ..NIC };
    let idle = Function { bdf: "0000:00:04.0", driver: None, ..NIC };
    assert!(check(&with(&[NIC, bridge, stub, idle]), &["00:02.0"]).unwrap().is_empty());
}

#[test]
fn bridge_is_refused() {
    let bridge = Function { class: 0x06_0400, header_type: 1, ..NIC };
    assert_eq!(check(&with(&[bridge]), &["00:02.0"]).unwrap_err().code.id, "E1108");
}

#[test]
fn function_without_group_is_refused() {
    let lone = Function { group: None, ..NIC };
    assert_eq!(check(&with(&[lone]), &["00:02.0"]).unwrap_err().code.id, "E1109");
}

#[test]
fn function_that_does_not_answer_is_refused() {
    let tree = with(&[NIC]);
    tree.file("/sys/bus/pci/devices/0000:00:02.0/config", [0xff; 64]);
    assert_eq!(check(&tree, &["00:02.0"]).unwrap_err().code.id, "E1401");
}

#[test]
fn r31_group_in_use_names_the_process() {
    let tree = with(&[]);
    tree.link("/proc/4242/fd/11", "/dev/vfio/31");
    tree.file("/proc/4242/comm", "qemu-system-x86\n");
    let failure = check(&tree, &CARD).unwrap_err();
    assert_eq!(failure.code.id, "E1107");
    assert_eq!(
        failure.cause,
        "0000:3b:00.0 is in use: qemu-system-x86 (pid 4242) has its IOMMU group 31 open"
    );
}

#[test]
fn group_without_node_says_how_to_pass_it_in() {
    let tree = with(&[]);
    tree.remove("/dev/vfio/31");
    let failure = check(&tree, &CARD).unwrap_err();
    assert_eq!(failure.code.id, "E1004");
    assert!(failure.fix.contains("--device /dev/vfio/31"), "{}", failure.fix);
}

#[test]
fn group_with_memory_of_the_firmware_is_refused_with_the_range() {
    let tree = with(&[]);
    let path = "/sys/kernel/iommu_groups/31/reserved_regions";
    tree.file(path, "0xbb000000 0xbf7fffff direct\n0xfee00000 0xfeefffff msi\n");
    let failure = check(&tree, &CARD).unwrap_err();
    assert_eq!((failure.code.id, failure.details.len()), ("E1309", 1));
    assert!(failure.details[0].contains("0xbb000000-0xbf7fffff"));
    tree.file(path, "0xbb000000 0xbf7fffff direct-relaxable\n");
    assert!(check(&tree, &CARD).is_ok());
}

/// ICH10R: the ISA bridge has header type 0 and the driver lpc_ich, and shares its slot and group with SATA and SMBus.
fn chipset() -> Tree {
    let function = |bdf, class, driver| Function { bdf, class, driver, ..NIC };
    with(&[
        function("0000:00:1f.0", 0x06_0100, Some("lpc_ich")),
        function("0000:00:1f.2", 0x01_0601, Some("vfio-pci")),
        function("0000:00:1f.3", 0x0c_0500, Some("vfio-pci")),
    ])
}

#[test]
fn isa_bridge_with_a_driver_keeps_its_group_from_vfio() {
    let tree = chipset();
    let failure = check(&tree, &["00:1f.2", "00:1f.3"]).unwrap_err();
    assert_eq!(failure.code.id, "E1103");
    let right = "echo 0000:00:1f.0 > /sys/bus/pci/devices/0000:00:1f.0/driver/unbind";
    assert!(failure.details.iter().any(|line| line == right), "{:?}", failure.details);
    assert!(failure.details.iter().all(|line| !line.contains("vfio-pci >")), "{failure:?}");
    // What the lines do mends it.
    tree.remove("/sys/bus/pci/devices/0000:00:1f.0/driver");
    assert!(check(&tree, &["00:1f.2", "00:1f.3"]).unwrap().is_empty());
}

#[test]
fn sibling_warning_beside_a_bridge_names_what_can_be_passed() {
    let tree = chipset();
    tree.remove("/sys/bus/pci/devices/0000:00:1f.0/driver");
    let warnings = check(&tree, &["00:1f.2"]).unwrap();
    assert_eq!(warnings[0].details.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].fix, "--vfio 0000:00:1f.3 passes them too");
}
