//! Checks on small hosts.
//!
//! Provenance: the hosts of the fixture module with one thing changed; no dump of a host, but where
//! a test says so.

mod checks;
mod claims;
mod systems;

use super::*;
use crate::host::{
    check,
    fixture::{Function, Tree, status},
};

fn chosen(tree: &Tree, words: &[&str]) -> Vec<HostFunction> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    check::select(&tree.sysroot(), &words).unwrap()
}

fn findings(tree: &Tree, words: &[&str]) -> Vec<Finding> {
    examine(&tree.sysroot(), &chosen(tree, words)).unwrap()
}

/// The worst finding of a check.
fn worst(tree: &Tree, words: &[&str], number: u8) -> Finding {
    let found = findings(tree, words).into_iter().find(|finding| finding.check == number);
    found.unwrap_or_else(|| panic!("check {number} says nothing"))
}

fn plan(tree: &Tree, words: &[&str]) -> String {
    let plan = fix_plan(&tree.sysroot(), &chosen(tree, words)).unwrap();
    let lines = plan.steps.iter().flat_map(|step| &step.lines);
    lines.cloned().collect::<Vec<_>>().join("\n")
}

/// An Intel host with the IOMMU off for want of an argument.
fn argument_missing() -> Tree {
    let tree = Tree::new();
    tree.host_basics();
    tree.remove("/sys/kernel/iommu_groups");
    tree.remove("/sys/class/iommu");
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet\n");
    tree.file("/etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"\n");
    tree.directory("/etc/initramfs-tools");
    tree
}

#[test]
fn checks_have_unique_numbers_and_names() {
    let mut numbers: Vec<u8> = CHECKS.iter().map(|check| check.number).collect();
    let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    numbers.sort_unstable();
    names.sort_unstable();
    let (count, last) = (numbers.len(), numbers.last().copied());
    numbers.dedup();
    names.dedup();
    assert_eq!((numbers.len(), names.len(), last), (count, count, Some(49)));
}

#[test]
fn good_host_and_card_have_no_failure_and_run_agrees() {
    let tree = Tree::two_cards();
    let found = findings(&tree, &["3b:00"]);
    assert_eq!(exit_status(&found), 0, "{found:#?}");
    assert!(found.iter().all(|finding| finding.level != Level::Fail));
    check::host(&tree.sysroot()).unwrap();
    check::assignable(&tree.sysroot(), &chosen(&tree, &["3b:00"])).unwrap();
}

#[test]
fn findings_come_worst_first() {
    let found = findings(&Tree::two_cards(), &["03:00.0", "3b:00"]);
    assert!(found.windows(2).all(|pair| pair[0].level <= pair[1].level));
    assert_eq!(found[0].level, Level::Fail);
}

#[test]
fn refusals_of_a_run_are_failures_with_the_same_code() {
    let change = |what: fn(&Tree)| {
        let tree = Tree::two_cards();
        what(&tree);
        tree
    };
    for tree in [
        change(|tree| tree.remove("/dev/kvm")),
        change(|tree| tree.remove("/dev/vfio/vfio")),
        change(|tree| tree.remove("/dev/vfio/31")),
        change(|tree| tree.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "0\n")),
        change(|tree| tree.file("/proc/cpuinfo", "CPU implementer : 0x41\n")),
        change(|tree| tree.link("/proc/77/fd/3", "/dev/vfio/31")),
        // Of several, a run names the first.
        change(|tree| {
            tree.remove("/dev/vfio/vfio");
            tree.remove("/sys/bus/pci/devices/0000:3b:00.0/driver");
            tree.file("/sys/kernel/iommu_groups/31/reserved_regions", "0x1000 0x1fff direct\n");
        }),
        change(|tree| {
            tree.remove("/sys/bus/pci/devices/0000:3b:00.0/driver");
            tree.file("/sys/kernel/iommu_groups/31/reserved_regions", "0x1000 0x1fff direct\n");
        }),
        change(|tree| tree.file("/sys/bus/pci/devices/0000:3b:00.0/config", [0xff; 64])),
        change(|tree| {
            tree.file("/sys/kernel/iommu_groups/31/reserved_regions", "0x1000 0x1fff direct\n")
        }),
        change(|tree| {
            tree.function(&Function {
                bdf: "0000:3c:00.0",
                driver: Some("ahci"),
                group: Some(31),
                ..Function::default()
            });
            // A run takes what the host can do without.
            let disk = "/sys/bus/pci/devices/0000:3c:00.0/block/sda";
            tree.file(&format!("{disk}/dev"), "8:0\n");
            tree.link("/sys/block/sda", "../bus/pci/devices/0000:3c:00.0/block/sda");
            tree.file("/proc/self/mountinfo", "25 1 8:0 / /srv rw - ext4 /dev/sda rw\n");
        }),
    ] {
        let sysroot = tree.sysroot();
        let all = chosen(&tree, &["3b:00"]);
        let refusal = check::host(&sysroot)
            .and_then(|()| check::assignable(&sysroot, &all).map(drop))
            .unwrap_err();
        let found = findings(&tree, &["3b:00"]);
        assert_eq!(exit_status(&found), refusal.code.exit, "{}: {found:#?}", refusal.code.id);
        let first = found.first().and_then(|finding| finding.code);
        assert_eq!(first, Some(refusal.code), "{}: {found:#?}", refusal.code.id);
    }
}

