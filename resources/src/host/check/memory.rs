//! Is there memory for the guest, and may this process lock it. All of it: a device may write anywhere in the
//! guest's RAM at any time, so every page is pinned before the guest starts.

use super::super::{cgroup, memory, sysroot::Sysroot};
use crate::{codes, failure::Failure, size::Size};

/// What a guest of `bytes` of RAM takes: with 4 KiB pages, 8 of 4096 bytes once for the CPU and once for the
/// IOMMU, and some for strait itself.
const fn with_tables(bytes: u64) -> u64 {
    const OWN: u64 = 32 << 20;
    bytes.saturating_add(bytes / 256).saturating_add(OWN)
}

/// What the rest of the host may come to need while a guest boots.
const SPARE: u64 = 256 << 20;

/// Can the host give `bytes` of RAM in ordinary (or transparent huge) pages? Refuses with E1301.
pub fn memory(sysroot: &Sysroot, bytes: u64) -> Result<(), Failure> {
    let need = with_tables(bytes);
    let host = memory::memory(sysroot)?;
    let cgroup = cgroup::memory(sysroot)?;
    address_space(sysroot, bytes)?;
    let (ram, needed) = (Size(bytes), Size(need));
    if let Some(limit) = cgroup.filter(|limit| limit.room < need) {
        let cause = format!(
            "guest RAM of {ram} needs {needed}, but the control group {} has {} left of its {} ({})",
            limit.group,
            Size(limit.room),
            Size(limit.max),
            limit.file
        );
        let fix = "raise the limit (systemd: MemoryMax=, docker: --memory), or give the guest less with --memory";
        return Err(Failure::new(&codes::E1301, cause, fix));
    }
    if host.available < need {
        let cause = format!(
            "guest RAM of {ram} needs {needed}, but {} of the host's {} are available",
            Size(host.available),
            Size(host.total)
        );
        let fix = "give the guest less with --memory, or end what uses the host's memory";
        return Err(Failure::new(&codes::E1301, cause, fix).detail(
            "a passed device can write to all of the guest's RAM, so none of it can be swapped out",
        ));
    }
    Ok(())
}

/// May this process map `bytes` of guest RAM? Refuses with E1301.
fn address_space(sysroot: &Sysroot, bytes: u64) -> Result<(), Failure> {
    let Some(limit) = memory::address_limit(sysroot)?.filter(|limit| limit.room < bytes) else {
        return Ok(());
    };
    let cause = format!(
        "guest RAM of {}, but this process may map {} more (ulimit {} is {})",
        Size(bytes),
        Size(limit.room),
        limit.option,
        Size(limit.limit)
    );
    let fix = format!(
        "raise the limit: ulimit {} unlimited, in a systemd service LimitAS=infinity LimitDATA=infinity",
        limit.option
    );
    Err(Failure::new(&codes::E1301, cause, fix))
}

/// Is there so much more than a guest of `bytes` of RAM takes that it will still be there when the last page is
/// touched, whatever else the host does meanwhile? An eighth more, and [`SPARE`].
pub fn has_spare_memory(sysroot: &Sysroot, bytes: u64) -> Result<bool, Failure> {
    let wanted = with_tables(bytes).saturating_add(bytes / 8).saturating_add(SPARE);
    let host = memory::memory(sysroot)?.available;
    let cgroup = cgroup::memory(sysroot)?.map_or(u64::MAX, |limit| limit.room);
    Ok(host.min(cgroup) >= wanted)
}

/// May this process pin `bytes` of guest RAM? The hard limit counts; raising the soft one to it is the
/// caller's. Refuses with E1306.
pub fn memlock(sysroot: &Sysroot, bytes: u64) -> Result<(), Failure> {
    let limit = memory::lock_limit(sysroot)?;
    if limit.exempt || limit.hard >= bytes {
        return Ok(());
    }
    let cause = format!(
        "pinning guest RAM needs {} of locked memory, and this process may lock {}",
        Size(bytes),
        Size(limit.hard)
    );
    let fix = "raise the limit as above, then log in again";
    // limits.d counts in KiB.
    let kib = bytes.div_ceil(1024);
    Err(Failure::new(&codes::E1306, cause, fix)
        .detail("in a systemd service: LimitMEMLOCK=infinity")
        .detail(format!("for a user, in /etc/security/limits.d/strait.conf: USER - memlock {kib}"))
        .detail("for one command: sudo prlimit --pid $$ --memlock=unlimited"))
}

