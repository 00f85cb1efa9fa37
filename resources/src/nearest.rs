//! "Did you mean": the nearest name to a mistyped one.

/// The name most like `wanted`, when one is near enough to be meant; `None` for a name unlike all of them.
///
/// Near is a third of the letters wrong at most (swapped neighbours count once), one at least. Of equals the
/// first wins, so the order of `among` is an order of preference.
pub fn nearest<'a>(wanted: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    among
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, name)| *distance <= tolerance(wanted, name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The `count` names most like `wanted`, nearest first, however unlike: for lists where something always helps.
pub fn ranked<'a>(
    wanted: &str,
    among: impl Iterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let mut names: Vec<_> = among.map(|name| (distance(wanted, name), name)).collect();
    names.sort_by_key(|(distance, _)| *distance);
    names.into_iter().take(count).map(|(_, name)| name).collect()
}

fn distance(a: &str, b: &str) -> usize {
    strsim::damerau_levenshtein(&a.to_lowercase(), &b.to_lowercase())
}

fn tolerance(a: &str, b: &str) -> usize {
    (a.chars().count().max(b.chars().count()) / 3).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [&str; 4] = ["--kernel", "--initramfs", "--memory", "--cpus"];

    #[test]
    fn nearest_typo_finds_the_flag() {
        assert_eq!(nearest("--kernal", FLAGS.into_iter()), Some("--kernel"));
        assert_eq!(nearest("--memroy", FLAGS.into_iter()), Some("--memory"));
        assert_eq!(nearest("--CPUS", FLAGS.into_iter()), Some("--cpus"));
    }

    #[test]
    fn nearest_unlike_everything_is_none() {
        assert_eq!(nearest("--frobnicate", FLAGS.into_iter()), None);
        assert_eq!(nearest("x", ["rom", "id"].into_iter()), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
    }

    #[test]
    fn nearest_of_equals_is_the_first() {
        let functions = ["0000:3b:00.1", "0000:3b:00.2"];
        assert_eq!(nearest("0000:3b:00.7", functions.into_iter()), Some("0000:3b:00.1"));
    }

    #[test]
    fn ranked_orders_by_distance_and_stops_at_count() {
        let devices = ["0000:00:02.0", "0000:3c:00.0", "0000:3b:00.0"];
        assert_eq!(
            ranked("0000:3b:00.1", devices.into_iter(), 2),
            ["0000:3b:00.0", "0000:3c:00.0"]
        );
    }
}
