//! Log-probabilities of the raw logits.

use super::{
    draw::sum_exp,
    ranking::{self, Ranking},
};

/// The logarithm of the softmax's denominator, and the likeliest tokens.
pub(super) struct Logprobs {
    log_total: f64,
    pub(super) top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `logits` (vocabulary), with the `count` likeliest. Tokens that cannot come (-infinity) are not listed.
    pub(super) fn new(logits: &[f32], count: usize, ranking: &mut Ranking) -> Logprobs {
        // Log-sum-exp with the highest taken out, in double.
        let highest = f64::from(ranking::highest(logits));
        let total = sum_exp(logits, highest, 1.0);
        let mut found = Logprobs { log_total: highest + total.ln(), top: Vec::new() };
        if count > 0 {
            ranking.reset();
            let ids = ranking.first(count, logits).iter().copied();
            let possible = ids.filter(|&id| logits[id as usize] > f32::NEG_INFINITY);
            found.top = possible.map(|id| (id, found.of(logits[id as usize]))).collect();
        }
        found
    }

    /// The log-probability of a token with this raw logit.
    pub(super) fn of(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_total) as f32
    }
}
