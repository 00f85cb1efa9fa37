//! One run of a monitor, or of the work on the host: starts it, stamps what it says, looks at its memory.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use super::{
    delivery::{Delivered, Delivery},
    exits::{Counter, Counts},
    said::{Figure, Mark, Said},
};
use crate::phases::{self, Phase};

/// What came out of one run.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When the program was started, by the monotonic clock.
    pub(super) begin: f64,
    /// When it had ended.
    pub(super) end: f64,
    /// Marks and when they were read.
    pub(super) marks: Vec<(Mark, f64)>,
    /// Figures.
    pub(super) figures: Vec<Figure>,
    /// The distribution of latencies.
    pub(super) latency: Vec<(f64, f64)>,
    /// What was not measured.
    pub(super) notes: Vec<String>,
    /// KiB resident when nothing happened.
    pub(super) resident_kib: Option<u64>,
    /// Exits to user space until the end.
    pub(super) exits: Option<Counts>,
    /// Those between the marks of the work.
    pub(super) exits_in_work: Option<u64>,
    /// Interrupts on their way to the guest.
    pub(super) delivered: Option<Delivered>,
    /// The monitor's own phases.
    pub(super) phases: Vec<Phase>,
    /// Why it did not come to its end.
    pub(super) failed: Option<String>,
}

impl Seen {
    /// Seconds from the start to this mark.
    pub(super) fn until(&self, mark: Mark) -> Option<f64> {
        self.marks.iter().find(|(known, _)| *known == mark).map(|(_, at)| at - self.begin)
    }
}

/// Where a run leaves its files.
pub(super) struct Files<'a> {
    /// Everything it printed.
    pub(super) log: &'a Path,
    /// The monitor's phases.
    pub(super) phases: &'a Path,
}

/// What the host's kernel tells of a guest.
#[derive(Clone, Copy, Default)]
pub(super) struct Meters<'a> {
    /// Exits.
    pub(super) exits: Option<&'a Counter>,
    /// Interrupts.
    pub(super) interrupts: Option<&'a Delivery>,
}

/// Runs it to its end, or for so long.
pub(super) fn run(
    mut command: Command,
    files: &Files<'_>,
    meters: Meters<'_>,
    limit: Duration,
) -> io::Result<Seen> {
    let errors = files.log.with_extension("err");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
    let before = meters.exits.map(Counter::counts).transpose()?;
    let mut seen = Seen { begin: phases::now(), ..Seen::default() };
    let mut child = command.spawn()?;
    let ended = follow(&mut child, files, meters, limit, &mut seen);
    if ended.is_err() || seen.failed.is_some() {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    let status = child.wait()?;
    seen.end = phases::now();
    ended?;
    if let Some((counter, before)) = meters.exits.zip(before) {
        seen.exits = Some(difference(&counter.counts()?, &before));
    }
    if seen.failed.is_none() && seen.until(Mark::Done).is_none() {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let line = said.lines().find(|line| line.contains("rror")).or(said.lines().next());
        seen.failed = Some(format!("ended with {status}: {}", line.unwrap_or("it said nothing")));
    }
    seen.phases = phases::read(files.phases);
    Ok(seen)
}

fn follow(
    child: &mut Child,
    files: &Files<'_>,
    meters: Meters<'_>,
    limit: Duration,
    seen: &mut Seen,
) -> io::Result<()> {
    let Meters { exits: counter, interrupts } = meters;
    let output = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            // The stamp is taken here, whatever the other side is doing.
            if sender.send((phases::now(), std::mem::take(&mut line))).is_err() {
                break;
            }
        }
    });
    let mut log = File::create(files.log)?;
    let end = Instant::now() + limit;
    let mut samples: Option<Vec<(f64, u64)>> = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait = if samples.is_some() { left.min(SAMPLE) } else { left };
        let (at, line) = match lines.recv_timeout(wait) {
            Ok(stamped) => stamped,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if left > wait => {
                if let Some((samples, counter)) = samples.as_mut().zip(counter) {
                    samples.push((phases::now(), counter.counts()?.values().sum()));
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                seen.failed = Some(format!("not done after {} s", limit.as_secs()));
                return Ok(());
            }
        };
        io::Write::write_all(&mut log, &line)?;
        let Some(said) = Said::read(&String::from_utf8_lossy(&line)) else { continue };
        match said {
            Said::Mark(mark) => {
                seen.marks.push((mark, at));
                match mark {
                    Mark::WorkBegin => samples = counter.map(|_| Vec::new()),
                    Mark::WorkEnd => {
                        seen.exits_in_work = in_work(&samples.take().unwrap_or_default(), at)
                    }
                    Mark::InterruptsBegin => {
                        interrupts.map(|delivery| delivery.record(true)).transpose()?;
                    }
                    Mark::InterruptsEnd => {
                        interrupts.map(|delivery| delivery.record(false)).transpose()?;
                        seen.delivered = interrupts.map(Delivery::delivered).transpose()?;
                    }
                    Mark::Settled => seen.resident_kib = resident_kib(child.id()),
                    _ => {}
                }
            }
            Said::Figure(figure) => seen.figures.push(figure),
            Said::Latency(points) => seen.latency = points,
            Said::Note(note) => seen.notes.push(note),
            Said::Failed(why) => seen.failed = Some(why),
        }
    }
}

