//! A dry run and a run refuse the same, and nothing has been changed by then.

use std::{fs, rc::Rc};

use strait_resources::host::fixture::{Function, Tree, limits, status};

use super::*;
use crate::{binding, cli, config::twin};

/// An ELF kernel of a few bytes at 16 MiB with a bss of `memory` bytes, without a PVH note.
fn vmlinux(memory: u64) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([16 << 20, 64, 0_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([120, 16 << 20, 16 << 20, 8, memory, 4_u64].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(*b"kernel!!");
    elf
}

/// The first sectors of a bzImage whose xloadflags say "no 64-bit entry" (Documentation/arch/x86/boot.rst).
fn bzimage_of_32_bits() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    image
}

/// How the function is reset that a run has to take.
const RESETS: &str = "/sys/bus/pci/devices/0000:3b:00.1/reset_method";

/// A host with two cards of which one has a function on a driver of the host: a run has to take it.
fn host() -> Tree {
    let tree = Tree::two_cards();
    for (file, text) in [
        ("/proc/sys/kernel/random/boot_id", "boot-1\n"),
        ("/proc/self/stat", "100 (strait) R 1 1 1 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0\n"),
        ("/proc/100/stat", "100 (strait) R 1 1 1 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0\n"),
    ] {
        tree.file(file, text);
    }
    let driver = "/sys/bus/pci/devices/0000:3b:00.1/driver";
    tree.remove(driver);
    tree.link(driver, "../../../bus/pci/drivers/snd_hda_intel");
    tree.file(RESETS, "flr\n");
    tree.file("/vmlinux", vmlinux(8));
    tree.file("/initramfs", "initramfs");
    tree
}

fn config(tree: &Tree, words: &[&str]) -> RunConfig {
    let path = |name: &str| tree.sysroot().path(name).display().to_string();
    let mut line = vec!["strait".to_owned(), "run".to_owned(), "--vfio=3b:00".to_owned()];
    let has = |flag: &str| words.iter().any(|word| word.starts_with(flag));
    if !has("--kernel") {
        line.push(format!("--kernel={}", path("/vmlinux")));
    }
    line.extend(words.iter().map(|word| word.replace('@', &path("/"))));
    let line: Vec<_> = line.iter().map(Into::into).collect();
    let args: cli::RunArgs = twin::read_line(&line).unwrap();
    RunConfig::meaning(args).unwrap()
}

/// The codes of a dry run and of a run.
fn codes(tree: &Tree, words: &[&str]) -> [Option<&'static str>; 2] {
    let config = config(tree, words);
    let id = |result: Result<Looked, Failure>| result.err().map(|failure| failure.code.id);
    let dry = id(look(&View::at(tree.sysroot()), None, &config));
    let (binder, kernel) = binding::fake::binder_on(&tree.sysroot());
    let real = id(look(&binder, Some(&binder), &config));
    assert_eq!(*kernel.writes.borrow(), Vec::<String>::new(), "{words:?}");
    drop(Rc::clone(&kernel));
    let journals = fs::read_dir(tree.sysroot().path("/run/strait/journal"));
    assert_eq!(journals.map_or(0, Iterator::count), 0, "{words:?}");
    [dry, real]
}

#[test]
fn machine_that_can_be_is_refused_by_neither_and_has_something_to_take() {
    let tree = host();
    assert_eq!(codes(&tree, &[]), [None, None]);
    let config = config(&tree, &["--initramfs=@initramfs"]);
    let looked = look(&View::at(tree.sysroot()), None, &config).unwrap();
    assert!(looked.found.changes());
    assert_eq!(looked.found.planned().take.len(), 1);
}

#[test]
fn dry_run_and_run_refuse_the_same_before_the_first_change() {
    let huge = |name: &'static str, len: u64| {
        move |tree: &Tree| {
            tree.file(name, "x");
            let file = fs::OpenOptions::new().write(true).open(tree.sysroot().path(name)).unwrap();
            file.set_len(len).unwrap();
        }
    };
    let nothing = |_: &Tree| {};
    let long = format!("--cmdline={}", "x".repeat(0x1_0000));
    type Change<'a> = Box<dyn Fn(&Tree) + 'a>;
    let cases: Vec<(&str, Change<'_>, Vec<&str>)> = vec![
        ("E2101", Box::new(nothing), vec!["--kernel=@none"]),
        ("E2102", Box::new(|tree| tree.file("/k", bzimage_of_32_bits())), vec!["--kernel=@k"]),
        (
            "E2102",
            Box::new(|tree| tree.file("/k", bzimage_of_32_bits())),
            vec!["--kernel=@k", "--boot=bzimage"],
        ),
        ("E2102", Box::new(|tree| tree.file("/k", "#!/bin/sh\n")), vec!["--kernel=@k"]),
        ("E2102", Box::new(nothing), vec!["--boot=pvh"]),
        ("E2103", Box::new(|tree| tree.file("/k", vmlinux(1 << 30))), vec!["--kernel=@k"]),
        ("E2101", Box::new(nothing), vec!["--initramfs=@none"]),
        ("E2104", Box::new(huge("/i", 600 << 20)), vec!["--initramfs=@i"]),
        ("E2105", Box::new(nothing), vec![&long]),
        ("E1301", Box::new(nothing), vec!["--memory=1T"]),
        ("E1307", Box::new(nothing), vec!["--memory=1G,hugepages=2M"]),
        ("E1002", Box::new(|tree| tree.remove("/dev/kvm")), vec![]),
        ("E1004", Box::new(|tree| tree.remove("/dev/vfio/vfio")), vec![]),
        (
            "E1003",
            Box::new(|tree| {
                tree.file("/proc/self/status", status(1000, 0));
                tree.file("/proc/self/limits", limits(8 << 20, 8 << 20));
            }),
            vec!["--vfio=d8:00,managed=yes"],
        ),
        (
            "E1104",
            Box::new(|tree| {
                tree.directory("/sys/bus/pci/devices/0000:3b:00.1/net/eno1");
                tree.link("/sys/class/net/eno1", "../../bus/pci/devices/0000:3b:00.1/net/eno1");
                let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                             eno1\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\n";
                tree.file("/proc/net/route", route);
            }),
            vec![],
        ),
    ];
    for (code, change, words) in cases {
        let tree = host();
        change(&tree);
        let found = codes(&tree, &words);
        assert_eq!(found[0], found[1], "{code} {words:?}");
        assert!(found[0].is_some(), "{code} {words:?} is not refused");
        if code != "E1003" {
            assert_eq!(found[0], Some(code), "{words:?}");
        }
    }
}

