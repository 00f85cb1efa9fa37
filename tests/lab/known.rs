//! Faults of the emulated host itself that are known to make a scenario fail once and pass later, each with its cause and
//! what it is known from. A scenario that fails once for any other reason counts as failed, however it ends later: races of
//! strait's look exactly like that.

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

const STANDSTILL: &str = "a CPU of L1 loses an interrupt for good: QEMU 7.2's threads change a CPU's state without a lock";
const READ: &str = "read in the source of 7.2.22: helper_vmrun sets a bit of interrupt_request without the lock that others hold \
                    for theirs; tcg_commit changes the map of memory under CPUs that run (mended in QEMU 8.2), so that a write \
                    to a local APIC can go elsewhere. Stacks at a standstill: smp_call_function, the other CPU idle";

const FAULTS: &[Known] = &[
    Known { sign: "no sign of life for", cause: STANDSTILL, evidence: READ },
    Known { sign: "soft lockup", cause: STANDSTILL, evidence: READ },
    Known { sign: "self-detected stall", cause: STANDSTILL, evidence: READ },
    Known { sign: "detected stalls on CPUs", cause: STANDSTILL, evidence: READ },
    Known {
        sign: "int3: 0000",
        cause: "one CPU of L1 runs code that the other is patching (a static branch), which TCG translates half-patched",
        evidence: "int3 in __schedule, without a guest involved; does not come with one CPU or one TCG thread",
    },
];

/// The known fault of the emulated host behind this trouble, if it is one.
pub(crate) fn fault(trouble: &Trouble) -> Option<&'static Known> {
    match trouble {
        Trouble::HostBroke(how) => FAULTS.iter().find(|known| how.contains(known.sign)),
        Trouble::Wrong { .. } | Trouble::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_of_the_host_is_known_and_one_of_a_guest_is_not() {
        let patched = Trouble::HostBroke("int3: 0000 [#1] PREEMPT SMP NOPTI".to_owned());
        assert!(fault(&patched).is_some());
        for reason in ["int3: 0000", "error[E8001]: the guest triple-faulted on vCPU 0"] {
            let reasons = vec![format!("a: exit status 8, not 0: {reason}")];
            assert!(fault(&Trouble::Wrong { reasons, ended: true }).is_none());
        }
        let panic = Trouble::HostBroke("Kernel panic - not syncing".to_owned());
        assert!(fault(&panic).is_none());
    }
}
