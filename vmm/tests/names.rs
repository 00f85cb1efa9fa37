//! Names of others in every view: nothing in them makes a line, a column or a colour. Who may make such names: any user a
//! process, who may mount a mount point, firmware a label, a module a driver; a file of names may be anybody's.
//!
//! Provenance: the two-card server of the fixture module with names made up to do harm; no dump of
//! a host.

mod look;

use std::process::Command;

use look::look;
use strait_resources::host::fixture::{Function, Tree};

/// SGR 8, which strait never uses itself: it hides what follows. BEL, a tabulator, and a line of strait's own kind.
const ODD: &str = "odd\u{1b}[8m\u{7}\tz\nFAIL  forged";
/// The same in /proc/self/mountinfo.
const MOUNTED: &str = "/srv/odd\\033[8m\u{7}\\011z\\012FAIL  forged";

/// A host with such names wherever somebody else gives them.
fn host() -> Tree {
    let tree = Tree::two_cards();
    for (file, text) in [
        ("/proc/sys/kernel/random/boot_id", "boot-1\n"),
        ("/proc/self/stat", "100 (strait) R 1 1 1 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0\n"),
        ("/proc/100/stat", "100 (strait) R 1 1 1 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0\n"),
    ] {
        tree.file(file, text);
    }
    let gpu = "/sys/bus/pci/devices/0000:3b:00.0";
    tree.file(&format!("{gpu}/label"), ODD);
    // A driver of the host's, and who has its node open.
    tree.remove(&format!("{gpu}/driver"));
    tree.link(&format!("{gpu}/driver"), &format!("../../../bus/pci/drivers/{ODD}"));
    tree.file(&format!("{gpu}/drm/card1/dev"), "226:1\n");
    tree.file("/proc/700/comm", ODD);
    tree.link("/proc/700/fd/5", "/dev/dri/card1");
    let disk = "0000:01:00.0";
    let (class, driver, group) = (0x01_0802, Some("nvme"), Some(7));
    tree.function(&Function { bdf: disk, class, driver, group, ..Function::default() });
    let block = format!("bus/pci/devices/{disk}/nvme/nvme0/nvme0n1");
    tree.file(&format!("/sys/{block}/dev"), "259:0\n");
    tree.link("/sys/block/nvme0n1", &format!("../{block}"));
    tree.file(
        "/proc/self/mountinfo",
        format!("25 1 259:0 / {MOUNTED} rw - ext4 /dev/nvme0n1 rw\n"),
    );
    let command = serde_json::to_string(&["strait", ODD]).unwrap();
    tree.file(
        "/run/strait/journal/bind-200-9.json",
        format!(
            r#"{{"schema": "strait.journal/2", "process": {{"pid": 200, "start": 9}}, "pid_namespace": null,
            "boot": "boot-1", "command": {command}, "kind": "bind", "settled": true, "functions": []}}"#
        ),
    );
    tree.file(&format!("/{ODD}.rom"), [0x55, 0xaa]);
    tree
}

/// An ELF kernel of a few bytes at 16 MiB.
fn vmlinux() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([16 << 20, 64, 0_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([120, 16 << 20, 16 << 20, 8, 8, 4_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(*b"kernel!!");
    elf
}

/// Both streams of a command that is told to use colours.
fn seen(tree: &Tree, words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(words)
        .arg("--sysroot")
        .arg(tree.sysroot().path("/"))
        .env("CLICOLOR_FORCE", "1")
        .output()
        .unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn name_of_others_is_written_out_in_every_view() {
    let tree = host();
    tree.file(&format!("/{ODD}.vmlinux"), vmlinux());
    let kernel = tree.sysroot().path(&format!("/{ODD}.vmlinux")).display().to_string();
    let rom = tree.sysroot().path(&format!("/{ODD}.rom")).display().to_string();
    let views: [&[&str]; 12] = [
        &["devices"],
        &["devices", "--tree"],
        &["devices", "--group"],
        &["devices", "show", "3b:00.0"],
        &["devices", "show", "01:00.0"],
        &["doctor", "-v", "3b:00.0"],
        &["doctor", "-v", "01:00.0"],
        &["ps"],
        &["bind", "--dry-run", "3b:00.0"],
        &["unbind", "--dry-run", "3b:00.0"],
        &["rom", "check", &rom],
        &["run", "--dry-run", "--kernel", &kernel, "--vfio", "d8:00.0"],
    ];
    let mut without = Vec::new();
    for words in views {
        let text = seen(&tree, words);
        assert!(!text.contains("\u{1b}[8m"), "{words:?}: {text:?}");
        assert!(!text.contains(['\u{7}', '\t']), "{words:?}: {text:?}");
        assert!(text.lines().all(|line| !line.starts_with("FAIL  forged")), "{words:?}: {text}");
        if !text.contains("\\u{1b}[8m") {
            without.push((words, text));
        }
    }
    assert!(without.is_empty(), "these show no such name: {without:#?}");
}

#[test]
fn colours_of_strait_itself_are_left() {
    assert!(
        seen(&host(), &["ps"]).contains('\u{1b}') || seen(&host(), &["devices"]).contains('\u{1b}')
    );
    let plain = String::from_utf8(look(&host(), &["devices"]).stdout).unwrap();
    assert!(!plain.contains('\u{1b}'), "{plain}");
}
