//! `cargo lab fuzz`: libFuzzer over the targets of tests/fuzz, two at a time. What it finds on its way stays in
//! `target/lab/fuzz/TARGET`, so that the next run goes on from there; it begins with the inputs kept in the tree.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    builds::{self, cargo},
    fetch, files,
    paths::Paths,
    progress::Progress,
    report::{Report, Verdict},
};

/// How the names of these tests begin in `cargo lab test`.
const PREFIX: &str = "fuzz-";
/// Where the targets and their kept inputs are, from the workspace root.
const CRATE: &str = "tests/fuzz";
/// Coverage counters and comparisons for libFuzzer, checks of a debug build, and no sanitizer: that needs another compiler.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on -Coverflow-checks=on";
/// What `cargo lab test` gives to one target, and to all of them together; they are fuzzed two at a time.
const EACH: Duration = Duration::from_secs(60);
const ALL: Duration = Duration::from_secs(8 * 60);
/// Seconds that one input may take, many times what the slowest good one does on a busy machine.
const SLOWEST: u32 = 20;
/// MiB that one process of the fuzzer may have.
const MEMORY_MIB: u32 = 3072;

/// What to fuzz for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these targets; without any, all of them one after the other.
    target: Vec<String>,
    /// Minutes for each.
    #[arg(long, default_value_t = 1)]
    minutes: u32,
    /// Say what there is, run nothing.
    #[arg(long)]
    list: bool,
}

/// Lists them, or runs those that are named.
pub(crate) fn run(paths: &Paths, arguments: &Arguments) -> Result<bool> {
    let known = names(paths)?;
    if arguments.list {
        known.iter().for_each(crate::progress::result);
        return Ok(true);
    }
    if let Some(unknown) = arguments.target.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let chosen = if arguments.target.is_empty() { known } else { arguments.target.clone() };
    let mut report = Report::default();
    all(paths, &chosen, Duration::from_secs(u64::from(arguments.minutes) * 60), &mut report)?;
    Ok(report.finish())
}

/// The names of these tests in `cargo lab test`.
pub(crate) fn tests(paths: &Paths) -> Result<Vec<String>> {
    Ok(names(paths)?.iter().map(|name| format!("{PREFIX}{name}")).collect())
}

/// A minute for each of the wanted targets, or less where they are many, as part of `cargo lab test`.
pub(crate) fn test(
    paths: &Paths,
    wanted: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let mut chosen = names(paths)?;
    chosen.retain(|name| wanted(&format!("{PREFIX}{name}")));
    all(paths, &chosen, share(chosen.len()), report)
}

/// What each of so many targets gets.
fn share(targets: usize) -> Duration {
    let targets = u32::try_from(targets).unwrap_or(u32::MAX).max(1);
    EACH.min(ALL / targets)
}

/// Each target has a directory of inputs to begin with; a test of the crate sees to that.
fn names(paths: &Paths) -> Result<Vec<String>> {
    let corpus = paths.root.join(CRATE).join("corpus");
    let entries = fs::read_dir(&corpus).with_context(|| format!("{}", corpus.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Runs these, two at a time.
fn all(paths: &Paths, chosen: &[String], time: Duration, report: &mut Report) -> Result<()> {
    if chosen.is_empty() {
        return Ok(());
    }
    let program = build(paths)?;
    let _progress = Progress::start(format!("fuzzing {}", chosen.join(", ")));
    let left = Mutex::new(chosen.iter());
    let done = Mutex::new(report);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = left.lock().ok().and_then(|mut left| left.next());
                    let Some(name) = next else { break };
                    let begin = Instant::now();
                    let verdict = one(paths, &program, name, time)
                        .unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
                    if let Ok(mut report) = done.lock() {
                        report.add(&format!("{PREFIX}{name}"), begin, verdict);
                    }
                }
            });
        }
    });
    Ok(())
}

fn build(paths: &Paths) -> Result<PathBuf> {
    fetch::compiler()?;
    let mut command = cargo(&paths.root);
    command
        .args(["build", "--release", "--package", "strait-fuzz", "--bin", "fuzz"])
        .args(["--features", "libfuzzer", "--target", builds::TARGET, "--target-dir"])
        .arg(paths.lab.join("fuzz-build"))
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    builds::build(command, "fuzz")
}

/// Fuzzes one target; an input that it does not survive is kept and named.
fn one(paths: &Paths, program: &Path, name: &str, time: Duration) -> Result<Verdict> {
    let own = paths.lab.join("fuzz").join(name);
    fs::create_dir_all(&own)?;
    let logs = paths.logs(&format!("{PREFIX}{name}"));
    files::fresh_directory(&logs)?;
    // libFuzzer ends without destructors, so what a target has made there stays until the next run.
    let temporary = logs.join("tmp");
    files::fresh_directory(&temporary)?;
    let kept = paths.root.join(CRATE).join("corpus").join(name);
    let output = Command::new(program)
        .env("STRAIT_FUZZ_TARGET", name)
        .env("TMPDIR", &temporary)
        .args([&own, &kept])
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-timeout={SLOWEST}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", logs.display()))
        .args(["-print_final_stats=1", "-verbosity=1", "-detect_leaks=0"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start the fuzzer")?;
    let said = String::from_utf8_lossy(&output.stderr);
    files::write_whole(&logs.join("output.txt"), said.as_bytes())?;
    let log = Paths::shown(&logs.join("output.txt"));
    if !output.status.success() {
        let why = said.lines().find(|line| line.contains("panicked at") || line.contains("ERROR:"));
        let input = said.lines().find_map(|line| line.split_once("Test unit written to "));
        let input = input.map_or("no input kept", |(_, path)| path);
        return Ok(Verdict::Failed(format!(
            "{}\n       input: {input}\n       log: {log}",
            why.unwrap_or("ended early")
        )));
    }
    let runs: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
        .with_context(|| format!("the fuzzer did not say how often it tried: {log}"))?;
    ensure!(runs > 0, "the fuzzer tried nothing: {log}");
    let covered = said
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split_whitespace().next().map(str::to_owned));
    Ok(Verdict::Passed(vec![
        format!("{runs} inputs"),
        format!("{} edges", covered.unwrap_or_default()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzzing_takes_eight_minutes_however_many_targets_there_are() {
        assert_eq!(share(0), EACH);
        assert_eq!(share(8), EACH);
        for targets in 9..100_u32 {
            assert!(share(targets as usize) < EACH);
            assert!(share(targets as usize) * targets <= ALL);
        }
    }
}
