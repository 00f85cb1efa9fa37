//! Random stacks of layers above a device: whatever they are made of and wherever they end, every view refuses it with
//! all names of the stack, and lets the device beside it go.
//!
//! Provenance: stacks made at random, each layer in the files of the tests of `disks` and
//! `networks`; no dump of a host.

use proptest::prelude::*;

use super::*;
use crate::{
    failure::Failure,
    host::{
        check::{Allowed, bindable, select},
        doctor,
        inventory::{Verdict, inventory},
    },
};

const MAIN: &str = "0000:00:02.0";

/// One layer over a block device.
#[derive(Clone, Copy, Debug)]
enum Volume {
    Mapped,
    MappedBySlaves,
    Raid,
    Cache,
    Loop,
}

/// Where a stack of block devices ends.
#[derive(Clone, Copy, Debug)]
enum DiskEnd {
    Mount,
    Btrfs,
    Zfs,
    Swap,
    Export,
    Open,
}

/// One layer over a network interface.
#[derive(Clone, Copy, Debug)]
enum Link {
    Upper,
    Lower,
    Master,
    Bond,
    Vlan,
    Switch,
}

/// Where a stack of interfaces ends.
#[derive(Clone, Copy, Debug)]
enum NetEnd {
    DefaultRoute,
    Ipv6Route,
    Route,
    Address,
    Session,
    Nfs,
}

fn volumes() -> impl Strategy<Value = Vec<Volume>> {
    use Volume::{Cache, Loop, Mapped, MappedBySlaves, Raid};
    let one = prop::sample::select(vec![Mapped, MappedBySlaves, Raid, Cache, Loop]);
    prop::collection::vec(one, 0..5)
}

fn disk_end() -> impl Strategy<Value = DiskEnd> {
    use DiskEnd::{Btrfs, Export, Mount, Open, Swap, Zfs};
    prop::sample::select(vec![Mount, Btrfs, Zfs, Swap, Export, Open])
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    use Link::{Bond, Lower, Master, Switch, Upper, Vlan};
    let one = prop::sample::select(vec![Upper, Lower, Master, Bond, Vlan, Switch]);
    // A host has one datapath of Open vSwitch.
    prop::collection::vec(one, 0..5).prop_map(|mut all| {
        let mut seen = false;
        all.retain(|link| !(matches!(link, Switch) && std::mem::replace(&mut seen, true)));
        all
    })
}

fn net_end() -> impl Strategy<Value = NetEnd> {
    use NetEnd::{Address, DefaultRoute, Ipv6Route, Nfs, Route, Session};
    prop::sample::select(vec![DefaultRoute, Ipv6Route, Route, Address, Session, Nfs])
}

/// Two devices in groups of their own on a good host.
fn host(driver: &str) -> Tree {
    let tree = Tree::two_cards();
    for (bdf, group) in [(MAIN, 2), (OTHER, 3)] {
        let (driver, group) = (Some(driver), Some(group));
        tree.function(&Function { bdf, driver, group, ..Function::default() });
    }
    tree
}

