//! Files of a host's /proc, parts of which whoever names a mount point or a process has written.

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

/// Everything that reads these files reads them, and comes to an end.
pub(crate) fn proc(bytes: &[u8]) {
    let tree = Tree::two_cards();
    for (path, content) in FILES.iter().zip(bytes.split(|byte| *byte == SEPARATOR)) {
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