/// Has the pool of this page size (bytes) room for `bytes` of RAM? Refuses with E1307.
pub fn huge_pages(sysroot: &Sysroot, page: u64, bytes: u64) -> Result<(), Failure> {
    let pool = memory::huge_pages(sysroot, page)?;
    let need = bytes.div_ceil(page.max(1));
    let (ram, size, kib) = (Size(bytes), Size(page), page / 1024);
    let (free, total) = pool.map_or((0, 0), |pool| (pool.free, pool.total));
    if pool.is_some() && free >= need {
        address_space(sysroot, bytes)?;
        let Some(limit) = cgroup::huge_pages(sysroot, page)?.filter(|limit| limit.room < bytes)
        else {
            return Ok(());
        };
        let cause = format!(
            "guest RAM of {ram} needs {need} huge pages of {size}, but the control group {} has {} left of its {} ({})",
            limit.group,
            Size(limit.room),
            Size(limit.max),
            limit.file
        );
        let fix = "raise the limit (systemd and docker set none by themselves: look who wrote that file), or take ordinary pages";
        return Err(Failure::new(&codes::E1307, cause, fix));
    }
    let cause = match pool {
        Some(_) => format!(
            "guest RAM of {ram} needs {need} huge pages of {size}, and {free} of {total} are free"
        ),
        None => format!("this host knows no huge pages of {size}"),
    };
    let fix = match pool {
        Some(_) => format!(
            "echo {} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages",
            total.saturating_add(need - free)
        ),
        None => "use the other size, or none: transparent huge pages are the default".to_owned(),
    };
    Err(Failure::new(&codes::E1307, cause, fix))
}

