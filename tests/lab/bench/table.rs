//! The results as a Markdown table, for the terminal and for docs/performance.md.

use std::fmt::Write as _;

use serde_json::Value;

/// Marks in docs/performance.md: what is between them is the lab's to write.
const BEGIN: &str = "<!-- cargo lab bench: begin -->";
const END: &str = "<!-- cargo lab bench: end -->";

/// Everything the lab writes about these results.
pub(crate) fn markdown(results: &Value) -> String {
    let rows = results["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        let figures = row["figures"].as_object().into_iter().flat_map(|figures| figures.keys());
        for name in figures.filter(|name| !["strait", "qemu", "bare"].contains(&name.as_str())) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    let mut table: Vec<Vec<String>> = Vec::new();
    let heads = ["", "strait", "QEMU", "ratio", "goal", ""];
    let mut head: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    head.extend(["limit", "bare L1"].map(str::to_owned));
    head.extend(names.iter().cloned());
    table.push(head);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let unit = text("unit");
        let title =
            if unit.is_empty() { text("title") } else { format!("{}, {unit}", text("title")) };
        let ratio = row["ratio_to_qemu"].as_f64().map_or_else(String::new, number);
        let met = match row["met"].as_bool() {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "",
        };
        let mut cells = vec![
            title,
            figure(row, "strait"),
            figure(row, "qemu"),
            ratio,
            text("goal"),
            met.to_owned(),
        ];
        cells.extend([text("limit"), figure(row, "bare")]);
        cells.extend(names.iter().map(|name| figure(row, name)));
        table.push(cells);
    }
    let mut out = aligned(&table);
    let last = |key: &str| {
        rows.iter().filter_map(|row| row[key].as_str()).max().unwrap_or_default().to_owned()
    };
    let _ = write!(
        out,
        "\nMedian (least to most) of the rounds. Lab host: {}; {}; L1 and L2 run {}.\n",
        last("machine"),
        last("qemu"),
        last("kernel")
    );
    let mut made: Vec<(String, String, String)> = Vec::new();
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let by = (text("date"), text("command"), text("revision"));
        if !made.contains(&by) {
            made.push(by);
        }
    }
    for (date, command, revision) in made {
        let _ = writeln!(out, "Made by `{command}` at {revision}, {date}.");
    }
    out
}

/// `0.123 (0.120 to 0.130)`.
fn figure(row: &Value, contender: &str) -> String {
    let figure = &row["figures"][contender];
    let get = |key: &str| figure[key].as_f64();
    let Some(median) = get("median") else { return String::new() };
    match get("min").zip(get("max")) {
        Some((min, max)) if min < max => {
            format!("{} ({} to {})", number(median), number(min), number(max))
        }
        _ => number(median),
    }
}

/// Three significant digits, or all of a whole number.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value == value.trunc() {
        return format!("{value:.0}");
    }
    let digits = if size >= 10.0 {
        1
    } else if size >= 0.995 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let used = |n: &usize| table.iter().skip(1).any(|row| !row[*n].is_empty());
    let columns: Vec<usize> = (0..columns).filter(used).collect();
    let width = |n: usize| table.iter().map(|row| row[n].chars().count()).max().unwrap_or(0).max(3);
    let mut out = String::new();
    for (line, row) in table.iter().enumerate() {
        let cells: Vec<String> =
            columns.iter().map(|&n| format!("{:<1$}", row[n], width(n))).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if line == 0 {
            let rule: Vec<String> = columns.iter().map(|&n| "-".repeat(width(n))).collect();
            let _ = writeln!(out, "| {} |", rule.join(" | "));
        }
    }
    out
}

/// The page with its table renewed; `None` when it has no place for one.
pub(crate) fn renewed(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

/// A page for a table, where there is none yet.
pub(crate) fn page() -> String {
    format!("# Performance\n\n{BEGIN}\n{END}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, text) in [
            (0.12345, "0.123"),
            (1.2345, "1.23"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (17.0, "17"),
            (0.9999, "1.00"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn page_keeps_everything_but_the_table() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = renewed(&page, "new").expect("marks");
        assert!(
            new.starts_with("before\n") && new.ends_with("\nafter\n") && !new.contains("old"),
            "{new}"
        );
        assert!(renewed("no marks", "new").is_none());
        assert!(renewed(&super::page(), "new").is_some());
    }

    #[test]
    fn empty_columns_are_left_out_and_goals_judged_in_words() {
        let row = json!({"title": "t", "unit": "s", "goal": "0.5 of QEMU", "met": false, "ratio_to_qemu": 0.75,
            "figures": {"strait": {"median": 3.0, "min": 2.0, "max": 4.0}, "qemu": {"median": 4.0, "min": 4.0, "max": 4.0}}});
        let table = markdown(&json!({"rows": [row]}));
        assert!(table.contains("| t, s | 3 (2 to 4) | 4 "), "{table}");
        assert!(table.contains("**not met**") && !table.contains("bare L1"), "{table}");
    }
}
