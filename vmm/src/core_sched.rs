//! No other program on a core while a guest's vCPU runs there: what two threads of a core share, the guest could read
//! (L1TF, MDS and their like).
//!
//! The kernel lets only tasks with the same cookie run on one core at a time
//! (Documentation/admin-guide/hw-vuln/core-scheduling.rst). strait's threads get one of their own, and with it each
//! other's company: a guest's vCPUs may share a core, and so may the threads that serve it.

use std::io;

use rustix::{
    io::Errno,
    process::getpid,
    thread::{CoreSchedulingScope, create_core_scheduling_cookie},
};
use strait_resources::host::smt::CoreScheduling;

/// What of it a machine gets, in a word of its JSON.
pub(crate) fn word(asked: bool, host: CoreScheduling) -> &'static str {
    match (asked, host) {
        (false, _) => "off",
        (true, CoreScheduling::Possible) => "on",
        (true, CoreScheduling::Unneeded) => "unneeded",
        (true, CoreScheduling::TooOld) => "unsupported",
    }
}

/// What a user who asked for nothing else should know of this host.
pub(crate) fn note(asked: bool, host: CoreScheduling) -> Option<String> {
    (asked && host == CoreScheduling::TooOld).then(|| {
        "the kernel is older than 5.14: other programs may run on a core together with the guest's vCPUs".to_owned()
    })
}

/// From now on every thread of this process, and those that begin later, share cores with each other alone. A host that
/// cannot do it has no SMT, or a kernel without it, and runs guests as it always did.
pub(crate) fn keep_cores() {
    let made = create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup);
    log::info!("{}", outcome(made));
}

fn outcome(made: Result<(), Errno>) -> String {
    match made {
        Ok(()) => "no other program shares a core with the guest while it runs".to_owned(),
        Err(Errno::NODEV) => "no core has two threads: nothing to share with the guest".to_owned(),
        Err(Errno::INVAL) => {
            "other programs may share a core with the guest: the kernel has no core scheduling \
             (CONFIG_SCHED_CORE, Linux 5.14)"
                .to_owned()
        }
        Err(error) => {
            format!("other programs may share a core with the guest: {}", io::Error::from(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_told_in_words() {
        assert!(outcome(Ok(())).starts_with("no other program"));
        assert!(outcome(Err(Errno::NODEV)).starts_with("no core has two threads"));
        assert!(outcome(Err(Errno::INVAL)).contains("CONFIG_SCHED_CORE"));
        assert!(outcome(Err(Errno::PERM)).contains("Operation not permitted"));
    }

    #[test]
    fn only_a_kernel_that_is_too_old_is_worth_a_note() {
        assert!(note(true, CoreScheduling::TooOld).is_some());
        assert!(note(false, CoreScheduling::TooOld).is_none());
        assert!(note(true, CoreScheduling::Unneeded).is_none());
        assert!(note(true, CoreScheduling::Possible).is_none());
        assert_eq!(word(true, CoreScheduling::Unneeded), "unneeded");
    }
}
