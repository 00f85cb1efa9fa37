//! A machine that is to run: what its files and its memory need of this host.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use strait_resources::{
    failure::Failure,
    host::{check, doctor::Finding, pci::HostFunction, sysroot::Sysroot},
    selector::Selector,
    size::Size,
};

use super::{add, passed, refused};
use crate::{
    binding,
    config::{Pages, RunConfig, twin},
    looked::{check_cpu, dry_plan},
    passthrough::{Candidates, Selection},
};

const FILES: (u8, &str) = (47, "files");
const MEMORY: (u8, &str) = (35, "memory");
const KVM: (u8, &str) = (2, "KVM");

/// `vm.toml`.
pub(super) struct Machine {
    path: PathBuf,
    config: RunConfig,
}

impl Machine {
    /// What the file means; its own mistakes are no findings but refusals, as a run's.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let config = RunConfig::meaning(twin::load(path)?)?;
        Ok(Self { path: path.to_owned(), config })
    }

    /// The devices it is to have.
    pub(super) fn devices(&self) -> impl Iterator<Item = Selector> {
        self.config.vfio.iter().map(|device| device.selector.clone())
    }

    /// Checks 47, 35 and, where its CPU asks for more than usual, 2 for this machine: a run would refuse for its files before anything else.
    pub(super) fn examine(&self, sysroot: &Sysroot, findings: &mut Vec<Finding>) {
        let files = self.config.check_files().map(|()| {
            let count = 1
                + usize::from(self.config.kernel.initramfs.is_some())
                + self.config.roms().count();
            let verb = if count == 1 { "1 file can" } else { &format!("{count} files can") };
            format!("its {verb} be read")
        });
        let memory = self.config.memory;
        let enough = match memory.pages {
            Pages::Default => check::memory(sysroot, memory.size),
            pages => check::huge_pages(sysroot, pages.granule(), memory.size),
        };
        let enough = enough
            .and_then(|()| check::memlock(sysroot, memory.size))
            .map(|()| format!("{} for the guest can be had", Size(memory.size)));
        let mut found = vec![
            self.finding(FILES, "files that the machine names", files),
            self.finding(MEMORY, "/proc/meminfo, /sys/kernel/mm/hugepages", enough),
        ];
        if self.config.cpu.nested || self.config.cpu.pmu {
            let given = check_cpu(sysroot, &self.config)
                .map(|()| "KVM has what its CPU is to have beyond the usual".to_owned());
            found.push(self.finding(KVM, "/sys/module/kvm*/parameters", given));
        }
        add(findings, found);
    }

    /// Check 24: the plan of a dry run; check 27: what its devices are when it is over.
    pub(super) fn fits(&self, sysroot: &Sysroot) -> Vec<Finding> {
        planned(sysroot, &self.config)
    }

    fn finding(
        &self,
        check: (u8, &'static str),
        source: &'static str,
        answer: Result<String, Failure>,
    ) -> Finding {
        match answer {
            Err(failure) => refused(check, source, failure),
            Ok(good) => passed(check, source, format!("{}: {good}", self.path.display())),
        }
    }
}

/// Checks 24 and 27 for a guest with these devices and little memory.
pub(super) fn fits(sysroot: &Sysroot, chosen: &[HostFunction]) -> Vec<Finding> {
    let words = ["strait", "run", "--kernel=vmlinuz"].map(OsString::from);
    let devices = chosen.iter().map(|function| format!("--vfio={}", function.bdf).into());
    let line: Vec<OsString> = words.into_iter().chain(devices).collect();
    let config = twin::read_line(&line).and_then(RunConfig::meaning);
    config.map_or_else(|_| Vec::new(), |config| planned(sysroot, &config))
}

/// A host without an IOMMU, or a device that is not there, another check has told.
fn planned(sysroot: &Sysroot, config: &RunConfig) -> Vec<Finding> {
    const SPACE: (u8, &str) = (24, "address space");
    const SOURCE: &str = "resource, /proc/cpuinfo, reserved_regions";
    const RESET: (u8, &str) = (27, "reset");
    if config.vfio.is_empty() {
        return Vec::new();
    }
    let Ok(candidates) = Candidates::find(sysroot, &config.vfio) else { return Vec::new() };
    let resets = candidates.resets(sysroot).unwrap_or_default();
    let unreset = binding::unreset(&candidates, &resets);
    let reset = |(bdf, failure)| Finding {
        device: Some(bdf),
        ..refused(RESET, "reset_method, driver", failure)
    };
    let mut found: Vec<Finding> = unreset.into_iter().map(reset).collect();
    let Ok(selection) = Selection::of(sysroot, candidates, true) else { return found };
    found.push(match dry_plan(sysroot, config, &selection) {
        Ok(_) => passed(SPACE, SOURCE, "every BAR has a place in the guest".to_owned()),
        Err(failure) => refused(SPACE, SOURCE, failure),
    });
    found
}