// Provenance: the basics of the fixture module, numbers made up; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Tree, limits, status};

    const GIB: u64 = 1 << 30;

    fn basic() -> Tree {
        let tree = Tree::new();
        tree.host_basics();
        tree
    }

    #[test]
    fn memory_that_fits_passes_and_more_names_both_numbers() {
        let tree = basic();
        memory(&tree.sysroot(), 16 * GIB).unwrap();
        let failure = memory(&tree.sysroot(), 64 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1301");
        for fact in ["64 GiB", "57.3 GiB", "62.7 GiB"] {
            assert!(failure.cause.contains(fact), "{}", failure.cause);
        }
    }

    #[test]
    fn memory_just_as_large_as_what_is_available_does_not_fit() {
        let tree = basic();
        assert!(memory(&tree.sysroot(), 60_123_456 << 10).is_err());
    }

    #[test]
    fn spare_memory_is_more_than_what_fits_and_the_cgroups_counts_too() {
        let tree = basic();
        assert!(has_spare_memory(&tree.sysroot(), 48 * GIB).unwrap());
        memory(&tree.sysroot(), 56 * GIB).unwrap();
        assert!(!has_spare_memory(&tree.sysroot(), 56 * GIB).unwrap());
        tree.file("/sys/fs/cgroup/user.slice/memory.max", (4 * GIB).to_string());
        tree.file("/sys/fs/cgroup/user.slice/memory.current", "0");
        assert!(has_spare_memory(&tree.sysroot(), 3 * GIB).unwrap());
        assert!(!has_spare_memory(&tree.sysroot(), 15 * GIB / 4).unwrap());
    }

    #[test]
    fn memory_of_the_cgroup_counts() {
        let tree = basic();
        tree.file("/sys/fs/cgroup/user.slice/memory.max", (4 * GIB).to_string());
        tree.file("/sys/fs/cgroup/user.slice/memory.current", GIB.to_string());
        memory(&tree.sysroot(), 2 * GIB).unwrap();
        let failure = memory(&tree.sysroot(), 3 * GIB).unwrap_err();
        assert!(failure.cause.contains("/user.slice"), "{}", failure.cause);
        assert!(failure.cause.contains("3 GiB left of its 4 GiB"), "{}", failure.cause);
    }

    #[test]
    fn memory_of_a_version_1_cgroup_counts_as_well() {
        let tree = basic();
        tree.file("/proc/self/cgroup", "11:memory:/docker/abc\n0::/system.slice/docker.service\n");
        let at = "/sys/fs/cgroup/memory/docker/abc";
        tree.file(&format!("{at}/memory.limit_in_bytes"), (4 * GIB).to_string());
        tree.file(&format!("{at}/memory.usage_in_bytes"), "209715200");
        memory(&tree.sysroot(), 3 * GIB).unwrap();
        let failure = memory(&tree.sysroot(), 4 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1301");
        assert!(failure.cause.contains("/docker/abc has 3.8 GiB left of its 4 GiB"), "{failure:?}");
        assert!(!has_spare_memory(&tree.sysroot(), 4 * GIB).unwrap());
    }

    #[test]
    fn memory_beyond_the_process_limit_of_address_space_is_refused() {
        let tree = basic();
        let line = "Max address space         4294967296           unlimited            bytes\n";
        tree.file("/proc/self/limits", limits(8 << 20, 8 << 20) + line);
        memory(&tree.sysroot(), 8 * GIB).unwrap();
        tree.file("/proc/self/limits", line);
        let failure = memory(&tree.sysroot(), 8 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1301");
        assert!(failure.fix.contains("ulimit -v unlimited"), "{}", failure.fix);
    }

    #[test]
    fn huge_pages_beyond_the_cgroups_limit_are_refused_though_the_pool_has_them() {
        let tree = basic();
        for (name, value) in [("nr_hugepages", "10"), ("free_hugepages", "10")] {
            tree.file(&format!("/sys/kernel/mm/hugepages/hugepages-1048576kB/{name}"), value);
        }
        huge_pages(&tree.sysroot(), GIB, 8 * GIB).unwrap();
        tree.file("/sys/fs/cgroup/user.slice/hugetlb.1GB.max", (4 * GIB).to_string());
        let failure = huge_pages(&tree.sysroot(), GIB, 8 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1307");
        assert!(failure.cause.contains("4 GiB left of its 4 GiB (hugetlb.1GB.max)"), "{failure:?}");
    }

    #[test]
    fn memlock_small_limit_is_refused_with_the_lines_that_raise_it() {
        let tree = basic();
        tree.file("/proc/self/limits", limits(65_536, 8 << 20));
        tree.file("/proc/self/status", status(1000, 0));
        let failure = memlock(&tree.sysroot(), 16 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1306");
        assert!(failure.cause.contains("16 GiB") && failure.cause.contains("8 MiB"));
        assert!(failure.details.iter().any(|line| line.contains("LimitMEMLOCK=infinity")));
        assert!(failure.details.iter().any(|line| line.ends_with("memlock 16777216")));
    }

    #[test]
    fn memlock_hard_limit_or_capability_is_enough() {
        let tree = basic();
        tree.file("/proc/self/status", status(1000, 0));
        tree.file("/proc/self/limits", limits(65_536, 16 * GIB));
        memlock(&tree.sysroot(), 16 * GIB).unwrap();
        tree.file("/proc/self/limits", limits(65_536, 65_536));
        tree.file("/proc/self/status", status(1000, 1 << 14));
        memlock(&tree.sysroot(), 16 * GIB).unwrap();
    }

    #[test]
    fn huge_pages_missing_says_how_many_to_set() {
        let tree = basic();
        for (name, value) in [("nr_hugepages", "10"), ("free_hugepages", "3")] {
            tree.file(&format!("/sys/kernel/mm/hugepages/hugepages-1048576kB/{name}"), value);
        }
        huge_pages(&tree.sysroot(), GIB, 3 * GIB).unwrap();
        let failure = huge_pages(&tree.sysroot(), GIB, 8 * GIB).unwrap_err();
        assert_eq!(failure.code.id, "E1307");
        assert!(failure.cause.contains("needs 8 huge pages of 1 GiB, and 3 of 10 are free"));
        assert!(failure.fix.starts_with("echo 15 > "), "{}", failure.fix);
        assert!(huge_pages(&tree.sysroot(), 2 << 20, GIB).unwrap_err().cause.contains("2 MiB"));
    }
}
