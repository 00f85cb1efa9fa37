//! `strait rom` on a host laid out in a directory. The page in `golden` was read by eye.
//!
//! Provenance: images made up by PCI Local Bus 3.0, 6.3; no ROM of a card.

mod golden;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use golden::{assert_golden, assert_schema};
use serde_json::Value;
use strait_resources::host::fixture::Tree;

/// An image of the card at 3b:00.0 in the fixture.
fn image(code: u8, last: bool, device: u16, units: u16) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(units) * 512];
    bytes[..2].copy_from_slice(&[0x55, 0xaa]);
    if code == 3 {
        bytes[4..8].copy_from_slice(&0x0ef1_u32.to_le_bytes());
        bytes[0x0a..0x0c].copy_from_slice(&0x8664_u16.to_le_bytes());
    }
    bytes[0x18] = 0x40;
    bytes[0x40..0x44].copy_from_slice(b"PCIR");
    bytes[0x44..0x46].copy_from_slice(&0x10de_u16.to_le_bytes());
    bytes[0x46..0x48].copy_from_slice(&device.to_le_bytes());
    bytes[0x4a] = 0x18;
    bytes[0x4f] = 0x03;
    bytes[0x50..0x52].copy_from_slice(&units.to_le_bytes());
    bytes[0x54] = code;
    bytes[0x55] = u8::from(last) << 7;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    *bytes.last_mut().unwrap() = sum.wrapping_neg();
    bytes
}

/// A host with two cards, and the ROM of one of them in a file.
struct Case {
    tree: Tree,
    rom: PathBuf,
}

impl Case {
    fn new(bytes: &[u8]) -> Self {
        let tree = Tree::two_cards();
        tree.file("/tmp/card.rom", bytes);
        let rom = tree.sysroot().path("/tmp/card.rom");
        Self { tree, rom }
    }

    fn graphics() -> Self {
        Self::new(&[image(0, false, 0x1e07, 122), image(3, true, 0x1e07, 107)].concat())
    }

    /// Exit status, standard output, standard error.
    fn strait(&self, words: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_strait"))
            .args(words)
            .arg("--sysroot")
            .arg(self.tree.sysroot().path("/"))
            .current_dir(self.tree.sysroot().path("/tmp"))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn r42_check_lists_images_ids_and_what_uefi_can_use() {
    let (status, text, _) = Case::graphics().strait(&["rom", "check", "card.rom", "3b:00.0"]);
    assert_eq!(status, 0);
    assert_golden("rom-check.txt", &text);
}

#[test]
fn r42_rom_without_uefi_image_says_no() {
    let case = Case::new(&image(0, true, 0x1e07, 4));
    let (status, text, _) = case.strait(&["rom", "check", "card.rom"]);
    assert_eq!(status, 0);
    assert!(text.contains("UEFI capable: no"), "{text}");
}

#[test]
fn r41_rom_of_another_card_is_refused_with_both_ids() {
    let case = Case::new(&image(3, true, 0x2204, 4));
    let (status, _, told) = case.strait(&["rom", "check", "card.rom", "3b:00.0"]);
    assert_eq!(status, 2);
    assert!(told.starts_with("error[E2106]"), "{told}");
    assert!(told.contains("it is for 10de:2204, not for 10de:1e07"), "{told}");
}

#[test]
fn r41_file_without_signature_is_refused() {
    let case = Case::new(b"NVGI and so on");
    for words in [&["rom", "check", "card.rom"][..], &["rom", "check", "card.rom", "3b:00.0"]] {
        let (status, _, told) = case.strait(words);
        assert_eq!(status, 2);
        assert!(told.contains("[E2106]") && told.contains("55 aa"), "{told}");
    }
}

#[test]
fn r43_device_without_rom_says_so_and_leaves_no_file() {
    let case = Case::graphics();
    let (status, _, told) = case.strait(&["rom", "dump", "3b:00.1"]);
    assert_eq!(status, 4);
    assert!(told.starts_with("error[E1116]: 0000:3b:00.1 has no ROM\n"), "{told}");
    let left = fs::read_dir(case.tree.sysroot().path("/tmp")).unwrap().count();
    assert_eq!(left, 1, "more than card.rom");
}

#[test]
fn r43_existing_file_is_never_written_over() {
    let case = Case::graphics();
    let before = fs::read(&case.rom).unwrap();
    let (status, _, told) =
        case.strait(&["rom", "dump", "3b:00.0", "--output", case.rom.to_str().unwrap()]);
    assert_eq!(status, 2);
    assert!(told.contains("card.rom exists"), "{told}");
    assert_eq!(fs::read(Path::new(&case.rom)).unwrap(), before);
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let mut rom = [image(0, false, 0x1e07, 4), image(3, true, 0x1e07, 4)].concat();
    rom[0x100] ^= 1;
    let (status, text, _) =
        Case::new(&rom).strait(&["rom", "check", "card.rom", "3b:00.0", "--json"]);
    assert_eq!(status, 0);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_schema("strait rom check --json", &answer);
    assert_eq!(answer["uefi"], true);
    assert_eq!(answer["images"][0]["checksum_ok"], false);
    assert_eq!(answer["device"]["named"], true);
}
