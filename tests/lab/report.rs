//! Counts and prints results.

use std::time::Instant;

use crate::{
    known::{self, Known},
    progress::result,
    runner::Trouble,
};

/// A scenario that failed at first and passed later.
#[derive(Debug)]
pub(crate) struct Flaky {
    figures: Vec<String>,
    /// What each failed attempt said, with the known fault of the emulated host that explains it.
    before: Vec<(String, Option<&'static Known>)>,
}

impl Flaky {
    /// From the figures of the attempt that passed and the trouble of those before.
    pub(crate) fn new(figures: Vec<String>, before: &[Trouble]) -> Self {
        let explained = |trouble: &Trouble| (trouble.to_string(), known::fault(trouble));
        Self { figures, before: before.iter().map(explained).collect() }
    }

    fn is_explained(&self) -> bool {
        self.before.iter().all(|(_, known)| known.is_some())
    }

    /// One line for each failed attempt and one for its explanation.
    fn lines(&self) -> String {
        let mut lines = Vec::new();
        for (attempt, (said, known)) in (1..).zip(&self.before) {
            lines.push(format!("       attempt {attempt}: {said}"));
            lines.push(match known {
                Some(Known { cause, evidence, .. }) => {
                    format!("         the emulated host's fault: {cause} ({evidence})")
                }
                None => "         cause unknown: counts as failed".to_owned(),
            });
        }
        lines.push(format!("       attempt {}: ok", self.before.len() + 1));
        lines.join("\n")
    }
}

/// How a test ended.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// As it should, with figures worth telling.
    Passed(Vec<String>),
    /// As it should, but not at the first attempt.
    Flaky(Flaky),
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
    flaky: Vec<String>,
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
            Verdict::Flaky(flaky) => {
                let figures = flaky.figures.join(", ");
                let lines = flaky.lines();
                result(format!("flaky  {name:<28} {seconds:6.1} s  {figures}\n{lines}"));
                self.flaky.push(format!("{name}\n{lines}"));
                if flaky.is_explained() {
                    self.passed += 1;
                } else {
                    self.failed += 1;
                    self.failures.push(format!("{name}: passed at a later attempt only"));
                }
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

    /// Takes in the results of another test program: its counts, and what it could not test and why.
    pub(crate) fn add_counts(&mut self, passed: usize, failed: usize, skips: Vec<String>) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skips.len();
        self.skips.extend(skips);
    }

    /// Prints what needs looking at, then the sum as the last line; was all well?
    pub(crate) fn finish(&self) -> bool {
        if !self.skips.is_empty() {
            result(format!("\nskipped:\n  {}", self.skips.join("\n  ")));
        }
        if !self.flaky.is_empty() {
            let count = self.flaky.len();
            result(format!("\nflaky, {count} in all:\n  {}", self.flaky.join("\n  ")));
        }
        if !self.failures.is_empty() {
            result(format!("\nfailed:\n  {}", self.failures.join("\n  ")));
        }
        result(format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped));
        self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaky(trouble: Trouble) -> Verdict {
        Verdict::Flaky(Flaky::new(Vec::new(), &[trouble]))
    }

    #[test]
    fn scenario_that_passes_late_counts_as_passed_only_by_a_known_fault_of_the_host() {
        let mut report = Report::default();
        let still = Trouble::HostBroke("L1 hangs: no sign of life for 60 s".to_owned());
        report.add("still", Instant::now(), flaky(still));
        assert_eq!((report.passed, report.failed), (1, 0));
        let wrong = Trouble::Wrong { reasons: vec!["a: exit status 8".to_owned()], ended: true };
        report.add("wrong", Instant::now(), flaky(wrong));
        assert_eq!((report.passed, report.failed), (1, 1));
        assert!(!report.finish());
    }

    #[test]
    fn tests_that_could_not_run_are_counted_apart() {
        let mut report = Report::default();
        report.add_counts(3, 0, vec!["boots: /dev/kvm cannot be opened".to_owned()]);
        assert_eq!((report.passed, report.skipped), (3, 1));
        assert!(report.finish());
    }
}
