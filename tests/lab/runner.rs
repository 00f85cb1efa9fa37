//! Runs scenarios: groups them by host, boots each host once, keeps the evidence.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    files,
    hosts::{Host, HostKind},
    initramfs::Initramfs,
    l1::{Ingredients, JobEnd, L1, add_modules},
    monitor::{GuestFiles, Monitor, functions, path_word, quoted},
    outcome::Outcome,
    paths::Paths,
    progress::say,
    qemu::Purpose,
    report::{Flaky, Report, Verdict},
    scenario::{Ending, GuestKernel, Scenario, Vm},
    truth,
};

/// How to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The monitor.
    pub monitor: Monitor,
    /// Show the guests' whole kernel log on their consoles?
    pub verbose: bool,
}

/// Runs scenarios and keeps a host booted as long as it serves.
pub(crate) struct Runner<'a> {
    with: Ingredients<'a>,
    options: Options,
    nonce: String,
    booted: Option<(HostKind, L1)>,
    /// The BDF of a real device, when scenarios run on this machine.
    here: Option<String>,
}

/// A wrong answer gets a second attempt, which tells a race from a plain mistake and makes neither of them right; a host
/// that hangs or oopses, which says nothing of the monitor, gets as many attempts as this.
const MOST_ATTEMPTS: usize = 4;

/// Where L1 keeps the kernels, copied there once per boot: reading them over 9p costs seconds.
pub(crate) const GUEST_VMLINUX: &str = "/run/lab/vmlinux";
const GUEST_BZIMAGE: &str = "/run/lab/bzimage";

impl<'a> Runner<'a> {
    /// A runner without a booted host.
    pub(crate) fn new(with: Ingredients<'a>, options: Options, here: Option<String>) -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        Self { with, options, nonce: format!("{:x}", now & 0xffff_ffff_ffff), booted: None, here }
    }

    /// Runs these scenarios and reports each.
    pub(crate) fn run(&mut self, scenarios: &[Scenario], report: &mut Report) {
        let hosts: BTreeSet<HostKind> = scenarios.iter().map(|scenario| scenario.host).collect();
        for kind in hosts {
            for scenario in scenarios.iter().filter(|scenario| scenario.host == kind) {
                self.one(scenario, report);
            }
        }
    }

    fn one(&mut self, scenario: &Scenario, report: &mut Report) {
        let begin = Instant::now();
        if let Some(reason) = self.reason_to_skip(scenario) {
            report.add(&scenario.name, begin, Verdict::Skipped(reason));
            return;
        }
        let logs = self.with.paths.logs(&scenario.name);
        let verdict = match self.attempts(scenario, &logs) {
            Ok((figures, before)) if before.is_empty() => Verdict::Passed(figures),
            Ok((figures, before)) => Verdict::Flaky(Flaky::new(figures, &before)),
            Err(before) => {
                let said = before.iter().map(ToString::to_string).collect::<Vec<_>>();
                let logs = Paths::shown(&logs);
                Verdict::Failed(format!("{}\n       logs: {logs}", said.join("\n       then: ")))
            }
        };
        report.add(&scenario.name, begin, verdict);
    }

    /// Tries until it passes or another attempt would tell nothing new: the figures with what went wrong before, or all
    /// that went wrong. The logs of each attempt that failed are kept, in `NAME-attempt-N` if another followed.
    fn attempts(
        &mut self,
        scenario: &Scenario,
        logs: &Path,
    ) -> Result<(Vec<String>, Vec<Trouble>), Vec<Trouble>> {
        for attempt in 1..MOST_ATTEMPTS {
            // Of an earlier run of the lab; mostly there is none.
            drop(fs::remove_dir_all(kept(logs, attempt)));
        }
        let mut before = Vec::new();
        loop {
            let trouble = match self.attempt(scenario) {
                Ok(figures) => return Ok((figures, before)),
                Err(trouble) => trouble,
            };
            if trouble.spoils_host() {
                self.booted = None;
            }
            before.push(trouble);
            let attempt = before.len();
            let wrong = before.iter().filter(|trouble| !matches!(trouble, Trouble::HostBroke(_)));
            if attempt >= MOST_ATTEMPTS || wrong.count() > 1 {
                return Err(before);
            }
            if let Some(trouble) = before.last() {
                let name = &scenario.name;
                say(format!("{name}: {trouble}\n       once more, on a fresh boot"));
            }
            if let Err(error) = fs::rename(logs, kept(logs, attempt)) {
                say(format!("the logs of attempt {attempt} are lost: {error}"));
            }
            self.booted = None;
        }
    }

    fn reason_to_skip(&self, scenario: &Scenario) -> Option<String> {
        if scenario.strait_only && self.options.monitor != Monitor::Strait {
            return Some("needs strait".to_owned());
        }
        if scenario.host != HostKind::Here {
            let needed = Host::of(scenario.host).memory_mib;
            let available = available_mib();
            if available < needed {
                return Some(format!(
                    "needs {needed} MiB of memory for L1, this machine has {available} MiB available"
                ));
            }
        }
        None
    }

