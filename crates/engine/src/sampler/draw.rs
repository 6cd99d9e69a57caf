//! Probabilities of candidates, the filters over them, and the draw.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::ranking::Ranking;

/// Below this, e^x counts as 0: e^-700 is still a normal f64, and no sum near 1 can see it.
const EXPONENT_MIN: f64 = -700.0;

/// What is left to choose from: the first `kept` candidates in canonical order, with unnormalised weights
/// e^((logit - highest) / temperature).
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    highest: f64,
    /// 1 / temperature, at most f64's largest number.
    inverse: f64,
    kept: usize,
    /// The sum of what is kept; none while that is everything and nobody has asked.
    total: Option<f64>,
}

impl<'a> Distribution<'a> {
    pub(super) fn new(logits: &'a [f32], best: u32, temperature: f64) -> Distribution<'a> {
        let highest = f64::from(logits[best as usize]);
        Distribution { logits, highest, inverse: 1.0 / temperature, kept: logits.len(), total: None }
    }

    /// Of what top-k leaves: its logits, in the order of ranks, which are their ids then.
    pub(super) fn of_best(logits: &'a [f32], temperature: f64) -> Distribution<'a> {
        let mut all = Distribution::new(logits, 0, temperature);
        all.total = Some(logits.iter().map(|logit| all.weight(*logit)).sum());
        all
    }

    fn weight(&self, logit: f32) -> f64 {
        exp((f64::from(logit) - self.highest) * self.inverse)
    }

    fn weight_at(&self, rank: usize, ranking: &mut Ranking) -> f64 {
        ranking.nth(rank, self.logits).map_or(0.0, |id| self.weight(self.logits[id as usize]))
    }

    fn total(&self) -> f64 {
        self.total.unwrap_or_else(|| sum_exp(self.logits, self.highest, self.inverse))
    }

    /// Keeps the `top_k` likeliest; 0 keeps all.
    pub(super) fn keep_top_k(&mut self, top_k: usize, ranking: &mut Ranking) {
        if top_k > 0 && top_k < self.kept {
            self.kept = top_k;
            let ids = ranking.first(top_k, self.logits);
            self.total = Some(ids.iter().map(|&id| self.weight(self.logits[id as usize])).sum());
        }
    }

    /// Keeps the fewest likeliest whose share of what is left reaches `top_p`.
    pub(super) fn keep_top_p(&mut self, top_p: f64, ranking: &mut Ranking) {
        if top_p < 1.0 {
            let wanted = top_p * self.total();
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
        (self.kept, self.total) = (rank, Some(sum));
    }

    /// The token in whose share of the cumulated weights `uniform`, in [0, 1), falls.
    pub(super) fn draw(&self, uniform: f64, ranking: &mut Ranking) -> u32 {
        let wanted = uniform * self.total();
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

/// The sum of e^((logit - highest) · inverse), in eight lanes and then over these in order: a vocabulary is long, and a
/// compiler makes vectors of lanes.
pub(super) fn sum_exp(logits: &[f32], highest: f64, inverse: f64) -> f64 {
    let mut lanes = [0.0; 8];
    let weight = |logit: f32| exp((f64::from(logit) - highest) * inverse);
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &logit)| *lane += weight(logit));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &logit)| *lane += weight(logit));
    lanes.iter().sum()
}

/// e^x for x <= 0, within 1e-15 of the true value, by plain multiplications and additions: no fused ones and no
/// platform's library, so that every machine draws the same token; and without a branch. 2^n e^r with |r| <= ln 2 / 2,
/// Taylor to r^13.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    /// ln 2 in two parts; the high one has 32 bits, so that n times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// Added to a number below 2^51 it leaves the nearest integer in the last bits; 1.5 · 2^52.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// 1 / k!
    const TERMS: [f64; 14] = {
        let mut terms = [1.0; 14];
        let mut k = 1;
        while k < 14 {
            terms[k] = terms[k - 1] / k as f64;
            k += 1;
        }
        terms
    };
    // Also where x is -infinity. NaN cannot come: logits are checked, and -infinity times 1/temperature is one.
    let is_zero = x < EXPONENT_MIN;
    let x = if is_zero { EXPONENT_MIN } else { x };
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = TERMS[13];
    for term in TERMS[..13].iter().rev() {
        p = p * r + term;
    }
    // n >= -1010, so that 2^n is normal. Only the lowest bits of `rounded`, which hold n, are left after the shift.
    let power = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1023 << 52));
    if is_zero { 0.0 } else { p * power }
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
