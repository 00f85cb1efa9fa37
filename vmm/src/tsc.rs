//! How a guest that does not see KVM learns how fast its TSC runs.
//!
//! Without kvm-clock the TSC is the clock that costs nothing to read. A guest on an Intel CPU reads its frequency in CPUID
//! leaf 15h; an AMD CPU has no such leaf, so a Linux guest there is told on its command line.

use strait_arch::{
    boot::{self, BootError},
    cpuid::Hide,
};
use strait_resources::{
    failure::Failure,
    host::{
        cpu::{self, Vendor},
        sysroot::Sysroot,
    },
};

use crate::{config::RunConfig, vm::Host};

/// How the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The guest sees KVM, whose clock needs no word, or the user has said it.
    Nothing,
    /// By CPUID leaf 15h.
    Cpuid,
    /// By `tsc_early_khz=` on its command line.
    Word,
}

impl Told {
    /// What holds for this machine on this host.
    pub(crate) fn of(sysroot: &Sysroot, config: &RunConfig) -> Self {
        if config.cpu.hide == Hide::No || boot::tells_tsc(&config.kernel.cmdline) {
            return Self::Nothing;
        }
        let vendor = cpu::first_cpu(sysroot).ok().flatten().map(|cpu| cpu.vendor);
        if vendor == Some(Vendor::Intel) { Self::Cpuid } else { Self::Word }
    }

    /// The whole command line, where the TSC runs at `khz`; `None` while that is unknown, for people to read.
    pub(crate) fn cmdline(self, cmdline: &str, khz: Option<u32>) -> String {
        match (self, khz) {
            (Self::Nothing | Self::Cpuid, _) => cmdline.to_owned(),
            (Self::Word, Some(khz)) => boot::telling_tsc(cmdline, khz),
            (Self::Word, None) => boot::telling_some_tsc(cmdline),
        }
    }

    /// The longest that the command line may become.
    pub(crate) fn longest_cmdline(self, cmdline: &str) -> String {
        match self {
            Self::Nothing | Self::Cpuid => cmdline.to_owned(),
            Self::Word => boot::telling_any_tsc(cmdline),
        }
    }

    /// Why the kernel does not start, with the word that the user did not write.
    pub(crate) fn blamed(self, error: BootError) -> Failure {
        let is_too_long = matches!(error, BootError::CmdlineTooLong { .. });
        let failure = error.into_failure();
        if self != Self::Word || !is_too_long {
            return failure;
        }
        let added = self.longest_cmdline("").len().saturating_add(1);
        failure.detail(format!(
            "{added} bytes of it are kept for tsc_early_khz=, which strait adds because the guest does not see KVM"
        ))
    }

    /// A line for a person.
    pub(crate) const fn why(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Cpuid => Some(
                "the guest does not see KVM: CPUID leaf 15h tells it the TSC's frequency, no tsc_early_khz= is added",
            ),
            Self::Word => Some(
                "the guest does not see KVM: strait adds tsc_early_khz= to its command line, so that the TSC is its clock",
            ),
        }
    }
}

/// The machine as it is shown: with the whole command line. The frequency is KVM's, if this is its host and KVM answers.
pub(crate) fn shown(sysroot: &Sysroot, config: &RunConfig) -> (RunConfig, Told) {
    let told = Told::of(sysroot, config);
    let ask = told == Told::Word && sysroot.is_host();
    let khz = ask.then(|| Host::open().ok()?.tsc_khz()).flatten();
    let mut shown = config.clone();
    shown.kernel.cmdline = told.cmdline(&config.kernel.cmdline, khz);
    (shown, told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::twin;

    fn config(words: &[&str]) -> RunConfig {
        let line = ["strait", "run", "--kernel=k"].iter().chain(words).map(Into::into);
        RunConfig::meaning(twin::read_line(&line.collect::<Vec<_>>()).unwrap()).unwrap()
    }

    /// The first lines of /proc/cpuinfo as Linux writes them.
    fn host(vendor: &str) -> (tempfile::TempDir, Sysroot) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("proc")).unwrap();
        let info = format!("processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu lm tsc\n\n");
        std::fs::write(directory.path().join("proc/cpuinfo"), info).unwrap();
        let sysroot = Sysroot::at(directory.path());
        (directory, sysroot)
    }

    #[test]
    fn hidden_amd_guest_is_told_on_its_command_line_unless_the_user_did() {
        let (_amd, amd) = host("AuthenticAMD");
        for hide in ["hide=kvm", "hide=all"] {
            let config = config(&["--cpu", hide, "--cmdline", "quiet"]);
            let told = Told::of(&amd, &config);
            assert_eq!(told, Told::Word);
            assert_eq!(told.cmdline("quiet", Some(3_400_000)), "tsc_early_khz=3400000 quiet");
            let (shown, _) = shown(&amd, &config);
            assert_eq!(
                shown.kernel.cmdline, "tsc_early_khz=? quiet",
                "another host's KVM is not here"
            );
        }
        let own = config(&["--cpu", "hide=kvm", "--cmdline", "tsc_early_khz=7 quiet"]);
        assert_eq!(Told::of(&amd, &own), Told::Nothing);
        assert_eq!(shown(&amd, &own).0, own);
    }

    #[test]
    fn guests_with_another_source_get_no_word() {
        let (_amd, amd) = host("AuthenticAMD");
        let (_intel, intel) = host("GenuineIntel");
        let visible = config(&["--cmdline", "quiet"]);
        assert_eq!(shown(&amd, &visible), (visible.clone(), Told::Nothing));
        let hidden = config(&["--cpu", "hide=kvm", "--cmdline", "quiet"]);
        assert_eq!(shown(&intel, &hidden), (hidden.clone(), Told::Cpuid));
        assert_eq!(Told::Cpuid.longest_cmdline("quiet"), "quiet");
        assert_eq!(Told::Word.longest_cmdline("quiet"), "tsc_early_khz=4294967295 quiet");
    }
}
