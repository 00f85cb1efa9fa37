//! `strait report` on a host laid out in a directory, and what is made from the command line's definition. The page
//! in `golden` was read by eye.
//!
//! Provenance: the two-card server of the fixture module, secrets made up; no dump of a host.

mod golden;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Command, Output},
    thread,
};

use flate2::read::GzDecoder;
use golden::{assert_golden, assert_schema};
use serde_json::{Value, json};
use strait_resources::host::fixture::{Tree, skipped};

/// A host with a guest on it, and secrets everywhere.
fn host() -> Tree {
    host_with(|_| {})
}

/// The same with a guest that answers something else.
fn host_with(change: impl FnOnce(&mut Value)) -> Tree {
    let tree = Tree::two_cards();
    tree.file("/proc/sys/kernel/hostname", "workbench\n");
    tree.file("/proc/sys/kernel/osrelease", "6.1.0-31-amd64\n");
    tree.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n");
    tree.file("/etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\n");
    tree.file("/sys/class/dmi/id/board_serial", "BSN12345\n");
    tree.file("/sys/class/dmi/id/bios_version", "2.0b\n");
    tree.file(
        "/proc/cmdline",
        "root=UUID=6f3b1d0e-93c5-4a0f-8a39-3c8a2e4a7b11 intel_iommu=on iommu=pt\n",
    );
    tree.file(
        "/dev/kmsg",
        "6,1,1,-;e1000e 0000:00:1f.6 eth0: 52:54:00:12:34:56\n\
         6,2,2,-;vfio-pci 0000:3b:00.0: enabling device on workbench\n\
         6,3,3,-;usb 1-1: SerialNumber: ABC\n",
    );
    let stat = format!("4242 (strait) S {} 777 0 0\n", "0 ".repeat(18).trim_end());
    tree.file("/proc/4242/stat", stat);
    let mut answer = json!({
        "version": "0.1.0", "pid": 4242, "seconds": 7, "cpus": 1, "memory": 1 << 30, "kvm_visible": true,
        "hypervisor_visible": true, "fake_battery": false,
        "command": ["strait", "run", "--kernel", "/home/alice/vmlinuz", "--vfio", "3b:00.0"],
        "devices": [{
            "id": "vfio0", "host": "0000:3b:00.0", "guest": "0000:01:00.0", "rom": "none", "shown_as": null,
            "bars": [], "memory_decode": true, "bus_master": true, "interrupts": "msi", "vectors": 1,
            "vectors_connected": 1, "resets": 0, "failed_resets": 0, "rom_read": false, "lost": false,
        }],
    });
    change(&mut answer);
    tree.directory("/run/strait/vm");
    let listener = UnixListener::bind(tree.sysroot().path("/run/strait/vm/4242-777.sock")).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            // A client that leaves early is its own matter.
            let _ = client.unwrap().write_all(answer.to_string().as_bytes());
        }
    });
    tree
}

/// Exit status, standard output, standard error.
fn strait(tree: &Tree, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(words)
        .current_dir(tree.sysroot().path("/"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn unpacked(tree: &Tree, name: &str) -> BTreeMap<String, String> {
    let file = fs::File::open(tree.sysroot().path(name)).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let path = entry.path().unwrap().display().to_string();
        (path.strip_prefix("strait-report/").unwrap().to_owned(), text)
    });
    entries.collect()
}

#[test]
fn r92_archive_holds_what_a_bug_report_needs_and_no_secret() {
    let tree = host();
    let (status, text, told) = strait(&tree, &["report", "--sysroot", "."]);
    assert_eq!(status, 0, "{told}");
    assert!(text.contains("strait-report.tar.gz holds\n"), "{text}");
    assert!(
        text.contains("Replaced in it: 1 host name, 1 user name, 1 serial number, 2 UUIDs.\n"),
        "{text}"
    );
    let files = unpacked(&tree, "strait-report.tar.gz");
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "README.txt",
            "cmdline.txt",
            "devices.json",
            "doctor.json",
            "guest-4242-plan.json",
            "guest-4242.json",
            "guest-4242.toml",
            "kernel-log.txt",
            "versions.txt"
        ]
    );
    for (name, text) in &files {
        for secret in
            ["workbench", "alice", "BSN12345", "6f3b1d0e", "52:54:00:12:34:56", "SerialNumber"]
        {
            assert!(!text.contains(secret), "{name} has {secret}: {text}");
        }
        if name.ends_with(".json") {
            serde_json::from_str::<Value>(text).expect(name);
        }
    }
    assert!(
        files["kernel-log.txt"].contains("vfio-pci 0000:3b:00.0: enabling device on [host name 1]")
    );
    assert!(files["cmdline.txt"].contains("root=UUID=[UUID 1] intel_iommu=on"));
    assert!(files["guest-4242.toml"].contains("kernel = \"/home/[user name 1]/vmlinuz\""));
    let plan: Value = serde_json::from_str(&files["guest-4242-plan.json"]).unwrap();
    assert_eq!(plan["schema"], "strait.plan/1");
    assert_eq!(plan["kernel"]["path"], "/home/[user name 1]/vmlinuz");
    assert_eq!(plan["devices"][0]["bars"][1]["size"], 256 << 20);
    assert!(files["versions.txt"].contains("kernel        6.1.0-31-amd64"));
    assert!(files["versions.txt"].contains("2.0b"));
    assert_golden("report-readme.txt", &files["README.txt"]);
    assert!(files["doctor.json"].contains("0000:3b:00.0"));
}