    /// Runs once and judges.
    fn attempt(&mut self, scenario: &Scenario) -> Result<Vec<String>, Trouble> {
        let logs = self.with.paths.logs(&scenario.name);
        files::fresh_directory(&logs)?;
        let host = match &self.here {
            Some(bdf) => Host::here(bdf),
            None => Host::of(scenario.host),
        };
        let run = self.ready(&host, &logs)?;
        let job = run.join("jobs").join(&scenario.name);
        files::fresh_directory(&job)?;
        fs::write(job.join("job.sh"), self.job_script(scenario, &host, &run)?)?;
        let limit = Duration::from_secs(u64::from(scenario.limit));
        let ended = match &mut self.booted {
            Some((_, l1)) => l1.job(&scenario.name, limit),
            None => crate::here::job(&job, limit),
        };
        let pid = self.booted.as_ref().map(|(_, l1)| l1.pid());
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // What L1 says when it dies is the evidence.
                let console = self.booted.as_mut().map(|(_, l1)| l1.console()).unwrap_or_default();
                keep(&job, &logs, &console, &run)?;
                return Err(oops(&console).unwrap_or(Trouble::HostBroke(format!("{error:#}"))));
            }
        };
        let JobEnd { status, console } = ended;
        keep(&job, &logs, &console, &run)?;
        let outcome = Outcome::read(&job, &run, pid, &self.nonce, status);
        let judged = self.judge(scenario, &outcome);
        match judged {
            Ok(()) => Ok(outcome.figures()),
            Err(reasons) => Err(oops(&console)
                .or_else(|| oops(&outcome.text("l1-dmesg.txt")))
                .unwrap_or(Trouble::Wrong { reasons, ended: outcome.status != 137 })),
        }
    }

    fn judge(&self, scenario: &Scenario, outcome: &Outcome) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        for line in outcome.text("job.out").lines().filter(|line| line.starts_with("FAIL")) {
            reasons.push(line.to_owned());
        }
        if outcome.status == 137 {
            reasons.push(format!("not done after {} s", scenario.limit));
        } else if outcome.status != 0 && reasons.is_empty() {
            let said = outcome.text("job.out");
            let last = said.lines().last().unwrap_or("nothing");
            reasons.push(format!("the L1 script ended with status {}: {last}", outcome.status));
        }
        let strait = self.options.monitor == Monitor::Strait;
        for vm in &scenario.vms {
            reasons.extend(outcome.judge_ending(vm, strait).err());
        }
        // A guest that never ran makes every other check fail as well: say the first cause only.
        if reasons.is_empty() {
            for vm in scenario.vms.iter().filter(|vm| strait && vm.ending == Ending::Done) {
                reasons.extend(truth::check(outcome, vm).err());
            }
            let more = scenario.strait_checks.iter().filter(|_| strait);
            let checks = scenario.checks.iter().chain(more);
            reasons.extend(checks.filter_map(|check| check(outcome).err()));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// Boots the host unless it is up; answers the directory of the boot.
    fn ready(&mut self, host: &Host, logs: &Path) -> Result<PathBuf, Trouble> {
        if host.kind == HostKind::Here {
            return Ok(self.with.paths.boot(host.name));
        }
        if let Some((kind, l1)) = &self.booted
            && *kind == host.kind
        {
            return Ok(l1.run().to_path_buf());
        }
        self.booted = None;
        match L1::boot(self.with, host, Purpose::Scenarios) {
            Ok(mut l1) => {
                l1.console();
                let run = l1.run().to_path_buf();
                self.booted = Some((host.kind, l1));
                Ok(run)
            }
            Err(error) => {
                let run = self.with.paths.boot(host.name);
                for file in ["l1-console.log", "l0-qemu.log", "l0-qemu.command"] {
                    // Whatever exists of them is kept.
                    drop(fs::copy(run.join(file), logs.join(file)));
                }
                Err(Trouble::HostBroke(format!("the {} host does not boot: {error:#}", host.name)))
            }
        }
    }

    /// The whole script of a job.
    fn job_script(&self, scenario: &Scenario, host: &Host, run: &Path) -> Result<String> {
        let (share, kernels) = if host.kind == HostKind::Here {
            let kernel = self.with.kernel;
            (run.to_path_buf(), [path_word(&kernel.vmlinux), path_word(&kernel.bzimage)])
        } else {
            (PathBuf::from("/lab"), [GUEST_VMLINUX, GUEST_BZIMAGE].map(str::to_owned))
        };
        let mut script = format!("S={}/jobs/{}\n", share.display(), scenario.name);
        writeln!(script, ". {}", path_word(&share.join("lib.sh")))?;
        writeln!(script, "VMLINUX={} BZIMAGE={}", kernels[0], kernels[1])?;
        writeln!(script, "NONCE={}", self.nonce)?;
        if host.kind != HostKind::Here {
            for (from, to) in [
                (&self.with.kernel.vmlinux, GUEST_VMLINUX),
                (&self.with.kernel.bzimage, GUEST_BZIMAGE),
            ] {
                let needed = scenario
                    .vms
                    .iter()
                    .any(|vm| (vm.kernel == GuestKernel::BzImage) == (to == GUEST_BZIMAGE))
                    || (scenario.script.contains("$VMLINUX") && to == GUEST_VMLINUX)
                    || (scenario.script.contains("$BZIMAGE") && to == GUEST_BZIMAGE);
                if needed {
                    writeln!(script, "[ -e {to} ] || cp {} {to} || exit 91", path_word(from))?;
                }
            }
        }
        for device in &host.devices {
            writeln!(script, "{}={}", device.name, device.bdf)?;
        }
        for vm in &scenario.vms {
            let image = guest_image(self.with, vm)?;
            writeln!(script, "INITRAMFS_{}={}", vm.name, path_word(&image))?;
            let files = GuestFiles {
                kernel: match vm.kernel {
                    GuestKernel::Vmlinux => "$VMLINUX",
                    GuestKernel::BzImage => "$BZIMAGE",
                },
                initramfs: &image.display().to_string(),
            };
            let quiet = !self.options.verbose;
            let words = self.options.monitor.command(vm, host, &files, quiet, &self.nonce)?;
            let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
            writeln!(script, "vm_{}() {{ run_vm {} {}; }}", vm.name, vm.name, words.join(" "))?;
        }
        if scenario.script.is_empty() {
            writeln!(script, "bind {}", self.all_functions(scenario, host)?)?;
            for vm in &scenario.vms {
                writeln!(script, "vm_{}", vm.name)?;
            }
        } else {
            let all = self.all_functions(scenario, host)?;
            script.push_str(&scenario.script.replace("{all}", &all));
        }
        script.push_str("\nexit 0\n");
        Ok(script)
    }

    fn all_functions(&self, scenario: &Scenario, host: &Host) -> Result<String> {
        let mut all = Vec::new();
        for passed in scenario.vms.iter().flat_map(|vm| &vm.devices) {
            all.extend(functions(host, passed)?);
        }
        Ok(all.join(" "))
    }
}

