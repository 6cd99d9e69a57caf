//! What a step costs by its rows, as measured: speculation asks what more rows cost.
//!
//! One running mean a width, or a class of widths. A sample counts as at most twice the mean, so that one step that the
//! machine held up does not count for much. Widths that nobody tried are guessed from their neighbours, rather too low:
//! trying is how to find out.

use std::{collections::BTreeMap, time::Duration};

/// Weight of a new sample.
const NEW: f64 = 0.2;

/// Seconds of a step by rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    mean: BTreeMap<usize, f64>,
}

/// A width with its seconds.
type Known = Option<(usize, f64)>;

/// Widths are told apart one by one up to 16, and then by eighths of the power of two below.
fn class(rows: usize) -> usize {
    let step = (rows.max(1).next_power_of_two() / 16).max(1);
    rows.next_multiple_of(step)
}

impl Costs {
    /// Takes a measurement.
    pub(super) fn observe(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        let mean = self.mean.entry(class(rows)).or_insert(seconds);
        *mean += NEW * (seconds.min(2.0 * *mean) - *mean);
    }

    /// Seconds of a step, rather too low: a width beyond all that are known costs what the widest known one does, and one beyond
    /// twice that grows with its rows. So what is tried for the first time is never much wider than what is known.
    pub(super) fn at_least(&self, rows: usize) -> Option<f64> {
        let (below, above) = self.around(rows);
        let beyond = below.map(|(known, seconds)| seconds * (class(rows) as f64 / (2 * known) as f64).max(1.0));
        between(below, above, rows).or(beyond).or(above.map(|(_, seconds)| seconds))
    }

    /// The nearest known widths on both sides, each with its seconds.
    fn around(&self, rows: usize) -> (Known, Known) {
        let copied = |(rows, seconds): (&usize, &f64)| (*rows, *seconds);
        let class = class(rows);
        (self.mean.range(..=class).next_back().map(copied), self.mean.range(class..).next().map(copied))
    }
}

/// Seconds of a width between two known ones, or of a known one.
fn between(below: Known, above: Known, rows: usize) -> Option<f64> {
    let ((a, low), (b, high)) = (below?, above?);
    Some(if a == b { low } else { low + (high - low) * (class(rows) - a) as f64 / (b - a) as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(pairs: &[(usize, f64)]) -> Costs {
        let mut costs = Costs::default();
        for (rows, seconds) in pairs {
            costs.observe(*rows, Duration::from_secs_f64(*seconds));
        }
        costs
    }

    #[test]
    fn widths_fall_into_classes() {
        let classes: Vec<_> = [1, 2, 15, 16, 17, 18, 31, 33, 64, 65, 511, 512].map(class).to_vec();
        assert_eq!(classes, [1, 2, 15, 16, 18, 18, 32, 36, 64, 72, 512, 512]);
        assert!((1..2000).all(|rows| class(rows) >= rows && class(class(rows)) == class(rows)));
    }

    #[test]
    fn unknown_widths_are_guessed_from_both_sides() {
        let costs = known(&[(2, 1.0), (4, 2.0)]);
        let rows = [1, 2, 3, 4, 8];
        assert_eq!(rows.map(|r| costs.at_least(r).unwrap()), [1.0, 1.0, 1.5, 2.0, 2.0]);
        assert_eq!(costs.at_least(16), Some(4.0));
        assert_eq!(Costs::default().at_least(3), None);
    }

    #[test]
    fn one_late_step_counts_little() {
        let mut costs = known(&[(1, 1.0)]);
        costs.observe(1, Duration::from_secs(100));
        assert!(costs.at_least(1).unwrap() < 1.3);
        for _ in 0..40 {
            costs.observe(1, Duration::from_secs(3));
        }
        assert!((costs.at_least(1).unwrap() - 3.0).abs() < 0.01);
    }
}
