//! A machine that is to run: what its files and its memory need of this host.

use std::path::{Path, PathBuf};

use strait_resources::{
    failure::Failure,
    host::{
        check,
        doctor::{Finding, Level},
        sysroot::Sysroot,
    },
    selector::Selector,
    size::Size,
};

use super::refused;
use crate::config::{Pages, RunConfig, twin};

const FILES: (u8, &str) = (47, "files");
const MEMORY: (u8, &str) = (35, "memory");

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

    /// Checks 47 and 35 for this machine: a run would refuse for its files before anything else.
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
        found.append(findings);
        found.sort_by_key(|finding| finding.level);
        *findings = found;
    }

    fn finding(
        &self,
        (check, name): (u8, &'static str),
        source: &'static str,
        answer: Result<String, Failure>,
    ) -> Finding {
        match answer {
            Err(failure) => refused(check, name, source, failure),
            Ok(good) => Finding {
                check,
                name,
                source,
                level: Level::Pass,
                device: None,
                fact: format!("{}: {good}", self.path.display()),
                fix: String::new(),
                details: Vec::new(),
                code: None,
            },
        }
    }
}
