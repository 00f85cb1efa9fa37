//! `strait doctor`: what stands between this host and a guest with its devices, as a table of small checks.
//!
//! Each check reads through a [`Sysroot`] and says what it saw. Where a run would refuse, the finding is the very
//! refusal of [`check`], so that the two cannot disagree; everything else is advice and never a failure.

mod bars;
mod boot;
mod cpu;
mod device;
mod group;
mod iommu;
mod life;
mod log;
mod memory;
mod plan;
mod sharing;
mod vfio;

pub use plan::{Plan, Step, fix_plan};

#[cfg(doc)]
use super::check;
use super::{
    needs::Needs,
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};
use crate::{
    bdf::Bdf,
    failure::{Code, Failure},
    names::Names,
};

/// How bad it is; the worst is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A run would refuse.
    Fail,
    /// A run would start, and something will likely hurt.
    Warn,
    /// Could not be looked at.
    Skip,
    /// Good to know.
    Info,
    /// As it should be.
    Pass,
}

impl Level {
    /// `FAIL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fail => "FAIL",
            Self::Warn => "WARN",
            Self::Skip => "SKIP",
            Self::Info => "INFO",
            Self::Pass => "PASS",
        }
    }
}

/// What one check found, of the host or of one device.
#[derive(Debug)]
pub struct Finding {
    /// The check's number.
    pub check: u8,
    /// The check's name.
    pub name: &'static str,
    /// Where it looked.
    pub source: &'static str,
    /// How bad.
    pub level: Level,
    /// Which device; `None` for the host or for all of them together.
    pub device: Option<Bdf>,
    /// One line: what was seen.
    pub fact: String,
    /// One line: what to do; empty when there is nothing to do.
    pub fix: String,
    /// More lines, commands among them.
    pub details: Vec<String>,
    /// For `strait explain`.
    pub code: Option<&'static Code>,
}

/// What a check function answers, one entry for each thing worth saying.
type Answer = Result<Vec<Outcome>, SysError>;

/// A finding before it is known whose it is.
#[derive(Debug)]
struct Outcome {
    level: Level,
    fact: String,
    fix: String,
    details: Vec<String>,
    code: Option<&'static Code>,
}

impl Outcome {
    fn new(level: Level, fact: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level, fact: fact.into(), fix: fix.into(), details: Vec::new(), code: None }
    }

    fn pass(fact: impl Into<String>) -> Self {
        Self::new(Level::Pass, fact, "")
    }

    fn info(fact: impl Into<String>) -> Self {
        Self::new(Level::Info, fact, "")
    }

    fn skip(fact: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Level::Skip, fact, fix)
    }

    fn warn(fact: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Level::Warn, fact, fix)
    }

    fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    fn code(mut self, code: &'static Code) -> Self {
        self.code = Some(code);
        self
    }

    /// A run's refusal.
    fn refusal(failure: Failure) -> Self {
        let level = if failure.code.exit == 0 { Level::Warn } else { Level::Fail };
        let Failure { code, cause, fix, details, .. } = failure;
        Self { level, fact: cause, fix, details, code: Some(code) }
    }

    /// A run's refusal, or that there is none.
    fn of(result: Result<(), Failure>, good: impl Into<String>) -> Self {
        match result {
            Ok(()) => Self::pass(good),
            Err(failure) => Self::refusal(failure),
        }
    }
}

/// What all checks look at.
struct Host<'a> {
    sysroot: &'a Sysroot,
    /// Every function.
    all: Vec<HostFunction>,
    /// Those that the guest is to get.
    chosen: &'a [HostFunction],
    names: Names,
    needs: Needs<'a>,
}

impl Host<'_> {
    fn name(&self, function: &HostFunction) -> String {
        self.names.function(function)
    }

    fn is_chosen(&self, bdf: Bdf) -> bool {
        self.chosen.iter().any(|function| function.bdf == bdf)
    }

    /// A module's or a device's switch; `None` when there is no such file.
    fn text(&self, path: &str) -> Result<Option<String>, SysError> {
        self.sysroot.read_if_present(path)
    }

    fn cmdline(&self) -> Result<String, SysError> {
        Ok(self.text("/proc/cmdline")?.unwrap_or_default())
    }
}

