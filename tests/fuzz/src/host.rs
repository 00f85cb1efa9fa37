//! Files of a host's /proc, parts of which whoever names a mount point or a process has written. The inputs to begin with
//! are from trees that were made after the hosts of public reports: a limit of cgroup version 1, a disk of a ZFS pool, an
//! uplink below Open vSwitch.

use std::time::Duration;

use strait_resources::host::{
    cgroup, cpu, fixture::Tree, framebuffer, kernel_log::KernelLog, memory, needs::Needs, pci,
};

/// Between the files of an input; no file of /proc that strait reads as text has it.
const SEPARATOR: u8 = 0xff;
/// The files, in the order in which they come.
const FILES: [&str; 12] = [
    "/proc/self/mountinfo",
    "/proc/net/route",
    "/proc/net/fib_trie",
    "/proc/net/ipv6_route",
    "/proc/net/if_inet6",
    "/proc/net/arp",
    "/proc/swaps",
    "/proc/iomem",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/cgroup",
    "/proc/cmdline",
];

thread_local! {
    /// One for all inputs of a thread: making it takes longer than reading it.
    static TREE: Tree = Tree::two_cards();
}

/// Everything that reads these files reads them, and comes to an end.
pub(crate) fn proc(bytes: &[u8]) {
    TREE.with(|tree| read(tree, bytes));
}

fn read(tree: &Tree, bytes: &[u8]) {
    let given = bytes.split(|byte| *byte == SEPARATOR).chain(std::iter::repeat(&[][..]));
    for (path, content) in FILES.iter().zip(given) {
        tree.file(path, content);
    }
    let sysroot = tree.sysroot();
    let functions = pci::scan(&sysroot).unwrap_or_default();
    let needs = Needs::new(&sysroot);
    for function in &functions {
        drop(needs.of(function));
        drop(framebuffer::on(&sysroot, function.bdf));
    }
    drop(cpu::cpu(&sysroot));
    drop(cpu::topology(&sysroot));
    drop(memory::memory(&sysroot));
    drop(cgroup::memory(&sysroot));
    let log = KernelLog::parse(&String::from_utf8_lossy(bytes));
    if let Some(function) = functions.first() {
        assert!(log.about(function.bdf).count() <= log.messages().len());
    }
    let count = log.messages().len();
    assert!(log.since(&sysroot, Duration::from_secs(1)).messages().len() <= count);
}