#[test]
fn r1_virtualization_off_in_the_firmware_is_named_for_the_maker() {
    let tree = Tree::two_cards();
    tree.remove("/dev/kvm");
    tree.file("/proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : lm\n");
    let found = worst(&tree, &[], 2);
    assert_eq!(found.level, Level::Fail);
    assert!(found.fix.contains("SVM Mode"), "{}", found.fix);
    tree.file("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : lm\n");
    let found = worst(&tree, &[], 2);
    assert_eq!((found.level, exit_status(&findings(&tree, &[]))), (Level::Fail, 3));
    let told = format!("{} {}", found.fact, found.fix);
    assert!(told.contains("VT-x") && !told.contains("SVM"), "{told}");
}

#[test]
fn r2_iommu_off_says_firmware_or_argument() {
    let tree = argument_missing();
    let found = worst(&tree, &[], 4);
    assert_eq!((found.level, exit_status(&findings(&tree, &[]))), (Level::Fail, 3));
    assert!(found.fact.contains("lacks intel_iommu=on"), "{}", found.fact);
    tree.remove("/sys/firmware/acpi/tables/DMAR");
    assert!(worst(&tree, &[], 4).fix.contains("firmware setup"));
}

#[test]
fn r3_amd_host_is_not_asked_for_an_argument() {
    let tree = Tree::two_cards();
    tree.remove("/sys/firmware/acpi/tables/DMAR");
    tree.remove("/sys/class/iommu/dmar0");
    tree.file("/sys/firmware/acpi/tables/IVRS", "IVRS");
    tree.file(
        "/sys/class/iommu/ivhd0/amd-iommu/features",
        "0x25bf732fa2295afe\n".replace("0x", ""),
    );
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet\n");
    tree.file("/sys/kernel/iommu_groups/31/type", "DMA-FQ\n");
    let found = findings(&tree, &["3b:00"]);
    let asks = |finding: &Finding| {
        let lines = finding.details.iter().chain([&finding.fix]);
        lines.filter(|line| line.contains("amd_iommu")).count()
    };
    assert_eq!(found.iter().map(asks).sum::<usize>(), 0, "{found:#?}");
    assert_eq!(worst(&tree, &[], 4).level, Level::Pass);
    let mode = worst(&tree, &[], 6);
    assert_eq!((mode.level, mode.fix.contains("iommu=pt")), (Level::Info, false), "{mode:?}");
    // Nor is it when the IOMMU is off: then it is the firmware's matter.
    tree.remove("/sys/kernel/iommu_groups");
    tree.remove("/sys/firmware/acpi/tables/IVRS");
    let off = worst(&tree, &[], 4);
    assert_eq!((off.level, off.fix.contains("firmware setup")), (Level::Fail, true), "{off:?}");
    assert!(!plan(&tree, &[]).contains("amd_iommu"), "{}", plan(&tree, &[]));
}

