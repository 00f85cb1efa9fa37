//! Small hosts, each with one layer above a device. Their files are as proc(5), sysfs and the documents of ZFS, LVM,
//! btrfs and Open vSwitch describe them.

mod disks;
mod layers;
mod networks;
mod parts;

use super::*;
use crate::host::{
    fixture::{Function, Tree},
    pci,
};

const DEVICE: &str = "/sys/bus/pci/devices/0000:00:02.0";
const OTHER: &str = "0000:00:03.0";

/// A device that is asked for, and another beside it.
fn tree(driver: &str) -> Tree {
    let tree = Tree::new();
    tree.function(&Function { driver: Some(driver), ..Function::default() });
    tree.function(&Function { bdf: OTHER, driver: Some(driver), ..Function::default() });
    tree
}

fn found(tree: &Tree, bdf: &str, peers: &[&str]) -> Vec<Need> {
    let sysroot = tree.sysroot();
    let function = pci::find(&sysroot, bdf.parse().unwrap()).unwrap().unwrap();
    let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
    Needs::with_peers(&sysroot, peers).of(&function).unwrap()
}

/// The chains of the device, without its own name.
fn chains(tree: &Tree) -> Vec<String> {
    chains_of(tree, "0000:00:02.0")
}

fn chains_of(tree: &Tree, bdf: &str) -> Vec<String> {
    let found = found(tree, bdf, &[]);
    found.iter().map(|need| need.chain[1..].join(" -> ")).collect()
}

/// A disk with `parts` partitions behind a device; `number` is its minor.
fn disk(tree: &Tree, bdf: &str, name: &str, number: u32, parts: u32) {
    let real = format!("bus/pci/devices/{bdf}/nvme/nvme0/{name}");
    tree.file(&format!("/sys/{real}/dev"), format!("259:{number}\n"));
    tree.link(&format!("/sys/block/{name}"), &format!("../{real}"));
    for part in 1..=parts {
        let at = format!("/sys/{real}/{name}p{part}");
        tree.file(&format!("{at}/dev"), format!("259:{}\n", number + part));
        tree.file(&format!("{at}/partition"), format!("{part}\n"));
    }
}

/// A network interface of a device.
fn nic(tree: &Tree, bdf: &str, name: &str) {
    let real = format!("bus/pci/devices/{bdf}/net/{name}");
    tree.file(&format!("/sys/{real}/operstate"), "up\n");
    tree.link(&format!("/sys/class/net/{name}"), &format!("../../{real}"));
}

/// An interface that is made by software.
fn software(tree: &Tree, name: &str) {
    let real = format!("devices/virtual/net/{name}");
    tree.file(&format!("/sys/{real}/operstate"), "up\n");
    tree.link(&format!("/sys/class/net/{name}"), &format!("../../{real}"));
}

/// Lines of /proc/net/route: interface, destination, gateway, mask.
fn routes(tree: &Tree, lines: &[(&str, &str, &str, &str)]) {
    let mut text =
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
            .to_owned();
    for (interface, to, gateway, mask) in lines {
        let flags = if *gateway == "00000000" { "0001" } else { "0003" };
        text += &format!("{interface}\t{to}\t{gateway}\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n");
    }
    tree.file("/proc/net/route", text);
}

const DEFAULT: &str = "the host's default route";
