//! Runs cases: one boot of L1 for all cases of a host, contenders interleaved in every round.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    cases::Case,
    contender::Contender,
    facts::{Figures, figures},
    tiny,
};
use crate::{
    files,
    hosts::{Clock, Host, HostKind},
    l1::{Ingredients, L1},
    monitor::{GuestFiles, functions, path_word, quoted},
    paths::Paths,
    progress::say,
    qemu::Purpose,
    runner::{GUEST_VMLINUX, available_mib, guest_image, keep, oops},
};

/// A host that breaks by itself, or a run disturbed by it, is tried this often.
const ATTEMPTS: u32 = 4;

/// One run of one contender.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Which case.
    pub case: &'static str,
    /// Who.
    pub contender: String,
    /// From 0.
    pub round: u32,
    /// The words that L1 ran.
    pub command: String,
    /// What came out.
    pub figures: Figures,
}

/// Boots hosts and runs cases on them.
pub(crate) struct Bench<'a> {
    with: Ingredients<'a>,
    contenders: Vec<Contender>,
    strait_help: String,
    booted: Option<(HostKind, L1)>,
}

impl<'a> Bench<'a> {
    /// With these contenders.
    pub(crate) fn new(with: Ingredients<'a>, contenders: Vec<Contender>) -> Result<Self> {
        let strait = with.strait.context("strait is not built")?;
        let help = std::process::Command::new(strait).args(["run", "--help"]).output()?;
        let strait_help = String::from_utf8_lossy(&help.stdout).into_owned();
        files::write_whole(&Self::tiny(with.paths), &tiny::kernel())?;
        Ok(Self { with, contenders, strait_help, booted: None })
    }

    fn tiny(paths: &Paths) -> PathBuf {
        paths.images().join("tiny-kernel")
    }

    /// Runs these cases so many times.
    pub(crate) fn run(&mut self, cases: &[Case], rounds: u32) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        let mut hosts: Vec<HostKind> = cases.iter().map(|case| case.host).collect();
        hosts.sort_unstable();
        hosts.dedup();
        for kind in hosts {
            let host = Host::of(kind);
            let available = available_mib();
            if available < host.memory_mib {
                say(format!(
                    "the {} host needs {} MiB, this machine has {available}: its cases are left out",
                    host.name, host.memory_mib
                ));
                continue;
            }
            // Rounds outside, cases inside: what drifts on the machine drifts over all of them.
            for round in 0..rounds {
                for case in cases.iter().filter(|case| case.host == kind) {
                    // Counted instructions hardly differ from run to run.
                    if round == 0 || kind != HostKind::Counted {
                        runs.extend(self.with_attempts(case, &host, round)?);
                    }
                }
            }
            self.booted = None;
        }
        Ok(runs)
    }

    fn with_attempts(&mut self, case: &Case, host: &Host, round: u32) -> Result<Vec<Run>> {
        let mut attempt = 1;
        loop {
            match self.one(case, host, round) {
                Ok(runs) => return Ok(runs),
                Err(error) if attempt < ATTEMPTS => {
                    say(format!("{}: {error:#}\n       once more, on a fresh boot", case.name));
                    self.booted = None;
                    attempt += 1;
                }
                Err(error) => return Err(error.context(case.name)),
            }
        }
    }

    /// One round of one case, every contender after the other.
    fn one(&mut self, case: &Case, host: &Host, round: u32) -> Result<Vec<Run>> {
        let logs = self.with.paths.logs(&format!("bench-{}-{round}", case.name));
        files::fresh_directory(&logs)?;
        let warm = self.boot(host)?;
        let (commands, script) = self.script(case, host, round, warm)?;
        let (_, l1) = self.booted.as_mut().context("no L1")?;
        let run = l1.run().to_path_buf();
        let name = format!("bench-{}", case.name);
        let job = run.join("jobs").join(&name);
        files::fresh_directory(&job)?;
        fs::write(job.join("job.sh"), script)?;
        let limit = Duration::from_secs(if host.clock == Clock::Instructions { 900 } else { 400 });
        let ended = l1.job(&name, limit);
        let console = match &ended {
            Ok(ended) => ended.console.clone(),
            Err(_) => l1.console(),
        };
        keep(&job, &logs, &console, &run)?;
        if let Some(trouble) =
            oops(&console).or_else(|| oops(&files::text(&job.join("l1-dmesg.txt"))))
        {
            bail!("{trouble}");
        }
        let ended = ended?;
        let said = files::text(&job.join("job.out"));
        let shown = Paths::shown(&logs);
        ensure!(
            ended.status == 0,
            "the script ended with {}: {}\nlogs: {shown}",
            ended.status,
            said.trim()
        );
        let fail = said.lines().find(|line| line.starts_with("FAIL"));
        ensure!(fail.is_none(), "{}\nlogs: {shown}", fail.unwrap_or_default());
        let mut runs = Vec::new();
        for (contender, command) in commands {
            let file =
                |suffix: &str| files::text(&job.join(format!("{}.{suffix}", contender.name())));
            let figures = figures(&file("times"), &file("exits"), case.vm.memory_mib);
            let status = file("rc");
            let killed =
                case.watch.iter().any(|word| word == "until") && figures.contains_key("init");
            if status.trim() != "0" && !killed {
                let name = contender.name();
                let error = file("err");
                let first = error.lines().next().unwrap_or("nothing on stderr");
                // Another monitor that cannot do a case is a result, not a mistake of the lab's.
                if matches!(contender, Contender::Other { .. }) {
                    say(format!("{}: {name} ends with {}: {first}", case.name, status.trim()));
                    continue;
                }
                bail!("{name} ended with {}: {first}\nlogs: {shown}", status.trim());
            }
            say(format!("{:<12} {:<8} {}", case.name, contender.name(), shown_figures(&figures)));
            runs.push(Run {
                case: case.name,
                contender: contender.name().to_owned(),
                round,
                command,
                figures,
            });
        }
        Ok(runs)
    }

    /// Boots this host unless it is up; is it fresh?
    fn boot(&mut self, host: &Host) -> Result<bool> {
        if self.booted.as_ref().is_some_and(|(kind, _)| *kind == host.kind) {
            return Ok(false);
        }
        self.booted = None;
        let mut l1 = L1::boot(self.with, host, Purpose::Figures)?;
        l1.console();
        self.booted = Some((host.kind, l1));
        Ok(true)
    }

    /// Who runs, and the job's script.
    fn script(
        &self,
        case: &Case,
        host: &Host,
        round: u32,
        warm: bool,
    ) -> Result<(Vec<(Contender, String)>, String)> {
        let image = guest_image(self.with, &case.vm)?;
        let tiny = Self::tiny(self.with.paths).display().to_string();
        let kernel = if case.tiny { "/run/lab/tiny" } else { GUEST_VMLINUX };
        let files = GuestFiles { kernel, initramfs: "/run/lab/initramfs" };
        let mut script = format!("S=/lab/jobs/bench-{}\n. /lab/lib.sh\n", case.name);
        for (from, to) in [
            (path_word(&self.with.kernel.vmlinux), GUEST_VMLINUX),
            (quoted(&tiny), "/run/lab/tiny"),
        ] {
            writeln!(script, "[ -e {to} ] || cp {from} {to} || exit 91")?;
        }
        writeln!(script, "cp {} {} || exit 91", path_word(&image), files.initramfs)?;
        for device in &host.devices {
            writeln!(script, "{}={}", device.name, device.bdf)?;
        }
        let mut functions_passed = Vec::new();
        for passed in &case.vm.devices {
            functions_passed.extend(functions(host, passed)?);
        }
        if warm {
            script.push_str(WARM_UP);
        }
        // The order turns with the rounds: nobody always comes after the same neighbour.
        let mut order: Vec<&Contender> = self.contenders.iter().collect();
        let turn = round as usize % order.len();
        order.rotate_left(turn);
        let mut commands = Vec::new();
        for contender in order {
            if case.slow && round > 0 && *contender != Contender::Strait {
                continue;
            }
            let Some(words) = contender.command(case, host, &files, &self.strait_help)? else {
                continue;
            };
            script.push_str(&step(case, contender, &functions_passed, &words)?);
            commands.push((contender.clone(), words.join(" ")));
        }
        script.push_str("exit 0\n");
        Ok((commands, script))
    }
}

