//! How far a model's next-token distribution is from a reference that lists only its most likely tokens.
//!
//! The outcomes are the listed tokens and, as one more, all others together. The divergence is that of Kullback and
//! Leibler (1951), D(reference || model) = Σ p ln(p / q), in nats and in f64. Lumping the others together can only
//! lower it, and by the same for all models that are judged by the same list.

/// A model's distribution over its vocabulary, from logits.
pub(crate) struct Distribution<'a> {
    logits: &'a [f32],
    max: f64,
    /// Σ exp(logit - max)
    total: f64,
}

impl<'a> Distribution<'a> {
    /// Softmax of `logits`; none if they are empty or not all finite.
    pub(crate) fn new(logits: &'a [f32]) -> Option<Distribution<'a>> {
        if logits.is_empty() || !logits.iter().all(|l| l.is_finite()) {
            return None;
        }
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        Some(Distribution { logits, max, total })
    }

    /// Log-probability of a token; none outside the vocabulary.
    pub(crate) fn log_probability(&self, token: u32) -> Option<f64> {
        let logit = self.logits.get(token as usize)?;
        Some(f64::from(*logit) - self.max - self.total.ln())
    }

    /// The most likely token, the lowest id among equals.
    pub(crate) fn top(&self) -> u32 {
        let mut best = 0;
        for (token, logit) in self.logits.iter().enumerate() {
            if *logit > self.logits[best] {
                best = token;
            }
        }
        best as u32
    }

    /// D(reference || self) over the listed tokens and the remainder; none if a token is outside the vocabulary.
    pub(crate) fn divergence_from(&self, reference: &Listed) -> Option<f64> {
        let (mut divergence, mut listed_reference, mut listed_model) = (0.0, 0.0, 0.0);
        for (&token, &log_p) in reference.tokens.iter().zip(&reference.log_probabilities) {
            let (p, log_q) = (log_p.exp(), self.log_probability(token)?);
            divergence += p * (log_p - log_q);
            listed_reference += p;
            listed_model += log_q.exp();
        }
        // Rounded log-probabilities may add up to a little more than one: then nothing remains.
        let remainder = 1.0 - listed_reference;
        if remainder > 0.0 {
            // Where the model leaves less than f64 can tell from nothing, the least that it can tell stands for it.
            let left = (1.0 - listed_model).max(f64::EPSILON);
            divergence += remainder * (remainder / left).ln();
        }
        Some(divergence)
    }
}

/// The most likely next tokens at one position, by the reference.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) tokens: Vec<u32>,
    /// Natural logarithms.
    pub(crate) log_probabilities: Vec<f64>,
}

impl Listed {
    /// The most likely of all; the first listed among equals.
    pub(crate) fn top(&self) -> Option<u32> {
        let mut best: Option<(u32, f64)> = None;
        for (&token, &log_p) in self.tokens.iter().zip(&self.log_probabilities) {
            if best.is_none_or(|(_, most)| log_p > most) {
                best = Some((token, log_p));
            }
        }
        best.map(|(token, _)| token)
    }
}

/// What is gathered over positions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    divergences: Vec<f64>,
    same_top: usize,
}

/// The figures of a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) mean_kld: f64,
    pub(crate) p99_kld: f64,
    /// A share, 0 to 1.
    pub(crate) same_top: f64,
    pub(crate) positions: usize,
}

impl Tally {
    /// Adds one position; false if the two do not fit each other.
    pub(crate) fn add(&mut self, model: &Distribution<'_>, reference: &Listed) -> bool {
        let Some(divergence) = model.divergence_from(reference) else { return false };
        self.divergences.push(divergence);
        self.same_top += usize::from(reference.top() == Some(model.top()));
        true
    }

    /// Mean, 99th percentile and share of equal top tokens; none of no positions.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let positions = self.divergences.len();
        if positions == 0 {
            return None;
        }
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            mean_kld: sorted.iter().sum::<f64>() / positions as f64,
            p99_kld: percentile(&sorted, 0.99),
            same_top: self.same_top as f64 / positions as f64,
            positions,
        })
    }
}