/// It goes back to a driver of the host as a guest leaves it: only with the user's word.
#[test]
fn function_that_nothing_resets_is_refused_by_both_unless_it_stays_or_the_guest_is_trusted() {
    let tree = host();
    // QEMU's edu, a bridge, and cards of the PCI bus have no reset of their own; on a root bus there is no other.
    tree.file(RESETS, "\n");
    assert_eq!(codes(&tree, &[]), [Some("E1127"); 2]);
    let other = |words: &str| {
        let word = format!("--vfio=3b:00,{words}");
        let line = [tree.sysroot().path("/vmlinux").display().to_string(), word];
        let line = [
            "strait".to_owned(),
            "run".to_owned(),
            format!("--kernel={}", line[0]),
            line[1].clone(),
        ];
        let line: Vec<_> = line.iter().map(Into::into).collect();
        let config = RunConfig::meaning(twin::read_line(&line).unwrap()).unwrap();
        look(&View::at(tree.sysroot()), None, &config).err().map(|failure| failure.code.id)
    };
    assert_eq!((other("after=vfio"), other("trust-guest=on")), (None, None));
    assert_eq!(other("after=host,trust-guest=off"), Some("E1127"));
    // The user forbids the reset that there would be.
    tree.file(RESETS, "flr\n");
    for function in 0..4 {
        tree.file(&format!("/sys/bus/pci/devices/0000:3b:00.{function}/reset_method"), "flr\n");
    }
    assert_eq!((other("reset=auto"), other("reset=none")), (None, Some("E1127")));
    assert_eq!(other("reset=none,after=vfio"), None);
    // No driver gets it back.
    tree.file(RESETS, "\n");
    tree.remove("/sys/bus/pci/devices/0000:3b:00.1/driver");
    assert_eq!(codes(&tree, &[]), [None; 2]);
}

#[test]
fn group_with_a_device_that_stays_is_refused_by_both() {
    let tree = host();
    tree.function(&Function {
        bdf: "0000:3c:00.0",
        driver: Some("ahci"),
        group: Some(31),
        ..Function::default()
    });
    let disk = "/sys/bus/pci/devices/0000:3c:00.0/block/sda";
    tree.file(&format!("{disk}/dev"), "8:0\n");
    tree.link("/sys/block/sda", "../bus/pci/devices/0000:3c:00.0/block/sda");
    tree.file("/proc/self/mountinfo", "25 1 8:0 / /srv rw - ext4 /dev/sda rw\n");
    let [dry, real] = codes(&tree, &[]);
    assert!(dry.is_some() && dry == real, "{dry:?} {real:?}");
}

#[test]
fn p2p_counts_devices_and_not_their_functions() {
    // The four functions of one card are one device.
    let shown = |words: &[&str]| {
        let tree = host();
        look(&View::at(tree.sysroot()), None, &config(&tree, words)).unwrap().p2p
    };
    assert_eq!(shown(&[]), PeerDma::Single);
    assert_eq!(shown(&["--vfio=d8:00"]), PeerDma::Several);
    assert_eq!(shown(&["--p2p=on"]), PeerDma::Asked);
    assert_eq!(shown(&["--p2p=off", "--vfio=d8:00"]), PeerDma::Refused);
    assert!(!PeerDma::decide(P2p::On, 0).is_on());
}
