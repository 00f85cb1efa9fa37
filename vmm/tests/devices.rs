//! `strait devices` on hosts laid out in a directory. The pages in `golden` were read by eye;
//! `STRAIT_BLESS=1 cargo test -p strait --test devices` writes them anew.
//!
//! Provenance: the two-card server of the fixture module and more by hand; names from the pci.ids
//! of pci-ids.ucw.cz; no dump of a host.

mod golden;
mod look;

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::Value;
use strait_resources::host::fixture::{Function, Tree};

const IDS: &str = "10de  NVIDIA Corporation\n\t10f7  TU102 High Definition Audio Controller\n\
    \t1ad6  TU102 USB 3.1 Host Controller\n\t1ad7  TU102 USB Type-C UCSI Controller\n\
    \t1e07  TU102 [GeForce RTX 2080 Ti Rev. A]\n1458  Gigabyte Technology Co., Ltd\n\
    144d  Samsung Electronics Co Ltd\n\ta808  NVMe SSD Controller SM981/PM981/PM983\n\
    1a03  ASPEED Technology, Inc.\n\t2000  ASPEED Graphics Family\n8086  Intel Corporation\n\
    \t10d3  82574L Gigabit Network Connection\n\t2030  Sky Lake-E PCI Express Root Port A\n\
    C 03  Display controller\n";

const GPU: &str = "/sys/bus/pci/devices/0000:3b:00.0";

/// Two twin cards, one taken apart from its neighbour by slot and serial; a NIC and a mounted disk behind a port
/// without ACS share a group.
fn server() -> Tree {
    let tree = Tree::two_cards();
    tree.file("/usr/share/misc/pci.ids", IDS);
    tree.file("/sys/bus/pci/slots/2/address", "0000:3b:00\n");
    for (name, value) in [
        ("current_link_speed", "2.5 GT/s PCIe"),
        ("current_link_width", "16"),
        ("max_link_speed", "8.0 GT/s PCIe"),
        ("max_link_width", "16"),
        ("reset_method", "flr bus"),
        ("power_state", "D0"),
        ("label", "PCIe slot 2"),
    ] {
        tree.file(&format!("{GPU}/{name}"), value);
    }
    tree.file(&format!("{GPU}/config"), config());
    let port = "0000:00:1c.0";
    let below = |function: Function<'static>| {
        tree.function(&Function { group: Some(14), under: &["0000:00:1c.0"], ..function });
    };
    tree.function(&Function {
        bdf: port,
        id: (0x8086, 0x2030),
        class: 0x06_0400,
        driver: Some("pcieport"),
        group: Some(14),
        header_type: 1,
        resources: &[],
        under: &[],
    });
    below(Function {
        bdf: "0000:01:00.0",
        driver: Some("e1000e"),
        resources: &[(0, 0xf700_0000, 0xf701_ffff, 0x40200), (2, 0x3000, 0x301f, 0x40101)],
        ..Function::default()
    });
    below(Function {
        bdf: "0000:01:01.0",
        id: (0x144d, 0xa808),
        class: 0x01_0802,
        driver: Some("nvme"),
        resources: &[(0, 0xf702_0000, 0xf702_3fff, 0x14_0204)],
        ..Function::default()
    });
    let disk = "devices/pci0000:00/0000:00:1c.0/0000:01:01.0/nvme/nvme0/nvme0n1";
    tree.file(&format!("/sys/{disk}/dev"), "259:0\n");
    tree.link("/sys/block/nvme0n1", &format!("../{disk}"));
    tree.file("/proc/self/mountinfo", "25 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n");
    tree
}

/// The GPU's config space, as root sees it: Power Management, MSI, PCI Express, MSI-X; a serial number.
fn config() -> Vec<u8> {
    let mut config = vec![0; 4096];
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0x00, 0x1e07_10de);
    put(0x04, 0x0010_0006);
    put(0x08, 0x0300_00a1);
    put(0x0c, 0x0080_0000);
    put(0x34, 0x60);
    put(0x60, 0x0003_6801);
    put(0x68, 0x0080_7805);
    put(0x78, 0x0012_b410);
    put(0x7c, 1 << 28);
    put(0xb4, 0x0005_0011);
    put(0x100, 0x2501_0002);
    put(0x250, 0x0001_0003);
    put(0x254, 0x1122_3344);
    put(0x258, 0x0048_b02d);
    config
}

fn strait(tree: &Tree, words: &[&str]) -> String {
    let output = look(tree, words);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words:?}: {told}");
    assert_eq!(told, "", "{words:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{words:?}:\n{text}");
    text
}