/// The value below which `share` of a sorted, non-empty list lies, interpolated linearly between its neighbours.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(pairs: &[(u32, f64)]) -> Listed {
        let (tokens, log_probabilities) = pairs.iter().map(|&(t, p)| (t, p.ln())).unzip();
        Listed { tokens, log_probabilities }
    }

    /// Logits of given probabilities, moved by any constant.
    fn logits(probabilities: &[f64], shift: f64) -> Vec<f32> {
        probabilities.iter().map(|p| (p.ln() + shift) as f32).collect()
    }

    fn divergence(model: &[f64], reference: &[(u32, f64)]) -> f64 {
        let logits = logits(model, 7.0);
        Distribution::new(&logits).unwrap().divergence_from(&listed(reference)).unwrap()
    }

    #[test]
    fn divergences_match_the_sum_written_out() {
        // Listed 0.5 and 0.25, remainder 0.25; the model gives 0.4, 0.4 and 0.1 + 0.1.
        let expect = 0.5 * (0.5f64 / 0.4).ln() + 0.25 * (0.25f64 / 0.4).ln() + 0.25 * (0.25f64 / 0.2).ln();
        let found = divergence(&[0.4, 0.1, 0.4, 0.1], &[(0, 0.5), (2, 0.25)]);
        assert!((found - expect).abs() < 1e-6, "{found} {expect}");
        // How the others share their part does not matter.
        let other = divergence(&[0.4, 0.19, 0.4, 0.01], &[(0, 0.5), (2, 0.25)]);
        assert!((other - expect).abs() < 1e-6, "{other} {expect}");
    }

    #[test]
    fn equal_distributions_are_at_zero_and_others_above() {
        let model = [0.6, 0.3, 0.07, 0.03];
        assert!(divergence(&model, &[(0, 0.6), (1, 0.3)]).abs() < 1e-6);
        assert!(divergence(&model, &[(0, 0.6), (1, 0.3), (2, 0.07), (3, 0.03)]).abs() < 1e-6);
        assert!(divergence(&model, &[(0, 0.3), (1, 0.6)]) > 0.1);
    }

    #[test]
    fn a_list_that_rounds_above_one_has_no_remainder() {
        let found = divergence(&[0.5, 0.5 - 1e-9, 1e-9], &[(0, 0.5002), (1, 0.5)]);
        assert!(found.is_finite() && found.abs() < 1e-3, "{found}");
        // And a model that leaves nothing where the reference leaves something is finite too.
        let logits = [50.0, -1000.0, -1000.0];
        let found = Distribution::new(&logits).unwrap().divergence_from(&listed(&[(0, 0.9)])).unwrap();
        assert!(found.is_finite() && found > 1.0, "{found}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Distribution::new(&[]).is_none());
        assert!(Distribution::new(&[0.0, f32::NAN]).is_none());
        assert!(Distribution::new(&[0.0, f32::INFINITY]).is_none());
        let model = Distribution::new(&[0.0, 1.0]).unwrap();
        assert!(model.log_probability(2).is_none());
        assert!(!Tally::default().add(&model, &listed(&[(2, 0.5)])));
    }

    #[test]
    fn summaries_interpolate_the_percentile() {
        let mut tally = Tally { divergences: (0..101).rev().map(f64::from).collect(), same_top: 101 };
        let expect = Summary { mean_kld: 50.0, p99_kld: 99.0, same_top: 1.0, positions: 101 };
        assert_eq!(tally.summary(), Some(expect));
        tally.divergences.truncate(2); // 100 and 99
        assert!((tally.summary().unwrap().p99_kld - 99.99).abs() < 1e-9);
        tally.divergences.truncate(1);
        assert_eq!(tally.summary().unwrap().p99_kld, 100.0);
        assert_eq!(Tally::default().summary(), None);
    }

    #[test]
    fn tops_are_compared_by_id() {
        let model = Distribution::new(&[1.0, 3.0, 3.0, 2.0]).unwrap();
        assert_eq!(model.top(), 1);
        let mut tally = Tally::default();
        assert!(tally.add(&model, &listed(&[(3, 0.2), (1, 0.5)])));
        assert!(tally.add(&model, &listed(&[(2, 0.5), (1, 0.5)])));
        assert_eq!(tally.summary().unwrap().same_top, 0.5);
    }
}
