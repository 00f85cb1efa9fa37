//! `strait bind` and `unbind` on a host laid out in a directory: dry runs for people and for programs.

mod golden;
mod look;

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::{Value, json};
use strait_resources::host::fixture::Tree;

/// Exit status, standard output, standard error.
fn strait(tree: &Tree, words: &[&str]) -> (i32, String, String) {
    let output = look(tree, words);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn answer(tree: &Tree, words: &[&str]) -> Value {
    let (status, text, told) = strait(tree, &[words, &["--dry-run", "--json"]].concat());
    assert_eq!((status, told.as_str()), (0, ""), "{words:?}");
    serde_json::from_str(&text).expect(&text)
}

const BOOT_DISPLAY: &[&str] = &["bind", "03:00.0", "3b:00.0", "--allow-boot-vga", "--persist"];

#[test]
fn r90_bind_fields_are_those_of_the_document() {
    let answer = answer(&Tree::two_cards(), BOOT_DISPLAY);
    assert_schema("strait bind --json", &answer);
    let [display, gpu] = &answer["devices"].as_array().unwrap()[..] else { panic!("{answer}") };
    assert_eq!(
        (&display["driver_before"], &display["driver_after"]),
        (&json!("ast"), &json!("vfio-pci"))
    );
    assert_eq!(gpu["driver_before"], gpu["driver_after"]);
    assert_eq!(display["rule_file"], "/etc/udev/rules.d/10-strait-0000:03:00.0.rules");
    assert_eq!(answer["warnings"][0]["code"], "E1118");
}

#[test]
fn dry_runs_for_people_say_what_would_be() {
    let tree = Tree::two_cards();
    let (status, text, told) = strait(&tree, &[BOOT_DISPLAY, &["--dry-run"]].concat());
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("warning[E1118]: the host has no display but 0000:03:00.0"), "{told}");
    assert_golden("bind-dry-run.txt", &text);
    let (_, text, _) = strait(&tree, &["unbind", "3b:00.0", "03:00.0", "--dry-run"]);
    assert_eq!(text, "0000:03:00.0 is on ast: nothing to do\n0000:3b:00.0 would leave vfio-pci\n");
}

#[test]
fn r90_refusal_is_an_answer_with_the_same_status() {
    let tree = Tree::two_cards();
    for (words, code, exit) in [
        (&["bind", "03:00.0"][..], "E1104", 4),
        (&["bind", "42:00.0"], "E1101", 4),
        (&["unbind", "42:00.0"], "E1101", 4),
        (&["bind", "3b:00.0", "--persit"], "E2001", 2),
    ] {
        let (status, text, told) = strait(&tree, &[words, &["--dry-run", "--json"]].concat());
        assert_eq!((status, told.as_str()), (exit, ""), "{words:?}");
        let answer: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(answer["schema"], "strait.failure/1");
        assert_eq!((&answer["failure"]["code"], &answer["exit"]), (&json!(code), &json!(exit)));
        let (status, text, told) = strait(&tree, &[words, &["--dry-run"]].concat());
        assert_eq!((status, text.as_str()), (exit, ""), "{words:?}");
        assert!(told.starts_with(&format!("error[{code}]: ")), "{told}");
    }
}
