//! `strait inspect` of a guest that is only a socket with an answer, on a host laid out in a directory. The pages in
//! `golden` were read by eye.
//!
//! Provenance: the two-card server of the fixture module, an answer made up by hand; no dump of a
//! host.

mod golden;
mod look;

use std::{io::Write as _, os::unix::net::UnixListener, thread};

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::{Value, json};
use strait_resources::host::fixture::Tree;

/// A card with its sound function in a guest; what is not said is as after the start.
fn guest(change: impl FnOnce(&mut Value)) -> Value {
    let bar = |index: u8, kind: &str, size: u64, address: u64| json!({"index": index, "kind": kind, "size": size, "address": address, "decoded": true, "direct": size});
    let mut answer = json!({
        "version": "0.1.0", "pid": 4242, "command": ["strait", "run", "--vfio", "3b:00"], "seconds": 754,
        "cpus": 8, "memory": 17_179_869_184_u64, "kvm_visible": true, "hypervisor_visible": true,
        "fake_battery": false,
        "devices": [{
            "id": "gpu", "host": "0000:3b:00.0", "guest": "0000:01:00.0", "rom": "device", "shown_as": null,
            "bars": [
                bar(0, "memory32", 16 << 20, 0x8000_0000),
                bar(1, "memory64", 256 << 20, 0x8_0000_0000),
                bar(3, "memory64", 32 << 20, 0x8_1000_0000),
                bar(5, "io", 128, 0x1000),
                {"index": null, "kind": "rom", "size": 524_288, "address": 0x8100_0000_u64, "decoded": false,
                 "direct": 0},
            ],
            "memory_decode": true, "bus_master": true, "interrupts": "msi", "vectors": 1,
            "vectors_connected": 1, "resets": 2, "failed_resets": 0, "rom_read": true, "lost": false,
            "dead_reads": 0, "activity": {"config": 700, "bar": 12, "interrupts": 733},
            "errors_before": {"correctable": [["BadTLP", 3]], "nonfatal": [], "fatal": []},
        }],
    });
    change(&mut answer);
    answer
}

/// A host on which that guest runs, with this many interrupts counted.
fn host(answer: &Value, interrupts: u64) -> Tree {
    let tree = Tree::two_cards();
    let stat = format!("4242 (strait) S {} 777 0 0\n", "0 ".repeat(18).trim_end());
    tree.file("/proc/4242/stat", stat);
    tree.file(
        "/proc/interrupts",
        format!("  CPU0\n 31: {interrupts} IR-PCI-MSI 65536-edge vfio-msi[0](0000:3b:00.0)\n"),
    );
    tree.file("/dev/kmsg", "6,1,1,-;pci 0000:3b:00.0: [10de:1e07]\n");
    tree.file("/sys/class/dmi/id/chassis_type", "3\n");
    tree.file("/sys/bus/pci/devices/0000:3b:00.0/power_state", "D0\n");
    let errors = |kind: &str, name: &str, count: u32| {
        let file = format!("/sys/bus/pci/devices/0000:3b:00.0/aer_dev_{kind}");
        tree.file(&file, format!("RxErr 0\n{name} {count}\nTOTAL_ERR {count}\n"));
    };
    errors("correctable", "BadTLP", 3);
    errors("nonfatal", "UnsupReq", 0);
    errors("fatal", "SDES", 0);
    tree.directory("/run/strait/vm");
    let listener = UnixListener::bind(tree.sysroot().path("/run/strait/vm/4242-777.sock")).unwrap();
    // One that was killed.
    drop(UnixListener::bind(tree.sysroot().path("/run/strait/vm/99-1.sock")).unwrap());
    let line = answer.to_string();
    thread::spawn(move || {
        for client in listener.incoming() {
            // A client that leaves early is its own matter.
            let _ = client.unwrap().write_all(line.as_bytes());
        }
    });
    tree
}