/// How often exits are summed up during the work.
const SAMPLE: Duration = Duration::from_millis(100);

/// Exits from the first sample in the silence before the work to the last in the silence after it, which lasts longer than
/// this: the exits of the line that ends it are not counted.
fn in_work(samples: &[(f64, u64)], end: f64) -> Option<u64> {
    const SILENCE: f64 = 0.15;
    let (_, first) = samples.first()?;
    let (_, last) = samples.iter().rfind(|(at, _)| *at <= end - SILENCE)?;
    Some(last - first)
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn difference(now: &Counts, before: &Counts) -> Counts {
    let grown = now
        .iter()
        .map(|(reason, count)| (reason.clone(), count - before.get(reason).unwrap_or(&0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Seen {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let (log, phases) = (directory.path().join("log"), directory.path().join("phases"));
        run(
            command,
            &Files { log: &log, phases: &phases },
            Meters::default(),
            Duration::from_secs(2),
        )
        .unwrap()
    }

    #[test]
    fn marks_and_figures_are_taken_from_between_other_lines() {
        let seen = shell(
            "echo Linux; echo 'STRAIT-BENCH {\"mark\":\"up\"}'; sleep 0.2; \
             echo 'STRAIT-BENCH {\"note\":\"n\"}'; echo 'STRAIT-BENCH {\"mark\":\"done\"}'",
        );
        assert_eq!(seen.failed, None);
        let (up, done) = (seen.until(Mark::Up).unwrap(), seen.until(Mark::Done).unwrap());
        assert!(done - up > 0.15 && done - up < 1.5, "{up} {done}");
        assert_eq!(seen.notes, ["n"]);
    }

    #[test]
    fn program_that_ends_early_or_never_is_told_with_its_words() {
        let seen = shell("echo 'error[E1102]: held' >&2; exit 4");
        let failed = seen.failed.unwrap();
        assert!(failed.contains("4") && failed.contains("error[E1102]: held"), "{failed}");
        let seen = shell("exec sleep 60");
        assert_eq!(seen.failed.as_deref(), Some("not done after 2 s"));
    }

    #[test]
    fn exits_of_the_last_line_are_not_counted_as_work() {
        let samples = [(1.1, 100), (1.5, 103), (2.0, 104), (2.4, 190)];
        assert_eq!(in_work(&samples, 2.41), Some(4));
        assert_eq!(in_work(&[], 2.0), None);
    }

    #[test]
    fn counts_are_those_of_this_run_only() {
        let counts = |list: &[(&str, u64)]| -> Counts {
            list.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
        };
        let now = counts(&[("MMIO", 10), ("port I/O", 5)]);
        let before = counts(&[("MMIO", 4), ("port I/O", 5)]);
        assert_eq!(difference(&now, &before), counts(&[("MMIO", 6)]));
    }
}