/// Where the logs of an attempt go that another one followed.
fn kept(logs: &Path, attempt: usize) -> PathBuf {
    let name = logs.file_name().unwrap_or_default().to_string_lossy();
    logs.with_file_name(format!("{name}-attempt-{attempt}"))
}

/// The initramfs of a guest, as a path on L0, which L1 sees too.
pub(crate) fn guest_image(with: Ingredients<'_>, vm: &Vm) -> Result<PathBuf> {
    let busybox = if vm.busybox { "+busybox" } else { "" };
    let name = format!("guest-{}{busybox}.cpio", vm.modules.join("+"));
    let path = with.paths.images().join(name);
    let mut image = Initramfs::new();
    add_modules(&mut image, with.kernel, &vm.modules)?;
    image.file("init", &files::read(with.agent)?);
    if vm.busybox {
        image.file("bin/busybox", &files::read(&with.tools.busybox)?);
        for applet in ["sh", "ifconfig", "ping"] {
            image.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    image.write(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Why a scenario did not pass.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// What was expected and did not come; did everything that was started end in time all the same?
    Wrong { reasons: Vec<String>, ended: bool },
    /// L1's kernel oopsed or hangs.
    HostBroke(String),
    /// The lab could not even try.
    Other(anyhow::Error),
}

impl Trouble {
    /// Must the next scenario not meet this host?
    fn spoils_host(&self) -> bool {
        !matches!(self, Self::Wrong { ended: true, .. })
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wrong { reasons, .. } => f.write_str(&reasons.join("\n       ")),
            Self::HostBroke(how) => write!(f, "L1's own kernel broke: {how}"),
            Self::Other(error) => write!(f, "{error:#}"),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Finds the kernel's last words in a log.
pub(crate) fn oops(log: &str) -> Option<Trouble> {
    const WORDS: &[&str] = &[
        "stack guard page was hit",
        "Oops:",
        "int3: 0000",
        "kernel BUG at",
        "BUG: unable to handle",
        "Kernel panic",
        "self-detected stall",
        "detected stalls on CPUs",
        "soft lockup",
    ];
    let line = log.lines().find(|line| WORDS.iter().any(|word| line.contains(word)))?;
    Some(Trouble::HostBroke(line.trim().to_owned()))
}

/// Copies what a job left into the scenario's logs.
pub(crate) fn keep(job: &Path, logs: &Path, console: &str, run: &Path) -> Result<()> {
    for entry in fs::read_dir(job)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), logs.join(entry.file_name()))?;
        }
    }
    fs::write(logs.join("l1-console.log"), console)?;
    for file in ["l0-qemu.log", "l0-qemu.command"] {
        let from = run.join(file);
        if from.exists() {
            fs::copy(from, logs.join(file))?;
        }
    }
    Ok(())
}

/// MiB of memory that could be had without swapping.
pub(crate) fn available_mib() -> u64 {
    files::text(Path::new("/proc/meminfo"))
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

/// Refuses two scenarios of one name: their logs would mix.
pub(crate) fn check_names(scenarios: &[Scenario]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for scenario in scenarios {
        if !seen.insert(&scenario.name) {
            bail!("two scenarios are called {}", scenario.name);
        }
    }
    Ok(())
}
