//! Journals that strait wrote, and those that others would like it to carry out.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// One with everything in it.
fn full() -> Value {
    json!({
        "schema": "strait.journal/2",
        "process": {"pid": 42, "start": 9},
        "pid_namespace": 4_026_531_836_u64,
        "boot": "0e0a6b1c-6d3a-4a43-9d0c-5b6d8a3f1e55",
        "command": ["strait", "run"],
        "kind": "run",
        "settled": false,
        "functions": [{
            "bdf": "0000:3b:00.0",
            "group": 31,
            "along": false,
            "before": {
                "driver": "nouveau",
                "driver_override": null,
                "power_control": "auto",
                "d3cold_allowed": "1",
                "any_driver": false
            },
            "screen": {
                "name": "efifb",
                "driver": "efi-framebuffer",
                "device": "efi-framebuffer.0",
                "consoles": ["vtcon1"]
            },
            "methods": {"wanted": "flr", "before": "flr pm"},
            "stays": true,
            "stuck": {"pid": 77, "start": 11}
        }]
    })
}

fn parse(value: &Value) -> Result<Journal, JournalError> {
    Journal::parse(&serde_json::to_vec(value).unwrap())
}

/// The same with another value at this place.
fn with(pointer: &str, value: Value) -> Value {
    let mut journal = full();
    *journal.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    journal
}

#[test]
fn journal_is_read_back_as_it_was_written() {
    let journal = parse(&full()).unwrap();
    assert_eq!(Journal::parse(&journal.bytes().unwrap()).unwrap(), journal);
    assert_eq!(journal.file_name(), "run-42-9.json");
    let paths: Vec<String> =
        journal.functions[0].way_back().iter().map(|write| write.to.to_string()).collect();
    assert_eq!(
        paths,
        [
            "/sys/bus/pci/devices/0000:3b:00.0/driver/unbind",
            "/sys/bus/pci/devices/0000:3b:00.0/driver_override",
            "/sys/kernel/iommu_groups/31/type",
            "/sys/bus/pci/drivers_probe",
            "/sys/bus/pci/drivers/nouveau/bind",
            "/sys/bus/pci/devices/0000:3b:00.0/d3cold_allowed",
            "/sys/bus/pci/devices/0000:3b:00.0/power/control",
            "/sys/bus/pci/devices/0000:3b:00.0/reset_method",
            "/sys/bus/pci/devices/0000:3b:00.0/reset_method",
            "/sys/bus/platform/drivers/efi-framebuffer/bind",
            "/sys/class/vtconsole/vtcon1/bind",
        ]
    );
}

/// Journals of straits that did not know the word have none, and those read ours where it says nothing.
#[test]
fn function_that_does_not_stay_has_no_word_for_it() {
    let without = |mut journal: Value| {
        journal.pointer_mut("/functions/0").unwrap().as_object_mut().unwrap().remove("stays");
        journal
    };
    let journal = parse(&without(full())).unwrap();
    assert!(!journal.functions[0].stays);
    assert!(!String::from_utf8(journal.bytes().unwrap()).unwrap().contains("stays"));
    assert!(parse(&with("/functions/0/stays", json!("yes"))).is_err());
}

/// Each of these would be written by root if it were believed.
#[test]
fn field_that_means_something_else_is_refused() {
    let function = "/functions/0";
    for (field, value) in [
        ("bdf", json!("../../../etc")),
        ("group", json!("31/../../x")),
        ("group", json!(-1)),
        ("before/driver", json!("../../../../../tmp/evil")),
        ("before/driver", json!("..")),
        ("before/driver_override", json!("x\ntoor::0:0::")),
        ("before/power_control", json!("auto\non")),
        ("before/power_control", json!("off")),
        ("before/d3cold_allowed", json!("2")),
        ("before/d3cold_allowed", json!(1)),
        ("screen/driver", json!("../../../../../tmp/evil")),
        ("screen/driver", json!("serial8250")),
        ("screen/device", json!("../../../../../tmp/x/\ntoor::0:0::")),
        ("screen/device", json!("vesa-framebuffer.0")),
        ("screen/device", json!("efi-framebuffer.")),
        ("screen/consoles/0", json!("../../../tmp/evil")),
        ("screen/consoles/0", json!("")),
        ("methods/wanted", json!("flr;reboot")),
        ("methods/before", json!("root::0:0")),
    ] {
        let refused = parse(&with(&format!("{function}/{field}"), value.clone()));
        assert!(matches!(refused, Err(JournalError::Malformed(_))), "{field}: {value} was taken");
    }
}

#[test]
fn unknown_field_is_refused_wherever_it_is() {
    let places = ["", "/process", "/functions/0", "/functions/0/before", "/functions/0/screen"];
    for place in places.into_iter().chain(["/functions/0/methods", "/functions/0/stuck"]) {
        let mut journal = full();
        journal.pointer_mut(place).unwrap()["run"] = json!("reboot");
        assert!(matches!(parse(&journal), Err(JournalError::Malformed(_))), "{place}: taken");
    }
}

#[test]
fn journal_of_another_version_is_told_apart_from_a_broken_one() {
    let version = |journal: &Value| match parse(journal).unwrap_err() {
        JournalError::Version(version) => version,
        other => panic!("{other}"),
    };
    assert_eq!(version(&with("/schema", json!("strait.journal/3"))), "strait.journal/3");
    let mut first = full();
    first.as_object_mut().unwrap().remove("schema");
    assert_eq!(version(&first), "strait.journal/1");
    for bytes in [&b""[..], b"{", b"[]", b"\xff", b"null"] {
        assert!(matches!(Journal::parse(bytes), Err(JournalError::Malformed(_))), "{bytes:?}");
    }
    let long = vec![b' '; MAX_SIZE + 1];
    assert!(matches!(Journal::parse(&long), Err(JournalError::TooLong)));
}

/// A text for one field: what a field means, what an attacker would put there, or noise.
fn texts() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<u32>().prop_map(Value::from),
        "[a-z0-9._-]{0,12}".prop_map(Value::from),
        "(\\.\\./){1,5}[a-z]{1,5}".prop_map(Value::from),
        "[a-z]{0,5}[\n\r\t/\0 ][a-z:]{0,9}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

const FIELDS: [&str; 17] = [
    "/boot",
    "/kind",
    "/process/pid",
    "/pid_namespace",
    "/functions/0/bdf",
    "/functions/0/group",
    "/functions/0/before/driver",
    "/functions/0/before/driver_override",
    "/functions/0/before/power_control",
    "/functions/0/before/d3cold_allowed",
    "/functions/0/screen/name",
    "/functions/0/screen/driver",
    "/functions/0/screen/device",
    "/functions/0/screen/consoles/0",
    "/functions/0/methods/wanted",
    "/functions/0/methods/before",
    "/functions/0/stuck",
];

proptest! {
    /// One field after the other is somebody else's.
    #[test]
    fn whatever_a_field_holds_only_known_files_are_written(
        changes in prop::collection::vec((0..FIELDS.len(), texts()), 1..4),
    ) {
        let mut journal = full();
        for (field, text) in changes {
            if let Some(place) = journal.pointer_mut(FIELDS[field]) {
                *place = text;
            }
        }
        fuzz(&serde_json::to_vec(&journal).unwrap());
    }

    #[test]
    fn whatever_bytes_a_journal_is_it_is_read_or_refused(
        at in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = serde_json::to_vec(&full()).unwrap();
        let at = at.index(bytes.len());
        let end = (at + noise.len()).min(bytes.len());
        bytes.splice(at..end, noise);
        fuzz(&bytes);
    }
}
