//! How much memory the host can give, and how much of it this process may lock.

use super::sysroot::{SysError, Sysroot};

/// The machine's memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What the kernel thinks it can give without swapping.
    pub available: u64,
}

/// Reads /proc/meminfo.
pub fn memory(sysroot: &Sysroot) -> Result<Memory, SysError> {
    const PATH: &str = "/proc/meminfo";
    let text = sysroot.read(PATH)?;
    let field = |name| field(&text, name).and_then(kibibytes);
    match (field("MemTotal"), field("MemAvailable")) {
        (Some(total), Some(available)) => Ok(Memory { total, available }),
        _ => Err(SysError::nonsense(PATH, &text)),
    }
}

/// The value of a `Name:   value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// "65763912 kB".
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The pool of one size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one page: 2 MiB or 1 GiB.
    pub size: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody has or was promised.
    pub free: u64,
}

/// The pool of this page size (bytes); `None` when the host does not know the size.
pub fn huge_pages(sysroot: &Sysroot, size: u64) -> Result<Option<HugePages>, SysError> {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size / 1024);
    let read = |name: &str| -> Result<Option<u64>, SysError> {
        Ok(sysroot.read_if_present(&format!("{pool}/{name}"))?.and_then(|text| text.parse().ok()))
    };
    let (Some(total), Some(free)) = (read("nr_hugepages")?, read("free_hugepages")?) else {
        return Ok(None);
    };
    let promised = read("resv_hugepages")?.unwrap_or(0);
    Ok(Some(HugePages { size, total, free: free.saturating_sub(promised) }))
}

/// When the kernel uses huge pages by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransparentHugePages {
    /// Everywhere.
    Always,
    /// Where a program asks for it, as strait does.
    OnRequest,
    /// Nowhere.
    Never,
}

/// The mode of transparent huge pages; `None` on a kernel without them.
pub fn transparent_huge_pages(sysroot: &Sysroot) -> Result<Option<TransparentHugePages>, SysError> {
    let text = sysroot.read_if_present("/sys/kernel/mm/transparent_hugepage/enabled")?;
    Ok(text.and_then(|text| {
        let (_, rest) = text.split_once('[')?;
        match rest.split_once(']')?.0 {
            "always" => Some(TransparentHugePages::Always),
            "madvise" => Some(TransparentHugePages::OnRequest),
            "never" => Some(TransparentHugePages::Never),
            _ => None,
        }
    }))
}

/// How much this process may lock, bytes; `u64::MAX` is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockLimit {
    /// Now.
    pub soft: u64,
    /// What it may raise itself to.
    pub hard: u64,
    /// Does CAP_IPC_LOCK lift the limit?
    pub exempt: bool,
}

/// Reads RLIMIT_MEMLOCK and CAP_IPC_LOCK of this process.
pub fn lock_limit(sysroot: &Sysroot) -> Result<LockLimit, SysError> {
    const LIMITS: &str = "/proc/self/limits";
    /// linux/capability.h
    const CAP_IPC_LOCK: u64 = 14;
    let text = sysroot.read(LIMITS)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let mut values = line.unwrap_or_default().split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    });
    let mut next = || values.next().flatten().ok_or_else(|| SysError::nonsense(LIMITS, &text));
    let (soft, hard) = (next()?, next()?);
    let status = sysroot.read_if_present("/proc/self/status")?.unwrap_or_default();
    let capabilities = field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let exempt = capabilities.is_some_and(|set| set >> CAP_IPC_LOCK & 1 != 0);
    Ok(LockLimit { soft, hard, exempt })
}

/// The user this process runs as.
pub fn effective_uid(sysroot: &Sysroot) -> Result<Option<u32>, SysError> {
    let status = sysroot.read_if_present("/proc/self/status")?.unwrap_or_default();
    // Real, effective, saved, file system.
    Ok(field(&status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok()))
}

/// How much address space this process may have, bytes; `u64::MAX` is without limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLimit {
    /// What `ulimit` calls it: `-v` or `-d`.
    pub option: &'static str,
    /// RLIMIT_AS or RLIMIT_DATA, as it counts now.
    pub limit: u64,
    /// What is left of it.
    pub room: u64,
}