/// Builds a stack of volumes and says the names in it.
fn stack(tree: &Tree, with_partition: bool, volumes: &[Volume], end: DiskEnd) -> Vec<String> {
    disk(tree, MAIN, "nvme0n1", 0, u32::from(with_partition));
    disk(tree, OTHER, "nvme1n1", 8, 1);
    let mut names = vec!["nvme0n1".to_owned()];
    let mut at = "/sys/block/nvme0n1".to_owned();
    let mut number = "259:0".to_owned();
    if with_partition {
        names.push("nvme0n1p1".to_owned());
        (at, number) = (format!("{at}/nvme0n1p1"), "259:1".to_owned());
    }
    let mut mounts = "20 1 0:5 / /run rw - tmpfs tmpfs rw\n".to_owned();
    for (level, volume) in volumes.iter().enumerate() {
        let below = names.last().unwrap().clone();
        let name = match volume {
            Volume::Mapped | Volume::MappedBySlaves => format!("dm-{level}"),
            Volume::Raid => format!("md{level}"),
            Volume::Cache => format!("bcache{level}"),
            Volume::Loop => format!("loop{level}"),
        };
        let over = format!("/sys/block/{name}");
        match volume {
            Volume::MappedBySlaves => tree.directory(&format!("{over}/slaves/{below}")),
            Volume::Loop => {
                let point = format!("/mnt/{level}");
                mounts += &format!("3{level} 1 {number} / {point} rw - ext4 /dev/{below} rw\n");
                tree.file(&format!("{over}/loop/backing_file"), format!("{point}/image\n"));
                names.push(format!("mounted on {point}"));
            }
            _ => tree.directory(&format!("{at}/holders/{name}")),
        }
        number = format!("25{level}:{level}");
        tree.file(&format!("{over}/dev"), format!("{number}\n"));
        names.push(name);
        at = over;
    }
    let top = names.last().unwrap().clone();
    match end {
        DiskEnd::Mount => {
            mounts += &format!("90 1 {number} / /srv rw - xfs /dev/{top} rw\n");
            names.push("mounted on /srv".to_owned());
        }
        DiskEnd::Btrfs => {
            tree.directory(&format!("/sys/fs/btrfs/uuid-1/devices/{top}"));
            mounts += &format!("90 1 0:44 /sub /srv rw - btrfs /dev/{top} rw\n");
            names.extend(["btrfs uuid-1".to_owned(), "mounted on /srv".to_owned()]);
        }
        DiskEnd::Zfs => {
            let known = "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank\n";
            tree.file(&format!("/run/udev/data/b{number}"), known);
            mounts += "90 1 0:45 / /tank rw - zfs tank/data rw\n";
            names.extend(["zpool tank".to_owned(), "mounted on /tank".to_owned()]);
        }
        DiskEnd::Swap => {
            tree.file("/proc/swaps", format!("Filename Type\n/dev/{top} partition 1 0 -2\n"));
            names.push(format!("in use as swap (/dev/{top})"));
        }
        DiskEnd::Export => {
            let file = "/sys/kernel/config/target/core/iblock_0/disk0/udev_path";
            tree.file(file, format!("/dev/{top}\n"));
            names.push("exported as target disk0".to_owned());
        }
        DiskEnd::Open => {
            tree.node("/srv/jail/disk", &format!("b{number}"));
            tree.link("/proc/77/fd/3", "/srv/jail/disk");
            tree.file("/proc/77/comm", "kvm\n");
            names.push("kvm (pid 77)".to_owned());
        }
    }
    tree.file("/proc/self/mountinfo", mounts);
    names
}

/// Builds a stack of interfaces and says the names in it.
fn chain(tree: &Tree, links: &[Link], end: NetEnd) -> Vec<String> {
    nic(tree, MAIN, "eno1");
    nic(tree, OTHER, "eno2");
    let mut names = vec!["eno1".to_owned()];
    let mut vlans = String::from("VLAN Dev name\t | VLAN ID\n");
    for (level, link) in links.iter().enumerate() {
        let below = names.last().unwrap().clone();
        let name = format!("layer{level}");
        let under = format!("/sys/class/net/{below}");
        let over = format!("/sys/devices/virtual/net/{name}");
        software(tree, &name);
        match link {
            Link::Upper => tree.directory(&format!("{under}/upper_{name}")),
            Link::Lower => tree.directory(&format!("{over}/lower_{below}")),
            Link::Master => tree.link(&format!("{under}/master"), &format!("../{name}")),
            Link::Bond => tree.file(&format!("{over}/bonding/slaves"), format!("{below}\n")),
            Link::Vlan => vlans += &format!("{name} | {level} | {below}\n"),
            Link::Switch => {
                software(tree, "ovs-system");
                tree.directory(&format!("{under}/upper_ovs-system"));
                names.push("ovs-system".to_owned());
            }
        }
        names.push(name);
    }
    tree.file("/proc/net/vlan/config", vlans);
    let top = names.last().unwrap().clone();
    let near = (top.as_str(), "0000A8C0", "00000000", "0000FFFF");
    match end {
        NetEnd::DefaultRoute => {
            routes(tree, &[(&top, "00000000", "0102A8C0", "00000000")]);
            names.push("the host's default route".to_owned());
        }
        NetEnd::Ipv6Route => {
            let zeros = "0".repeat(32);
            let hop = format!("fe80{:0>28}", 1);
            let line = format!("{zeros} 00 {zeros} 00 {hop} 00000400 1 0 3 {top}\n");
            tree.file("/proc/net/ipv6_route", line);
            names.push("the host's default route".to_owned());
        }
        NetEnd::Route => {
            routes(tree, &[(&top, "0000000A", "0102A8C0", "000000FF")]);
            names.push("the host's route to 10.0.0.0/8".to_owned());
        }
        NetEnd::Address => {
            routes(tree, &[near]);
            names.push("the host's address in 192.168.0.0/16".to_owned());
        }
        NetEnd::Session => {
            routes(tree, &[near]);
            tree.file("/proc/net/tcp", "head\n0: 0900A8C0:0016 0507A8C0:9C40 01\n");
            names.push("a login session with 192.168.7.5".to_owned());
        }
        NetEnd::Nfs => {
            routes(tree, &[near]);
            let line = "25 1 0:50 / /srv rw - nfs4 server:/srv rw,addr=192.168.7.5\n";
            tree.file("/proc/self/mountinfo", line);
            names.push("/srv over nfs4 of 192.168.7.5".to_owned());
        }
    }
    names
}

