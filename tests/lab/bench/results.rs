//! From runs to rows, as JSON: `target/lab/bench.json` keeps every row with what made it. A run of some rows replaces
//! those and leaves the others.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    rows::{Goal, ROWS, Row, Source},
    run::Run,
    stats::Summary,
};

/// The form's name.
const SCHEMA: &str = "strait.lab-bench/1";

/// What every row of this run shares.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// As in `2026-01-31 12:00 UTC`.
    pub date: String,
    /// The command that made it.
    pub command: String,
    /// strait's revision.
    pub revision: String,
    /// L1's and L2's kernel.
    pub kernel: String,
    /// The peer, and the emulator of L1.
    pub qemu: String,
    /// Of the machine that runs the lab.
    pub machine: String,
    /// Sizes of the programs in MiB, by contender.
    pub programs: BTreeMap<String, f64>,
}

/// One row as JSON; `None` when nobody has a figure for it.
pub(crate) fn row(row: &Row, runs: &[Run], about: &About) -> Option<Value> {
    let mut contenders: Vec<&str> = runs.iter().map(|run| run.contender.as_str()).collect();
    contenders.extend(about.programs.keys().map(String::as_str));
    contenders.sort_unstable();
    contenders.dedup();
    let mut figures = BTreeMap::new();
    for contender in contenders {
        if let Some(summary) = Summary::of(samples(row.from, runs, contender, about)) {
            figures.insert(contender, summary);
        }
    }
    let ours = figures.get("strait")?;
    let ratio = |other: &str| figures.get(other).map(|other| ours.median / other.median);
    let met = match row.goal {
        None => None,
        Some(Goal::AtMost(most)) => Some(ours.median <= most),
        Some(Goal::OfQemu(most)) => ratio("qemu").map(|ratio| ratio <= most),
        Some(Goal::OfBare(most)) => ratio("bare").map(|ratio| ratio <= most),
    };
    let goal = row.goal.map(|goal| match goal {
        Goal::AtMost(most) => format!("{most} {}", row.unit).trim().to_owned(),
        Goal::OfQemu(most) => format!("{most} of QEMU"),
        Goal::OfBare(most) => format!("{most} of bare L1"),
    });
    let shown = |summary: &Summary| {
        let Summary { median, min, max, samples } = summary;
        json!({"median": median, "min": min, "max": max, "samples": samples})
    };
    let figures: Map<String, Value> =
        figures.iter().map(|(name, summary)| ((*name).to_owned(), shown(summary))).collect();
    let mut commands = Map::new();
    for run in runs.iter().filter(|run| row.cases().contains(&run.case)) {
        let key = format!("{} {}", run.case, run.contender);
        commands.insert(key, run.command.clone().into());
    }
    Some(json!({
        "id": row.id, "title": row.title, "unit": row.unit, "figures": figures, "ratio_to_qemu": ratio("qemu"),
        "goal": goal, "met": met, "limit": row.limit, "date": about.date, "command": about.command,
        "revision": about.revision, "kernel": about.kernel, "qemu": about.qemu, "machine": about.machine,
        "commands": commands,
    }))
}

/// The contender's samples, a round each.
fn samples(from: Source, runs: &[Run], contender: &str, about: &About) -> Vec<f64> {
    let of = |case: &str, figure: &str| -> BTreeMap<u32, f64> {
        let runs = runs.iter().filter(|run| run.case == case && run.contender == contender);
        runs.filter_map(|run| Some((run.round, *run.figures.get(figure)?))).collect()
    };
    let pairs = |one: &str, other: &str, figure: &str| -> Vec<(f64, f64)> {
        let others = of(other, figure);
        of(one, figure)
            .iter()
            .filter_map(|(round, value)| Some((*value, *others.get(round)?)))
            .collect()
    };
    match from {
        Source::Figure(case, figure) => of(case, figure).into_values().collect(),
        Source::PerGib { small, large, figure, gib } => {
            pairs(large, small, figure).iter().map(|(large, small)| (large - small) / gib).collect()
        }
        Source::OfOwn { case, other, figure } => {
            pairs(case, other, figure).iter().map(|(case, other)| case / other).collect()
        }
        Source::Program => about.programs.get(contender).copied().into_iter().collect(),
    }
}

