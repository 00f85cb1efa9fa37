//! The host's CPU, from /proc/cpuinfo and /sys/devices/system/cpu.

use super::sysroot::{SysError, Sysroot};

/// Who made it, as far as virtualization differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VT-x, VT-d.
    Intel,
    /// AMD-V, AMD-Vi; Hygon too.
    Amd,
    /// Another x86 vendor.
    Other,
}

/// What all CPUs of the host have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Maker.
    pub vendor: Vendor,
    /// `Intel(R) Xeon(R) ...`.
    pub model: Option<String>,
    /// Feature words of the first CPU.
    pub flags: Vec<String>,
    /// Physical-address bits.
    pub physical_bits: Option<u8>,
    /// CPUs that are on.
    pub online: u32,
}

impl Cpu {
    /// Does the CPU know this feature (`vmx`, `lm`)?
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }

    /// VT-x or AMD-V, usable: the kernel hides the flag when the firmware locked it off.
    pub fn can_virtualize(&self) -> bool {
        self.has("vmx") || self.has("svm")
    }

    /// Is this host itself a guest?
    pub fn is_guest(&self) -> bool {
        self.has("hypervisor")
    }
}

/// Threads, cores and packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// CPUs with a topology, that is, that are on.
    pub threads: u32,
    /// Physical cores.
    pub cores: u32,
    /// Sockets.
    pub packages: u32,
}

impl Topology {
    /// Threads of one core; cores without SMT beside cores with it (hybrid CPUs) round down to 1.
    pub const fn threads_per_core(self) -> u32 {
        if self.cores == 0 || self.threads < self.cores { 1 } else { self.threads / self.cores }
    }
}

const CPUINFO: &str = "/proc/cpuinfo";

/// Reads /proc/cpuinfo. `None` when this is no x86-64.
pub fn cpu(sysroot: &Sysroot) -> Result<Option<Cpu>, SysError> {
    Ok(parse(&sysroot.read(CPUINFO)?))
}

/// The same by the first CPU alone, `online` aside: on a host with hundreds of CPUs the kernel takes many milliseconds
/// to write the whole file, asking each for its frequency.
pub fn first_cpu(sysroot: &Sysroot) -> Result<Option<Cpu>, SysError> {
    /// The kernel writes whole CPUs; one takes about 1500 bytes.
    const ONE: u64 = 4096;
    let text = sysroot.read_start(CPUINFO, ONE)?;
    Ok(parse(text.split("\n\n").next().unwrap_or_default()))
}

fn parse(text: &str) -> Option<Cpu> {
    let values = |key: &'static str| {
        text.lines().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim())
        })
    };
    let flags: Vec<String> =
        values("flags").next().unwrap_or("").split_whitespace().map(str::to_owned).collect();
    // "Long mode": the word for 64 bits.
    if !flags.iter().any(|flag| flag == "lm") {
        return None;
    }
    Some(Cpu {
        vendor: match values("vendor_id").next() {
            Some("GenuineIntel") => Vendor::Intel,
            Some("AuthenticAMD" | "HygonGenuine") => Vendor::Amd,
            _ => Vendor::Other,
        },
        model: values("model name").next().map(str::to_owned),
        flags,
        physical_bits: values("address sizes").next().and_then(parse_physical_bits),
        online: u32::try_from(values("processor").count()).unwrap_or(u32::MAX),
    })
}

/// Physical-address bits of the host, 36..=57; 36, the fewest of any x86-64 CPU with VT-x or AMD-V, when the
/// host does not say.
pub fn physical_bits(sysroot: &Sysroot) -> u8 {
    let said = first_cpu(sysroot).ok().flatten().and_then(|cpu| cpu.physical_bits);
    said.unwrap_or(36).clamp(36, 57)
}

/// Was the kernel told that the TSC never changes and never stops, though the CPU does not say so, and is it the host's
/// clock? `tsc=reliable` is what an administrator says of an old or an emulated CPU.
pub fn tsc_is_vouched_for(sysroot: &Sysroot) -> Result<bool, SysError> {
    let told = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = sysroot.read_if_present(source)?.unwrap_or_default();
    Ok(told.split_whitespace().any(|word| word == "tsc=reliable") && source.trim() == "tsc")
}

/// "46 bits physical, 48 bits virtual".
fn parse_physical_bits(text: &str) -> Option<u8> {
    let (bits, _) = text.split_once(" bits physical")?;
    bits.parse().ok().filter(|bits| (32..=57).contains(bits))
}

