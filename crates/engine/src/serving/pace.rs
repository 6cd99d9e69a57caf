//! How many rows prompts get beside decoding sequences: as many as the time allows that a step may take longer for them.
//!
//! What a row of a prompt adds to a step is measured in every such step, weighed by its rows, and old steps fade fast: what
//! was measured while the machine was busy with something else is soon forgotten.

use std::time::Duration;

/// What is left of the weight of older steps after another.
const FADE: f64 = 0.8;
/// The part of the allowed time that is aimed at: steps are not all alike, and telling takes time too.
const AIM: f64 = 0.85;
/// A step counts as at most so many times what its rows took before.
const SURPRISE_MAX: f64 = 3.0;

/// What rows of prompts add to a step, lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    seconds: f64,
    rows: f64,
}

impl Pace {
    /// A step with so many rows of prompts took so much longer than without.
    pub(super) fn observe(&mut self, rows: usize, longer: Duration) {
        let (rows, mut seconds) = (rows as f64, longer.as_secs_f64());
        if let Some(expected) = self.row().map(|row| row * rows).filter(|expected| *expected > 0.0) {
            seconds = seconds.min(SURPRISE_MAX * expected);
        }
        self.seconds = FADE * self.seconds + seconds;
        self.rows = FADE * self.rows + rows;
    }

    /// How many rows of prompts a step may have that takes `plain` seconds without them and at most `stall` times that with
    /// them; unknown before the first.
    pub(super) fn rows(&self, plain: f64, stall: f64) -> Option<usize> {
        let longer = (AIM * stall - 1.0).max(0.0) * plain;
        // A float that is too large for an integer becomes the largest.
        self.row().map(|row| (longer / row.max(f64::MIN_POSITIVE)) as usize)
    }

    /// Seconds of a row.
    fn row(&self) -> Option<f64> {
        (self.rows > 0.0).then(|| self.seconds / self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_what_they_take() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(1.0, 2.0), None);
        pace.observe(16, Duration::from_secs_f64(1.584));
        assert_eq!((pace.rows(1.0, 2.0), pace.rows(2.0, 2.0), pace.rows(1.0, 1.0)), (Some(7), Some(14), Some(0)));
        pace.observe(9, Duration::ZERO);
        assert!(pace.rows(1.0, 2.0).unwrap() > 9);
        pace = Pace::default();
        pace.observe(1, Duration::ZERO);
        assert!(pace.rows(1.0, 2.0).unwrap() > 1 << 30);
    }

    /// A machine that was busy for a while is not thought slow for long.
    #[test]
    fn what_was_is_soon_forgotten() {
        let mut pace = Pace::default();
        let take = |pace: &mut Pace, row: f64, steps| {
            for _ in 0..steps {
                let rows = pace.rows(1.0, 2.0).unwrap_or(16).max(1);
                pace.observe(rows, Duration::from_secs_f64(row * rows as f64));
            }
            pace.rows(1.0, 2.0).unwrap()
        };
        assert_eq!(take(&mut pace, 0.099, 30), 7);
        assert_eq!(take(&mut pace, 0.6, 30), 1);
        assert!(take(&mut pace, 0.099, 15) >= 6);
    }
}
