//! The rule of adoption: pure functions over readings.
//!
//! In each round of a cell (a subject at a width) the default, every candidate and the default again take turns. A candidate's
//! ratio is the median over rounds of its time over the mean of the two defaults of its round, so that what disturbs a
//! round disturbs all of it alike. What two readings of the *same* numbers differ by is noise. A candidate is adopted only
//! if it is faster somewhere and slower nowhere, both beyond the noise, in all cells that it governs; and
//! so again when it is measured again.

/// A difference below this is not worth a table.
const NOISE_MIN: f64 = 0.01;
/// A median of readings strays by more than three standard errors about once in four hundred times.
const ERRORS: f64 = 3.0;
/// The standard deviation over the median distance from the middle, for normal noise.
const DEVIATION_OVER_MEDIAN: f64 = 1.4826;
/// The standard error of a median over that of a mean, for normal noise.
const MEDIAN_OVER_MEAN: f64 = 1.2533;

/// Seconds, one of each a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readings<'a> {
    pub(super) default: &'a [f64],
    pub(super) again: &'a [f64],
    pub(super) candidate: &'a [f64],
}

/// A candidate against the default in one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Comparison {
    /// The candidate's time over the default's.
    pub(super) ratio: f64,
    /// Ratios this near to 1 say nothing.
    pub(super) noise: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Faster,
    Same,
    Slower,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::Faster => "faster",
            Outcome::Same => "same",
            Outcome::Slower => "slower",
        }
    }
}

impl Comparison {
    /// Compares the rounds.
    pub(super) fn of(readings: Readings<'_>) -> Comparison {
        let Readings { default, again, candidate } = readings;
        let pairs = || default.iter().zip(again);
        let ratio = median(pairs().zip(candidate).map(|((a, b), c)| c / f64::midpoint(*a, *b)).collect());
        let between = median(pairs().map(|(a, b)| b / a).collect());
        let apart = median(pairs().map(|(a, b)| (b / a - 1.0).abs()).collect());
        let rounds = (default.len().max(1) as f64).sqrt();
        let error = ERRORS * MEDIAN_OVER_MEAN * DEVIATION_OVER_MEDIAN * apart / rounds;
        Comparison { ratio, noise: NOISE_MIN.max((between - 1.0).abs()).max(error) }
    }

    pub(super) fn outcome(&self) -> Outcome {
        // What is not a number is no gain: it compares as neither, and counts as slower.
        if self.ratio < 1.0 - self.noise {
            Outcome::Faster
        } else if self.ratio <= 1.0 + self.noise {
            Outcome::Same
        } else {
            Outcome::Slower
        }
    }
}

/// Whether a candidate with these comparisons, one for each cell that it governs, may be adopted.
pub(super) fn adopts<'a>(cells: impl IntoIterator<Item = &'a Comparison>) -> bool {
    let (mut faster, mut slower) = (false, false);
    for cell in cells {
        match cell.outcome() {
            Outcome::Faster => faster = true,
            Outcome::Same => {}
            Outcome::Slower => slower = true,
        }
    }
    faster && !slower
}

/// Whether a candidate that is measured again, in the same cells, gains again, and in a cell where it did before.
pub(super) fn repeats(first: &[Comparison], second: &[Comparison]) -> bool {
    let faster = |c: &Comparison| c.outcome() == Outcome::Faster;
    adopts(second) && first.iter().zip(second).any(|(a, b)| faster(a) && faster(b))
}

/// The geometric mean of the ratios; 1 where there are none.
pub(super) fn mean_ratio<'a>(cells: impl IntoIterator<Item = &'a Comparison>) -> f64 {
    let logarithms: Vec<f64> = cells.into_iter().map(|c| c.ratio.ln()).collect();
    (logarithms.iter().sum::<f64>() / logarithms.len().max(1) as f64).exp()
}

