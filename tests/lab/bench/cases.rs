//! What is run: a guest, the host it runs on, and what to look at. Rows take their figures from cases.

use crate::{
    hosts::HostKind,
    scenario::{Ending, Vm},
};

/// One thing to run with every contender.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// For rows, logs and jobs.
    pub name: &'static str,
    /// Where it runs.
    pub host: HostKind,
    /// The guest.
    pub vm: Vm,
    /// The guest is the lab's own tiny kernel, without an initramfs.
    pub tiny: bool,
    /// Words of `agent stopwatch`.
    pub watch: Vec<String>,
    /// The same work on L1 itself: steps of the agent.
    pub bare: Option<&'static str>,
    /// RAM from the pool of 2 MiB pages.
    pub hugetlb: bool,
    /// strait takes the device from its driver and gives it back; for others the script does.
    pub managed: bool,
    /// More for strait's `--memory` and `--cpu`, where this strait knows it.
    pub wants: &'static [Wish],
    /// Peers so slow here that one round must do.
    pub slow: bool,
}

/// A flag that only newer straits have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// `--memory ...,pin=eager`: nothing is done while the guest runs already. Without the flag strait does just that.
    PinEager,
    /// `--cpu idle=native`: the case makes no sense without it.
    IdleNative,
}

/// How many reads the guests do.
pub(crate) const READS: u64 = 2000;

impl Case {
    fn new(name: &'static str, host: HostKind, vm: Vm) -> Self {
        Self {
            name,
            host,
            vm: vm.ends(Ending::Whatever),
            tiny: false,
            watch: Vec::new(),
            bare: None,
            hugetlb: false,
            managed: false,
            wants: &[],
            slow: false,
        }
    }

    fn watch(mut self, words: &[&str]) -> Self {
        self.watch.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    fn wants(mut self, wishes: &'static [Wish]) -> Self {
        self.wants = wishes;
        self
    }

    fn tiny(mut self) -> Self {
        self.tiny = true;
        self.watch(&["trace", "until", "LAB up="])
    }

    fn huge(mut self) -> Self {
        self.hugetlb = true;
        self
    }

    fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    fn bare(mut self, steps: &'static str) -> Self {
        self.bare = Some(steps);
        self
    }

    fn managed(mut self) -> Self {
        self.managed = true;
        self
    }
}

/// A guest with the first disk that reads it.
fn disk(memory_mib: u64) -> Vm {
    reader("nvme-bench,0,2000;sleep,1").memory_mib(memory_mib)
}

fn reader(steps: &str) -> Vm {
    Vm::new("a", steps).device("nvme0").modules(&["nvme"])
}

/// Pinning is watched until the first read is done; nothing after it matters.
const UNTIL_READ: &[&str] = &["trace", "until", "LAB mark=first-read"];

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    let hidden = || disk(512).flags("--cpu hide=kvm").qemu_cpu(",kvm=off");
    vec![
        Case::new("tiny", HostKind::Main, Vm::new("a", "").memory_mib(64)).tiny(),
        Case::new("nvme512", HostKind::Main, disk(512))
            .watch(&["memory-at", "LAB mark=reads-end"])
            .bare("nvme-bench,0,2000"),
        Case::new("hidden", HostKind::Main, hidden()),
        Case::new("native", HostKind::Main, disk(512)).wants(&[Wish::IdleNative]),
        Case::new("exits", HostKind::Main, reader("nvme-reads,0,2000")).watch(&["exits"]),
        Case::new("give-back", HostKind::Main, reader("nvme-bench,0,1")).managed(),
        Case::new("bar32g", HostKind::Main, disk(512).device("bar32g").device("edu0")).slow(),
        Case::new("nvme2g", HostKind::Big, disk(2048)).wants(&[Wish::PinEager]).watch(UNTIL_READ),
        Case::new("pin8g", HostKind::Big, disk(8192)).wants(&[Wish::PinEager]).watch(UNTIL_READ),
        Case::new("nvme8g", HostKind::Big, disk(8192)),
        Case::new("huge1g", HostKind::Big, disk(1024))
            .huge()
            .wants(&[Wish::PinEager])
            .watch(UNTIL_READ),
        Case::new("huge4g", HostKind::Big, disk(4096))
            .huge()
            .wants(&[Wish::PinEager])
            .watch(UNTIL_READ),
        Case::new("counted-tiny", HostKind::Counted, Vm::new("a", "").memory_mib(64)).tiny(),
        Case::new("counted", HostKind::Counted, disk(512))
            .watch(&["until", "LAB mark=first-read"])
            .slow(),
    ]
}
