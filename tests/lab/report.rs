//! Counts and prints results.

use std::time::Instant;

use crate::progress::result;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should, with figures worth telling.
    Passed(Vec<String>),
    /// Why not.
    Failed(String),
    /// What was missing.
    Skipped(String),
}

/// The running count.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that could not run.
    pub skipped: usize,
    failures: Vec<String>,
    skips: Vec<String>,
}

impl Report {
    /// Takes in one result and prints it.
    pub(crate) fn add(&mut self, name: &str, begin: Instant, verdict: Verdict) {
        let seconds = begin.elapsed().as_secs_f64();
        match verdict {
            Verdict::Passed(figures) => {
                self.passed += 1;
                result(format!("ok     {name:<28} {seconds:6.1} s  {}", figures.join(", ")));
            }
            Verdict::Failed(why) => {
                self.failed += 1;
                result(format!("FAILED {name:<28} {seconds:6.1} s\n       {why}"));
                self.failures.push(name.to_owned());
            }
            Verdict::Skipped(why) => {
                self.skipped += 1;
                result(format!("skip   {name:<28} {why}"));
                self.skips.push(format!("{name}: {why}"));
            }
        }
    }

    /// Takes in counts of another test program.
    pub(crate) fn add_counts(&mut self, passed: usize, failed: usize, skipped: usize) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Prints what needs looking at, then the sum as the last line; was all well?
    pub(crate) fn finish(&self) -> bool {
        if !self.skips.is_empty() {
            result(format!("\nskipped:\n  {}", self.skips.join("\n  ")));
        }
        if !self.failures.is_empty() {
            result(format!("\nfailed:\n  {}", self.failures.join("\n  ")));
        }
        result(format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped));
        self.failed == 0
    }
}