#[test]
fn r4_translated_host_dma_is_only_information() {
    let tree = Tree::two_cards();
    tree.file("/proc/cmdline", "intel_iommu=on\n");
    tree.file("/sys/kernel/iommu_groups/31/type", "DMA-FQ\n");
    let found = worst(&tree, &[], 6);
    assert_eq!(found.level, Level::Info);
    // Nobody is told to give that up without its price.
    assert!(!found.fix.contains("iommu=pt"), "{found:?}");
}

#[test]
fn r5_large_bar_without_an_address_names_above_4g_decoding() {
    let tree = Tree::two_cards();
    tree.function(&Function {
        bdf: "0000:af:00.0",
        class: 0x03_0200,
        driver: Some("vfio-pci"),
        group: Some(60),
        resources: &[(1, 0, 0x3_ffff_ffff, 0x14_220c)],
        ..Function::default()
    });
    let found = worst(&tree, &["af:00.0"], 23);
    assert_eq!((found.level, found.code.unwrap().id), (Level::Fail, "E1204"));
    assert!(found.fix.contains("Above 4G Decoding"));
    assert!(check::assignable(&tree.sysroot(), &chosen(&tree, &["af:00.0"])).is_err());
}

#[test]
fn r6_lockdown_is_information() {
    let tree = Tree::two_cards();
    tree.file("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    let found = worst(&tree, &[], 11);
    assert_eq!(found.level, Level::Info);
    assert!(found.fact.contains("unsigned modules"));
}

#[test]
fn r7_no_interrupt_remapping_names_the_risk_and_accepting_it_warns() {
    let tree = Tree::two_cards();
    tree.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "0\n");
    let found = worst(&tree, &[], 7);
    assert_eq!((found.level, found.code.unwrap().id), (Level::Fail, "E1006"));
    assert!(found.details.iter().any(|line| line.contains("allow_unsafe_interrupts=1")));
    tree.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    assert_eq!(worst(&tree, &[], 7).level, Level::Warn);
    // Whoever accepted that is told at every run.
    let told = check::exposed(&tree.sysroot()).unwrap();
    assert_eq!((told.len(), told[0].code.id, told[0].code.exit), (1, "E1128", 0));
    assert!(told[0].cause.contains("any interrupt of the host"), "{}", told[0].cause);
    assert!(check::exposed(&Tree::two_cards().sysroot()).unwrap().is_empty());
}

#[test]
fn r8_port_without_acs_is_named_when_devices_share_a_group() {
    let tree = Tree::two_cards();
    let port = "0000:00:1c.0";
    tree.function(&Function {
        bdf: port,
        class: 0x06_0400,
        header_type: 1,
        group: Some(14),
        ..Function::default()
    });
    for bdf in ["0000:01:00.0", "0000:01:01.0"] {
        tree.function(&Function {
            bdf,
            driver: Some("vfio-pci"),
            group: Some(14),
            under: &["0000:00:1c.0"],
            ..Function::default()
        });
    }
    assert_eq!(worst(&tree, &["01:00.0"], 20).level, Level::Skip);
    // A root port: PCI Express capability with type 4.
    let mut config = vec![0; 4096];
    config[0x06] = 0x10;
    config[0x0e] = 1;
    config[0x34] = 0x40;
    config[0x40..0x44].copy_from_slice(&0x0042_0010_u32.to_le_bytes());
    tree.file(&format!("/sys/bus/pci/devices/{port}/config"), &config);
    let found = worst(&tree, &["01:00.0"], 20);
    assert_eq!(found.level, Level::Warn);
    assert!(found.fact.contains(port), "{}", found.fact);
    config[0x100..0x108].copy_from_slice(&[0x0d, 0, 1, 0, 0x5f, 0, 0x1d, 0]);
    tree.file(&format!("/sys/bus/pci/devices/{port}/config"), &config);
    assert_eq!(worst(&tree, &["01:00.0"], 20).level, Level::Pass);
}

