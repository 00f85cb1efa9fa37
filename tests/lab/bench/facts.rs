//! What `agent stopwatch` wrote, made into figures.

use std::collections::BTreeMap;

use super::cases::READS;

/// Names and values, in the units of the table.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// One fact.
struct Fact<'a> {
    kind: &'a str,
    at: f64,
    rest: &'a str,
}

/// Reads the facts of one run. What was not watched is absent.
pub(crate) fn figures(times: &str, exits: &str, memory_mib: u64) -> Figures {
    let facts: Vec<Fact<'_>> = times.lines().filter_map(fact).collect();
    let first = |kind: &str| facts.iter().find(|fact| fact.kind == kind).map(|fact| fact.at);
    let line = |text: &str| {
        facts
            .iter()
            .find(|fact| fact.kind == "line" && fact.rest.contains(text))
            .map(|fact| fact.at)
    };
    let Some(begin) = first("begin") else { return Figures::new() };
    let since = |at: Option<f64>| at.map(|at| at - begin);
    let up = line("LAB up=");
    let reads = line("LAB mark=reads-end").zip(line("LAB mark=reads-begin"));
    let instructions = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e3);
    let resident = facts.iter().find(|fact| fact.kind == "memory");
    let resident = resident.and_then(|fact| fact.rest.split(' ').next()?.parse::<f64>().ok());
    let found = [
        ("init", since(up)),
        ("first-read", since(line("LAB mark=first-read"))),
        ("reads", reads.map(|(end, begin)| end - begin)),
        ("entry", since(first("entry"))),
        ("mapped", since(mapped(&facts, memory_mib))),
        ("memory", resident.map(|kib| kib / 1024.0 - memory_mib as f64)),
        ("give-back", first("driver").zip(first("power-off")).map(|(end, begin)| end - begin)),
        ("exits", count(exits, "user")),
        ("exits-all", count(exits, "all")),
        ("exits-per-read", steady(&facts)),
        // With `-icount shift=0` an instruction is a nanosecond of L1's clock: these are millions.
        ("init-instructions", instructions(since(up))),
        ("entry-instructions", instructions(since(first("entry")))),
        ("total", since(first("end"))),
        ("cpu", first("cpu")),
    ];
    found.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn fact(line: &str) -> Option<Fact<'_>> {
    let mut words = line.splitn(3, ' ');
    Some(Fact {
        kind: words.next()?,
        at: words.next()?.parse().ok()?,
        rest: words.next().unwrap_or(""),
    })
}

/// When all of RAM was mapped for DMA. Holes for firmware and what a monitor maps twice are small.
fn mapped(facts: &[Fact<'_>], memory_mib: u64) -> Option<f64> {
    let wanted = (memory_mib << 20) / 100 * 99;
    let mut sum = 0;
    for fact in facts.iter().filter(|fact| fact.kind == "mapped") {
        sum += fact.rest.trim().parse::<u64>().ok()?;
        if sum >= wanted {
            return Some(fact.at);
        }
    }
    None
}

fn count(exits: &str, kind: &str) -> Option<f64> {
    let counts = exits.lines().filter_map(|line| {
        let mut words = line.split(' ');
        (words.next()? == kind).then(|| words.next()?.parse::<f64>().ok()).flatten()
    });
    let sum = counts.fold(0.0, |sum, count| sum + count);
    (sum > 0.0).then_some(sum)
}

/// Exits for each read while nothing else happens: the step is silent for 3 s after its first mark and for 4 s before its
/// last, so that what the console costs is not counted.
fn steady(facts: &[Fact<'_>]) -> Option<f64> {
    let mark =
        |text: &str| facts.iter().find(|fact| fact.kind == "line" && fact.rest.contains(text));
    let samples = || facts.iter().filter(|fact| fact.kind == "exits");
    let sum = |fact: &Fact<'_>| fact.rest.trim().parse::<f64>().ok();
    let begin = mark("LAB mark=reads-begin")?.at + 1.5;
    let end = mark("LAB mark=reads-end")?.at - 1.0;
    let before = samples().find(|fact| fact.at >= begin).and_then(sum)?;
    let after = samples().rfind(|fact| fact.at <= end).and_then(sum)?;
    Some((after - before) / READS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: &str = "begin 10.0 \n\
        exits 10.1 5\n\
        line 12.5 LAB up=2.1\n\
        line 13.0 LAB mark=first-read\n\
        line 13.0 LAB mark=reads-begin\n\
        exits 14.8 300\n\
        exits 16.0 320\n\
        exits 19.5 340\n\
        exits 20.5 900\n\
        memory 13.9 526336 520000\n\
        line 21.0 LAB mark=reads-end\n\
        line 21.4 LAB steps=done\npower-off 21.5 \n\
        end 22.0 \n\
        driver 22.4 nvme\n\
        entry 10.25 \n\
        mapped 11.0 1048576\n\
        mapped 11.5 535822336\n\
        mapped 12.0 16384\n";

    #[test]
    fn figures_are_differences_of_the_right_facts() {
        let figures = figures(TIMES, "user 300 IO\nuser 17 MMIO\nall 5000 npf\n", 512);
        for (name, wanted) in [
            ("init", 2.5),
            ("first-read", 3.0),
            ("reads", 8.0),
            ("entry", 0.25),
            ("mapped", 1.5),
            ("memory", 2.0),
            ("give-back", 0.9),
            ("exits", 317.0),
            ("exits-all", 5000.0),
            ("exits-per-read", 0.02),
            ("entry-instructions", 250.0),
        ] {
            let got = figures[name];
            assert!((got - wanted).abs() < 1e-6, "{name}: {got}");
        }
    }

    #[test]
    fn what_was_not_watched_is_absent_not_zero() {
        let figures = figures("begin 1.0\nend 2.0\n", "", 512);
        assert_eq!(figures.keys().copied().collect::<Vec<_>>(), ["total"]);
    }
}
