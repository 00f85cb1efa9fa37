//! `agent stopwatch`: starts a program in L1, stamps every line of its output with L1's clock, and takes the host's own
//! evidence of what it did: the first entry into a guest, each range mapped for DMA, exits to user space, the guest's
//! power-off, memory, the device back on its driver.
//!
//! What it saw goes to a file, a fact a line: `KIND SECONDS [REST]`, by the monotonic clock.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{raw, read};

const TRACING: &str = "/sys/kernel/tracing";
/// Counts exits to user space by reason.
const EXITS: &str = "/sys/kernel/tracing/events/kvm/kvm_userspace_exit";
/// Counts all exits.
const ALL_EXITS: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";

/// What to do besides stamping.
#[derive(Default)]
struct Options {
    /// Kill the program when its output has this.
    until: Option<String>,
    /// Look at its memory when its output has this.
    memory_at: Option<String>,
    /// After its end, wait until this function has this driver.
    driver: Option<(String, String)>,
    /// After its end and before that wait, run this with the shell.
    after: Option<String>,
    /// Count exits.
    exits: bool,
    /// Note the first guest entry and DMA mappings.
    trace: bool,
}

/// The facts, one a line.
#[derive(Clone)]
struct Facts(Arc<Mutex<File>>);

impl Facts {
    fn add(&self, kind: &str, at: f64, rest: &str) -> Result<()> {
        let mut file = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        writeln!(file, "{kind} {at:.6} {rest}").context("cannot write the facts")
    }
}

/// `agent stopwatch OUT [OPTION...] -- COMMAND...`
pub(crate) fn run(words: &[String]) -> Result<()> {
    let split = words.iter().position(|word| word == "--").context("no --")?;
    let (mine, command) = (&words[..split], &words[split + 1..]);
    let (out, mine) = mine.split_first().context("no name for the output")?;
    let options = Options::parse(mine)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let file = |suffix: &str| PathBuf::from(format!("{out}.{suffix}"));
    let facts = Facts(Arc::new(Mutex::new(File::create(file("times"))?)));
    let trace = if options.trace { Some(Trace::arm()?) } else { None };
    let counter = if options.exits { Some(Counter::arm(&facts)?) } else { None };

    let back = options.driver.is_some().then(Back::arm).transpose()?;

    let begin = raw::monotonic();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(file("err"))?)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    facts.add("begin", begin, "")?;
    fs::write(file("pid"), child.id().to_string())?;
    let mut watcher = None;
    let watched = watch(&mut child, &file("serial"), &options, &facts, &mut watcher);
    if watched.is_err() {
        // It may have ended by itself meanwhile.
        drop(child.kill());
    }
    let status = child.wait()?;
    facts.add("end", raw::monotonic(), "")?;
    let [user, system] = raw::children_seconds()?;
    facts.add("cpu", user + system, &format!("{user:.3} user {system:.3} system"))?;
    watched?;
    if let Some((_, driver)) = &options.driver {
        if let Some(script) = &options.after {
            let done = Command::new("sh").args(["-c", script]).status()?;
            if !done.success() {
                bail!("{script}: {done}");
            }
        }
        let seen =
            watcher.map(|watcher| watcher.join()).context("the guest never said its last word")?;
        let at = seen.map_err(|_| anyhow::anyhow!("the watcher died"))??;
        facts.add("driver", at, driver)?;
    }
    if let Some(back) = back {
        back.report(&facts)?;
    }
    if let Some(counter) = counter {
        counter.stop(&file("exits"))?;
    }
    if let Some(trace) = trace {
        trace.report(&facts)?;
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    fs::write(file("rc"), format!("{code}\n"))?;
    Ok(())
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().cloned().with_context(|| format!("{word} lacks its value"));
            match word.as_str() {
                "until" => options.until = Some(value()?),
                "memory-at" => options.memory_at = Some(value()?),
                "driver" => options.driver = Some((value()?, value()?)),
                "after" => options.after = Some(value()?),
                "exits" => options.exits = true,
                "trace" => options.trace = true,
                _ => bail!("unknown option {word}"),
            }
        }
        Ok(options)
    }
}