#[test]
fn r9_sriov_off_in_the_firmware_is_said() {
    let tree = Tree::two_cards();
    assert!(worst(&tree, &["3b:00.0"], 44).fact.contains("firmware has it off"));
    tree.file("/sys/bus/pci/devices/0000:3b:00.0/sriov_totalvfs", "0\n");
    assert!(worst(&tree, &["3b:00.0"], 44).fix.contains("SR-IOV in the firmware"));
}

#[test]
fn r10_faults_in_the_kernel_log_and_the_firmwares_date_are_shown() {
    let tree = Tree::two_cards();
    tree.file(
        "/dev/kmsg",
        "6,1,0,-;Linux version 6.1.0\n3,2,9,-;DMAR: [DMA Write] Request device [3b:00.0] fault addr 0\n",
    );
    let found = worst(&tree, &[], 43);
    assert_eq!(found.level, Level::Warn);
    assert!(found.details[0].starts_with("DMAR: [DMA Write]") && found.fix.contains("firmware"));
    tree.file("/sys/class/dmi/id/bios_version", "2.0a\n");
    tree.file("/sys/class/dmi/id/bios_date", "08/01/2016\n");
    assert!(worst(&tree, &[], 48).fact.contains("2.0a of 08/01/2016"));
}

#[test]
fn r11_plan_is_for_the_boot_loader_in_use() {
    let tree = argument_missing();
    assert_eq!(
        plan(&tree, &[]),
        "sed -Ei 's/^(GRUB_CMDLINE_LINUX=\"[^\"]*)\"/\\1 intel_iommu=on\"/' /etc/default/grub\nupdate-grub\nreboot"
    );
    tree.file("/etc/os-release", "ID=opensuse-tumbleweed\nID_LIKE=\"opensuse suse\"\n");
    assert!(plan(&tree, &[]).contains("grub2-mkconfig -o /boot/grub2/grub.cfg"));
    tree.file("/usr/sbin/grubby", "");
    assert!(plan(&tree, &[]).starts_with("grubby --update-kernel=ALL --args=\"intel_iommu=on\""));
    tree.remove("/usr/sbin/grubby");
    let utf16: Vec<u8> = "systemd-boot 252".bytes().flat_map(|byte| [byte, 0]).collect();
    let info = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    tree.file(info, [vec![6, 0, 0, 0], utf16].concat());
    tree.file("/proc/cmdline", "initrd=\\initrd.img root=/dev/sda2 quiet\n");
    tree.file("/boot/loader/entries/suse.conf", "linux /vmlinuz\noptions root=/dev/sda2 quiet\n");
    assert_eq!(
        plan(&tree, &[]),
        "sed -Ei '/^options/ s/$/ intel_iommu=on/' /boot/loader/entries/suse.conf\nreboot"
    );
    tree.file("/etc/kernel/proxmox-boot-uuids", "");
    tree.file("/etc/kernel/cmdline", "quiet\n");
    assert!(plan(&tree, &[]).contains("proxmox-boot-tool refresh"));
    tree.file("/etc/kernel/cmdline", "quiet intel_iommu=on\n");
    assert_eq!(plan(&tree, &[]), "proxmox-boot-tool refresh\nreboot");
}

#[test]
fn r11_plan_takes_an_argument_out_of_the_file_that_has_it() {
    let tree = argument_missing();
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz intel_iommu=off\n");
    tree.file("/etc/default/grub.d/site.cfg", "GRUB_CMDLINE_LINUX=\"intel_iommu=off\"\n");
    assert_eq!(
        plan(&tree, &[]),
        "sed -Ei 's/ ?\\bintel_iommu=off\\b//' /etc/default/grub.d/site.cfg\nupdate-grub\nreboot"
    );
}

#[test]
fn r11_plan_appends_to_a_grub_file_without_the_line() {
    let tree = argument_missing();
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX='quiet'\n");
    let line =
        "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX intel_iommu=on\"' >> /etc/default/grub";
    assert!(plan(&tree, &[]).starts_with(line), "{}", plan(&tree, &[]));
}

