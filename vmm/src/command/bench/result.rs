//! What comes out of `strait bench`, as docs/json.md describes it: rows, distributions, exits, phases, and everything needed
//! to repeat it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    said::{Figure, Mark},
    stats::{Summary, percentile},
    watch::Seen,
};
use crate::phases::Phase;

/// The form's name.
pub(super) const SCHEMA: &str = "strait.bench/1";

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) schema: String,
    /// UTC.
    pub(super) date: String,
    /// How strait was called.
    pub(super) command: Vec<String>,
    pub(super) host: Host,
    pub(super) device: Device,
    pub(super) settings: Settings,
    /// In the order of the tables: strait first, then peers, the host last.
    pub(super) contenders: Vec<Contender>,
    pub(super) rows: Vec<Row>,
    /// What was not measured, and what could not be equal.
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) bdf: String,
    /// `10de:1e07`.
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) runs: u32,
    /// Runs before those, not counted.
    pub(super) warm_up: u32,
    /// Bytes of guest RAM.
    pub(super) memory: u64,
    pub(super) cpus: u32,
    /// The guest's kernel.
    pub(super) kernel: String,
    pub(super) workload: Option<String>,
}

/// One of those compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Contender {
    /// `strait`, `qemu`, `cloud-hypervisor`, `host`.
    pub(super) name: String,
    pub(super) version: String,
    pub(super) command: Vec<String>,
    /// Percentile and microseconds, of the run in the middle.
    pub(super) latency: Vec<(f64, f64)>,
    /// Exits to user space of a whole run by reason, of the run in the middle; `null`: not counted.
    pub(super) exits: Option<BTreeMap<String, u64>>,
    /// Steps of the start, each from the one before, in seconds: medians.
    pub(super) start: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) begin: f64,
    pub(super) end: f64,
    /// It went on beside the others, which follow one another.
    #[serde(default)]
    pub(super) beside: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) less_is_better: Option<bool>,
    /// By contender.
    pub(super) results: BTreeMap<String, Summary>,
}

/// The rows, in the order in which figures first came.
pub(super) fn rows(runs: &[(String, Vec<Seen>)], memory_mib: u64, operations: u32) -> Vec<Row> {
    let mut order: Vec<Figure> = Vec::new();
    let mut samples: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for (contender, seen) in runs {
        for run in seen {
            let own = figures(run, contender != "host", memory_mib, operations);
            for figure in own.into_iter().chain(run.figures.iter().cloned()) {
                samples
                    .entry((figure.id.clone(), contender.clone()))
                    .or_default()
                    .push(figure.value);
                if order.iter().all(|known| known.id != figure.id) {
                    order.push(figure);
                }
            }
        }
    }
    let row = |figure: Figure| {
        let mut results = BTreeMap::new();
        for ((id, name), all) in &samples {
            if *id == figure.id
                && let Some(summary) = Summary::of(all.clone())
            {
                results.insert(name.clone(), summary);
            }
        }
        let Figure { id, title, unit, less_is_better, .. } = figure;
        Row { id, title, unit, less_is_better, results }
    };
    order.into_iter().map(row).collect()
}

/// What the watcher itself measured.
fn figures(run: &Seen, guest: bool, memory_mib: u64, operations: u32) -> Vec<Figure> {
    if !guest {
        return Vec::new();
    }
    let resident = run.resident_kib.map(|kib| kib as f64 / 1024.0 - memory_mib as f64);
    let exits = run.exits.as_ref().map(|exits| exits.values().sum::<u64>() as f64);
    let power_off = run.until(Mark::Done).map(|done| run.end - run.begin - done);
    let micros = run.delivered.as_ref().map(|seen| &seen.micros).filter(|all| !all.is_empty());
    let delivered = |at| micros.map(|micros| percentile(micros, at));
    let found = [
        ("start.init", "start to the guest's init", "s", run.until(Mark::Up)),
        ("start.device", "start to the driver having the device", "s", run.until(Mark::Device)),
        ("start.first", "start to the first work done", "s", run.until(Mark::First)),
        ("end.exit", "the guest's last word to the monitor's end", "s", power_off),
        ("memory.beyond", "resident memory beyond guest RAM", "MiB", resident),
        ("exits.total", "exits to user space, whole run", "", exits),
        (
            "exits.per-operation",
            "exits to user space for each operation",
            "",
            run.exits_in_work.map(|exits| exits as f64 / f64::from(operations)),
        ),
        (
            "irq.delivery.median",
            "interrupt, host's handler to guest's entry, median",
            "us",
            delivered(50.0),
        ),
        (
            "irq.delivery.p99",
            "interrupt, host's handler to guest's entry, 99 %",
            "us",
            delivered(99.0),
        ),
    ];
    let figure = |(id, title, unit, value): (&str, &str, &str, Option<f64>)| {
        let [id, title, unit] = [id, title, unit].map(str::to_owned);
        Some(Figure { id, title, unit, value: value?, less_is_better: Some(true) })
    };
    found.into_iter().filter_map(figure).collect()
}

