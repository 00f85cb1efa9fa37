//! `strait run --dry-run` on a host laid out in a directory: the machine for people and for programs.
//!
//! Provenance: the two-card server of the fixture module; no dump of a host.

mod golden;
mod look;

use std::path::PathBuf;

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::{Value, json};
use strait_resources::host::fixture::{Function, Tree, limits, status};

/// An ELF kernel of a few bytes at 16 MiB.
fn kernel(tree: &Tree) -> PathBuf {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([16 << 20, 64, 0_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([120, 16 << 20, 16 << 20, 8, 8, 4_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(*b"kernel!!");
    tree.file("/vmlinux", elf);
    tree.sysroot().path("/vmlinux")
}

/// Exit status, standard output, standard error.
fn dry_run(tree: &Tree, words: &[&str]) -> (i32, String, String) {
    let kernel = kernel(tree);
    let start = ["run", "--dry-run", "--kernel", kernel.to_str().unwrap()];
    let output = look(tree, &[&start, words].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Two cards of which one has a function on a host driver, and something that is warned of.
fn host() -> Tree {
    let tree = Tree::two_cards();
    let audio = "/sys/bus/pci/devices/0000:3b:00.1/driver";
    tree.remove(audio);
    tree.link(audio, "../../../bus/pci/drivers/snd_hda_intel");
    tree.file("/sys/bus/pci/devices/0000:3b:00.1/reset_method", "pm\n");
    tree
}

#[test]
fn r90_plan_fields_are_those_of_the_document() {
    let tree = host();
    let disk = "0000:01:00.0";
    tree.function(&Function {
        bdf: disk,
        id: (0x144d, 0xa808),
        class: 0x01_0802,
        driver: Some("vfio-pci"),
        group: Some(7),
        resources: &[(0, 0xc000_0000, 0xc000_3fff, 0x14_0204)],
        under: &["0000:00:01.0"],
        ..Function::default()
    });
    let ids = "3b:00,vendor-id=1234";
    let words = ["--vfio", ids, "--vfio", disk, "--fake-battery", "--cpus", "4", "--json"];
    let (status, text, told) = dry_run(&tree, &words);
    assert_eq!((status, told.as_str()), (0, ""));
    let mut answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["devices"].as_array().unwrap().len(), 5);
    assert_eq!(answer["devices"][0]["guest"], "0000:01:00.0");
    assert_eq!(answer["devices"][0]["shown_as"], "1234:1e07");
    assert_eq!(answer["devices"][0]["bars"][1]["size"], 256 << 20);
    assert_eq!(answer["devices"][4]["reset"]["way"], "bus");
    assert_eq!(answer["p2p"], true);
    assert_eq!(answer["cpus"]["cores"], 4);
    assert_eq!(
        answer["take"],
        json!([{"bdf": "0000:3b:00.1", "driver": "snd_hda_intel", "framebuffer": null, "asked_for": true}])
    );
    let group = &answer["groups"][1];
    assert_eq!((&group["group"], group["members"].as_array().unwrap().len()), (&json!(31), 4));
    assert!(!answer["warnings"].as_array().unwrap().is_empty());
    // None of these devices has too many I/O BARs.
    assert_eq!(answer["addresses"]["unassigned"], json!([]));
    answer["addresses"]["unassigned"] = json!([{"bdf": "", "index": 0, "size": 0}]);
    assert_schema("strait run --dry-run --json", &answer);
}

#[test]
fn r90_refused_plan_is_an_answer_with_the_same_status() {
    let tree = host();
    let refused = |words: &[&str], code: &str, exit: i32| {
        let (status, text, told) = dry_run(&tree, &[words, &["--json"]].concat());
        assert_eq!((status, told.as_str()), (exit, ""), "{words:?}");
        let answer: Value = serde_json::from_str(&text).expect(&text);
        assert_schema("strait run --dry-run --json, refused", &answer);
        assert_eq!(answer["failure"]["code"], code, "{text}");
        assert_eq!(answer["exit"], exit);
        let (status, text, told) = dry_run(&tree, words);
        assert_eq!((status, text.as_str()), (exit, ""));
        assert!(told.starts_with(&format!("error[{code}]: ")), "{told}");
    };
    refused(&["--vfio", "42:00.0"], "E1101", 4);
    refused(&["--vfio", "3b:00,managed=no"], "E1102", 4);
    refused(&["--memory", "4096"], "E2003", 2);
    refused(&["--vfo", "3b:00"], "E2001", 2);
    refused(&["--mmio64", "1M", "--vfio", "3b:00"], "E1201", 5);
}

#[test]
fn r92_page_says_what_would_be_taken() {
    let tree = host();
    let (status, text, told) = dry_run(&tree, &["--vfio", "3b:00"]);
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("note: 0000:3b:00.1 would be taken from snd_hda_intel\n"), "{told}");
    let here = tree.sysroot().path("/").display().to_string();
    assert_golden("dry-run.txt", &text.replace(&here, "/"));
}

#[test]
fn json_is_for_dry_runs_alone() {
    let tree = host();
    let output = look(&tree, &["run", "--kernel", "k", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error[E2001]"), "{told}");
}

#[test]
fn framebuffer_on_the_card_is_refused_and_with_leave_it_would_let_go() {
    let tree = host();
    tree.framebuffer("0000:3b:00.0", "efifb", "efi-framebuffer");
    let (status, _, told) = dry_run(&tree, &["--vfio", "3b:00"]);
    assert_eq!(status, 5, "{told}");
    assert!(told.contains("error[E1205]") && told.contains("--release-fb"), "{told}");
    let (status, _, told) = dry_run(&tree, &["--vfio", "3b:00", "--release-fb"]);
    assert_eq!(status, 0, "{told}");
    let says = "note: the host's framebuffer efifb would let go of 0000:3b:00.0\n";
    assert!(told.contains(says), "{told}");
    // What may not be changed is not changed by another flag.
    let (_, _, told) = dry_run(&tree, &["--vfio", "3b:00,managed=no", "--release-fb"]);
    assert!(told.contains("managed=no forbids that for 0000:3b:00.0"), "{told}");
    tree.file("/proc/self/status", status_of_user());
    let (status, _, told) = dry_run(&tree, &["--vfio", "3b:00", "--release-fb"]);
    assert_eq!(status, 3, "{told}");
    assert!(told.contains("error[E1003]: --release-fb changes drivers"), "{told}");
}

fn status_of_user() -> String {
    strait_resources::host::fixture::status(1000, 0)
}

#[test]
fn r27_slot_of_four_functions_is_one_multifunction_device_of_the_guest() {
    let (status, text, told) = dry_run(&host(), &["--vfio", "0000:3b:00", "--json"]);
    assert_eq!(status, 0, "{told}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let devices = answer["devices"].as_array().unwrap();
    let text = |name: &str| -> Vec<_> {
        devices.iter().map(|device| device[name].as_str().unwrap().to_owned()).collect()
    };
    let places = |bus: &str| (0..4).map(|n| format!("0000:{bus}:00.{n}")).collect::<Vec<_>>();
    assert_eq!((text("bdf"), text("guest")), (places("3b"), places("01")));
    // All of them behind one port.
    assert!(devices.iter().all(|device| device["port"] == devices[0]["port"]), "{devices:#?}");
}

#[test]
fn r28_one_function_alone_runs_with_a_warning_that_lists_its_siblings() {
    let (status, _, told) = dry_run(&Tree::two_cards(), &["--vfio", "3b:00.0"]);
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("warning[E1111]: "), "{told}");
    for sibling in ["0000:3b:00.1", "0000:3b:00.2", "0000:3b:00.3"] {
        assert!(told.contains(sibling), "{told}");
    }
}

#[test]
fn r33_boot_display_needs_a_flag_before_a_run_takes_it() {
    let tree = host();
    let (status, _, told) = dry_run(&tree, &["--vfio", "03:00.0"]);
    assert_eq!(status, 4, "{told}");
    assert!(told.contains("E1104") && told.contains("--allow-boot-vga"), "{told}");
    // Nothing resets the BMC's display.
    let (status, _, told) = dry_run(&tree, &["--vfio", "03:00.0", "--allow-boot-vga"]);
    assert!(
        status == 4 && told.contains("error[E1127]: ast would get 0000:03:00.0 back"),
        "{told}"
    );
    let word = "03:00.0,after=vfio";
    let (status, text, told) = dry_run(&tree, &["--vfio", word, "--allow-boot-vga"]);
    assert_eq!(status, 0, "{told}");
    assert!(text.contains("  after       stays on vfio-pci until strait unbind"), "{text}");
    assert!(told.contains("note: 0000:03:00.0 would be taken from ast\n"), "{told}");
    // The two cards are on VFIO already, and nothing shows the host's console.
    let dark = "warning[E1118]: the host has no display but 0000:03:00.0: its console goes dark\n";
    assert!(told.contains(dark), "{told}");
}

#[test]
fn p1_chosen_reset_is_shown_before_the_start_and_one_that_is_not_there_is_refused() {
    let tree = host();
    tree.file("/sys/bus/pci/devices/0000:3b:00.0/reset_method", "flr bus\n");
    let (status, text, told) = dry_run(&tree, &["--vfio", "3b:00.0,reset=none", "--json"]);
    assert_eq!(status, 0, "{told}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["devices"][0]["reset"]["way"], "off");
    let (_, text, _) = dry_run(&tree, &["--vfio", "3b:00.0,reset=flr"]);
    assert!(text.contains("  reset       flr\n"), "{text}");
    let (status, _, told) = dry_run(&tree, &["--vfio", "3b:00.0,reset=pm"]);
    assert_eq!(status, 7, "{told}");
    assert!(told.starts_with("error[E1404]: 0000:3b:00.0 cannot be reset by pm\n"), "{told}");
}

#[test]
fn hidden_guest_is_shown_with_the_frequency_that_it_is_told() {
    let of = |vendor: &str, words: &[&str]| {
        let tree = host();
        let info = tree.sysroot().read("/proc/cpuinfo").unwrap().replace("GenuineIntel", vendor);
        tree.file("/proc/cpuinfo", info);
        let hidden = [&["--cpu", "hide=kvm", "--cmdline", "quiet -- init"], words].concat();
        dry_run(&tree, &hidden)
    };
    let (status, text, told) = of("AuthenticAMD", &["--json"]);
    assert_eq!(status, 0, "{told}");
    let kernel = &serde_json::from_str::<Value>(&text).unwrap()["kernel"];
    assert_eq!(kernel["cmdline"], "tsc_early_khz=? quiet -- init");
    assert_eq!(kernel["tsc"], "cmdline");
    let (_, text, told) = of("AuthenticAMD", &[]);
    assert!(text.contains("tsc_early_khz=? quiet -- init"), "{text}");
    assert!(told.contains("strait adds tsc_early_khz= to its command line"), "{told}");

    let (_, text, _) = of("GenuineIntel", &["--json"]);
    let kernel = &serde_json::from_str::<Value>(&text).unwrap()["kernel"];
    assert_eq!((&kernel["cmdline"], &kernel["tsc"]), (&json!("quiet -- init"), &json!("cpuid")));
}

#[test]
fn word_that_strait_adds_counts_in_the_limit_of_the_command_line() {
    let tree = host();
    tree.file("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t: lm svm\n\n");
    let most = (64 << 10) - 1;
    let told = |len: usize| {
        let (line, hide) = ("q".repeat(len), ["--cpu", "hide=all", "--cmdline"]);
        dry_run(&tree, &[&hide[..], &[&line]].concat())
    };
    let room = "tsc_early_khz=4294967295 ".len();
    assert_eq!(told(most - room).0, 0);
    let (status, _, said) = told(most - room + 1);
    assert_eq!((status, said.contains("E2105")), (2, true), "{said}");
    assert!(
        said.contains("tsc_early_khz="),
        "the message names the word that the user did not write: {said}"
    );
}

#[test]
fn what_a_guests_cpu_has_only_when_asked_for_is_shown_and_refused_before_anything_else() {
    let tree = host();
    let cpus = |words: &[&str]| {
        let (status, text, told) = dry_run(&tree, &[words, &["--json"]].concat());
        assert_eq!(status, 0, "{told}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        (answer["cpus"]["nested"].clone(), answer["cpus"]["pmu"].clone())
    };
    assert_eq!(cpus(&[]), (json!(false), json!(false)));
    assert_eq!(cpus(&["--cpu", "nested=on,pmu=on"]), (json!(true), json!(true)));
    let (_, text, _) = dry_run(&tree, &["--cpu", "nested=on,pmu=on"]);
    assert!(text.contains(", nested virtualization, performance counters"), "{text}");

    tree.file("/sys/module/kvm_intel/parameters/nested", "N\n");
    tree.file("/sys/module/kvm/parameters/enable_pmu", "N\n");
    for (words, says) in [("nested=on", "modprobe kvm_intel nested=1"), ("pmu=on", "enable_pmu=1")]
    {
        let (status, _, told) = dry_run(&tree, &["--cpu", words]);
        assert_eq!((status, told.contains("error[E1005]")), (3, true), "{told}");
        assert!(told.contains(says), "{told}");
    }
    assert_eq!(dry_run(&tree, &[]).0, 0);
}

#[test]
fn cores_that_no_other_program_shares_are_shown_as_far_as_the_host_can() {
    let tree = host();
    let answer = |words: &[&str]| {
        let (status, text, told) = dry_run(&tree, &[words, &["--json"]].concat());
        assert_eq!(status, 0, "{told}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["cpus"]["core_sched"].clone()
    };
    const OFF: &[&str] = &["--cpu", "core-sched=off"];
    assert_eq!((answer(&[]), answer(OFF)), (json!("unneeded"), json!("off")));
    tree.file("/sys/devices/system/cpu/smt/active", "1\n");
    tree.file("/proc/sys/kernel/osrelease", "6.8.0-52-generic\n");
    assert_eq!((answer(&[]), answer(OFF)), (json!("on"), json!("off")));
    let (_, text, told) = dry_run(&tree, OFF);
    assert!(text.contains(", cores shared with other programs"), "{text}{told}");
    tree.file("/proc/sys/kernel/osrelease", "5.10.0-33-amd64\n");
    assert_eq!(answer(&[]), json!("unsupported"));
    let (_, text, told) = dry_run(&tree, &[]);
    assert!(told.contains("older than 5.14") && !text.contains("cores shared"), "{text}{told}");
    assert!(!dry_run(&tree, OFF).2.contains("older than 5.14"));
}

#[test]
fn memory_that_a_run_would_not_have_is_refused_at_once() {
    let tree = host();
    let passed = ["--vfio", "d8:00", "--memory", "8G"];
    tree.file("/proc/self/cgroup", "11:memory:/docker/abc\n0::/system.slice/docker.service\n");
    let at = "/sys/fs/cgroup/memory/docker/abc";
    tree.file(&format!("{at}/memory.limit_in_bytes"), "9223372036854771712\n");
    assert_eq!(dry_run(&tree, &passed).0, 0);
    tree.file(&format!("{at}/memory.limit_in_bytes"), "4294967296\n");
    let (status, text, told) = dry_run(&tree, &passed);
    assert_eq!((status, text.as_str()), (6, ""));
    assert!(told.contains("error[E1301]") && told.contains("/docker/abc"), "{told}");
}

#[test]
fn memory_that_this_user_may_not_lock_is_warned_of() {
    let tree = host();
    tree.file("/proc/self/limits", limits(65_536, 65_536));
    tree.file("/proc/self/status", status(1000, 0));
    let (status, text, told) = dry_run(&tree, &["--vfio", "d8:00", "--memory", "8G"]);
    assert_eq!(status, 0, "{told}");
    assert!(text.contains("Machine") && told.contains("warning[E1306]"), "{told}");
}