#[test]
fn r11_plan_that_needs_a_reboot_ends_with_it_and_takes_nothing_before() {
    let tree = argument_missing();
    tree.function(&crate::host::fixture::Function {
        bdf: "0000:01:00.0",
        class: 0x03_0000,
        driver: Some("nouveau"),
        ..Default::default()
    });
    let plan = plan(&tree, &["01:00.0"]);
    assert!(plan.ends_with("\nreboot") && plan.matches("reboot").count() == 1, "{plan}");
    assert!(plan.contains("10-strait.rules") && !plan.contains("drivers_probe"), "{plan}");
}

#[test]
fn r12_argument_in_the_file_but_not_in_force_says_reboot_or_wrong_loader() {
    let tree = argument_missing();
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet intel_iommu=on\"\n");
    let found = worst(&tree, &[], 4);
    assert!(found.fact.contains("asked for in /etc/default/grub, but absent"), "{}", found.fact);
    assert_eq!(found.fix, "update-grub, then reboot");
    assert_eq!(plan(&tree, &[]), "update-grub\nreboot");
    tree.file("/proc/cmdline", "initrd=\\initrd.img root=/dev/sda2\n");
    assert!(worst(&tree, &[], 4).fix.contains("not known which boot loader"));
    tree.file("/boot/loader/loader.conf", "");
    assert!(worst(&tree, &[], 4).fix.contains("systemd-boot started this kernel"));
    tree.file("/etc/default/grub", "# GRUB_CMDLINE_LINUX=\"intel_iommu=on\"\n");
    assert!(!worst(&tree, &[], 4).fact.contains("asked for"));
}

#[test]
fn r13_another_architecture_is_refused() {
    let tree = Tree::two_cards();
    tree.file("/proc/cpuinfo", "CPU implementer : 0x41\n");
    let found = findings(&tree, &[]);
    assert_eq!((exit_status(&found), found[0].code.unwrap().id), (3, "E1008"));
}

#[test]
fn r25_device_on_a_host_driver_comes_with_the_commands() {
    let tree = Tree::two_cards();
    tree.function(&Function { driver: Some("nouveau"), group: Some(7), ..Function::default() });
    let found = worst(&tree, &["00:02.0"], 14);
    assert!(found.fact.contains("nouveau"));
    // As root, a run takes it by itself.
    assert_eq!(found.level, Level::Info);
    assert!(found.fix.contains("strait run"), "{}", found.fix);
    assert!(found.details.iter().any(|line| line.contains("driver_override")));
    let plan = plan(&tree, &["00:02.0"]);
    assert!(plan.contains("echo 0000:00:02.0 > /sys/bus/pci/devices/0000:00:02.0/driver/unbind"));
    assert!(plan.contains("KERNEL==\"0000:00:02.0\", ATTR{driver_override}=\"vfio-pci\""));
    assert!(plan.contains("softdep nouveau pre: vfio-pci"));
}

#[test]
fn r28_functions_left_behind_are_a_warning() {
    let found = worst(&Tree::two_cards(), &["3b:00.0"], 13);
    assert_eq!((found.level, found.code.unwrap().id), (Level::Warn, "E1111"));
    assert_eq!(found.details.len(), 3);
}

#[test]
fn r29_plan_takes_nothing_that_the_host_needs() {
    let tree = Tree::two_cards();
    let found = worst(&tree, &["03:00.0"], 16);
    assert_eq!(found.level, Level::Warn);
    let plan = plan(&tree, &["03:00.0"]);
    let right = "0000:03:00.0 -> the host's console is on this display";
    assert!(plan.lines().next().unwrap().ends_with(right), "{plan}");
    assert!(plan.lines().all(|line| line.starts_with("# ")), "{plan}");
}

#[test]
fn r32_processes_that_would_block_an_unbind_are_listed() {
    let tree = Tree::two_cards();
    tree.function(&Function {
        driver: Some("amdgpu"),
        class: 0x03_0000,
        group: Some(7),
        ..Function::default()
    });
    tree.link("/proc/812/fd/4", "/dev/kfd");
    tree.file("/proc/812/comm", "trainer\n");
    let found = worst(&tree, &["00:02.0"], 15);
    assert_eq!(
        (found.level, found.details[0].as_str()),
        (Level::Warn, "trainer (pid 812) has /dev/kfd")
    );
}

