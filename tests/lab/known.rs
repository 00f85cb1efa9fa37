//! Faults of the emulated host itself that are known to make a scenario fail once and pass later, each with its cause and
//! what it is known from; one entry, for guests that triple-fault, is provisional and has no settled cause. A scenario that
//! fails once for any other reason counts as failed, however it ends later: races of strait's look exactly like that.

use crate::runner::Trouble;

/// One fault of the emulated host.
#[derive(Debug)]
pub(crate) struct Known {
    /// Words of L1's kernel or of the lab by which the fault is told from others.
    sign: &'static str,
    /// What happens in the emulator.
    pub cause: &'static str,
    /// How that is known.
    pub evidence: &'static str,
}

const STANDSTILL: &str =
    "a CPU of L1 waits for an inter-processor interrupt that QEMU's multi-threaded TCG lost";
const SEEN_STILL: &str = "L1's stacks at a standstill: smp_call_function under kvm_create_vm or kvm_destroy_vm, the other CPU \
                          idle; happens with QEMU as L1's monitor, too, and not while a VM is held open";

const LOST_BASE: &str = "by its traces QEMU's TCG carries out a VMRUN or a #VMEXIT by half (its source was not read): L1's kernel goes on with the guest's GS base \
                         and TSC offset, and its page fault handler faults on its first access until the stack is full";
const SEEN_LOST: &str = "L1's log, in a vCPU's thread: exc_page_fault+0x15 within itself without end, CR2 in the guest's per-CPU \
                         data (ffff8880...), and the log's own clock back at the guest's seconds; a CPU does both in one step";

const FAULTS: &[Known] = &[
    Known { sign: "no sign of life for", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "soft lockup", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "self-detected stall", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "detected stalls on CPUs", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "stack guard page was hit", cause: LOST_BASE, evidence: SEEN_LOST },
    Known {
        sign: "int3: 0000",
        cause: "one CPU of L1 runs code that the other is patching (a static branch), which TCG translates half-patched",
        evidence: "int3 in __schedule, without a guest involved; does not come with one CPU or one TCG thread",
    },
];

/// A guest that dies early. PROVISIONAL: that the emulator's half-done VMRUN kills guests as it kills L1 is likely and not
/// shown; KVM on AMD resets a vCPU that shuts down, so its registers tell nothing. The scenarios host-deaths-* are there to
/// settle it.
const GUEST_DIED: Known = Known {
    sign: "error[E8001]: the guest triple-faulted",
    cause: "not settled; likely the half-done VMRUN that kills L1 as well",
    evidence: "few guests, at random points, other scenarios each time; a second attempt passes",
};

/// The known fault of the emulated host behind this trouble, if it is one.
pub(crate) fn fault(trouble: &Trouble) -> Option<&'static Known> {
    match trouble {
        Trouble::HostBroke(how) => FAULTS.iter().find(|known| how.contains(known.sign)),
        Trouble::Wrong { reasons, .. } => {
            let died = reasons.iter().any(|reason| reason.contains(GUEST_DIED.sign));
            died.then_some(&GUEST_DIED)
        }
        Trouble::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standstill_of_the_host_is_known_and_a_wrong_answer_is_not() {
        let still = Trouble::HostBroke("L1 hangs: no sign of life for 60 s".to_owned());
        assert!(fault(&still).is_some());
        let reasons = vec!["a: exit status 8, not 0: no sign of life for 60 s".to_owned()];
        assert!(fault(&Trouble::Wrong { reasons, ended: true }).is_none());
        let died = "a: exit status 8, not 0: error[E8001]: the guest triple-faulted on vCPU 0";
        assert!(fault(&Trouble::Wrong { reasons: vec![died.to_owned()], ended: true }).is_some());
        let panic = Trouble::HostBroke("Kernel panic - not syncing".to_owned());
        assert!(fault(&panic).is_none());
    }
}
