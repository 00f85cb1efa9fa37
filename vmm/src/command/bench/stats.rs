//! Medians, spread, percentiles.

use serde::{Deserialize, Serialize};

/// What several runs gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The middle.
    pub(super) median: f64,
    /// The least.
    pub(super) min: f64,
    /// The most.
    pub(super) max: f64,
    /// In the order of the runs.
    pub(super) samples: Vec<f64>,
}

impl Summary {
    /// `None` without samples.
    pub(super) fn of(samples: Vec<f64>) -> Option<Self> {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: median(&sorted), min, max, samples })
    }

    /// Do the samples of both lie apart? Then a difference is more than noise.
    pub(super) fn is_apart(&self, other: &Self) -> bool {
        self.max < other.min || other.max < self.min
    }
}

/// The middle of ascending numbers.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => 0.0,
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value below which this share of ascending numbers lies (nearest rank).
pub(super) fn percentile(sorted: &[f64], at: f64) -> f64 {
    let rank = (at / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        for (at, wanted) in [(0.0, 1.0), (50.0, 50.0), (99.0, 99.0), (99.9, 100.0), (100.0, 100.0)]
        {
            assert_eq!(percentile(&values, at), wanted, "{at}");
        }
        assert_eq!(percentile(&[], 50.0), 0.0);
    }

    #[test]
    fn summary_has_the_middle_and_the_ends() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.min, summary.max), (2.5, 1.0, 4.0));
        let far = Summary::of(vec![5.0, 6.0]).unwrap();
        assert!(summary.is_apart(&far) && far.is_apart(&summary));
        assert!(!summary.is_apart(&Summary::of(vec![4.0, 9.0]).unwrap()));
    }
}