enum Scope {
    /// Once.
    Host(fn(&Host<'_>) -> Answer),
    /// For every chosen function.
    Device(fn(&Host<'_>, &HostFunction) -> Answer),
}

struct Check {
    number: u8,
    name: &'static str,
    source: &'static str,
    scope: Scope,
}

const fn host(
    number: u8,
    name: &'static str,
    source: &'static str,
    check: fn(&Host<'_>) -> Answer,
) -> Check {
    Check { number, name, source, scope: Scope::Host(check) }
}

const fn device(
    number: u8,
    name: &'static str,
    source: &'static str,
    check: fn(&Host<'_>, &HostFunction) -> Answer,
) -> Check {
    Check { number, name, source, scope: Scope::Device(check) }
}

/// In the order in which a run makes those of them that refuse, which is the one in which a user can mend things: so the
/// first failure is the same. Number 47, files of a guest, is a run's own.
static CHECKS: &[Check] = &[
    host(1, "system", "/proc/cpuinfo, /proc/sys/kernel/osrelease", cpu::system),
    host(2, "KVM", "/proc/cpuinfo, /dev/kvm", cpu::kvm),
    host(3, "KVM features", "/sys/module/kvm*/parameters", cpu::kvm_features),
    host(4, "IOMMU", "/sys/kernel/iommu_groups, /sys/class/iommu", iommu::active),
    host(5, "IOMMU request", "/sys/firmware/acpi/tables, /proc/cmdline", iommu::request),
    host(6, "host DMA mode", "/sys/kernel/iommu_groups/*/type", iommu::mode),
    host(7, "interrupt remapping", "/sys/class/iommu/*/intel-iommu/ecap", iommu::remapping),
    host(8, "IOMMU width", "/sys/class/iommu/*, reserved_regions", iommu::width),
    host(9, "CPU address width", "/proc/cpuinfo", cpu::address_width),
    host(10, "VFIO", "/sys/module, modules.builtin, /dev/vfio/vfio", vfio::modules),
    host(11, "Secure Boot", "/sys/kernel/security/lockdown, efivars", vfio::lockdown),
    device(12, "device", "/sys/bus/pci/devices", device::identity),
    host(13, "sibling functions", "/sys/bus/pci/devices", device::siblings),
    device(30, "alive", "config", life::alive),
    device(19, "reserved memory", "reserved_regions", group::reserved),
    device(23, "BARs", "resource", bars::addressed),
    device(14, "driver", "driver, driver_override", device::driver),
    device(15, "open nodes", "/proc/*/fd", device::open_nodes),
    device(
        16,
        "host's use",
        "/proc/self/mountinfo, /proc/net, /sys/block, /sys/class/net, boot_vga",
        device::host_uses,
    ),
    host(17, "host display", "/sys/bus/pci/devices/*/boot_vga", device::other_display),
    device(18, "group", "iommu_group/devices", group::viable),
    device(22, "other guests", "/proc/*/fd", vfio::in_use),
    device(21, "group node", "/dev/vfio", vfio::node),
    device(20, "isolation (ACS)", "config of the ports above", group::acs),
    device(49, "translation (ATS)", "config, /proc/cmdline", iommu::translates),
    host(24, "address space", "resource, /proc/cpuinfo", bars::need),
    device(25, "framebuffer", "/proc/iomem, /proc/fb, vtconsole", bars::framebuffer),
    device(26, "resizable BARs", "config", bars::resizable),
    device(27, "reset", "reset_method", life::reset),
    device(28, "known trouble", "vendor, device", life::known_trouble),
    device(29, "power", "power_state, d3cold_allowed", life::power),
    device(31, "interrupts", "config", life::interrupts),
    device(32, "link", "current_link_*, max_link_*", life::link),
    device(33, "ROM", "rom, resource, boot_vga", life::rom),
    device(34, "NUMA", "numa_node, /sys/devices/system/node", memory::numa),
    host(35, "memory", "/proc/meminfo, memory.max", memory::free),
    host(36, "huge pages", "/sys/kernel/mm", memory::huge_pages),
    host(37, "locked memory", "/proc/self/limits, /proc/self/status", memory::lock_limit),
    host(38, "DMA entries", "vfio_iommu_type1/parameters/dma_entry_limit", memory::dma_entries),
    host(39, "CPU layout", "/sys/devices/system/cpu", cpu::layout),
    host(40, "TSC", "/sys/devices/system/clocksource, /proc/cpuinfo", cpu::tsc),
    device(41, "claim at boot", "modprobe.d, udev rules, /boot", boot::claim::claim),
    host(42, "boot loader", "/proc/cmdline, efivars, /etc/default/grub", boot::loader),
    host(43, "kernel log", "/dev/kmsg", log::findings),
    device(44, "SR-IOV", "sriov_totalvfs, sriov_numvfs", sharing::sriov),
    device(45, "vGPU", "mdev_supported_types, nvidia/", sharing::vgpu),
    host(46, "P2P", "paths of the devices", group::peers),
    host(48, "firmware", "/sys/class/dmi/id", boot::firmware),
];

/// Runs every check, those of devices for each of `chosen`, and sorts the worst first; among equals the order is the
/// one in which a user can mend things.
pub fn examine(sysroot: &Sysroot, chosen: &[HostFunction]) -> Result<Vec<Finding>, SysError> {
    let (all, names, needs) = (pci::scan(sysroot)?, Names::load(sysroot), Needs::new(sysroot));
    let host = Host { sysroot, all, chosen, names, needs };
    let mut findings = Vec::new();
    for check in CHECKS {
        match check.scope {
            Scope::Host(look) => findings.extend(made(check, None, look(&host))),
            Scope::Device(look) => {
                for function in chosen {
                    findings.extend(made(check, Some(function.bdf), look(&host, function)));
                }
            }
        }
    }
    findings.sort_by_key(|finding| finding.level);
    Ok(findings)
}

fn made(check: &Check, device: Option<Bdf>, answer: Answer) -> Vec<Finding> {
    let outcomes = answer.unwrap_or_else(|error| {
        let fact = format!("{} cannot be read", error.path().display());
        vec![Outcome::skip(fact, "run strait doctor as root")]
    });
    let finding = |outcome: Outcome| Finding {
        check: check.number,
        name: check.name,
        source: check.source,
        level: outcome.level,
        device,
        fact: outcome.fact,
        fix: outcome.fix,
        details: outcome.details,
        code: outcome.code,
    };
    outcomes.into_iter().map(finding).collect()
}

/// The process's exit status: that of the first failure, 0 without any.
pub fn exit_status(findings: &[Finding]) -> u8 {
    let failed = findings.iter().find(|finding| finding.level == Level::Fail);
    failed.and_then(|finding| finding.code).map_or(0, |code| code.exit)
}

#[cfg(test)]
mod tests;
