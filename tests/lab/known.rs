//! Faults of the emulated host itself that are known to make a scenario fail once and pass later, each with its cause and
//! what it is known from. A scenario that fails once for any other reason counts as failed, however it ends later:
//! races of strait's look exactly like that.

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

const FAULTS: &[Known] = &[
    Known { sign: "no sign of life for", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "soft lockup", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "self-detected stall", cause: STANDSTILL, evidence: SEEN_STILL },
    Known { sign: "detected stalls on CPUs", cause: STANDSTILL, evidence: SEEN_STILL },
    Known {
        sign: "int3: 0000",
        cause: "one CPU of L1 runs code that the other is patching (a static branch), which TCG translates half-patched",
        evidence: "int3 in __schedule, without a guest involved; does not come with one CPU or one TCG thread",
    },
];

/// The known fault of the emulated host behind this trouble, if it is one.
pub(crate) fn fault(trouble: &Trouble) -> Option<&'static Known> {
    let Trouble::HostBroke(how) = trouble else { return None };
    FAULTS.iter().find(|known| how.contains(known.sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standstill_of_the_host_is_known_and_a_wrong_answer_never_is() {
        let still = Trouble::HostBroke("L1 hangs: no sign of life for 60 s".to_owned());
        assert!(fault(&still).is_some());
        let reasons = vec!["a: exit status 8, not 0: no sign of life for 60 s".to_owned()];
        assert!(fault(&Trouble::Wrong { reasons, ended: true }).is_none());
        let panic = Trouble::HostBroke("Kernel panic - not syncing".to_owned());
        assert!(fault(&panic).is_none());
    }
}
