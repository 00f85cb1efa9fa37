//! How many interrupts a function has raised, from /proc/interrupts.

use std::{collections::BTreeSet, fs, path::Path};

/// The sum over its vectors; `None` when it has none.
pub(super) fn of(sysfs: &Path) -> Option<u64> {
    let names = fs::read_dir(sysfs.join("msi_irqs")).ok()?;
    let irqs: BTreeSet<String> =
        names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    sum(&fs::read_to_string("/proc/interrupts").ok()?, &irqs)
}

fn sum(table: &str, irqs: &BTreeSet<String>) -> Option<u64> {
    let cpus = table.lines().next()?.split_whitespace().count();
    let rows = table.lines().skip(1).filter_map(|line| line.split_once(':'));
    let ours = rows.filter(|(irq, _)| irqs.contains(irq.trim()));
    let counts: Vec<u64> = ours
        .flat_map(|(_, rest)| {
            rest.split_whitespace().take(cpus).filter_map(|count| count.parse().ok())
        })
        .collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_cpus_and_vectors_add_up_and_others_do_not() {
        let table = "           CPU0       CPU1\n \
            24:         10          2  PCI-MSIX-0000:01:00.0  0-edge  nvme0q0\n \
            25:        100          3  PCI-MSIX-0000:01:00.0  1-edge  nvme0q1\n \
            26:       9999          9  PCI-MSIX-0000:02:00.0  0-edge  eth0\n\
            NMI:         7          7   Non-maskable interrupts\n";
        let irqs = BTreeSet::from(["24".to_owned(), "25".to_owned()]);
        assert_eq!(sum(table, &irqs), Some(115));
        assert_eq!(sum(table, &BTreeSet::new()), None);
    }
}
