//! What the work says: one line of JSON a fact, the same from a guest's console and from a child on the host.

use serde::{Deserialize, Serialize};

/// What every line of it begins with; everything else on a console is the kernel's.
pub(super) const PREFIX: &str = "STRAIT-BENCH ";

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// A point in time; whoever reads the line has the clock.
    Mark(Mark),
    /// A figure.
    Figure(Figure),
    /// How long operations took: pairs of percentile and microseconds, ascending.
    Latency(Vec<(f64, f64)>),
    /// Something that was not measured, and why.
    Note(String),
    /// The work ended early.
    Failed(String),
}

/// Points in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mark {
    /// The program runs: in a guest, the kernel has come to init.
    Up,
    /// The device's driver has it.
    Device,
    /// The device has done its first piece of work.
    First,
    /// Operations that are counted begin.
    WorkBegin,
    /// They are over.
    WorkEnd,
    /// Operations whose interrupts are watched begin.
    InterruptsBegin,
    /// They are over.
    InterruptsEnd,
    /// Nothing happens for a moment.
    Settled,
    /// All is done.
    Done,
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    /// The same on both sides.
    pub(super) id: String,
    /// For people.
    pub(super) title: String,
    /// Of the value.
    pub(super) unit: String,
    /// How much.
    pub(super) value: f64,
    /// Is less better? `None`: neither.
    pub(super) less_is_better: Option<bool>,
}

impl Said {
    /// Prints it.
    pub(super) fn say(&self) {
        // It has no maps with keys that are no strings: it can be written.
        println!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default());
    }

    /// Reads a line. The kernel's own words may stand before it.
    pub(super) fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line.split_once(PREFIX)?.1.trim()).ok()
    }
}

/// Says a figure of which less is better.
pub(super) fn less(id: &str, title: &str, unit: &str, value: f64) {
    figure(id, title, unit, value, Some(true));
}

/// Says a figure of which more is better.
pub(super) fn more(id: &str, title: &str, unit: &str, value: f64) {
    figure(id, title, unit, value, Some(false));
}

/// Says a figure.
pub(super) fn figure(id: &str, title: &str, unit: &str, value: f64, less_is_better: Option<bool>) {
    let [id, title, unit] = [id, title, unit].map(str::to_owned);
    Said::Figure(Figure { id, title, unit, value, less_is_better }).say();
}

/// Says what could not be measured.
pub(super) fn note(text: impl Into<String>) {
    Said::Note(text.into()).say();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_behind_the_kernels_words() {
        let facts =
            [Said::Mark(Mark::WorkBegin), Said::Latency(vec![(50.0, 1.5)]), Said::Note("n".into())];
        for fact in facts {
            let line =
                format!("[    1.2] nvme: {PREFIX}{}\r", serde_json::to_string(&fact).unwrap());
            assert_eq!(Said::read(&line), Some(fact));
        }
        assert_eq!(Said::read("STRAIT-BENCH {}"), None);
        assert_eq!(Said::read("[    1.2] nvme nvme0"), None);
    }
}
