//! The list: two lines a function, and a third where there is a reason to tell.

use std::fmt::Write as _;

use strait_resources::{
    bar::BarKind,
    host::{
        inventory::Entry,
        pci::{HostFunction, Link},
    },
    names::Names,
};

use super::{reason, title, verdict};
use crate::report::{QUIET, STRONG, plain, shortened, wrapped};

/// `0000:3b:00.0`, which is the usual length of an address.
const ADDRESS: usize = 12;
/// Between an address and what is right of it.
const GAP: usize = 2;
/// Where the facts begin when they are many.
const NARROW: usize = 4;
/// The longest verdict is `after binding`.
const VERDICT: usize = 13;

/// The whole list for a terminal of this width.
pub(super) fn render(entries: &[&Entry], names: &Names, columns: usize) -> String {
    let rows: Vec<[String; 8]> = entries.iter().map(|entry| facts(entry)).collect();
    let heads = ["ID", "DRIVER", "GROUP", "NODE", "32-BIT", "64-BIT", "LINK", "RESET"];
    let widths: Vec<usize> = (0..heads.len())
        .map(|at| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.chain([heads[at].len()]).max().unwrap_or(0)
        })
        .collect();
    // Segments that Linux makes up itself have five digits.
    let lengths = entries.iter().map(|entry| entry.function.bdf.to_string().len());
    let address = lengths.fold(ADDRESS, usize::max) + GAP;
    let name_room = columns.saturating_sub(address + VERDICT + 2);
    let mut text = String::new();
    let _ =
        writeln!(text, "{STRONG}{:address$}{:name_room$}  VERDICT{STRONG:#}", "ADDRESS", "DEVICE");
    // Under the names where there is room, else further out.
    let whole: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
    let indent = if address + whole <= columns { address } else { NARROW };
    let room = columns.saturating_sub(indent);
    let indent = " ".repeat(indent);
    let head = cells(&heads.map(str::to_owned), &widths);
    for line in fitted(&head, &widths, room) {
        let _ = writeln!(text, "{indent}{STRONG}{line}{STRONG:#}");
    }
    for (entry, row) in entries.iter().zip(&rows) {
        let (word, style) = verdict(entry);
        let name = shortened(&title(entry, names), name_room);
        let bdf = entry.function.bdf.to_string();
        let width = address - GAP;
        let _ = writeln!(
            text,
            "{STRONG}{bdf:width$}{STRONG:#}  {name:name_room$}  {style}{word}{style:#}"
        );
        for line in fitted(&cells(row, &widths), &widths, room) {
            let _ = writeln!(text, "{indent}{QUIET}{line}{QUIET:#}");
        }
        for line in reason(entry).iter().flat_map(|why| wrapped(why, columns - address)) {
            let _ = writeln!(text, "{:address$}{line}", "");
        }
    }
    text
}

fn cells(row: &[String; 8], widths: &[usize]) -> Vec<String> {
    row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect()
}

/// The cells in one line, or where the terminal is too narrow in as few as hold them.
fn fitted(cells: &[String], widths: &[usize], room: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    let mut used = 0;
    for (cell, width) in cells.iter().zip(widths) {
        if used > 0 && used + 2 + width > room {
            lines.push(String::new());
            used = 0;
        }
        let Some(line) = lines.last_mut() else { break };
        if used > 0 {
            line.push_str("  ");
            used += 2;
        }
        line.push_str(cell);
        used += width;
    }
    lines
        .into_iter()
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn facts(entry: &Entry) -> [String; 8] {
    let function = &entry.function;
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    [
        function.id(),
        function.driver.as_deref().map_or("-".into(), plain).into_owned(),
        number(function.group),
        number(function.numa_node),
        bars(function, |kind| matches!(kind, BarKind::Memory32 { .. })),
        bars(function, |kind| matches!(kind, BarKind::Memory64 { .. })),
        function.link.as_ref().map_or_else(|| "-".to_owned(), link),
        match function.reset_methods.as_slice() {
            [] => "-".to_owned(),
            methods => plain(&methods.join(" ")).into_owned(),
        },
    ]
}

/// `256M+32M=288M`; one BAR is its own sum.
fn bars(function: &HostFunction, wanted: impl Fn(BarKind) -> bool) -> String {
    let sizes: Vec<u64> =
        function.bars.iter().filter(|bar| wanted(bar.kind)).map(|bar| bar.size).collect();
    let words: Vec<String> = sizes.iter().copied().map(brief).collect();
    match words.as_slice() {
        [] => "-".to_owned(),
        [only] => only.clone(),
        several => {
            let total = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
            match brief(total) {
                // An odd sum says less than its parts.
                total if total.len() > 6 => several.join("+"),
                total => format!("{}={total}", several.join("+")),
            }
        }
    }
}

/// `16M`, `16416M`: exact, in the largest unit that divides it.
fn brief(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    let power = (bytes.trailing_zeros() / 10).min(4);
    if bytes == 0 {
        return "0".to_owned();
    }
    let unit = UNITS.get(power as usize).copied().unwrap_or_default();
    format!("{}{unit}", bytes >> (10 * power))
}

/// `2.5x16 of 8.0x16`, in GT/s and lanes.
fn link(link: &Link) -> String {
    let speed = |text: &str| text.split_whitespace().next().unwrap_or("?").to_owned();
    let now = format!("{}x{}", speed(&link.speed), link.width);
    let most = format!("{}x{}", speed(&link.max_speed), link.max_width);
    if link.is_reduced() { format!("{now} of {most}") } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brief_sizes_are_exact() {
        let words = [0, 128, 4 << 10, 288 << 20, 16_416 << 20, 32 << 30].map(brief);
        assert_eq!(words, ["0", "128", "4K", "288M", "16416M", "32G"]);
    }

    #[test]
    fn link_that_idles_shows_both_and_one_at_its_best_one() {
        let made = |speed: &str, width| Link {
            at: "3b:00.0".parse().unwrap(),
            port: None,
            speed: speed.to_owned(),
            width,
            max_speed: "8.0 GT/s PCIe".to_owned(),
            max_width: 16,
        };
        assert_eq!(link(&made("2.5 GT/s PCIe", 16)), "2.5x16 of 8.0x16");
        assert_eq!(link(&made("8.0 GT/s PCIe", 16)), "8.0x16");
    }
}