#[test]
fn r92_guest_of_a_file_is_told_with_what_the_file_meant() {
    let tree = host_with(|answer| {
        answer["command"] = json!(["strait", "run", "--config", "/home/alice/vm.toml"]);
        answer["config"] = "kernel = \"/home/alice/vmlinuz\"\n\n[memory]\nsize = \"3G\"\n\n\
                            [cpu]\ncount = 2\n\n[[vfio]]\nhost = \"42:00.0\"\n"
            .into();
    });
    let (status, _, told) = strait(&tree, &["report", "--sysroot", "."]);
    assert_eq!(status, 0, "{told}");
    let files = unpacked(&tree, "strait-report.tar.gz");
    let config = &files["guest-4242.toml"];
    assert!(config.starts_with("kernel = \"/home/[user name 1]/vmlinuz\"\n"), "{config}");
    assert!(config.contains("size = \"3G\""), "{config}");
    // The device has left the host meanwhile: that is the answer.
    let plan: Value = serde_json::from_str(&files["guest-4242-plan.json"]).unwrap();
    assert_eq!(plan["schema"], "strait.failure/1");
    assert_eq!(plan["failure"]["code"], "E1101");
}

#[test]
fn r92_existing_file_is_never_written_over() {
    let tree = host();
    tree.file("/mine.tar.gz", "mine");
    let (status, _, told) = strait(&tree, &["report", "--sysroot", ".", "--output", "mine.tar.gz"]);
    assert_eq!(status, 2);
    assert!(told.contains("mine.tar.gz exists"), "{told}");
    assert_eq!(tree.sysroot().read("/mine.tar.gz").unwrap(), "mine");
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let tree = host();
    let (status, text, told) = strait(&tree, &["report", "4242", "--json", "--sysroot", "."]);
    assert_eq!(status, 0, "{told}");
    assert_schema("strait report --json", &serde_json::from_str(&text).unwrap());
}

#[test]
fn completions_are_scripts_that_know_every_command() {
    let tree = Tree::new();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let (status, script, _) = strait(&tree, &["completions", shell]);
        assert_eq!(status, 0);
        for word in ["inspect", "allow-boot-vga", "fake-battery"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        tree.file("/script", &script);
        if let Some(output) = checked(shell, &[check], &[tree.sysroot().path("/script")]) {
            assert!(output.status.success(), "{shell}: {output:?}");
            tree.file("/script", script + "\nif ; then ( end\n");
            let output = checked(shell, &[check], &[tree.sysroot().path("/script")]).unwrap();
            assert!(!output.status.success(), "{shell} takes anything");
        }
    }
}

/// What another program says to files of ours; `None` where it is not installed, which `cargo lab test` does not let
/// pass: it brings all of them.
fn checked(program: &str, words: &[&str], files: &[PathBuf]) -> Option<Output> {
    match Command::new(program).args(words).args(files).env("LC_ALL", "C.UTF-8").output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(env::var_os("STRAIT_CHECKERS").is_none(), "{program}: {error}");
            skipped(&format!("{program} is not installed"));
            None
        }
    }
}

#[test]
fn manual_has_a_page_for_every_command() {
    let tree = Tree::new();
    let (status, _, told) = strait(&tree, &["man", "man1"]);
    assert_eq!(status, 0, "{told}");
    let pages = tree.sysroot().list("/man1").unwrap();
    for page in ["strait.1", "strait-run.1", "strait-rom-dump.1", "strait-inspect.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.contains("write-attribute")), "{pages:?}");
    let run = tree.sysroot().read("/man1/strait-run.1").unwrap();
    assert!(run.contains(".TH strait-run 1") && run.contains("\\-\\-vfio"), "{run}");
    let (_, first, _) = strait(&tree, &["man"]);
    assert!(first.contains(".TH strait 1"), "{first}");
    let paths: Vec<PathBuf> =
        pages.iter().map(|page| tree.sysroot().path(&format!("/man1/{page}"))).collect();
    // Blanks where no one sees them are clap's own.
    if let Some(output) = checked("mandoc", &["-T", "lint", "-W", "warning"], &paths) {
        let said = String::from_utf8_lossy(&output.stdout);
        let ours = said.lines().filter(|line| !line.contains("skipping paragraph macro"));
        assert_eq!(ours.collect::<Vec<_>>(), [""; 0]);
    }
    if let Some(output) = checked("mandoc", &["-T", "utf8"], &paths) {
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("NAME") && shown.contains("strait 0.1.0"), "{shown}");
    }
}