/// Reads the program's output to its end. A line's stamp is that of its last byte, taken before anything else is done.
/// The guest's last word starts a thread that sees the driver come.
fn watch(
    child: &mut Child,
    serial: &Path,
    options: &Options,
    facts: &Facts,
    watcher: &mut Option<thread::JoinHandle<Result<f64>>>,
) -> Result<()> {
    let mut output = BufReader::new(child.stdout.take().context("no pipe")?);
    let mut log = File::create(serial)?;
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        let at = raw::monotonic();
        log.write_all(&line)?;
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if text.contains("LAB ") {
            facts.add("line", at, &text)?;
        }
        let has = |word: &Option<String>| word.as_ref().is_some_and(|word| text.contains(word));
        if let Some((bdf, driver)) =
            options.driver.clone().filter(|_| text.contains("LAB steps=done"))
        {
            *watcher = Some(thread::spawn(move || wait_for_driver(&bdf, &driver)));
        }
        if has(&options.memory_at) {
            facts.add("memory", at, &memory_kib(child.id())?)?;
        }
        if has(&options.until) {
            child.kill()?;
        }
    }
    Ok(())
}

/// Resident KiB as the kernel counts them, and how many of them are the program's own share.
fn memory_kib(pid: u32) -> Result<String> {
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
    let field = |key: &str| -> Option<u64> {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(key))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let rss = field("Rss:").context("no Rss")?;
    Ok(format!("{rss} {}", field("Pss:").context("no Pss")?))
}

/// When the function had this driver.
fn wait_for_driver(bdf: &str, driver: &str) -> Result<f64> {
    let link = format!("/sys/bus/pci/devices/{bdf}/driver");
    for _ in 0..30_000 {
        if fs::read_link(&link).is_ok_and(|to| to.ends_with(driver)) {
            return Ok(raw::monotonic());
        }
        sleep(Duration::from_millis(1));
    }
    bail!("{bdf} does not come back to {driver}")
}

/// Histograms of exits, and a thread that notes the running sum.
struct Counter {
    stop: Arc<AtomicBool>,
    sampler: thread::JoinHandle<Result<()>>,
}