fn addresses(tree: &Tree, words: &[&str]) -> Vec<String> {
    let answer: Value = serde_json::from_str(&strait_json(tree, words)).unwrap();
    let devices = answer["devices"].as_array().unwrap();
    devices.iter().map(|device| device["bdf"].as_str().unwrap().to_owned()).collect()
}

/// JSON lines may be as long as they like.
fn strait_json(tree: &Tree, words: &[&str]) -> String {
    let output = look(tree, &[words, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn r14_list_shows_every_function_with_its_facts_and_verdict() {
    assert_golden("devices.txt", &strait(&server(), &["devices"]));
}

#[test]
fn r15_assignable_leaves_out_what_cannot_go() {
    let found = addresses(&server(), &["devices", "--assignable"]);
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found.iter().all(|bdf| bdf.contains(":3b:") || bdf.contains(":d8:")), "{found:?}");
}

#[test]
fn r15_every_no_has_a_reason() {
    let answer: Value = serde_json::from_str(&strait_json(&server(), &["devices"])).unwrap();
    let devices = answer["devices"].as_array().unwrap();
    let refused: Vec<_> =
        devices.iter().filter(|device| device["verdict"]["answer"] == "no").collect();
    assert_eq!(refused.len(), 4);
    for device in refused {
        assert!(device["verdict"]["refusal"]["cause"].as_str().is_some(), "{device}");
    }
}

#[test]
fn r16_twin_cards_differ_and_one_can_be_named_by_its_slot() {
    let tree = server();
    assert_golden("devices-show.txt", &strait(&tree, &["devices", "show", "3b:00.0"]));
    assert_eq!(addresses(&tree, &["devices", "show", "slot=2"]).len(), 4);
}

#[test]
fn r17_vendor_and_class_filter_the_list() {
    let tree = server();
    assert_eq!(addresses(&tree, &["devices", "--vendor", "10de"]).len(), 8);
    assert_eq!(addresses(&tree, &["devices", "--vendor", "0x144d"]), ["0000:01:01.0"]);
    let gpus = ["0000:03:00.0", "0000:3b:00.0", "0000:d8:00.0"];
    assert_eq!(addresses(&tree, &["devices", "--class", "gpu"]), gpus);
    assert_eq!(addresses(&tree, &["devices", "--class", "nic"]), ["0000:01:00.0"]);
    assert_eq!(addresses(&tree, &["devices", "--class", "nvme"]), ["0000:01:01.0"]);
    assert_eq!(addresses(&tree, &["devices", "--class", "usb"]).len(), 2);
    assert!(strait(&tree, &["devices", "--vendor", "1002"]).starts_with("None of the host's 12"));
}

#[test]
fn r18_totals_of_a_v100_are_in_the_answer() {
    let tree = server();
    tree.function(&Function {
        bdf: "0000:af:00.0",
        id: (0x10de, 0x1db4),
        class: 0x03_0200,
        driver: Some("vfio-pci"),
        group: Some(60),
        resources: &[
            (0, 0xe000_0000, 0xe0ff_ffff, 0x40200),
            (1, 0x10_0000_0000, 0x13_ffff_ffff, 0x14_220c),
            (3, 0x14_0000_0000, 0x14_01ff_ffff, 0x14_220c),
        ],
        ..Function::default()
    });
    let text = strait(&tree, &["devices", "show", "10de:1db4"]);
    assert!(text.contains("16 MiB 32-bit, 16.0 GiB 64-bit"), "{text}");
    assert!(strait(&tree, &["devices", "--vendor", "10de"]).contains("16G+32M=16416M"));
}

#[test]
fn group_tree_shows_whole_groups() {
    assert_golden("devices-group.txt", &strait(&server(), &["devices", "--group"]));
}

#[test]
fn bus_tree_shows_what_is_behind_a_port() {
    assert_golden(
        "devices-tree.txt",
        &strait(&server(), &["devices", "--tree", "--class", "nvme"]),
    );
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let tree = server();
    tree.link("/proc/4242/fd/11", "/dev/vfio/31");
    tree.file("/proc/4242/comm", "qemu\n");
    let list: Value = serde_json::from_str(&strait_json(&tree, &["devices"])).unwrap();
    assert_schema("strait devices --json", &list);
    let words = ["devices", "show", "3b:00", "01:01.0"];
    let show: Value = serde_json::from_str(&strait_json(&tree, &words)).unwrap();
    assert_schema("strait devices show --json", &show);
}