/// Exit status, standard output, standard error.
fn inspect(tree: &Tree, words: &[&str]) -> (i32, String, String) {
    let output = look(tree, &[&["inspect"], words].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn r87_working_card_is_healthy_and_its_neighbours_are_missed() {
    let (status, text, _) = inspect(&host(&guest(|_| {}), 1234), &[]);
    assert_eq!(status, 0);
    assert_golden("inspect-healthy.txt", &text);
}

#[test]
fn r87_card_without_driver_says_so() {
    let answer = guest(|answer| {
        answer["devices"][0]["bus_master"] = false.into();
        answer["devices"][0]["interrupts"] = "none".into();
        answer["devices"][0]["vectors"] = 0.into();
        answer["devices"][0]["rom_read"] = false.into();
    });
    let (_, text, _) = inspect(&host(&answer, 0), &["gpu"]);
    assert_golden("inspect-no-driver.txt", &text);
    assert!(text.contains("bus mastering never enabled: no driver loaded"), "{text}");
}

#[test]
fn r87_lost_interrupts_and_iommu_faults_are_named() {
    let tree = host(&guest(|_| {}), 0);
    let (_, text, _) = inspect(&tree, &["4242"]);
    assert!(text.contains("MSI is on, and not one interrupt came"), "{text}");
    tree.file(
        "/dev/kmsg",
        "4,1,1,-;DMAR: [DMA Write NO_PASID] Request device [3b:00.0] fault addr 0xdead000\n",
    );
    let (_, text, _) = inspect(&tree, &["3b:00"]);
    assert!(text.contains("verdict     the IOMMU refused an access: DMAR"), "{text}");
}

#[test]
fn r59_bar_without_an_address_is_code_12() {
    let answer = guest(|answer| answer["devices"][0]["bars"][1]["address"] = 0.into());
    let (_, text, _) = inspect(&host(&answer, 5), &[]);
    assert!(text.contains("verdict     BAR 1 has no address"), "{text}");
}

#[test]
fn r87_wrong_guest_is_refused_with_those_that_run() {
    let (status, _, told) = inspect(&host(&guest(|_| {}), 5), &["4243"]);
    assert_eq!(status, 2);
    assert!(told.contains("error[E2110]: no running guest is 4243"), "{told}");
    assert!(told.contains("  4242  strait run --vfio 3b:00\n"), "{told}");
    let (status, _, told) = inspect(&Tree::two_cards(), &[]);
    assert_eq!(status, 2);
    assert!(told.contains("no guest of strait's runs"), "{told}");
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let answer = guest(|answer| answer["devices"][0]["shown_as"] = "10de:1e04".into());
    let tree = host(&answer, 5);
    let mut config = vec![0; 4096];
    config[0x100..0x104].copy_from_slice(&0x0001_0001_u32.to_le_bytes());
    tree.file("/sys/bus/pci/devices/0000:3b:00.0/config", config);
    for (kind, name) in [("correctable", "BadTLP"), ("nonfatal", "UnsupReq"), ("fatal", "SDES")] {
        let file = format!("/sys/bus/pci/devices/0000:3b:00.0/aer_dev_{kind}");
        tree.file(&file, format!("{name} 4\n"));
    }
    let (status, text, _) = inspect(&tree, &["--json"]);
    assert_eq!(status, 0);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_schema("strait inspect --json", &answer);
    assert_eq!(answer["devices"][0]["interrupts"]["delivered"], 5);
    assert_eq!(answer["devices"][0]["left_behind"].as_array().unwrap().len(), 3);
    let errors = &answer["devices"][0]["errors"];
    assert_eq!(errors["correctable"], json!([{"name": "BadTLP", "count": 1}]));
    assert_eq!(errors["fatal"], json!([{"name": "SDES", "count": 4}]));
    let keys: Vec<_> = answer["devices"][0]["activity"].as_object().unwrap().values().collect();
    assert_eq!(keys, [&json!(12), &json!(700), &json!(733)]);
}

#[test]
fn r87_errors_of_pci_express_and_silence_are_told() {
    let answer = guest(|answer| answer["devices"][0]["dead_reads"] = 9.into());
    let tree = host(&answer, 5);
    let at = "/sys/bus/pci/devices/0000:3b:00.0/aer_dev_fatal";
    tree.file(at, "SDES 1\nTOTAL_ERR_FATAL 1\n");
    let (_, text, _) = inspect(&tree, &["gpu"]);
    assert!(text.contains("verdict     the device went silent: 9 of the guest's"), "{text}");
    assert!(text.contains("SEEN  PCI Express broke down: 1 SDES"), "{text}");
    assert!(text.contains("AER         since the start fatal 1 SDES\n"), "{text}");
}

#[test]
fn r87_answer_of_an_older_strait_is_understood() {
    let answer = guest(|answer| {
        let device = answer["devices"][0].as_object_mut().unwrap();
        for newer in ["dead_reads", "activity", "errors_before"] {
            device.remove(newer).unwrap();
        }
    });
    let (status, text, _) = inspect(&host(&answer, 5), &[]);
    assert_eq!(status, 0);
    assert!(text.contains("correctable 3 BadTLP"), "{text}");
}
