//! How often drafts are right, by how they were found.

use std::ops::Range;

/// What is known of some guesses: how many drafts were tried and how many of these were right. Old evidence fades.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Evidence {
    tried: f64,
    right: f64,
}

/// How often drafts are right, by source.
#[derive(Clone, Debug, Default)]
pub(in crate::serving) struct Acceptance {
    by_source: Vec<Evidence>,
}

/// What is expected of guesses that nobody has tried.
const UNTRIED: f64 = 0.6;
/// As many drafts' worth is the expectation that a request begins with.
const PRIOR_WEIGHT: f64 = 3.0;
/// What is left of the weight of evidence after another guess.
const FADE: f64 = 0.9;
/// And after a guess that was not tried: after some dozens, one is tried again.
const FADE_UNTRIED: f64 = 0.97;

impl Acceptance {
    /// The chance that a draft of one of these sources is right where the one before it is.
    pub(in crate::serving) fn expect(&self, sources: Range<usize>, prior: &Acceptance) -> f64 {
        let expected = prior.mean(sources.clone(), UNTRIED);
        self.mean(sources, expected)
    }

    fn mean(&self, sources: Range<usize>, prior: f64) -> f64 {
        let known = sources.filter_map(|source| self.by_source.get(source));
        let (tried, right) = known.fold((0.0, 0.0), |sum, e| (sum.0 + e.tried, sum.1 + e.right));
        (right + PRIOR_WEIGHT * prior) / (tried + PRIOR_WEIGHT)
    }

    /// Of a guess of `drafted` tokens the first `accepted` were right; after a wrong one the rest tells nothing. A guess of none
    /// was not tried.
    pub(in crate::serving) fn observe(&mut self, source: usize, drafted: usize, accepted: usize) {
        if self.by_source.len() <= source {
            self.by_source.resize(source + 1, Evidence::default());
        }
        let evidence = &mut self.by_source[source];
        let fade = if drafted == 0 { FADE_UNTRIED } else { FADE };
        evidence.tried = evidence.tried * fade + (accepted + usize::from(accepted < drafted)) as f64;
        evidence.right = evidence.right * fade + accepted as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_follow_what_happens_and_recover() {
        let (mut one, mut all) = (Acceptance::default(), Acceptance::default());
        assert_eq!(one.expect(2..3, &all), UNTRIED);
        for _ in 0..20 {
            one.observe(2, 4, 0);
        }
        let poor = one.expect(2..3, &all);
        assert!(poor < 0.2, "{poor}");
        assert_eq!(one.expect(1..2, &all), UNTRIED, "another source is another matter");
        for _ in 0..100 {
            one.observe(2, 0, 0);
        }
        assert!(one.expect(2..3, &all) > 0.5, "it is tried again");
        for _ in 0..20 {
            all.observe(2, 4, 4);
        }
        assert!(Acceptance::default().expect(2..3, &all) > 0.9, "a new request begins with what others found");
    }

    #[test]
    fn drafts_behind_a_wrong_one_tell_nothing() {
        let mut one = Acceptance::default();
        one.observe(0, 7, 3);
        assert_eq!(one.by_source[0], Evidence { tried: 4.0, right: 3.0 });
    }
}
