//! Interrupts: how many came, by which way, on which CPU.

use anyhow::{Context, Result, ensure};

use crate::{Arguments, net, read, report, write};

/// One line of /proc/interrupts.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Number, or a name such as `PIN`.
    pub id: String,
    /// How many on each CPU.
    pub counts: Vec<u64>,
    /// Controller, edge and names.
    pub rest: String,
}

/// All lines.
pub(crate) fn all() -> Result<Vec<Line>> {
    let text = read("/proc/interrupts")?;
    let cpus = text.lines().next().unwrap_or_default().split_whitespace().count();
    Ok(text.lines().skip(1).filter_map(|line| Line::parse(line, cpus)).collect())
}

impl Line {
    fn parse(line: &str, cpus: usize) -> Option<Self> {
        let (id, rest) = line.trim().split_once(':')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let counts = words.iter().take(cpus).map_while(|word| word.parse().ok()).collect();
        let rest = words.get(cpus..).unwrap_or_default().join(" ");
        Some(Self { id: id.to_owned(), counts, rest })
    }

    /// On all CPUs together.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The lines that carry this name.
pub(crate) fn named(name: &str) -> Result<Vec<Line>> {
    Ok(all()?.into_iter().filter(|line| line.rest.contains(name)).collect())
}

/// How many interrupts of a vector that has no number: `PIN` and the like.
pub(crate) fn special(id: &str) -> Result<Vec<u64>> {
    let line = all()?.into_iter().find(|line| line.id == id);
    Ok(line.with_context(|| format!("/proc/interrupts has no line {id}"))?.counts)
}

/// Step `irqs`: the numbered lines that counted anything.
pub(crate) fn show() -> Result<()> {
    for line in all()?.iter().filter(|line| line.id.parse::<u32>().is_ok() && line.total() > 0) {
        report("irq", format!("{} {:?} {}", line.id, line.counts, line.rest));
    }
    Ok(())
}

/// Step `irq-move,NAME`: pins the interrupts of this device to CPU 0, then to CPU 1, then back, with traffic each
/// time; the counts must follow.
pub(crate) fn follow_affinity(words: &mut Arguments<'_>) -> Result<()> {
    let name = words.word()?;
    for cpu in [0usize, 1, 0] {
        for line in named(name)? {
            write(&format!("/proc/irq/{}/smp_affinity_list", line.id), &cpu.to_string())?;
        }
        // A moved interrupt arrives once more at the old place: let it.
        net::echo(1)?;
        let count = || -> Result<Vec<u64>> {
            let mut sum = vec![0; 2];
            for line in named(name)? {
                for (sum, count) in sum.iter_mut().zip(&line.counts) {
                    *sum += count;
                }
            }
            Ok(sum)
        };
        let before = count()?;
        net::echo(5)?;
        let after = count()?;
        let came: Vec<u64> =
            after.iter().zip(&before).map(|(after, before)| after - before).collect();
        report("irq-move", format!("cpu {cpu}: {came:?}"));
        ensure!(came[cpu] >= 5, "only {} interrupts on CPU {cpu}", came[cpu]);
        ensure!(came[1 - cpu] == 0, "{} interrupts on the other CPU", came[1 - cpu]);
    }
    report("irq-move.result", "followed");
    Ok(())
}