#[test]
fn r34_display_that_stays_is_named_and_a_dark_host_is_warned_of() {
    let tree = Tree::two_cards();
    let found = worst(&tree, &["3b:00"], 17);
    assert_eq!(found.level, Level::Pass);
    assert!(found.fact.contains("0000:03:00.0"));
    assert_eq!(worst(&tree, &["03:00.0"], 17).level, Level::Warn);
}

#[test]
fn r58_resizable_bars_show_both_sizes() {
    let tree = Tree::two_cards();
    let mut config = vec![0; 4096];
    config[0x100..0x10c].copy_from_slice(&[0x15, 0, 1, 0, 0, 0x10, 0x08, 0, 0x21, 8, 0, 0]);
    tree.file("/sys/bus/pci/devices/0000:3b:00.0/config", config);
    let found = worst(&tree, &["3b:00.0"], 26);
    assert!(found.fact.contains("256 MiB and can be 32 GiB"), "{}", found.fact);
}

#[test]
fn framebuffer_in_a_bar_fails_as_a_run_would_and_names_the_flag() {
    let tree = Tree::two_cards();
    tree.file("/proc/iomem", "00000000-00000fff : Reserved\n");
    assert_eq!(worst(&tree, &["3b:00.0"], 25).level, Level::Pass);
    tree.framebuffer("0000:3b:00.0", "efifb", "efi-framebuffer");
    let found = worst(&tree, &["3b:00.0"], 25);
    assert_eq!((found.level, found.code.unwrap().id), (Level::Fail, "E1205"));
    assert!(found.fact.contains("efifb") && found.fix.contains("--release-fb"), "{found:?}");
    assert!(found.details[0].contains("vtcon1"), "{found:?}");
    assert_eq!(worst(&tree, &["d8:00.0"], 25).level, Level::Pass);
}

#[test]
fn device_known_for_trouble_is_told_and_its_sound_is_not() {
    let tree = Tree::two_cards();
    tree.function(&Function {
        id: (0x1002, 0x731f),
        class: 0x03_0000,
        group: Some(7),
        ..Function::default()
    });
    tree.function(&Function {
        bdf: "0000:00:02.1",
        id: (0x1002, 0x7320),
        class: 0x04_0300,
        group: Some(7),
        ..Function::default()
    });
    assert_eq!(worst(&tree, &["00:02.0"], 28).level, Level::Warn);
    assert_eq!(worst(&tree, &["00:02.1"], 28).level, Level::Pass);
}

#[test]
fn initramfs_older_than_the_file_that_it_should_hold_is_told() {
    let tree = Tree::two_cards();
    tree.file("/proc/sys/kernel/osrelease", "6.1.0\n");
    tree.file("/boot/initrd.img-6.1.0", "");
    tree.file("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07,10de:10f7\n");
    assert_eq!(worst(&tree, &["3b:00.0"], 41).level, Level::Pass);
    let image = std::fs::File::options()
        .write(true)
        .open(tree.sysroot().path("/boot/initrd.img-6.1.0"))
        .unwrap();
    image.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let found = worst(&tree, &["3b:00.0"], 41);
    assert_eq!(found.level, Level::Warn);
    assert!(found.fact.contains("initrd.img-6.1.0 is older"), "{}", found.fact);
}

#[test]
fn unreadable_file_is_skipped_and_named() {
    let tree = Tree::two_cards();
    tree.directory("/sys/kernel/mm/transparent_hugepage/enabled");
    let found = worst(&tree, &[], 36);
    assert_eq!(found.level, Level::Skip);
    assert!(found.fact.contains("transparent_hugepage/enabled"));
}

#[test]
fn small_lock_limit_is_a_warning_for_who_is_not_root() {
    let tree = Tree::two_cards();
    assert_eq!(worst(&tree, &[], 37).level, Level::Pass);
    tree.file("/proc/self/status", status(1000, 0));
    assert_eq!(worst(&tree, &[], 37).level, Level::Warn);
}
