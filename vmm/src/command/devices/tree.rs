//! The same functions as trees: by IOMMU group, and by bus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use strait_resources::{
    bdf::Bdf,
    host::inventory::{Entry, Verdict},
    names::Names,
};

use super::{reason, title, verdict};
use crate::report::{QUIET, STRONG, plain, shortened, wrapped};

/// A topology deeper than this is a loop, or no machine that was ever built: there are 256 buses.
const MAX_DEPTH: usize = 256;

/// Every group that one of `chosen` is in, with all of its members: they go together.
pub(super) fn groups(all: &[Entry], chosen: &[&Entry], names: &Names, columns: usize) -> String {
    let mut groups: BTreeMap<Option<u32>, Vec<&Entry>> = BTreeMap::new();
    for entry in all {
        groups.entry(entry.function.group).or_default().push(entry);
    }
    let wanted: BTreeSet<Option<u32>> = chosen.iter().map(|entry| entry.function.group).collect();
    let mut text = String::new();
    // Functions without a group, which no IOMMU guards, come last.
    let numbered = groups.iter().filter(|(group, _)| group.is_some());
    let without = groups.iter().filter(|(group, _)| group.is_none());
    for (group, members) in numbered.chain(without) {
        if !wanted.contains(group) {
            continue;
        }
        let head = match group {
            Some(number) => format!("group {number}"),
            None => "no group".to_owned(),
        };
        let _ = writeln!(text, "{STRONG}{head}{STRONG:#}");
        for (position, entry) in members.iter().enumerate() {
            let is_last = position + 1 == members.len();
            line(&mut text, "", is_last, entry, names, columns);
            let rest = if is_last { "   " } else { "│  " };
            // What goes along is what the group shows.
            let why = reason(entry).filter(|_| matches!(entry.verdict, Verdict::No(_)));
            for why in why.iter().flat_map(|why| wrapped(why, columns.saturating_sub(17))) {
                let _ = writeln!(text, "{QUIET}{rest}{QUIET:#}              {why}");
            }
        }
    }
    text
}

/// Every function below the bridges that lead to one of `chosen`.
pub(super) fn buses(all: &[Entry], chosen: &[&Entry], names: &Names, columns: usize) -> String {
    let mut wanted: BTreeSet<Bdf> = BTreeSet::new();
    for entry in chosen {
        wanted.insert(entry.function.bdf);
        wanted.extend(&entry.path);
    }
    let mut below: BTreeMap<Option<Bdf>, Vec<&Entry>> = BTreeMap::new();
    for entry in all.iter().filter(|entry| wanted.contains(&entry.function.bdf)) {
        below.entry(entry.path.last().copied()).or_default().push(entry);
    }
    let mut text = String::new();
    let roots = below.get(&None).cloned().unwrap_or_default();
    let mut root_bus = None;
    for entry in roots {
        let bdf = entry.function.bdf;
        let bus = (bdf.segment(), bdf.bus());
        if root_bus != Some(bus) {
            let _ = writeln!(text, "{STRONG}root bus {:04x}:{:02x}{STRONG:#}", bus.0, bus.1);
            root_bus = Some(bus);
        }
        let siblings = below.get(&None).into_iter().flatten();
        let is_last = !siblings
            .filter(|other| (other.function.bdf.segment(), other.function.bdf.bus()) == bus)
            .any(|other| other.function.bdf > bdf);
        let branch = Branch { below: &below, names, columns };
        branch.draw(&mut text, "", is_last, entry, 0);
    }
    text
}

struct Branch<'a> {
    below: &'a BTreeMap<Option<Bdf>, Vec<&'a Entry>>,
    names: &'a Names,
    columns: usize,
}

impl Branch<'_> {
    fn draw(&self, text: &mut String, indent: &str, is_last: bool, entry: &Entry, depth: usize) {
        line(text, indent, is_last, entry, self.names, self.columns);
        if depth == MAX_DEPTH {
            return;
        }
        let children = self.below.get(&Some(entry.function.bdf)).into_iter().flatten();
        let children: Vec<_> = children.collect();
        let indent = format!("{indent}{}", if is_last { "   " } else { "│  " });
        for (position, child) in children.iter().enumerate() {
            self.draw(text, &indent, position + 1 == children.len(), child, depth + 1);
        }
    }
}

fn line(
    text: &mut String,
    indent: &str,
    is_last: bool,
    entry: &Entry,
    names: &Names,
    columns: usize,
) {
    /// What stands between and around the parts beside the address: the branch, two gaps, the verdict.
    const AROUND: usize = 3 + 2 + 2 + 13;
    let branch = if is_last { "└─ " } else { "├─ " };
    let (word, style) = verdict(entry);
    let driver = entry.function.driver.as_deref();
    let driver = driver.map_or_else(String::new, |driver| format!(" ({})", plain(driver)));
    let bdf = entry.function.bdf.to_string();
    let room = columns.saturating_sub(AROUND + bdf.len() + indent.chars().count());
    let name_room = room.saturating_sub(driver.chars().count());
    let name = shortened(&title(entry, names), name_room) + &driver;
    let _ = writeln!(
        text,
        "{QUIET}{indent}{branch}{QUIET:#}{STRONG}{bdf}{STRONG:#}  {name:room$}  {style}{word}{style:#}"
    );
}
