//! The table: what each row says, where its figure comes from, and the goal.

/// Where a row's figure comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// A figure of a case.
    Figure(&'static str, &'static str),
    /// How a figure grows from one case to another, for each of so many GiB.
    PerGib { small: &'static str, large: &'static str, figure: &'static str, gib: f64 },
    /// A figure of a case as a multiple of the same contender's own in another case.
    OfOwn { case: &'static str, other: &'static str, figure: &'static str },
    /// The program's size.
    Program,
}

/// When a row is good enough.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most this share of QEMU's figure.
    OfQemu(f64),
    /// At most this figure.
    AtMost(f64),
    /// At most this multiple of bare L1.
    OfBare(f64),
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// For the command line and the JSON.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// Of the figure.
    pub unit: &'static str,
    /// Its source.
    pub from: Source,
    /// The goal.
    pub goal: Option<Goal>,
    /// What nobody can beat, as a text.
    pub limit: &'static str,
    /// Part of `--short`?
    pub short: bool,
}

impl Row {
    /// The cases it needs.
    pub(crate) fn cases(&self) -> Vec<&'static str> {
        match self.from {
            Source::Figure(case, _) => vec![case],
            Source::PerGib { small, large, .. } => vec![small, large],
            Source::OfOwn { case, other, .. } => vec![case, other],
            Source::Program => Vec::new(),
        }
    }
}

const fn row(id: &'static str, title: &'static str, unit: &'static str, from: Source) -> Row {
    Row { id, title, unit, from, goal: None, limit: "", short: false }
}

use Source::{Figure, OfOwn, PerGib, Program};

/// Every row, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    Row {
        goal: Some(Goal::OfQemu(0.30)),
        limit: "0.20: the guest kernel's own share",
        short: true,
        ..row("init-512m", "start to init, NVMe passed, 512 MiB", "s", Figure("nvme512", "init"))
    },
    Row {
        goal: Some(Goal::OfQemu(0.15)),
        limit: "the guest kernel's own share",
        ..row("init-8g", "start to init, NVMe passed, 8 GiB", "s", Figure("nvme8g", "init"))
    },
    Row {
        goal: Some(Goal::OfQemu(0.52)),
        limit: "0.49: zeroing with two threads",
        ..row(
            "first-read-8g",
            "start to first NVMe read, 8 GiB",
            "s",
            Figure("nvme8g", "first-read"),
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.52)),
        limit: "0.49: zeroing with two threads",
        ..row(
            "pin-default",
            "fault, pin and map a GiB, default pages",
            "s",
            PerGib { small: "nvme2g", large: "pin8g", figure: "mapped", gib: 6.0 },
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.25)),
        limit: "0.225: zeroing with two threads",
        ..row(
            "pin-hugetlb",
            "fault, pin and map a GiB, 2 MiB hugetlb pages",
            "s",
            PerGib { small: "huge1g", large: "huge4g", figure: "mapped", gib: 3.0 },
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.03)),
        limit: "0.02: the serial port",
        short: true,
        ..row(
            "exits",
            "exits to user space until power-off, 2000 reads",
            "",
            Figure("exits", "exits"),
        )
    },
    Row {
        goal: Some(Goal::AtMost(0.0)),
        limit: "0",
        short: true,
        ..row(
            "exits-per-read",
            "exits to user space per read",
            "",
            Figure("exits", "exits-per-read"),
        )
    },
    Row {
        ..row(
            "exits-all",
            "all exits until power-off, 2000 reads",
            "",
            Figure("exits", "exits-all"),
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.60)),
        limit: "bare L1",
        short: true,
        ..row("reads", "2000 reads of 4 KiB, one at a time", "s", Figure("nvme512", "reads"))
    },
    Row {
        goal: Some(Goal::OfQemu(0.60)),
        limit: "as without hiding",
        ..row("reads-hidden", "the same, KVM hidden", "s", Figure("hidden", "reads"))
    },
    Row {
        goal: Some(Goal::AtMost(1.0)),
        limit: "1.0",
        ..row(
            "hidden-cost",
            "KVM hidden, as a multiple of not hidden",
            "x",
            OfOwn { case: "hidden", other: "nvme512", figure: "reads" },
        )
    },
    Row {
        goal: Some(Goal::OfBare(1.5)),
        limit: "bare L1",
        ..row("reads-native", "the same, idle=native", "s", Figure("native", "reads"))
    },
    Row {
        goal: Some(Goal::AtMost(1.1)),
        limit: "1.0",
        ..row(
            "bar32g",
            "start to init with a 32 GiB BAR and a third device, of own start without",
            "x",
            OfOwn { case: "bar32g", other: "nvme512", figure: "init" },
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.035)),
        short: true,
        ..row(
            "memory",
            "resident memory beyond the guest's RAM",
            "MiB",
            Figure("nvme512", "memory"),
        )
    },
    Row {
        goal: Some(Goal::OfQemu(0.10)),
        short: true,
        ..row(
            "first-instruction",
            "start to first guest instruction, 64 MiB",
            "s",
            Figure("tiny", "entry"),
        )
    },
    Row {
        ..row(
            "first-byte",
            "start to a tiny kernel's first line, 64 MiB",
            "s",
            Figure("tiny", "init"),
        )
    },
    Row {
        goal: Some(Goal::AtMost(6.0)),
        short: true,
        ..row("program", "the program, stripped", "MiB", Program)
    },
    Row {
        goal: Some(Goal::OfQemu(0.5)),
        limit: "0.6: the kernel's own share",
        ..row(
            "give-back",
            "power-off of the guest to the device back on its driver",
            "s",
            Figure("give-back", "give-back"),
        )
    },
    Row {
        ..row(
            "instructions-first",
            "start to first guest instruction, 64 MiB",
            "M instr.",
            Figure("counted-tiny", "entry-instructions"),
        )
    },
    Row {
        ..row(
            "instructions-init",
            "start to init, NVMe passed, 512 MiB",
            "M instr.",
            Figure("counted", "init-instructions"),
        )
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;

    #[test]
    fn rows_have_names_of_their_own_and_cases_that_exist() {
        let cases: Vec<_> = cases::all().iter().map(|case| case.name).collect();
        for (n, row) in ROWS.iter().enumerate() {
            assert!(ROWS[n + 1..].iter().all(|other| other.id != row.id), "{}", row.id);
            for case in row.cases() {
                assert!(cases.contains(&case), "{}: {case}", row.id);
            }
        }
    }

    #[test]
    fn every_case_serves_a_row() {
        for case in cases::all() {
            assert!(ROWS.iter().any(|row| row.cases().contains(&case.name)), "{}", case.name);
        }
    }
}