/// The run whose start took the middle time: its distribution and exits are shown.
pub(super) fn middle(seen: &[Seen]) -> Option<&Seen> {
    let mut runs: Vec<&Seen> = seen.iter().collect();
    runs.sort_by(|a, b| (a.end - a.begin).total_cmp(&(b.end - b.begin)));
    runs.get(runs.len() / 2).copied()
}

/// The steps of the start: the monitor's own where it tells them, and the guest's.
pub(super) fn steps(seen: &[Seen]) -> Vec<Step> {
    let Some(first) = seen.first() else { return Vec::new() };
    let median = |values: Vec<f64>| Summary::of(values).map(|summary| summary.median);
    // A point of a phase, of the run in the middle.
    let phase = |name: &str, point: fn(&Phase) -> Option<f64>| {
        let of = |run: &Seen| {
            let phase = run.phases.iter().find(|phase| phase.name == name)?;
            Some(point(phase)? - run.begin)
        };
        median(seen.iter().filter_map(of).collect())
    };
    let mark = |mark: Mark| median(seen.iter().filter_map(|run| run.until(mark)).collect());
    // What a monitor did while its guest ran already, and what came after, is no part of the start.
    let start_over = mark(Mark::First).unwrap_or(f64::MAX);
    let mut ends = Vec::new();
    let mut steps = Vec::new();
    for Phase { name, .. } in &first.phases {
        let (begin, end) = (phase(name, |phase| phase.since), phase(name, |phase| Some(phase.at)));
        match (begin, end) {
            (Some(begin), Some(end)) if begin <= start_over => {
                steps.push(Step { name: name.clone(), begin, end, beside: true });
            }
            (None, Some(end)) => ends.push((name.clone(), end)),
            _ => {}
        }
    }
    let marks = [
        (Mark::Up, "guest kernel, to init"),
        (Mark::Device, "guest's driver"),
        (Mark::First, "first work"),
    ];
    ends.extend(marks.into_iter().filter_map(|(of, name)| Some((name.to_owned(), mark(of)?))));
    ends.retain(|(_, at)| *at <= start_over);
    ends.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut begin = 0.0;
    for (name, end) in ends {
        steps.push(Step { name, begin, end, beside: false });
        begin = end;
    }
    steps.sort_by(|a, b| a.begin.total_cmp(&b.begin));
    steps
}

/// A report for tests of what shows it.
#[cfg(test)]
pub(super) mod tests_support {
    use super::*;

