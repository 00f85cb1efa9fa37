//! `strait ps` on hosts laid out in a directory. The page in `golden` was read by eye.
//!
//! Provenance: journals as this strait writes them; no dump of a host.

mod golden;
mod look;

use std::{
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::Command,
};

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::Value;
use strait_resources::host::fixture::Tree;

/// A strait that took a card, and the framebuffer on it, and was killed; another that runs.
fn host() -> Tree {
    let tree = Tree::new();
    tree.file("/proc/sys/kernel/random/boot_id", "boot-1\n");
    tree.file("/proc/200/stat", format!("200 (strait) S {}9 0\n", "0 ".repeat(18)));
    let journal = |pid: u32, bdf: &str, before: &str, screen: &str| {
        format!(
            r#"{{"schema": "strait.journal/2", "process": {{"pid": {pid}, "start": 9}}, "pid_namespace": null, "boot": "boot-1", "command": ["strait", "run"], "kind": "run",
            "settled": false, "functions": [{{"bdf": "{bdf}", "group": 31, "along": false, "before": {before},
            "screen": {screen}, "methods": null, "stuck": null}}]}}"#
        )
    };
    let before = r#"{"driver": "nouveau", "driver_override": null, "power_control": "auto", "d3cold_allowed": "1",
        "any_driver": false}"#;
    let screen = r#"{"name": "efifb", "driver": "efi-framebuffer", "device": "efi-framebuffer.0", "consoles": []}"#;
    tree.file("/run/strait/journal/run-100-9.json", journal(100, "0000:3b:00.0", before, screen));
    tree.file("/run/strait/journal/run-200-9.json", journal(200, "0000:d8:00.0", "null", "null"));
    tree
}

#[test]
fn r31_owners_are_shown_with_what_goes_back_where() {
    let text = String::from_utf8(look(&host(), &["ps"]).stdout).unwrap();
    assert_golden("ps.txt", &text);
}

/// root's strait keeps its notes where nobody else may look: a user is told so, and not that nothing runs.
#[test]
fn user_is_told_why_straits_of_root_are_not_shown_and_what_to_do() {
    let tree = host();
    tree.directory("/run/strait/vm");
    let mode = |path: &str, mode: u32| {
        let path = tree.sysroot().path(path);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("/", 0o755);
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    // As root sees to it that others cannot look, so does a user for himself.
    mode("/run/strait", if is_root { 0o700 } else { 0 });
    for words in [&["ps"][..], &["ps", "--json"], &["inspect"], &["inspect", "100"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strait"));
        command.args(words).arg("--sysroot").arg(tree.sysroot().path("/"));
        if is_root {
            // nobody
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(3), "{words:?}: {told}");
        for says in ["E1003", "/run/strait is for its owner and root alone", "run it with sudo"] {
            assert!(told.contains(says), "{words:?}: no {says:?} in {told}");
        }
    }
    mode("/run/strait", 0o700);
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let output = look(&host(), &["ps", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_schema("strait ps --json", &answer);
    assert_eq!(answer["owners"][0]["devices"][0]["framebuffer"], "efifb");
}