/// The tighter of RLIMIT_AS, for all that a process maps, and RLIMIT_DATA, for its private memory, as a guest's RAM is;
/// `None` when neither limits it.
pub fn address_limit(sysroot: &Sysroot) -> Result<Option<AddressLimit>, SysError> {
    const LIMITS: &str = "/proc/self/limits";
    let limits = sysroot.read_if_present(LIMITS)?.unwrap_or_default();
    let status = sysroot.read_if_present("/proc/self/status")?.unwrap_or_default();
    let mut tightest: Option<AddressLimit> = None;
    for (name, used, option) in
        [("Max address space", "VmSize", "-v"), ("Max data size", "VmData", "-d")]
    {
        let Some(line) = limits.lines().find_map(|line| line.strip_prefix(name)) else { continue };
        let soft = line.split_whitespace().next().unwrap_or_default();
        if soft == "unlimited" {
            continue;
        }
        let limit: u64 = soft.parse().map_err(|_| SysError::nonsense(LIMITS, line))?;
        let used = field(&status, used).and_then(kibibytes).unwrap_or(0);
        let found = AddressLimit { option, limit, room: limit.saturating_sub(used) };
        if tightest.as_ref().is_none_or(|known| found.room < known.room) {
            tightest = Some(found);
        }
    }
    Ok(tightest)
}

// Provenance: the form of proc_meminfo(5), proc_pid_limits(5) and
// Documentation/admin-guide/mm/hugetlbpage.rst, numbers made up; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Tree, limits, status};

    #[test]
    fn memory_is_in_bytes() {
        let tree = Tree::new();
        tree.host_basics();
        let found = memory(&tree.sysroot()).unwrap();
        assert_eq!(found, Memory { total: 65_763_912 << 10, available: 60_123_456 << 10 });
    }

    #[test]
    fn memory_without_the_field_is_an_error() {
        let tree = Tree::new();
        tree.file("/proc/meminfo", "MemTotal: 5 kB\n");
        assert!(memory(&tree.sysroot()).is_err());
    }

    #[test]
    fn huge_pages_promised_to_others_are_not_free() {
        let tree = Tree::new();
        let pool = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
        for (name, value) in
            [("nr_hugepages", "16"), ("free_hugepages", "12"), ("resv_hugepages", "2")]
        {
            tree.file(&format!("{pool}/{name}"), value);
        }
        let found = huge_pages(&tree.sysroot(), 1 << 30).unwrap();
        assert_eq!(found, Some(HugePages { size: 1 << 30, total: 16, free: 10 }));
        assert_eq!(huge_pages(&tree.sysroot(), 2 << 20).unwrap(), None);
    }

    #[test]
    fn transparent_huge_pages_mode_is_the_bracketed_word() {
        let tree = Tree::new();
        assert_eq!(transparent_huge_pages(&tree.sysroot()).unwrap(), None);
        tree.file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        let mode = transparent_huge_pages(&tree.sysroot()).unwrap();
        assert_eq!(mode, Some(TransparentHugePages::OnRequest));
    }

    #[test]
    fn lock_limit_numbers_and_unlimited() {
        let tree = Tree::new();
        tree.file("/proc/self/limits", limits(65_536, 8 << 20));
        tree.file("/proc/self/status", status(1000, 0));
        let found = lock_limit(&tree.sysroot()).unwrap();
        assert_eq!(found, LockLimit { soft: 65_536, hard: 8 << 20, exempt: false });
        tree.file("/proc/self/limits", "Max locked memory  unlimited  unlimited  bytes\n");
        tree.file("/proc/self/status", status(0, 1 << 14));
        let found = lock_limit(&tree.sysroot()).unwrap();
        assert_eq!(found, LockLimit { soft: u64::MAX, hard: u64::MAX, exempt: true });
    }

    #[test]
    fn effective_uid_is_the_second_of_four() {
        let tree = Tree::new();
        tree.file("/proc/self/status", "Name:\tx\nUid:\t1000\t1001\t1002\t1003\n");
        assert_eq!(effective_uid(&tree.sysroot()).unwrap(), Some(1001));
    }

    #[test]
    fn address_limit_is_the_tighter_of_two_less_what_is_mapped() {
        let tree = Tree::new();
        assert_eq!(address_limit(&tree.sysroot()).unwrap(), None);
        tree.file("/proc/self/limits", limits(0, 0));
        assert_eq!(address_limit(&tree.sysroot()).unwrap(), None);
        let set = |space: &str, data: &str| {
            tree.file(
                "/proc/self/limits",
                format!(
                    "Max data size             {data}   unlimited            bytes     \n\
                     Max address space         {space}   unlimited            bytes     \n"
                ),
            );
        };
        tree.file("/proc/self/status", "VmSize:\t    1024 kB\nVmData:\t     512 kB\n");
        set("8388608", "unlimited");
        let found = address_limit(&tree.sysroot()).unwrap().unwrap();
        assert_eq!(found, AddressLimit { option: "-v", limit: 8 << 20, room: 7 << 20 });
        set("8388608", "1048576");
        let found = address_limit(&tree.sysroot()).unwrap().unwrap();
        assert_eq!(found, AddressLimit { option: "-d", limit: 1 << 20, room: 512 << 10 });
    }
}