    pub(in super::super) fn report() -> Report {
        let summary = |values: &[f64]| Summary::of(values.to_vec()).unwrap();
        let step =
            |name: &str, begin, end, beside| Step { name: name.to_owned(), begin, end, beside };
        let contender = |name: &str| Contender {
            name: name.to_owned(),
            version: "1".to_owned(),
            command: vec![name.to_owned(), "--flag".to_owned()],
            latency: vec![(0.0, 10.0), (50.0, 12.0), (99.0, 40.0), (100.0, 90.0)],
            exits: Some(BTreeMap::from([("MMIO".to_owned(), 3), ("port I/O".to_owned(), 400)])),
            start: vec![
                step("checks", 0.0, 0.1, false),
                step("RAM pinned and mapped", 0.05, 1.5, true),
                step("guest kernel, to init", 0.1, 2.0, false),
            ],
        };
        let row = |id: &str, title: &str, unit: &str, results: Vec<(&str, Summary)>| Row {
            id: id.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            less_is_better: Some(true),
            results: results
                .into_iter()
                .map(|(name, summary)| (name.to_owned(), summary))
                .collect(),
        };
        Report {
            schema: SCHEMA.to_owned(),
            date: "2026-01-31 12:00 UTC".to_owned(),
            command: vec!["strait".to_owned(), "bench".to_owned()],
            host: Host {
                name: "h".into(),
                kernel: "6.1".into(),
                cpu: "A CPU <fast>".into(),
                cpus: 2,
            },
            device: Device {
                bdf: "0000:3b:00.0".into(),
                id: "1b36:0010".into(),
                name: "A disk".into(),
            },
            settings: Settings {
                runs: 3,
                warm_up: 1,
                memory: 512 << 20,
                cpus: 1,
                kernel: "/boot/vmlinuz".into(),
                workload: None,
            },
            contenders: ["strait", "qemu", "host"].map(contender).to_vec(),
            rows: vec![
                row(
                    "start.init",
                    "start to the guest's init",
                    "s",
                    vec![
                        ("strait", summary(&[2.0, 1.8, 2.1])),
                        ("qemu", summary(&[5.0, 5.1, 5.2])),
                    ],
                ),
                row(
                    "nvme.qd1.median",
                    "4 KiB random read, depth 1, median",
                    "us",
                    vec![
                        ("strait", summary(&[12.0, 13.0, 12.5])),
                        ("qemu", summary(&[12.1, 14.0, 13.0])),
                        ("host", summary(&[10.0, 10.0, 10.0])),
                    ],
                ),
            ],
            notes: vec!["a note".to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::delivery::Delivered, *};

    fn seen(init: f64, first: f64) -> Seen {
        Seen {
            begin: 100.0,
            end: 100.0 + first + 1.0,
            marks: vec![(Mark::Up, 100.0 + init), (Mark::First, 100.0 + first)],
            phases: vec![
                Phase { name: "checks".into(), at: 100.5, since: None },
                Phase { name: "pinned".into(), at: 101.5, since: Some(100.25) },
                Phase { name: "ended".into(), at: 110.0, since: None },
            ],
            resident_kib: Some(515 * 1024),
            exits_in_work: Some(50),
            delivered: Some(Delivered { micros: vec![10.0, 20.0, 90.0], handled: 3 }),
            ..Seen::default()
        }
    }

    #[test]
    fn steps_follow_one_another_to_the_first_read_but_for_what_goes_on_beside_them() {
        let steps = steps(&[seen(2.0, 3.0), seen(2.2, 3.4), seen(1.8, 3.2)]);
        let got: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.begin)).collect();
        let wanted = [
            ("checks", 0.0),
            ("pinned", 0.25),
            ("guest kernel, to init", 0.5),
            ("first work", 2.0),
        ];
        assert_eq!(got, wanted);
        assert_eq!((steps[1].beside, steps[1].end), (true, 1.5));
        assert!((steps[3].end - 3.2).abs() < 1e-9);
    }

    #[test]
    fn rows_have_a_summary_for_every_contender_that_has_figures() {
        let runs = vec![
            ("strait".to_owned(), vec![seen(2.0, 3.0), seen(4.0, 5.0)]),
            ("host".to_owned(), vec![seen(0.0, 0.1)]),
        ];
        let rows = rows(&runs, 512, 1000);
        let row = |id: &str| rows.iter().find(|row| row.id == id).unwrap();
        assert_eq!(row("start.init").results["strait"].median, 3.0);
        assert_eq!(row("memory.beyond").results["strait"].median, 3.0);
        assert_eq!(row("exits.per-operation").results["strait"].median, 0.05);
        assert_eq!(row("irq.delivery.median").results["strait"].median, 20.0);
        assert!(!row("start.init").results.contains_key("host"), "the host starts no guest");
        assert!(rows.iter().all(|row| row.id != "exits.total"), "what was not counted has no row");
    }
}
