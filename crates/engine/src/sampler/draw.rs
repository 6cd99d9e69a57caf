//! Probabilities of candidates, the filters over them, and the draw.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::ranking::Ranking;

/// Below this, e^x counts as 0: e^-700 is still a normal f64, and no sum near 1 can see it.
const EXPONENT_MIN: f64 = -700.0;

/// What is left to choose from: the first `kept` candidates in canonical order, with unnormalised weights
/// e^((logit - highest) / temperature), whose sum is `total`.
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    highest: f64,
    /// 1 / temperature, at most f64's largest number.
    inverse: f64,
    kept: usize,
    total: f64,
}

impl<'a> Distribution<'a> {
    pub(super) fn new(logits: &'a [f32], best: u32, temperature: f64) -> Distribution<'a> {
        let highest = f64::from(logits[best as usize]);
        let mut all = Distribution { logits, highest, inverse: 1.0 / temperature, kept: logits.len(), total: 0.0 };
        all.total = logits.iter().map(|&l| all.weight(l)).sum();
        all
    }

    fn weight(&self, logit: f32) -> f64 {
        exp((f64::from(logit) - self.highest) * self.inverse)
    }

    fn weight_at(&self, rank: usize, ranking: &mut Ranking) -> f64 {
        ranking.nth(rank, self.logits).map_or(0.0, |id| self.weight(self.logits[id as usize]))
    }

    /// Keeps the `top_k` likeliest; 0 keeps all.
    pub(super) fn keep_top_k(&mut self, top_k: usize, ranking: &mut Ranking) {
        if top_k > 0 && top_k < self.kept {
            self.kept = top_k;
            let ids = ranking.first(top_k, self.logits);
            self.total = ids.iter().map(|&id| self.weight(self.logits[id as usize])).sum();
        }
    }

    /// Keeps the fewest likeliest whose share of what is left reaches `top_p`.
    pub(super) fn keep_top_p(&mut self, top_p: f64, ranking: &mut Ranking) {
        if top_p < 1.0 {
            let wanted = top_p * self.total;
            self.cut(ranking, |_, sum| sum >= wanted);
        }
    }

    /// Keeps those at least `min_p` as likely as the likeliest, whose weight is 1.
    pub(super) fn keep_min_p(&mut self, min_p: f64, ranking: &mut Ranking) {
        if min_p > 0.0 {
            // The sum is over before the first weight that is too small; the likeliest itself is never that.
            let next_is_too_small = |next: f64, _: f64| next < min_p;
            self.cut(ranking, next_is_too_small);
        }
    }

    /// Walks down the ranks and ends the kept ones where `is_end(weight of the next, sum so far)`.
    fn cut(&mut self, ranking: &mut Ranking, is_end: impl Fn(f64, f64) -> bool) {
        let (mut rank, mut sum) = (0, 0.0);
        let mut next = self.weight_at(0, ranking);
        while rank < self.kept {
            sum += next;
            rank += 1;
            next = if rank < self.kept { self.weight_at(rank, ranking) } else { 0.0 };
            if is_end(next, sum) {
                break;
            }
        }
        (self.kept, self.total) = (rank, sum);
    }

    /// The token in whose share of the cumulated weights `uniform`, in [0, 1), falls.
    pub(super) fn draw(&self, uniform: f64, ranking: &mut Ranking) -> u32 {
        let wanted = uniform * self.total;
        let (mut sum, mut chosen) = (0.0, 0);
        for rank in 0..self.kept {
            let Some(id) = ranking.nth(rank, self.logits) else { break };
            let weight = self.weight(self.logits[id as usize]);
            // The total was summed in another order and may be an ulp above this sum's end: then the last possible
            // token is chosen, and never one of weight 0.
            if weight == 0.0 {
                break;
            }
            chosen = id;
            sum += weight;
            if sum > wanted {
                break;
            }
        }
        chosen
    }
}

/// A number in [0, 1) with 53 random bits, from the seed and the token's index alone (ChaCha8, index as stream).
pub(super) fn uniform(seed: u64, index: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// e^x for x <= 0, within 1e-15 of the true value, by plain multiplications and additions: no fused ones and no
/// platform's library, so that every machine draws the same token. 2^n e^r with |r| <= ln 2 / 2, Taylor to r^13.
pub(super) fn exp(x: f64) -> f64 {
    // Also where x is -infinity. NaN cannot come: logits are checked, and -infinity times 1/temperature is one.
    if x < EXPONENT_MIN {
        return 0.0;
    }
    /// ln 2 in two parts; the high one has 32 bits, so that n times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0;
    for k in (1..=13).rev() {
        p = p * r / f64::from(k) + 1.0;
    }
    // n >= -1010, so that 2^n is normal.
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in 0..=70_000 {
            let x = -f64::from(i) / 100.0;
            let (ours, true_value) = (exp(x), x.exp());
            assert!((ours - true_value).abs() <= true_value * 1e-15, "e^{x}: {ours} is not {true_value}");
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(-701.0), exp(f64::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
    }

    #[test]
    fn uniform_is_what_it_was() {
        // A reply must not change from one version to the next: these are ChaCha8's words, computed elsewhere.
        assert_ne!(uniform(1, 0), uniform(0, 0));
        assert_ne!(uniform(0, 1), uniform(0, 0));
        assert_eq!(uniform(7, 9), uniform(7, 9));
        // ChaCha8, zero key and nonce: the key stream begins 3e 00 ef 2f 89 5f 40 d6.
        let first = u64::from_le_bytes([0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
        assert_eq!(uniform(0, 0), (first >> 11) as f64 / (1u64 << 53) as f64);
    }

    #[test]
    fn uniform_is_even() {
        let mut buckets = [0; 10];
        for index in 0..10_000 {
            buckets[(uniform(42, index) * 10.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (900..1100).contains(&n)), "{buckets:?}");
    }
}