/// Of candidates for one number, the one to adopt: of those that may be, the one that gains most.
pub(super) fn best(candidates: &[Vec<Comparison>]) -> Option<usize> {
    let may = candidates.iter().enumerate().filter(|(_, cells)| adopts(*cells));
    may.min_by(|(_, a), (_, b)| mean_ratio(*a).total_cmp(&mean_ratio(*b))).map(|(index, _)| index)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => numbers[n / 2],
        n => f64::midpoint(numbers[n / 2 - 1], numbers[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(ratios: &[f64]) -> Vec<Comparison> {
        ratios.iter().map(|ratio| Comparison { ratio: *ratio, noise: 0.02 }).collect()
    }

    #[test]
    fn faster_somewhere_and_slower_nowhere_is_adopted() {
        let cases: [(&[f64], bool); 9] = [
            (&[0.9, 1.0, 1.0], true),
            (&[1.0, 1.019, 0.979], true),
            (&[0.5, 0.5, 0.5, 1.021], false),
            (&[0.981, 1.0, 1.0], false),
            (&[1.0], false),
            (&[1.1], false),
            (&[0.9, f64::NAN], false),
            (&[0.9, f64::INFINITY], false),
            (&[], false),
        ];
        for (ratios, expect) in cases {
            assert_eq!(adopts(&cells(ratios)), expect, "{ratios:?}");
        }
    }

    #[test]
    fn each_cell_has_its_own_noise() {
        let quiet = Comparison { ratio: 1.03, noise: 0.01 };
        let loud = Comparison { noise: 0.05, ..quiet };
        let gain = Comparison { ratio: 0.8, noise: 0.05 };
        assert!(!adopts(&[gain, quiet]) && adopts(&[gain, loud]));
        assert!(!adopts(&[Comparison { ratio: 0.96, noise: 0.05 }]));
    }

    #[test]
    fn the_greatest_gain_without_a_loss_is_best() {
        let candidates = [cells(&[0.4, 1.2]), cells(&[0.9, 1.0]), cells(&[0.8, 0.9]), cells(&[0.99, 0.99])];
        assert_eq!(best(&candidates), Some(2));
        assert_eq!(best(&candidates[..1]), None);
        assert_eq!(best(&[]), None);
        assert!((mean_ratio(&candidates[2]) - 0.72f64.sqrt()).abs() < 1e-12);
        assert!((mean_ratio(&cells(&[])) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_gain_counts_where_it_comes_twice() {
        let first = cells(&[0.9, 1.0, 0.9]);
        assert!(repeats(&first, &cells(&[1.0, 1.0, 0.9])));
        assert!(!repeats(&first, &cells(&[1.0, 0.9, 1.0])));
        assert!(!repeats(&first, &cells(&[0.9, 1.1, 0.9])));
        assert!(!repeats(&first, &[]));
    }

    #[test]
    fn readings_are_compared_round_by_round() {
        // The machine slows down by half on the way: in every round the candidate is a tenth faster.
        let default = [1.0, 1.1, 1.2, 1.4, 1.5];
        let candidate = default.map(|s| 0.9 * s);
        let found = Comparison::of(Readings { default: &default, again: &default, candidate: &candidate });
        assert!((found.ratio - 0.9).abs() < 1e-12 && found.outcome() == Outcome::Faster, "{found:?}");
        assert!((found.noise - NOISE_MIN).abs() < 1e-12);
    }

    #[test]
    fn what_equal_numbers_differ_by_is_noise() {
        let default = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let again = [1.1, 0.9, 1.1, 0.9, 1.0, 1.1, 0.9];
        let found = Comparison::of(Readings { default: &default, again: &again, candidate: &[0.93; 7] });
        assert!(found.noise > 0.1 && found.outcome() == Outcome::Same, "{found:?}");
        // One disturbed round is no noise, and no gain.
        let mut candidate = [1.0; 7];
        candidate[3] = 0.2;
        let mut again = default;
        again[5] = 3.0;
        let found = Comparison::of(Readings { default: &default, again: &again, candidate: &candidate });
        assert!((found.noise - NOISE_MIN).abs() < 1e-12 && found.outcome() == Outcome::Same, "{found:?}");
        // A default that is steadily slower the second time bounds what can be seen.
        let found = Comparison::of(Readings { default: &default, again: &[1.2; 7], candidate: &[0.95; 7] });
        assert!(found.noise > 0.19 && found.outcome() == Outcome::Same, "{found:?}");
        let nothing = Comparison::of(Readings { default: &[], again: &[], candidate: &[] });
        assert_eq!(nothing.outcome(), Outcome::Slower);
    }
}