/// Counts what `/sys/devices/system/cpu/cpu*/topology` tells apart; `None` when nothing is there.
pub fn topology(sysroot: &Sysroot) -> Result<Option<Topology>, SysError> {
    const CPUS: &str = "/sys/devices/system/cpu";
    let (mut threads, mut cores, mut packages) = (0, Vec::new(), Vec::new());
    for name in sysroot.list_if_present(CPUS)? {
        let is_cpu = name
            .strip_prefix("cpu")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !is_cpu {
            continue;
        }
        let read = |what: &str| sysroot.read_if_present(&format!("{CPUS}/{name}/topology/{what}"));
        // A CPU that is off has no topology.
        let (Some(package), Some(core)) = (read("physical_package_id")?, read("core_id")?) else {
            continue;
        };
        // Core numbers repeat in every package, and on some AMD parts in every die.
        let die = read("die_id")?.unwrap_or_default();
        threads += 1;
        cores.push((package.clone(), die, core));
        packages.push(package);
    }
    Ok((threads > 0).then(|| Topology {
        threads,
        cores: distinct(cores),
        packages: distinct(packages),
    }))
}

fn distinct<T: Ord>(mut values: Vec<T>) -> u32 {
    values.sort();
    values.dedup();
    u32::try_from(values.len()).unwrap_or(u32::MAX)
}

// Provenance: lines of /proc/cpuinfo by arch/x86/kernel/cpu/proc.c, shortened by hand; no dump of a
// host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    #[test]
    fn cpu_xeon_is_read() {
        let tree = Tree::new();
        tree.host_basics();
        let cpu = cpu(&tree.sysroot()).unwrap().unwrap();
        assert_eq!((cpu.vendor, cpu.physical_bits, cpu.online), (Vendor::Intel, Some(46), 2));
        assert!(cpu.can_virtualize() && !cpu.is_guest());
        assert!(cpu.model.unwrap().contains("Gold 6130"));
    }

    #[test]
    fn first_cpu_of_many_says_the_same() {
        let tree = Tree::new();
        tree.host_basics();
        let one = tree.sysroot().read("/proc/cpuinfo").unwrap();
        let one = one.split("\n\n").next().unwrap();
        tree.file("/proc/cpuinfo", format!("{one}\n\n").repeat(300));
        let (all, first) = (cpu(&tree.sysroot()).unwrap(), first_cpu(&tree.sysroot()).unwrap());
        let online = all.as_ref().map(|cpu| cpu.online);
        assert_eq!(online, Some(300));
        assert_eq!(first.map(|cpu| Cpu { online: 300, ..cpu }), all);
    }

    #[test]
    fn cpu_of_another_architecture_is_none() {
        let tree = Tree::new();
        tree.file(
            "/proc/cpuinfo",
            "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n",
        );
        assert_eq!(cpu(&tree.sysroot()).unwrap(), None);
    }

    #[test]
    fn tsc_is_vouched_for_where_the_kernel_was_told_and_uses_it() {
        for (told, source, expected) in [
            ("quiet tsc=reliable", "tsc\n", true),
            ("quiet", "tsc\n", false),
            ("tsc=nowatchdog", "tsc\n", false),
            ("tsc=reliable", "hpet\n", false),
        ] {
            let tree = Tree::new();
            tree.file("/proc/cmdline", told);
            let at = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
            tree.file(at, source);
            assert_eq!(tsc_is_vouched_for(&tree.sysroot()).unwrap(), expected, "{told} {source}");
        }
        assert!(!tsc_is_vouched_for(&Tree::new().sysroot()).unwrap());
    }

    #[test]
    fn physical_bits_out_of_range_are_not_believed() {
        assert_eq!(parse_physical_bits("39 bits physical, 48 bits virtual"), Some(39));
        assert_eq!(parse_physical_bits("255 bits physical, 48 bits virtual"), None);
        assert_eq!(parse_physical_bits("many"), None);
    }

    #[test]
    fn physical_bits_unknown_are_the_fewest() {
        let tree = Tree::new();
        assert_eq!(physical_bits(&tree.sysroot()), 36);
        tree.host_basics();
        assert_eq!(physical_bits(&tree.sysroot()), 46);
    }

    #[test]
    fn topology_counts_cores_of_two_packages_apart_and_skips_cpus_that_are_off() {
        let tree = Tree::new();
        for (cpu, package, core) in
            [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 0, 0), (5, 0, 1)]
        {
            let at = |name| format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}");
            tree.file(&at("physical_package_id"), package.to_string());
            tree.file(&at("core_id"), core.to_string());
        }
        tree.directory("/sys/devices/system/cpu/cpu6");
        tree.directory("/sys/devices/system/cpu/cpufreq");
        let found = topology(&tree.sysroot()).unwrap().unwrap();
        assert_eq!(found, Topology { threads: 6, cores: 4, packages: 2 });
        assert_eq!(found.threads_per_core(), 1);
        assert_eq!(Topology { threads: 8, ..found }.threads_per_core(), 2);
    }

    #[test]
    fn topology_without_sysfs_is_none() {
        assert_eq!(topology(&Tree::new().sysroot()).unwrap(), None);
    }
}
