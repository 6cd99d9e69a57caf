//! The likeliest tokens of a row of logits, in the one order in which tokens are ranked.
//!
//! Higher logits come first, equal ones by lower id; 0 and -0 are equal. What no sound model gives, NaN and +infinity, comes before all
//! else, by lower id: whoever looks at the first sees that it is there.

use std::cmp::Ordering;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit, as the model gave it.
    pub logit: f32,
}

/// The most that [`crate::Device::best`] is asked for.
pub const BEST_MAX: usize = 128;

/// Whether a logit is one that a sound model gives.
#[inline]
pub fn is_sound(logit: f32) -> bool {
    logit < f32::INFINITY
}

/// The order of two candidates.
pub fn order(a: &Candidate, b: &Candidate) -> Ordering {
    let by_soundness = is_sound(a.logit).cmp(&is_sound(b.logit));
    // Sound ones are no NaN, and the order of others is that of their ids.
    let by_logit = || match is_sound(a.logit) {
        true => b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal),
        false => Ordering::Equal,
    };
    by_soundness.then_with(by_logit).then(a.id.cmp(&b.id))
}

/// Appends the first `count` candidates of a row (or all there are), in order.
pub fn best(logits: &[f32], count: usize, out: &mut Vec<Candidate>) {
    let all = (0..).zip(logits).map(|(id, logit)| Candidate { id, logit: *logit });
    out.extend(first(all.collect(), count));
}

/// What the first `count` logits of a row reach at least, given the greatest of each group of them, which are put into another order: so
/// many groups have a logit that is no smaller. Those that reach it are few.
pub fn bound(greatest: &mut [f32], count: usize) -> f32 {
    match (1..=greatest.len()).contains(&count) {
        true => *greatest.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1,
        false => f32::NEG_INFINITY,
    }
}

/// The first `count` of these candidates (or all), in order.
pub fn first(mut all: Vec<Candidate>, count: usize) -> Vec<Candidate> {
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, order);
    }
    all.truncate(count);
    all.sort_unstable_by(order);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUES: [f32; 10] =
        [f32::NAN, f32::INFINITY, f32::MAX, 2.0, f32::MIN_POSITIVE, 0.0, -0.0, -1.5, f32::MIN, f32::NEG_INFINITY];

    #[test]
    fn the_order_is_that_of_the_list() {
        let places = |picks: &[usize]| {
            let logits: Vec<f32> = picks.iter().map(|i| VALUES[*i]).collect();
            let mut out = vec![];
            best(&logits, logits.len(), &mut out);
            out.iter().map(|c| c.id).collect::<Vec<_>>()
        };
        assert_eq!(places(&[9, 8, 7, 5, 4, 3, 2]), [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(places(&[6, 5, 3, 0, 1]), [3, 4, 2, 0, 1]);
        assert_eq!(places(&[5, 6, 3, 1, 0]), [3, 4, 2, 0, 1]);
    }

    proptest! {
        /// Each comes before all that are left, and nothing is there twice.
        #[test]
        fn the_best_come_first(picks in prop::collection::vec(0..VALUES.len(), 0..70), count in 0usize..80) {
            let logits: Vec<f32> = picks.iter().map(|i| VALUES[*i]).collect();
            let mut out = vec![];
            best(&logits, count, &mut out);
            prop_assert_eq!(out.len(), count.min(logits.len()));
            let rest = (0..).zip(&logits).map(|(id, logit)| Candidate { id, logit: *logit });
            let rest: Vec<_> = rest.filter(|c| out.iter().all(|o| o.id != c.id)).collect();
            prop_assert_eq!(rest.len() + out.len(), logits.len());
            prop_assert!(out.is_sorted_by(|a, b| order(a, b).is_lt()));
            prop_assert!(out.last().is_none_or(|last| rest.iter().all(|c| order(last, c).is_lt())));
            prop_assert!(out.iter().all(|c| c.logit.to_bits() == logits[c.id as usize].to_bits()));
        }
    }
}
