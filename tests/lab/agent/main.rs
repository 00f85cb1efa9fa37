//! The agent: /init of L2. Loads the modules its initramfs brings, does the steps that the kernel command line
//! names (`lab.steps=nvme-verify,0,word;net`), reports as `LAB key=value` on the console, and powers off. On L1 it does
//! such steps too (`agent do STEPS`), for what a guest is compared with, times programs (`agent stopwatch`), and keeps
//! KVM switched on (`agent hold-vm`).

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the agent runs in x86-64 guests");

mod acpi;
mod bars;
mod cpu;
mod display;
mod dmi;
mod edu;
mod hostile;
mod irqs;
mod memory;
mod net;
mod nvme;
mod pci;
mod raw;
mod serial;
mod stopwatch;
#[path = "../bench/tiny.rs"]
mod tiny;
mod words;

use std::{fs, process::ExitCode, thread::sleep, time::Duration};

use anyhow::{Context, Result, bail};

pub(crate) use crate::words::{pattern, sum};

/// What of the kernel log is a complaint about the machine.
const COMPLAINTS: &[&str] = &[
    "Firmware Bug",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "can't claim",
    "no compatible bridge window",
    "failed to assign",
    "can't assign",
    "no space for",
    "nobody cared",
    "WARNING: CPU",
    "kernel BUG",
    "soft lockup",
    "rcu_sched self-detected",
    "DMAR: DRHD",
    "timed out",
];

/// Tells the lab something.
pub(crate) fn report(key: &str, value: impl std::fmt::Display) {
    println!("LAB {key}={value}");
}

/// A step's arguments, taken one by one.
pub(crate) struct Arguments<'a>(std::str::Split<'a, char>);

impl<'a> Arguments<'a> {
    /// The next word.
    pub(crate) fn word(&mut self) -> Result<&'a str> {
        self.0.next().context("an argument is missing")
    }

    /// The next word as a number.
    pub(crate) fn number(&mut self) -> Result<u64> {
        let word = self.word()?;
        word.parse().with_context(|| format!("{word} is not a number"))
    }

    /// The next word as a small number.
    pub(crate) fn index(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.number()?)?)
    }
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        return on_host();
    }
    match init() {
        Ok(()) => report("steps", "done"),
        Err(error) => {
            report("fail", format!("{error:#}").replace('\n', " "));
            last_of_log(25);
        }
    }
    complaints();
    raw::end(false)
}

fn write_tiny(file: &str) -> Result<()> {
    fs::write(file, tiny::kernel()).with_context(|| format!("cannot write {file}"))
}

/// Keeps one VM without vCPUs for as long as L1 runs. KVM switches SVM on in every CPU with the first VM and off with
/// the last one, by an interrupt that every CPU must answer; now and then QEMU's TCG loses that answer, and L1 stands
/// still. While one VM stays, the VMs of the scenarios are neither first nor last.
fn hold_vm() -> Result<()> {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let _vm = raw::create_vm(&kvm)?;
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// As an ordinary program on L1.
fn on_host() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((verb, rest)) if verb == "stopwatch" => stopwatch::run(rest),
        Some((verb, [file])) if verb == "tiny-kernel" => write_tiny(file),
        Some((verb, [])) if verb == "hold-vm" => hold_vm(),
        Some((verb, rest)) if verb == "do" => rest.iter().try_for_each(|steps| do_steps(steps)),
        _ => Err(anyhow::anyhow!("runs as /init of a guest of the lab, or on L1: agent do STEPS")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        raw::mount(kind, at)?;
    }
    raw::quiet_console();
    report("up", read("/proc/uptime")?.split(' ').next().unwrap_or_default());
    for name in fs::read_to_string("/modules/order").unwrap_or_default().lines() {
        let image = fs::read(format!("/modules/{name}.ko"))?;
        raw::load_module(&image).with_context(|| format!("cannot load {name}"))?;
    }
    let cmdline = read("/proc/cmdline")?;
    let steps = cmdline.split_whitespace().find_map(|word| word.strip_prefix("lab.steps="));
    do_steps(steps.unwrap_or_default())
}

fn do_steps(steps: &str) -> Result<()> {
    for step in steps.split(';').filter(|step| !step.is_empty()) {
        do_step(step).with_context(|| format!("step {step}"))?;
    }
    Ok(())
}

fn do_step(step: &str) -> Result<()> {
    let mut words = Arguments(step.split(','));
    let name = words.word()?;
    match name {
        "pci" => pci::show(),
        "config" => pci::config(&mut words),
        "config-hidden" => pci::hidden(&mut words),
        "reset" => pci::reset(&mut words),
        "rescan" => pci::remove_and_rescan(&mut words),
        "rom" => pci::rom(&mut words),
        "cpu" => cpu::show(),
        "memory" => memory::show(),
        "scrub" => memory::scrub(&mut words),
        "irqs" => irqs::show(),
        "irq-move" => irqs::follow_affinity(&mut words),
        "nvme-verify" => nvme::verify(&mut words),
        "nvme-reads" => nvme::reads(&mut words),
        "nvme-bench" => nvme::bench(&mut words),
        "nvme-reboots" => nvme::reboots(&mut words),
        "edu" => edu::check(&mut words),
        "edu-all" => edu::check_all(&mut words),
        "edu-msi" => edu::msi(&mut words),
        "edu-intx" => edu::intx(&mut words),
        "edu-master" => edu::master(&mut words),
        "edu-master-reboot" => edu::master_then_reboot(&mut words),
        "edu-p2p" => edu::peer(&mut words),
        "ivshmem" => memory::shared(&mut words),
        "ping" => net::ping(&mut words),
        "draw" => display::draw(&mut words),
        "serial" => serial::write(&mut words),
        "move-edu" => bars::move_edu(&mut words),
        "swap-edus" => bars::swap_edus(&mut words),
        "move-nvme" => bars::move_nvme(&mut words),
        "hostile" => hostile::hostile(&mut words),
        "acpi" => acpi::dump(),
        "acpi-devices" => acpi::devices(),
        "mark" => {
            report("mark", words.word()?);
            Ok(())
        }
        "sleep" => {
            sleep(Duration::from_secs(words.number()?));
            Ok(())
        }
        "dmi" => dmi::show(),
        "reboot" => raw::end(true),
        _ => bail!("unknown step"),
    }
}

/// A text file of the kernel's, without the line's end.
pub(crate) fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim_end().to_owned())
}

/// Writes to a file of the kernel's.
pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// Tries until it works, for at most so many seconds.
pub(crate) fn wait_for<T>(
    what: &str,
    seconds: u64,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T> {
    for _ in 0..seconds * 50 {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        sleep(Duration::from_millis(20));
    }
    bail!("{what} did not come within {seconds} s")
}

/// Complaints that the host causes, whatever the monitor does: TCG's CPU offers XSAVE features whose sizes do not add up.
const OF_HOST: &[&str] = &["fpu__init_system_xstate"];

fn complaints() {
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    let log = raw::kernel_log();
    let bad = log.lines().filter(|line| has(line, COMPLAINTS) && !has(line, OF_HOST));
    for line in bad.take(20) {
        report("dmesg.complaint", line);
    }
}

fn last_of_log(count: usize) {
    let log = raw::kernel_log();
    let lines: Vec<&str> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(count)..] {
        report("dmesg.last", line);
    }
}