fn text(failure: &Failure) -> String {
    format!("{}\n{}", failure.cause, failure.details.join("\n"))
}

/// A line with all of the names in their order.
fn names_all(text: &str, names: &[String]) -> bool {
    text.lines().any(|line| {
        let mut rest = line;
        names.iter().all(|name| {
            let Some((_, after)) = rest.split_once(name.as_str()) else { return false };
            rest = after;
            true
        })
    })
}

/// Asks every view.
fn agree(tree: &Tree, names: &[String]) {
    let sysroot = tree.sysroot();
    let choose = |bdf: &str| select(&sysroot, &[bdf.to_owned()]).unwrap();
    let entries = inventory(&sysroot).unwrap();
    let verdict = |bdf: &str| {
        let found = entries.iter().find(|entry| entry.function.bdf.to_string() == bdf);
        &found.unwrap().verdict
    };
    let bound = bindable(&sysroot, &choose(MAIN), &Allowed::default()).unwrap_err();
    // The program that has a disk open comes first in its line.
    let is_open = |name: &&String| name.starts_with("kvm ");
    let order: Vec<String> =
        names.iter().filter(is_open).chain(names.iter().filter(|n| !is_open(n))).cloned().collect();
    let has_all = |text: &str| names_all(text, names) || names_all(text, &order);
    assert!(has_all(&text(&bound)), "{names:?}: {bound:#?}");
    let Verdict::No(listed) = verdict(MAIN) else { panic!("{names:?}: {:?}", verdict(MAIN)) };
    assert!(has_all(&text(listed)), "{names:?}: {listed:#?}");
    let plan = doctor::fix_plan(&sysroot, &choose(MAIN)).unwrap();
    assert!(plan.steps[0].title.starts_with("Free "), "{plan:?}");
    assert!(has_all(&plan.steps[0].lines.join("\n")), "{names:?}: {plan:#?}");
    let findings = doctor::examine(&sysroot, &choose(MAIN)).unwrap();
    let driver = findings.iter().find(|finding| finding.check == 14).unwrap();
    assert_eq!(driver.level, doctor::Level::Fail, "{driver:#?}");
    let told = format!("{}\n{}", driver.fact, driver.details.join("\n"));
    assert!(has_all(&told), "{names:?}: {driver:#?}");
    // The device beside it.
    bindable(&sysroot, &choose(OTHER), &Allowed::default()).unwrap();
    assert!(matches!(verdict(OTHER), Verdict::AfterBinding(_)), "{:?}", verdict(OTHER));
    let plan = doctor::fix_plan(&sysroot, &choose(OTHER)).unwrap();
    assert!(plan.steps.iter().all(|step| !step.title.starts_with("Free ")), "{plan:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn disk_with_anything_above_it_is_refused_by_every_view(
        with_partition in any::<bool>(),
        volumes in volumes(),
        end in disk_end(),
    ) {
        let tree = host("nvme");
        let names = stack(&tree, with_partition, &volumes, end);
        agree(&tree, &names);
    }

    #[test]
    fn network_with_anything_above_it_is_refused_by_every_view(links in links(), end in net_end()) {
        let tree = host("e1000e");
        let names = chain(&tree, &links, end);
        agree(&tree, &names);
    }
}
