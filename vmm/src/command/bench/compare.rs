//! `strait bench compare A.json B.json`: what changed between two results.

use std::{fmt::Write as _, fs, path::Path};

use serde::Serialize;
use strait_resources::{codes, failure::Failure};

use super::{
    result::{Report, SCHEMA},
    table::number,
};
use crate::{
    cli::BenchCompareArgs,
    report::{self, ERROR, GOOD, STRONG},
};

#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    before: String,
    after: String,
    rows: Vec<Change>,
}

/// One figure of one contender in both.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    id: String,
    title: String,
    unit: String,
    contender: String,
    before: f64,
    after: f64,
    /// Share of the figure before; `null`: that was zero.
    change: Option<f64>,
    /// `better`, `worse`, `differs` (where neither is better), `same`: the runs of both overlap.
    verdict: &'static str,
}

/// Reads both and tells.
pub(super) fn run(args: &BenchCompareArgs) -> Result<u8, Failure> {
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let rows = changes(&before, &after);
    if args.json {
        let [before, after] = [&args.before, &args.after].map(|path| path.display().to_string());
        report::json(&Answer { schema: "strait.bench-compare/1", before, after, rows })?;
        return Ok(0);
    }
    if before.device.id != after.device.id {
        report::notes(&[format!("two devices: {} and {}", before.device.name, after.device.name)]);
    }
    report::out(&render(&rows))?;
    Ok(0)
}

fn read(path: &Path) -> Result<Report, Failure> {
    let refused = |cause: String| {
        Failure::new(
            &codes::E2151,
            cause,
            "name the report.json of a strait bench; --output tells where it is",
        )
    };
    let text = fs::read(path)
        .map_err(|error| refused(format!("{} cannot be read", path.display())).source(error))?;
    let report: Report = serde_json::from_slice(&text).map_err(|error| {
        refused(format!("{} is no result of strait bench", path.display())).source(error)
    })?;
    match report.schema == SCHEMA {
        true => Ok(report),
        false => {
            Err(refused(format!("{} has the form {}, not {SCHEMA}", path.display(), report.schema)))
        }
    }
}

fn changes(before: &Report, after: &Report) -> Vec<Change> {
    let mut changes = Vec::new();
    for row in &after.rows {
        let Some(old) = before.rows.iter().find(|old| old.id == row.id) else { continue };
        for contender in &after.contenders {
            let name = &contender.name;
            let Some((was, is)) = old.results.get(name).zip(row.results.get(name)) else {
                continue;
            };
            let verdict = match (was.is_apart(is), row.less_is_better) {
                (false, _) => "same",
                (true, None) => "differs",
                (true, Some(less)) if (is.median < was.median) == less => "better",
                (true, Some(_)) => "worse",
            };
            let change = (was.median != 0.0).then(|| is.median / was.median - 1.0);
            let [id, title, unit] = [&row.id, &row.title, &row.unit].map(Clone::clone);
            let contender = name.clone();
            changes.push(Change {
                id,
                title,
                unit,
                contender,
                before: was.median,
                after: is.median,
                change,
                verdict,
            });
        }
    }
    changes
}

fn render(rows: &[Change]) -> String {
    let mut out = String::new();
    let title = |row: &Change| match row.unit.as_str() {
        "" => row.title.clone(),
        unit => format!("{}, {unit}", row.title),
    };
    let width = rows.iter().map(|row| title(row).chars().count()).max().unwrap_or(0);
    let who = rows.iter().map(|row| row.contender.len()).max().unwrap_or(0);
    let mut contender = "";
    for row in rows {
        if row.contender != contender && contender.is_empty() {
            let _ = writeln!(
                out,
                "{STRONG}{:who$}  {:width$}  {:>10}  {:>10}  {:>7}{STRONG:#}",
                "", "", "before", "after", ""
            );
        }
        contender = &row.contender;
        let change =
            row.change.map_or_else(String::new, |change| format!("{:+.0}%", change * 100.0));
        let style = match row.verdict {
            "better" => GOOD,
            "worse" => ERROR,
            _ => anstyle::Style::new(),
        };
        let _ = writeln!(
            out,
            "{:who$}  {:width$}  {:>10}  {:>10}  {change:>7}  {style}{}{style:#}",
            row.contender,
            title(row),
            number(row.before),
            number(row.after),
            row.verdict
        );
    }
    if rows.is_empty() {
        out.push_str("the two have no figure in common\n");
    } else {
        out.push_str("same: the runs of both overlap\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::{
        super::{result::tests_support::report, stats::Summary},
        *,
    };

    #[test]
    fn verdict_needs_runs_that_lie_apart_and_knows_the_direction() {
        let (before, mut after) = (report(), report());
        let set = |report: &mut Report, row: usize, name: &str, values: &[f64]| {
            report.rows[row].results.insert(name.to_owned(), Summary::of(values.to_vec()).unwrap());
        };
        set(&mut after, 0, "strait", &[1.0, 1.1]);
        set(&mut after, 0, "qemu", &[9.0]);
        set(&mut after, 1, "strait", &[12.4]);
        let got: Vec<_> =
            changes(&before, &after).into_iter().map(|c| (c.contender, c.verdict)).collect();
        let wanted = [
            ("strait", "better"),
            ("qemu", "worse"),
            ("strait", "same"),
            ("qemu", "same"),
            ("host", "same"),
        ];
        assert_eq!(got, wanted.map(|(who, verdict)| (who.to_owned(), verdict)));
        let text = strip_str(&render(&changes(&before, &after))).to_string();
        assert!(text.contains("-48%") && text.contains("worse"), "{text}");
    }

    #[test]
    fn other_files_are_refused_by_code() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.json");
        let mut other = report();
        other.schema = "strait.bench/999".to_owned();
        for text in ["{}".to_owned(), "no json".to_owned(), serde_json::to_string(&other).unwrap()]
        {
            fs::write(&file, &text).unwrap();
            assert_eq!(read(&file).unwrap_err().code.id, "E2151", "{text}");
        }
        assert_eq!(read(&directory.path().join("absent")).unwrap_err().code.id, "E2151");
        fs::write(&file, serde_json::to_string(&report()).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap(), report());
    }
}
