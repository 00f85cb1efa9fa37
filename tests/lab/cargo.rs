//! The tests that need no lab: formatting, lints, and every crate's own.

use std::{path::Path, process::Stdio, time::Instant};

use crate::{
    builds::cargo,
    checkers,
    paths::Paths,
    progress::{Progress, result},
    report::{Report, Verdict},
};

/// The check that runs every crate's tests.
pub(crate) const TESTS: &str = "cargo-test";

const CHECKS: &[(&str, &[&str])] = &[
    ("cargo-fmt", &["fmt", "--all", "--check"]),
    ("cargo-clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    (TESTS, &["test", "--workspace", "--no-fail-fast"]),
];

/// The names of these checks.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// Runs those of the checks that are wanted.
pub(crate) fn run(paths: &Paths, wanted: impl Fn(&str) -> bool, report: &mut Report) {
    for (name, arguments) in CHECKS.iter().filter(|(name, _)| wanted(name)) {
        one(paths, name, arguments, report);
    }
}

fn one(paths: &Paths, name: &str, arguments: &[&str], report: &mut Report) {
    let begin = Instant::now();
    let progress = Progress::start(format!("cargo {}", arguments.join(" ")));
    let mut command = cargo(&paths.root);
    command.args(arguments).stdin(Stdio::null());
    let mut without = None;
    if name == TESTS {
        match checkers::path(paths) {
            // With all of them at hand no test passes them over.
            Ok(path) => drop(command.env("PATH", path).env("STRAIT_CHECKERS", "all")),
            Err(error) => without = Some(error),
        }
    }
    let output = command.output();
    drop(progress);
    if let Some(error) = without {
        result(format!("       completions and manual are checked with what is here: {error:#}"));
    }
    let logs = paths.logs(name);
    let (success, text) = match output {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) => (false, error.to_string()),
    };
    if let Err(error) = crate::files::write_whole(&logs.join("output.txt"), text.as_bytes()) {
        result(format!("cannot keep the output of {name}: {error}"));
    }
    let Counts { passed, failed, skips } = counts(&text);
    if passed + failed > 0 {
        let line = format!("{passed} passed, {failed} failed, {} skipped", skips.len());
        report.add_counts(passed, failed, skips);
        if failed > 0 {
            result(format!("FAILED {name}: {line}; log: {}", shown(&logs)));
        } else {
            result(format!("ok     {name:<28} {:6.1} s  {line}", begin.elapsed().as_secs_f64()));
        }
        // A test program that does not build or dies is a failure beyond the counted ones.
        if success || failed > 0 {
            return;
        }
    }
    let verdict = if success {
        Verdict::Passed(Vec::new())
    } else {
        let first = text.lines().find(|line| line.starts_with("error") || line.starts_with("Diff"));
        Verdict::Failed(format!("{}\n       log: {}", first.unwrap_or("failed"), shown(&logs)))
    };
    report.add(name, begin, verdict);
}

fn shown(logs: &Path) -> String {
    Paths::shown(&logs.join("output.txt"))
}

/// The results of several test programs, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    /// Which tests could not test, and what they lacked.
    skips: Vec<String>,
}

impl Counts {
    /// Takes in `test: reason`. One test may lack several things and is one skip all the same.
    fn skip(&mut self, said: &str) {
        let (name, reason) = said.split_once(": ").unwrap_or((said, "no reason given"));
        let of_it = |skip: &&mut String| skip.split(": ").next() == Some(name);
        match self.skips.iter_mut().find(of_it) {
            Some(skip) => {
                skip.push_str("; ");
                skip.push_str(reason);
            }
            None => self.skips.push(said.to_owned()),
        }
    }
}

/// Sums the lines `test result: ok. 3 passed; 0 failed; 1 ignored; ...`. A test that finds that it cannot test says
/// `SKIPPED test: reason` on a line of its own; cargo's test harness counts it as passed.
fn counts(output: &str) -> Counts {
    let mut sum = Counts::default();
    for line in output.lines() {
        // The line may follow the harness's own words: a test writes it past the harness.
        if let Some((_, skip)) = line.split_once("SKIPPED ") {
            sum.skip(skip);
        }
        if !line.starts_with("test result:") {
            continue;
        }
        let count = |word: &str| -> usize {
            line.split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                .unwrap_or(0)
        };
        sum.passed += count("passed");
        sum.failed += count("failed");
        sum.skips.extend((0..count("ignored")).map(|_| "a test marked #[ignore]".to_owned()));
    }
    let said = sum.skips.iter().filter(|skip| !skip.contains("#[ignore]")).count();
    sum.passed = sum.passed.saturating_sub(said);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_test_programs_add_up() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      noise\n\
                      test result: FAILED. 20 passed; 2 failed; 0 ignored; 0 measured\n";
        let Counts { passed, failed, skips } = counts(output);
        assert_eq!((passed, failed, skips.len()), (23, 2, 1));
    }

    #[test]
    fn test_that_could_not_test_is_skipped_and_not_passed() {
        let output = "test guest_boots ... SKIPPED guest_boots: /dev/kvm cannot be opened\nok\n\
                      SKIPPED guest_boots: no script\n\
                      test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let skips = vec!["guest_boots: /dev/kvm cannot be opened; no script".to_owned()];
        assert_eq!(counts(output), Counts { passed: 2, failed: 0, skips });
    }
}