/// Pulls the programs into L1's page cache: they come over 9p.
const WARM_UP: &str = "\
strait --version >/dev/null
qemu-system-x86_64 --version >/dev/null
timeout -s KILL 20 qemu-system-x86_64 -M q35 -accel kvm -display none -nodefaults -no-user-config -serial stdio -m 64M \
-kernel /run/lab/tiny </dev/null 2>/dev/null | head -n 1 >/dev/null &
warm=$!
sleep 4
killall -q qemu-system-x86_64
wait $warm
";

/// Clears what the guest before this one has left: an emulator that has translated code from a page is dozens of times
/// slower to write to it, byte by byte, and whoever came next would pay for it. No host does that.
fn scrub(case: &Case) -> String {
    format!("agent do scrub,{} || exit 93\n", case.vm.memory_mib + 512)
}

/// One contender's part of a job.
fn step(case: &Case, contender: &Contender, passed: &[String], words: &[String]) -> Result<String> {
    let mut script = String::new();
    let bdfs = passed.join(" ");
    let by_itself =
        *contender == Contender::Bare || (case.managed && *contender == Contender::Strait);
    if !passed.is_empty() {
        writeln!(script, "{} {bdfs}", if by_itself { "give_back" } else { "bind" })?;
    }
    if case.hugetlb {
        let pages = case.vm.memory_mib / 2;
        writeln!(
            script,
            "echo 1 >/proc/sys/vm/compact_memory; echo {pages} >/proc/sys/vm/nr_hugepages\n\
             [ $(cat /proc/sys/vm/nr_hugepages) = {pages} ] || {{ echo FAIL: no {pages} huge pages; exit 92; }}"
        )?;
    }
    // Pages of the pool are cleared when it gets them.
    if !case.hugetlb && *contender != Contender::Bare {
        script.push_str(&scrub(case));
    }
    let mut watch: Vec<String> =
        if *contender == Contender::Bare { Vec::new() } else { case.watch.clone() };
    if case.managed {
        watch.extend(["driver", &passed[0], "nvme"].map(str::to_owned));
        if *contender != Contender::Strait {
            watch.extend(["after".to_owned(), format!(". /lab/lib.sh; give_back {bdfs}")]);
        }
    }
    let all =
        watch.iter().map(String::as_str).chain(["--"]).chain(words.iter().map(String::as_str));
    let all: Vec<String> = all.map(quoted).collect();
    let name = contender.name();
    writeln!(
        script,
        "agent stopwatch $J/{name} {} || echo \"FAIL: {name} was not timed\"",
        all.join(" ")
    )?;
    if case.hugetlb {
        script.push_str("echo 0 >/proc/sys/vm/nr_hugepages\n");
    }
    Ok(script)
}

fn shown_figures(figures: &Figures) -> String {
    let shown: Vec<String> = figures
        .iter()
        .map(|(name, value)| format!("{name} {}", super::table::number(*value)))
        .collect();
    shown.join(", ")
}

/// What L1's QEMU says of itself.
pub(crate) fn version(program: &Path) -> String {
    let output = std::process::Command::new(program).arg("--version").output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