/// Puts new rows into an earlier result, in the table's order.
pub(crate) fn merged(earlier: &str, new: Vec<Value>) -> Value {
    let earlier: Value = serde_json::from_str(earlier).unwrap_or_default();
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let old = match earlier["schema"] == SCHEMA {
        true => earlier["rows"].as_array().cloned().unwrap_or_default(),
        false => Vec::new(),
    };
    for row in old.into_iter().chain(new) {
        rows.insert(row["id"].as_str().unwrap_or_default().to_owned(), row);
    }
    let ordered: Vec<Value> = ROWS.iter().filter_map(|row| rows.remove(row.id)).collect();
    json!({"schema": SCHEMA, "rows": ordered})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::facts::Figures;

    fn run(
        case: &'static str,
        contender: &str,
        round: u32,
        figures: &[(&'static str, f64)],
    ) -> Run {
        let figures: Figures = figures.iter().copied().collect();
        Run { case, contender: contender.to_owned(), round, command: "c".to_owned(), figures }
    }

    fn about() -> About {
        let text = String::new;
        About {
            date: text(),
            command: text(),
            revision: text(),
            kernel: text(),
            qemu: text(),
            machine: text(),
            programs: BTreeMap::from([("strait".to_owned(), 4.0), ("qemu".to_owned(), 16.0)]),
        }
    }

    fn of(id: &str) -> &'static Row {
        ROWS.iter().find(|row| row.id == id).expect("a row")
    }

    #[test]
    fn ratio_is_of_medians_and_tells_whether_the_goal_is_met() {
        let runs: Vec<Run> = [1.0, 9.0, 2.0]
            .iter()
            .zip([10.0, 10.0, 8.0])
            .zip(0..)
            .flat_map(|((&ours, theirs), round)| {
                [
                    run("nvme512", "strait", round, &[("init", ours)]),
                    run("nvme512", "qemu", round, &[("init", theirs)]),
                ]
            })
            .collect();
        let row = row(of("init-512m"), &runs, &about()).expect("a row");
        assert_eq!((row["ratio_to_qemu"].as_f64(), row["met"].as_bool()), (Some(0.2), Some(true)));
        assert_eq!(row["figures"]["strait"]["max"], 9.0);
    }

    #[test]
    fn slope_pairs_the_rounds_and_drops_what_has_no_partner() {
        let runs = [
            run("nvme2g", "strait", 0, &[("mapped", 2.0)]),
            run("pin8g", "strait", 0, &[("mapped", 14.0)]),
            run("pin8g", "strait", 1, &[("mapped", 99.0)]),
        ];
        let row = row(of("pin-default"), &runs, &about()).expect("a row");
        assert_eq!(row["figures"]["strait"]["samples"], json!([2.0]));
        assert_eq!(row["met"], Value::Null, "without QEMU there is nothing to compare with");
    }

    #[test]
    fn new_rows_replace_their_own_and_keep_the_others() {
        let old =
            merged("", vec![json!({"id": "reads", "n": 1}), json!({"id": "init-512m", "n": 1})]);
        let new = merged(&old.to_string(), vec![json!({"id": "reads", "n": 2})]);
        let got: Vec<_> =
            new["rows"].as_array().expect("rows").iter().map(|r| (&r["id"], &r["n"])).collect();
        assert_eq!(got, [(&json!("init-512m"), &json!(1)), (&json!("reads"), &json!(2))]);
        assert_eq!(
            merged("{\"rows\": [1]}", Vec::new())["rows"],
            json!([]),
            "another form is not ours to keep"
        );
    }
}
