//! `strait doctor` on hosts laid out in a directory. The pages in `golden` were read by eye;
//! `STRAIT_BLESS=1 cargo test -p strait --test doctor` writes them anew.
//!
//! Provenance: a newcomer's host by hand, as Debian 12 installs it by its documentation; no dump of
//! a host.

mod golden;
mod look;

use std::process::Command;

use golden::{assert_golden, assert_schema};
use look::look;
use serde_json::Value;
use strait_resources::host::fixture::{Function, HOSTS, Tree};

/// A newcomer's host: the IOMMU works, nothing is bound.
fn newcomer() -> Tree {
    let tree = Tree::new();
    tree.host_basics();
    tree.file("/proc/sys/kernel/osrelease", "6.1.0-31-amd64\n");
    tree.file("/boot/vmlinuz-6.1.0-31-amd64", "");
    tree.file("/boot/initrd.img-6.1.0-31-amd64", "");
    tree.file("/etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"\n");
    tree.directory("/etc/initramfs-tools");
    tree.file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    for (module, file, value) in [
        ("kvm_intel", "ept", "Y"),
        ("kvm_intel", "enable_apicv", "N"),
        ("vfio_iommu_type1", "dma_entry_limit", "65535"),
    ] {
        tree.file(&format!("/sys/module/{module}/parameters/{file}"), value);
    }
    tree.function(&Function { driver: Some("e1000e"), group: Some(7), ..Function::default() });
    tree.function(&Function {
        bdf: "0000:01:00.0",
        id: (0x10de, 0x1e07),
        class: 0x03_0000,
        driver: Some("nouveau"),
        group: Some(8),
        ..Function::default()
    });
    // As Linux 5.15 and later have it for a NIC of the chipset and for a card alone behind its port.
    tree.file("/sys/bus/pci/devices/0000:00:02.0/reset_method", "pm\n");
    tree.file(RESETS, "bus\n");
    tree
}

const RESETS: &str = "/sys/bus/pci/devices/0000:01:00.0/reset_method";

/// Exit status and answer.
fn strait(tree: &Tree, words: &[&str]) -> (i32, String) {
    let output = look(tree, words);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "", "{words:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn r89_host_with_nothing_bound_is_told_the_commands_to_a_running_guest() {
    let (status, text) = strait(&newcomer(), &["doctor"]);
    assert_eq!(status, 0);
    assert_golden("doctor-newcomer.txt", &text);
}

/// The commands, each on one line.
fn commands(text: &str) -> Vec<String> {
    let (_, next) = text.split_once("\nNext").unwrap_or_else(|| panic!("no way on: {text}"));
    let shell = next.replace(" \\\n      ", " ");
    shell.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

#[test]
fn whole_card_is_named_by_its_slot_and_json_has_the_same_commands() {
    let tree = newcomer();
    tree.function(&Function {
        bdf: "0000:01:00.1",
        class: 0x04_0300,
        driver: Some("snd_hda_intel"),
        group: Some(8),
        ..Function::default()
    });
    tree.file("/sys/bus/pci/devices/0000:01:00.1/reset_method", "pm\n");
    let (_, text) = strait(&tree, &["doctor"]);
    let told = commands(&text);
    assert_eq!(told[0], "strait doctor 01:00", "{text}");
    assert!(told[2].ends_with("--memory 4G --vfio 01:00"), "{text}");
    assert_eq!(told[1], format!("{} --dry-run", told[2]));
    let (_, json) = strait(&tree, &["doctor", "--json"]);
    let answer: Value = serde_json::from_str(&json).unwrap();
    let next: Vec<&str> =
        answer["next"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(next, told);
}

/// A run without a word for it is refused; the command that is printed has the word.
#[test]
fn device_that_nothing_resets_fails_and_the_next_command_keeps_it_on_vfio() {
    let tree = newcomer();
    tree.file(RESETS, "\n");
    let (status, text) = strait(&tree, &["doctor", "01:00.0"]);
    assert_eq!(status, 4, "{text}");
    assert!(text.starts_with("FAIL  reset: nouveau would get 0000:01:00.0 back"), "{text}");
    let next = commands(&text);
    assert!(next[1].ends_with(" --vfio 01:00.0,after=vfio"), "{text}");
    let back = "strait unbind 01:00.0 gives it back\nto nouveau.";
    assert!(text.contains("it stays on vfio-pci afterwards: ") && text.contains(back), "{text}");
    // Where nobody named a device, one that is reset comes first, then whatever comes to mind.
    assert!(commands(&strait(&tree, &["doctor"]).1)[2].ends_with("--vfio 00:02.0"));
    tree.file(&RESETS.replace("01:00.0", "00:02.0"), "\n");
    let (_, text) = strait(&tree, &["doctor"]);
    assert!(commands(&text)[2].ends_with("--vfio 01:00.0,after=vfio"), "{text}");
    // A file says for itself.
    tree.file("/vmlinuz", "");
    let at = |name: &str| tree.sysroot().path(name).display().to_string();
    let file = at("/vm.toml");
    for (key, right) in [("", 4), ("after = 'vfio'", 0), ("trust-guest = true", 0)] {
        let kernel = at("/vmlinuz");
        let toml = format!("kernel = '{kernel}'\n[[vfio]]\nhost = '10de:1e07'\n{key}\n");
        tree.file("/vm.toml", toml);
        let (status, text) = strait(&tree, &["doctor", "--config", &file]);
        assert_eq!(status, right, "{key}: {text}");
    }
}

#[test]
fn next_device_is_no_display_that_the_host_needs_and_the_guest_fits_into_memory() {
    let tree = newcomer();
    tree.file("/sys/bus/pci/devices/0000:01:00.0/boot_vga", "1\n");
    tree.file("/proc/meminfo", "MemTotal: 2048000 kB\nMemAvailable: 1400000 kB\n");
    let (_, text) = strait(&tree, &["doctor"]);
    let told = commands(&text);
    assert_eq!(told[0], "strait doctor 00:02.0", "{text}");
    assert!(told[2].ends_with("--memory 512M --vfio 00:02.0"), "{text}");
}

#[test]
fn next_without_an_installed_kernel_says_that_it_must_be_put_in() {
    let tree = newcomer();
    tree.remove("/boot");
    let (_, text) = strait(&tree, &["doctor"]);
    assert!(text.contains("no kernel where it is looked for, put yours in; "), "{text}");
    assert_eq!(commands(&text)[2], "strait run --kernel vmlinuz --memory 4G --vfio 01:00.0");
}

#[test]
fn next_without_any_device_says_so() {
    let tree = newcomer();
    tree.remove("/sys/bus/pci/devices/0000:01:00.0");
    tree.remove("/sys/bus/pci/devices/0000:00:02.0");
    let (_, text) = strait(&tree, &["doctor"]);
    assert!(text.contains("no device that a guest could have"), "{text}");
}

#[test]
fn devices_that_do_not_fit_fail_as_a_run_would() {
    let (_, make, _) = HOSTS.iter().find(|(name, ..)| *name == "eight-gpus").unwrap();
    let tree = make();
    let gpus = ["17:00.0", "3d:00.0", "60:00.0", "70:00.0", "98:00.0", "bb:00.0"];
    let words: Vec<&str> = ["doctor", "-v"].into_iter().chain(gpus).collect();
    let (_, text) = strait(&tree, &words);
    assert!(text.contains("PASS  address space: every BAR has a place in the guest"), "{text}");
    // Six cards of 128 GiB each want more than 39 bits have.
    let cpu = tree.sysroot().read("/proc/cpuinfo").unwrap();
    tree.file("/proc/cpuinfo", cpu.replace("46 bits", "39 bits"));
    let (_, text) = strait(&tree, &words);
    assert!(text.contains("FAIL  address space: ") && text.contains("(E1201)"), "{text}");
}

#[test]
fn config_brings_its_devices_files_and_memory_into_the_report() {
    let tree = newcomer();
    let at = |name: &str| tree.sysroot().path(name).display().to_string();
    tree.file("/vmlinuz", "");
    let toml = |kernel: &str, memory: &str| {
        format!("kernel = '{}'\nmemory = '{memory}'\n[[vfio]]\nhost = '10de:1e07'\n", at(kernel))
    };
    let file = at("/vm.toml");
    let report = |toml: String| {
        tree.file("/vm.toml", toml);
        strait(&tree, &["doctor", "-v", "--config", &file])
    };
    let (status, text) = report(toml("/vmlinuz", "4G"));
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("PASS  files: ") && text.contains("INFO  driver: 0000:01:00.0"),
        "{text}"
    );
    assert_eq!(commands(&text), [format!("strait run --config {file}")]);
    let (status, text) = report(toml("/nothing", "4G"));
    assert_eq!(status, 2, "{text}");
    assert!(text.starts_with("FAIL  files: --kernel ") && text.contains("(E2101)"), "{text}");
    let (status, text) = report(toml("/vmlinuz", "900G"));
    assert_eq!(status, 6, "{text}");
    assert!(text.contains("FAIL  memory: ") && text.contains("(E1301)"), "{text}");
}

#[test]
fn device_on_a_host_driver_is_no_failure_as_a_run_takes_it() {
    let (status, text) = strait(&newcomer(), &["doctor", "01:00.0"]);
    assert_eq!(status, 0);
    assert_golden("doctor-device.txt", &text);
    assert!(text.contains("INFO  driver: 0000:01:00.0"), "{text}");
}

#[test]
fn r2_iommu_off_by_argument_ends_with_the_hosts_status() {
    let tree = newcomer();
    tree.remove("/sys/kernel/iommu_groups");
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet\n");
    let (status, text) = strait(&tree, &["check"]);
    assert_eq!(status, 3);
    assert!(text.contains("fix: add intel_iommu=on to the kernel arguments"), "{text}");
    assert_eq!(commands(&text), ["strait doctor --fix-plan"], "{text}");
}

#[test]
fn r11_fix_plan_is_a_script_for_this_system() {
    let (status, text) = strait(&newcomer(), &["doctor", "01:00.0", "--fix-plan"]);
    assert_eq!(status, 0);
    assert_golden("doctor-fix-plan.txt", &text);
    let parsed = Command::new("sh").args(["-n", "-c", &text]).status().unwrap();
    assert!(parsed.success(), "no shell script: {text}");
}

#[test]
fn r20_mistyped_device_is_refused_with_the_nearest() {
    let output = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["doctor", "01:00.7", "--sysroot"])
        .arg(newcomer().sysroot().path("/"))
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(told.contains("did you mean 0000:01:00.0?"), "{told}");
}

#[test]
fn verbose_shows_what_is_in_order_too() {
    let (_, text) = strait(&newcomer(), &["doctor", "-v"]);
    assert!(text.contains("PASS  KVM: /dev/kvm is there and opens"), "{text}");
}

#[test]
fn r90_json_fields_are_those_of_the_document() {
    let (status, text) = strait(&newcomer(), &["doctor", "01:00.0", "--fix-plan", "--json"]);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["exit"], status);
    assert_schema("strait doctor --json", &answer);
}
