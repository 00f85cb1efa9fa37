//! The binary as a user meets it: exit status, what goes where, nothing on the way that needs a host.

#[expect(dead_code, reason = "no page of these is compared")]
mod golden;

use std::{
    fs::{self, File},
    io,
    process::{Command, Output},
};

use golden::assert_schema;
use serde_json::{Value, json};

fn strait(words: &[&str]) -> Output {
    let strait = Command::new(env!("CARGO_BIN_EXE_strait")).args(words).output();
    strait.expect("strait does not start")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn r88_refusal_goes_to_standard_error_with_the_codes_status() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinuz");
    fs::write(&kernel, "no kernel").unwrap();
    let kernel = kernel.to_str().unwrap();
    for (words, code) in [
        (&["run", "--kernel", kernel, "--vfo", "3b:00"][..], "E2001"),
        (&["run"], "E2001"),
        (&[], "E2001"),
        (&["run", "--kernel", kernel, "--vfio", "3b:00,frob=1"], "E2002"),
        (&["run", "--kernel", kernel, "--memory", "4096"], "E2003"),
        (&["run", "--kernel", kernel, "--vfio", "3b:00", "--vfio", "3b:00.1"], "E2004"),
        (&["run", "--kernel", kernel, "--vfio", "3b:00,guest-address=00:00"], "E2005"),
        (&["run", "--kernel", "/nonexistent/vmlinuz"], "E2101"),
        (&["explain", "E1234"], "E2003"),
    ] {
        let output = strait(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let told = stderr(&output);
        assert!(told.starts_with(&format!("error[{code}]: ")), "{words:?}: {told}");
        assert!(told.contains("\n  fix: "), "{words:?}: {told}");
        assert!(told.ends_with(&format!("\n  more: strait explain {code}\n")), "{words:?}: {told}");
    }
}

#[test]
fn r88_every_code_has_a_page_that_says_how_to_look_and_what_to_do() {
    let listed = String::from_utf8(strait(&["explain"]).stdout).unwrap();
    let codes: Vec<&str> = listed
        .split_whitespace()
        .filter(|word| word.len() == 5 && word.starts_with('E') && word[1..].parse::<u16>().is_ok())
        .collect();
    for new in ["E1116", "E2106", "E2107", "E2108", "E2110"] {
        assert!(codes.contains(&new), "{new} is not listed: {listed}");
    }
    for code in codes {
        let output = strait(&["explain", code]);
        assert_eq!(output.status.code(), Some(0), "{code}");
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(page.contains(code) && page.lines().count() > 4, "{code}: {page}");
    }
}

#[test]
fn r90_explained_codes_are_an_answer_to_programs() {
    let answer = |words: &[&str], status| -> Value {
        let output = strait(&[words, &["--json"]].concat());
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(status), ""));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let one = answer(&["explain", "1103"], 0);
    assert_schema("strait explain --json", &one);
    let [code] = &one["codes"].as_array().unwrap()[..] else { panic!("{one}") };
    assert_eq!((&code["code"], &code["exit"]), (&json!("E1103"), &json!(4)));
    assert_eq!(code["class"], "The device or its group");
    assert!(code["text"].as_str().unwrap().contains("/sys/kernel/iommu_groups"), "{code}");
    let all = answer(&["explain"], 0);
    assert!(all["codes"].as_array().unwrap().contains(code));
    for words in [&["explain", "E1234"][..], &["explain", "E1103", "E1104"]] {
        let refused = answer(words, 2);
        assert_schema("strait run --dry-run --json, refused", &refused);
    }
}

#[test]
fn what_was_asked_for_goes_to_standard_output() {
    for (words, says) in [
        (&["--version"][..], "strait 0."),
        (&["--help"], "strait explain E1103"),
        (&["run", "--help"], "--initramfs <FILE>"),
        (&["explain"], "E1103"),
        (&["explain", "E1103"], "the IOMMU group is not viable"),
        (&["explain", "error[E2001]:"], "E2001"),
    ] {
        let output = strait(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
        assert!(output.stderr.is_empty(), "{words:?}: {}", stderr(&output));
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains(says), "{words:?}: {told}");
        assert!(!told.contains('\x1b'), "{words:?}: colours in a pipe");
    }
}

#[test]
fn reader_who_leaves_early_is_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output =
        Command::new(env!("CARGO_BIN_EXE_strait")).arg("explain").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn full_disk_behind_standard_output_is_told() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_strait")).arg("explain").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
}

#[test]
fn printed_config_is_a_file_that_prints_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    let words = ["run", "--kernel", "vmlinuz", "--vfio", "3b:00,id=gpu", "--print-config"];
    let first = strait(&words);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    fs::write(&file, &first.stdout).unwrap();
    let again = strait(&["run", "--config", file.to_str().unwrap(), "--print-config"]);
    assert_eq!(first.stdout, again.stdout, "{}", stderr(&again));
    let text = String::from_utf8(again.stdout).unwrap();
    assert!(text.contains("[[vfio]]\nhost = \"3b:00\"\nid = \"gpu\"\n"), "{text}");
}

#[test]
fn mistyped_key_of_a_config_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    fs::write(&file, "kernel = 'vmlinuz'\n[memroy]\nsize = '4G'\n").unwrap();
    let output = strait(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let told = stderr(&output);
    assert!(told.contains("vm.toml, line 2: there is no key 'memroy'"), "{told}");
    assert!(told.contains("fix: did you mean memory?"), "{told}");
}
