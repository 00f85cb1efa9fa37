//! The results on a terminal.

use std::fmt::Write as _;

use super::{
    result::{Report, Row},
    stats::Summary,
};
use crate::report::{QUIET, STRONG, WARNING, wrapped};

/// Three significant digits, or all of a whole number.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value == value.trunc() {
        return format!("{value:.0}");
    }
    let digits = match size {
        _ if size >= 9.995 => 1,
        _ if size >= 0.995 => 2,
        _ if size >= 0.001 => 3,
        _ => 6,
    };
    format!("{value:.digits$}")
}

/// The whole answer.
pub(super) fn render(report: &Report, columns: usize) -> String {
    let names: Vec<&str> =
        report.contenders.iter().map(|contender| contender.name.as_str()).collect();
    let mut out = String::new();
    let Report { device, settings, .. } = report;
    let _ = writeln!(out, "{STRONG}{} {}{STRONG:#}", device.bdf, device.name);
    let _ = writeln!(
        out,
        "{} runs of {} after {} to warm up; median, and how far the runs lie from it\n",
        settings.runs,
        names.join(", "),
        settings.warm_up
    );
    let title = |row: &Row| match row.unit.as_str() {
        "" => row.title.clone(),
        unit => format!("{}, {unit}", row.title),
    };
    let width = report.rows.iter().map(|row| title(row).chars().count()).max().unwrap_or(0);
    let cell =
        |row: &Row, name: &str| row.results.get(name).map_or_else(|| "-".to_owned(), summary);
    let widths: Vec<usize> = names
        .iter()
        .map(|name| {
            report
                .rows
                .iter()
                .map(|row| cell(row, name).chars().count())
                .max()
                .unwrap_or(0)
                .max(name.len())
        })
        .collect();
    let head: Vec<String> =
        names.iter().zip(&widths).map(|(name, width)| format!("{name:>width$}")).collect();
    let _ = writeln!(out, "{STRONG}{:width$}  {}{STRONG:#}", "", head.join("  "));
    for row in &report.rows {
        let cells: Vec<String> = names
            .iter()
            .zip(&widths)
            .map(|(name, width)| {
                let text = format!("{:>width$}", cell(row, name));
                if is_best(row, name) { format!("{STRONG}{text}{STRONG:#}") } else { text }
            })
            .collect();
        let _ = writeln!(out, "{:width$}  {}", title(row), cells.join("  "));
    }
    if !report.notes.is_empty() {
        out.push('\n');
    }
    for note in &report.notes {
        for (n, line) in wrapped(note, columns.saturating_sub(6)).into_iter().enumerate() {
            let head =
                if n == 0 { format!("{WARNING}note:{WARNING:#}") } else { "     ".to_owned() };
            let _ = writeln!(out, "{head} {QUIET}{line}{QUIET:#}");
        }
    }
    out
}

/// `12.5 +-3%`.
fn summary(summary: &Summary) -> String {
    let Summary { median, min, max, .. } = summary;
    let far = (max - median).max(median - min);
    if far == 0.0 || *median == 0.0 {
        return number(*median);
    }
    format!("{} +-{:.0}%", number(*median), far / median * 100.0)
}

/// Is it better than every other monitor, by more than noise? The host is no monitor.
pub(super) fn is_best(row: &Row, name: &str) -> bool {
    let Some((less, own)) = row.less_is_better.zip(row.results.get(name)) else { return false };
    let others = row.results.iter().filter(|(other, _)| *other != name && *other != "host");
    let mut others = others.map(|(_, other)| other).peekable();
    let any = others.peek().is_some();
    name != "host"
        && any
        && others.all(|other| own.is_apart(other) && (own.median < other.median) == less)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anstream::adapter::strip_str;

    use super::{super::result::tests_support::report, *};

    #[test]
    fn numbers_keep_three_digits_that_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.12345, "0.123"),
            (1.2345, "1.23"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (0.00012, "0.000120"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn table_has_a_column_for_each_and_a_dash_for_what_is_missing() {
        let text = strip_str(&render(&report(), 100)).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("0000:3b:00.0 A disk"), "{text}");
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["strait", "qemu", "host"]);
        let row =
            lines.iter().find(|line| line.starts_with("start to the guest's init, s")).unwrap();
        assert!(row.contains("2 +-10%") && row.trim_end().ends_with('-'), "{text}");
        assert!(text.contains("note: a note"), "{text}");
    }

    #[test]
    fn best_is_told_only_when_the_runs_lie_apart() {
        let row = |ours: &[f64], theirs: &[f64]| Row {
            id: String::new(),
            title: String::new(),
            unit: String::new(),
            less_is_better: Some(true),
            results: BTreeMap::from([
                ("strait".to_owned(), Summary::of(ours.to_vec()).unwrap()),
                ("qemu".to_owned(), Summary::of(theirs.to_vec()).unwrap()),
            ]),
        };
        assert!(is_best(&row(&[1.0, 1.1], &[2.0, 2.1]), "strait"));
        assert!(!is_best(&row(&[1.0, 2.05], &[2.0, 2.1]), "strait"));
        assert!(is_best(&row(&[3.0], &[2.0]), "qemu"));
    }
}
