//! The tests that need no lab: formatting, lints, and every crate's own.

use std::{path::Path, process::Stdio, time::Instant};

use crate::{
    builds::cargo,
    checkers,
    paths::Paths,
    progress::{Progress, result},
    report::{Report, Verdict},
};

const TESTS: &str = "cargo-test";

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
    let (passed, failed, ignored) = counts(&text);
    if passed + failed > 0 {
        report.add_counts(passed, failed, ignored);
        let line = format!("{passed} passed, {failed} failed, {ignored} ignored");
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

/// Sums the lines `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn counts(output: &str) -> (usize, usize, usize) {
    let mut sum = (0, 0, 0);
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let count = |word: &str| -> usize {
            line.split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                .unwrap_or(0)
        };
        sum.0 += count("passed");
        sum.1 += count("failed");
        sum.2 += count("ignored");
    }
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
        assert_eq!(counts(output), (23, 2, 1));
    }
}
