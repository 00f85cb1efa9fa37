//! Cores that several programs share, and whether a guest can have them to itself while it runs
//! (Documentation/admin-guide/hw-vuln/core-scheduling.rst).

use super::sysroot::{SysError, Sysroot};

/// `1` where at least one core runs two threads.
const ACTIVE: &str = "/sys/devices/system/cpu/smt/active";
const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// The first kernel with `PR_SCHED_CORE`.
const FIRST: (u32, u32) = (5, 14);

/// What the host can do so that no other program runs on a core while a guest's vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreScheduling {
    /// Nothing: a core runs one thread, or the kernel does not know of any other.
    Unneeded,
    /// The kernel is too old.
    TooOld,
    /// As far as its files tell, it can; `CONFIG_SCHED_CORE` is in none of them.
    Possible,
}

/// What holds for this host.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn core_scheduling(sysroot: &Sysroot) -> Result<CoreScheduling, SysError> {
    if sysroot.read_if_present(ACTIVE)?.is_none_or(|active| active.trim() != "1") {
        return Ok(CoreScheduling::Unneeded);
    }
    let release = sysroot.read_if_present(RELEASE)?.unwrap_or_default();
    Ok(match version(&release) {
        Some(version) if version < FIRST => CoreScheduling::TooOld,
        _ => CoreScheduling::Possible,
    })
}

/// `5.10.0-8-amd64`: 5 and 10.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    #[test]
    fn core_scheduling_is_needed_where_threads_share_a_core() {
        for (active, release, wanted) in [
            (None, "6.8.0\n", CoreScheduling::Unneeded),
            (Some("0\n"), "6.8.0\n", CoreScheduling::Unneeded),
            (Some("1\n"), "6.8.0-52-generic\n", CoreScheduling::Possible),
            (Some("1\n"), "5.14.0-503.el9.x86_64\n", CoreScheduling::Possible),
            (Some("1\n"), "5.10.0-33-amd64\n", CoreScheduling::TooOld),
            (Some("1\n"), "4.18.0\n", CoreScheduling::TooOld),
            (Some("1\n"), "strange\n", CoreScheduling::Possible),
        ] {
            let tree = Tree::new();
            tree.file("/proc/sys/kernel/osrelease", release);
            active.iter().for_each(|active| tree.file(ACTIVE, *active));
            assert_eq!(core_scheduling(&tree.sysroot()).unwrap(), wanted, "{active:?} {release}");
        }
    }
}
