//! The graph itself: things of the host, and which of them stands on which. It knows nothing of sysfs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Loss;
use crate::bdf::Bdf;

/// Something that stands on something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    /// A PCI function.
    Function(Bdf),
    /// A block device by its kernel name: a disk, a partition, a volume.
    Block(String),
    /// A file system or pool over several block devices: `zpool rpool`.
    Pool(String),
    /// A mounted file system by its mount point; files may stand on it.
    Files(String),
    /// A network interface.
    Net(String),
    /// A device node in /dev.
    Node(String),
    /// A mediated device by its UUID.
    Mediated(String),
    /// What the host would miss. Nothing stands on it.
    End(Loss),
}

/// Who stands on whom.
#[derive(Debug, Default)]
pub(super) struct Graph {
    above: BTreeMap<Thing, BTreeSet<Thing>>,
    /// Names that say more than the thing's own.
    labels: BTreeMap<Thing, String>,
}

impl Graph {
    /// `upper` stands on `lower`. A thing on itself is nothing new.
    pub(super) fn stand(&mut self, upper: Thing, lower: Thing) {
        if upper != lower {
            self.above.entry(lower).or_default().insert(upper);
        }
    }

    /// Without `lower` the host loses this.
    pub(super) fn lose(&mut self, lower: Thing, loss: Loss) {
        self.stand(Thing::End(loss), lower);
    }

    /// What a chain calls this thing.
    pub(super) fn label(&mut self, thing: Thing, label: String) {
        self.labels.insert(thing, label);
    }

    /// What stands on a thing directly.
    pub(super) fn above(&self, thing: &Thing) -> impl Iterator<Item = &Thing> {
        self.above.get(thing).into_iter().flatten()
    }

    /// Does something stand on it?
    pub(super) fn carries(&self, thing: &Thing) -> bool {
        self.above(thing).next().is_some()
    }

    /// Everything that stands on `start`, at any height, nearest first, each with the names on the shortest way to it,
    /// those of `start` and of itself included. Layers that stand on each other in a circle end the way; a loss comes once
    /// for each thing that it is of.
    pub(super) fn reach(&self, start: &Thing) -> Vec<(&Thing, Vec<String>)> {
        let mut seen = BTreeSet::from([start]);
        let mut found = Vec::new();
        let mut open = VecDeque::from([(start, vec![own_name(start)])]);
        while let Some((thing, chain)) = open.pop_front() {
            for upper in self.above(thing) {
                let is_end = matches!(upper, Thing::End(_));
                if is_end || seen.insert(upper) {
                    let mut chain = chain.clone();
                    chain.push(self.name(upper));
                    found.push((upper, chain.clone()));
                    open.push_back((upper, chain));
                }
            }
        }
        found
    }

    fn name(&self, thing: &Thing) -> String {
        self.labels.get(thing).cloned().unwrap_or_else(|| own_name(thing))
    }
}

fn own_name(thing: &Thing) -> String {
    match thing {
        Thing::Function(bdf) => bdf.to_string(),
        Thing::Files(point) => format!("mounted on {point}"),
        Thing::Block(name) | Thing::Pool(name) | Thing::Net(name) | Thing::Node(name) => {
            name.clone()
        }
        Thing::Mediated(uuid) => format!("mediated device {uuid}"),
        Thing::End(loss) => loss.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str) -> Thing {
        Thing::Block(name.to_owned())
    }

    #[test]
    fn reach_names_the_shortest_way_and_ends_in_a_circle() {
        let mut graph = Graph::default();
        graph.stand(block("b"), block("a"));
        graph.stand(block("c"), block("b"));
        graph.stand(block("c"), block("a"));
        graph.stand(block("a"), block("c"));
        graph.lose(block("c"), Loss::Claimed);
        let start = block("a");
        let found = graph.reach(&start);
        let end = found.iter().find(|(thing, _)| **thing == Thing::End(Loss::Claimed)).unwrap();
        assert_eq!(end.1[..2], ["a", "c"]);
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn reach_of_what_nothing_stands_on_is_empty() {
        let mut graph = Graph::default();
        graph.stand(block("b"), block("a"));
        graph.stand(block("a"), block("a"));
        assert!(graph.reach(&block("b")).is_empty());
        assert_eq!(graph.reach(&block("a")).len(), 1);
    }
}