impl Counter {
    fn arm(facts: &Facts) -> Result<Self> {
        for (event, key) in [(EXITS, "reason"), (ALL_EXITS, "exit_reason")] {
            fs::write(format!("{event}/trigger"), format!("hist:keys={key}"))
                .with_context(|| format!("cannot count {event}"))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, facts) = (Arc::clone(&stop), facts.clone());
        let sampler = thread::spawn(move || -> Result<()> {
            while !flag.load(Ordering::Relaxed) {
                let at = raw::monotonic();
                let sum: u64 = counts(EXITS)?.iter().map(|(_, count)| count).sum();
                facts.add("exits", at, &sum.to_string())?;
                sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        Ok(Self { stop, sampler })
    }

    /// Writes the counts by reason and lets the histograms go.
    fn stop(self, to: &Path) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.sampler.join().map_err(|_| anyhow::anyhow!("the sampler died"))??;
        let mut file = File::create(to)?;
        for (name, event) in [("user", EXITS), ("all", ALL_EXITS)] {
            for (reason, count) in counts(event)? {
                writeln!(file, "{name} {count} {reason}")?;
            }
        }
        for (event, key) in [(EXITS, "reason"), (ALL_EXITS, "exit_reason")] {
            fs::write(format!("{event}/trigger"), format!("!hist:keys={key}"))?;
        }
        Ok(())
    }
}

/// `{ reason: 2 } hitcount: 17`, line by line.
fn counts(event: &str) -> Result<Vec<(String, u64)>> {
    let text = read(&format!("{event}/hist"))?;
    let counted = text.lines().filter_map(|line| {
        let (key, count) = line.split_once("hitcount:")?;
        let key = key.trim_matches(|c: char| c == '{' || c == '}' || c.is_whitespace());
        let reason = key.split_once(':')?.1.trim().trim_end_matches('}').trim();
        Some((reason.to_owned(), count.trim().parse().ok()?))
    });
    Ok(counted.collect())
}

/// A buffer of the kernel's tracer with what the guest does to I/O ports: the last write is the power-off. Linux reads on
/// afterwards, waiting for its end.
struct Back;

const LAST: &str = "/sys/kernel/tracing/instances/lab-last";

impl Back {
    fn arm() -> Result<Self> {
        if !Path::new(LAST).exists() {
            fs::create_dir(LAST).context("no instances in tracefs")?;
        }
        fs::write(format!("{LAST}/trace_clock"), "mono")?;
        fs::write(format!("{LAST}/trace"), "")?;
        fs::write(format!("{LAST}/events/kvm/kvm_pio/enable"), "1")?;
        fs::write(format!("{LAST}/tracing_on"), "1")?;
        Ok(Self)
    }

    fn report(self, facts: &Facts) -> Result<()> {
        fs::write(format!("{LAST}/tracing_on"), "0")?;
        fs::write(format!("{LAST}/events/kvm/kvm_pio/enable"), "0")?;
        let trace = read(&format!("{LAST}/trace"))?;
        let last = trace.lines().filter_map(event).rfind(|(.., text)| text.contains("pio_write"));
        let (_, at, _) = last.context("no write to a port")?;
        facts.add("power-off", at, "")
    }
}

/// Two buffers of the kernel's tracer: one stops itself at the first guest entry, the other has the DMA mappings.
struct Trace;

const FIRST: &str = "/sys/kernel/tracing/instances/lab-first";
const MAPS: &str = "/sys/kernel/tracing/instances/lab-maps";
/// VFIO_IOMMU_MAP_DMA with the size in its argument, and the call's end.
const PROBES: &str = "p:lab/map vfio_iommu_type1:vfio_iommu_type1_ioctl cmd=%si:u32 size=+u24(%dx):u64\n\
                      r:lab/mapped vfio_iommu_type1:vfio_iommu_type1_ioctl\n";
const MAP_DMA: u32 = 0x3b71;

impl Trace {
    fn arm() -> Result<Self> {
        for instance in [FIRST, MAPS] {
            // From a run that was killed.
            if !Path::new(instance).exists() {
                fs::create_dir(instance).context("no instances in tracefs")?;
            }
            fs::write(format!("{instance}/trace_clock"), "mono")?;
            fs::write(format!("{instance}/trace"), "")?;
        }
        let entry = format!("{FIRST}/events/kvm/kvm_entry");
        if !fs::read_to_string(format!("{entry}/trigger"))?.contains("traceoff") {
            fs::write(format!("{entry}/trigger"), "traceoff")
                .context("kvm_entry has no traceoff")?;
        }
        fs::write(format!("{entry}/enable"), "1")?;
        if !Path::new(TRACING).join("events/lab").exists() {
            fs::write(Path::new(TRACING).join("kprobe_events"), PROBES)
                .context("no kprobe events")?;
        }
        fs::write(format!("{MAPS}/events/lab/enable"), "1")?;
        for instance in [FIRST, MAPS] {
            fs::write(format!("{instance}/tracing_on"), "1")?;
        }
        Ok(Self)
    }

    fn report(self, facts: &Facts) -> Result<()> {
        for instance in [FIRST, MAPS] {
            fs::write(format!("{instance}/tracing_on"), "0")?;
        }
        fs::write(format!("{MAPS}/events/lab/enable"), "0")?;
        fs::write(format!("{FIRST}/events/kvm/kvm_entry/enable"), "0")?;
        let first = read(&format!("{FIRST}/trace"))?;
        if let Some((_, at, _)) = first.lines().find_map(event) {
            facts.add("entry", at, "")?;
        }
        // A call's return is the next one of the same thread.
        let mut open: Vec<(String, u64)> = Vec::new();
        for (task, at, text) in read(&format!("{MAPS}/trace"))?.lines().filter_map(event) {
            if text.starts_with("map:") {
                let number = |key: &str| {
                    text.split_whitespace().find_map(|w| w.strip_prefix(key)?.parse::<u64>().ok())
                };
                if number("cmd=") == Some(u64::from(MAP_DMA)) {
                    let size = number("size=").with_context(|| format!("no size: {text}"))?;
                    facts.add("map", at, &size.to_string())?;
                    open.push((task.to_owned(), size));
                }
            } else if let Some(n) = open.iter().position(|(known, _)| known == task) {
                let (_, size) = open.remove(n);
                facts.add("mapped", at, &size.to_string())?;
            }
        }
        Ok(())
    }
}

/// `  strait-123  [000] d..1.  12.345678: kvm_entry: vcpu 0`: task, time, the rest.
fn event(line: &str) -> Option<(&str, f64, &str)> {
    let (head, rest) = line.split_once(": ")?;
    let task = head.split_whitespace().next().filter(|word| *word != "#")?;
    let at = head.split_whitespace().last()?.parse().ok()?;
    Some((task, at, rest.trim()))
}
