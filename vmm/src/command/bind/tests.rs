//! What was really done, on a host in a directory.

#[path = "../../../tests/golden/mod.rs"]
#[expect(dead_code, reason = "pages are compared by the tests of the binary")]
mod golden;

use clap::Parser as _;
use golden::assert_schema;
use serde_json::{Value, json};

use super::*;
use crate::{
    binding::fake::{AUDIO, GPU, Host},
    cli::{Cli, Command},
};

/// A card that the host draws on.
fn card() -> Host {
    let host = Host::card();
    host.screen(GPU);
    host
}

fn end(host: &Host, line: &str) -> Result<(u8, Value), Failure> {
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let binder = host.binder();
    let changes = (!line.contains("--dry-run")).then_some(&binder);
    let done = match cli.command {
        Command::Bind(args) => bound(&binder, changes, &args)?,
        Command::Unbind(args) => unbound(&binder, changes, &args)?,
        other => panic!("{other:?}"),
    };
    Ok((done.status, serde_json::to_value(&done.answer).unwrap()))
}

/// One field of each device.
fn all(answer: &Value, field: &str) -> Vec<Value> {
    let devices = answer["devices"].as_array().unwrap();
    devices.iter().map(|device| device[field].clone()).collect()
}

#[test]
fn r90_answers_tell_what_was_done_and_undone() {
    let host = card();
    let words = "strait bind 02:00.0 --release-fb --persist --json";
    let (_, planned) = end(&host, &format!("{words} --dry-run")).unwrap();
    assert!(host.kernel.writes.borrow().is_empty());
    let (status, done) = end(&host, words).unwrap();
    assert_eq!(status, 0);
    assert_eq!(all(&done, "bdf"), [GPU, AUDIO]);
    assert_eq!(all(&done, "asked_for"), [true, false]);
    assert_eq!(all(&done, "driver_before"), ["nouveau", "snd_hda_intel"]);
    assert_eq!(all(&done, "driver_after"), ["vfio-pci", "vfio-pci"]);
    assert_eq!(all(&done, "framebuffer"), [json!("vesafb"), Value::Null]);
    assert_eq!(all(&done, "power_control"), ["on", "on"]);
    for file in all(&done, "rule_file") {
        assert!(host.sysroot().exists(file.as_str().unwrap()), "{file}");
    }
    // The dry run had told all of it.
    assert_eq!((&planned["dry_run"], &done["dry_run"]), (&json!(true), &json!(false)));
    assert_eq!(planned["devices"], done["devices"]);

    let (_, planned) = end(&host, "strait unbind 02:00.0 --dry-run --json").unwrap();
    let (status, undone) = end(&host, "strait unbind 02:00.0 --json").unwrap();
    assert_eq!(status, 0);
    assert_eq!(all(&undone, "driver_before"), ["vfio-pci", "vfio-pci"]);
    assert_eq!(all(&undone, "driver_after"), ["nouveau", "snd_hda_intel"]);
    assert_eq!(all(&undone, "power_control"), ["auto", "auto"]);
    assert_eq!(undone["notes"][0], "0000:02:00.0 goes back to nouveau");
    assert_eq!(planned["devices"], undone["devices"]);
}

#[test]
fn r90_unbind_fields_are_those_of_the_document() {
    let host = card();
    host.kernel.vfio_removes_screen.set(true);
    end(&host, "strait bind 02:00.0 --release-fb").unwrap();
    let (status, answer) = end(&host, "strait unbind 02:00.0 --json").unwrap();
    // A framebuffer that is gone is no failure.
    assert_eq!((status, &answer["warnings"][0]["code"]), (0, &json!("E1117")));
    assert_schema("strait unbind --json", &answer);
}

#[test]
fn device_that_does_not_go_back_is_an_answer_with_a_status() {
    let host = card();
    end(&host, "strait bind 02:00.0 --release-fb").unwrap();
    *host.kernel.hangs.borrow_mut() = Some("vfio-pci".to_owned());
    let (status, answer) = end(&host, "strait unbind 02:00.1 --json").unwrap();
    assert_eq!((status, &answer["warnings"][0]["code"]), (4, &json!("E1115")));
    assert_eq!(all(&answer, "driver_after"), ["vfio-pci"]);
}

#[test]
fn refused_bind_has_no_answer_and_changes_nothing() {
    let host = card();
    let failure = end(&host, "strait bind 02:00.0 --json").err().unwrap();
    assert_eq!(failure.code.id, "E1205");
    assert!(host.kernel.writes.borrow().is_empty());
}
