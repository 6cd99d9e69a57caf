//! From logits to the next token.
//!
//! The steps, in this order: penalties (repetition, frequency, presence) over the last tokens, logit bias, a mask of what a
//! grammar allows, temperature, then the filters top-k, top-p and min-p, each over what the one before it left; then one
//! draw. Log-probabilities are those of the raw logits, before any of this.
//!
//! The random number of a token depends on the seed and the token's index only, never on what was drawn before, so a
//! speculative decoder that asks for index 7 twice gets the same answer twice. Candidates are always walked in one
//! order (higher logit first, then the lower id) and no platform's own `exp` is used, so the same logits give the
//! same token everywhere.

mod draw;
mod logprobs;
mod params;
mod penalties;
mod ranking;
mod stop;

pub use params::{SamplingError, SamplingParams};
pub use stop::StopStrings;

use draw::Distribution;
use ranking::Ranking;
use tessera_ops::{
    Candidate,
    ranking::{BEST_MAX, is_sound},
};

/// Draws tokens by fixed parameters. It keeps no state between tokens but buffers.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    ranking: Ranking,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Whether the token is one of [`SamplingParams::stop_tokens`].
    pub stop: bool,
    /// The natural logarithm of its probability under the raw logits; `None` unless
    /// [`SamplingParams::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most likely tokens under the raw logits, with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler with these parameters.
    ///
    /// # Errors
    /// If a parameter is outside its range.
    pub fn new(params: SamplingParams) -> Result<Sampler, SamplingError> {
        params.check()?;
        Ok(Sampler { params, ranking: Ranking::default() })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws the token number `index` of the reply.
    ///
    /// `logits` (vocabulary size) are changed in place by penalties and bias. `history` holds all tokens before this
    /// one, prompt and reply; penalties look at its end.
    ///
    /// # Errors
    /// If a logit is NaN or +infinity, if no token is left to choose, or if a bias names a token that does not exist.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], index: u64) -> Result<Sampled, SamplingError> {
        self.sample_masked(logits, history, index, &mut |_| {})
    }

    /// As [`Sampler::sample`]; before the draw, `mask` sets the logits of tokens that must not come to -infinity.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_masked(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        index: u64,
        mask: &mut dyn FnMut(&mut [f32]),
    ) -> Result<Sampled, SamplingError> {
        check_logits(logits)?;
        let raw = self.params.logprobs.map(|count| logprobs::Logprobs::new(logits, count, &mut self.ranking));
        // What the raw logits alone know is taken before the penalties change them.
        let saved = raw.as_ref().map(|_| logits.to_vec());
        penalties::apply(&self.params, logits, history);
        self.apply_bias(logits)?;
        mask(logits);
        let id = self.choose(logits, index)?;
        let logprob = raw.as_ref().zip(saved).map(|(raw, saved)| raw.of(saved[id as usize]));
        let stop = self.params.stop_tokens.contains(&id);
        Ok(Sampled { id, stop, logprob, top: raw.map(|raw| raw.top).unwrap_or_default() })
    }

    /// How many of the likeliest tokens decide a draw, of a vocabulary of so many, whatever all other logits are; none where those count.
    pub fn enough(&self, vocabulary: usize) -> Option<usize> {
        let p = &self.params;
        let is_plain = p.repetition_penalty == 1.0
            && p.frequency_penalty == 0.0
            && p.presence_penalty == 0.0
            && p.logit_bias.is_empty()
            && p.logprobs.is_none();
        let count = if p.temperature == 0.0 { 1 } else { p.top_k };
        (is_plain && (1..=BEST_MAX).contains(&count) && count < vocabulary).then_some(count)
    }

    /// As [`Sampler::sample`], from the likeliest tokens of a row, in order: at least as many as are [enough](Sampler::enough).
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_best(&mut self, best: &[Candidate], index: u64) -> Result<Sampled, SamplingError> {
        let first = best.first().ok_or(SamplingError::NothingLeft)?;
        if !is_sound(first.logit) {
            return Err(SamplingError::BadLogit { token: first.id, value: first.logit });
        }
        if first.logit == f32::NEG_INFINITY {
            return Err(SamplingError::NothingLeft);
        }
        let count = if self.params.temperature == 0.0 { 1 } else { self.params.top_k };
        let best = &best[..count.min(best.len())];
        let rank = if best.len() == 1 { 0 } else { self.choose_of_best(best, index) };
        let id = best[rank].id;
        Ok(Sampled { id, stop: self.params.stop_tokens.contains(&id), logprob: None, top: Vec::new() })
    }

    /// The rank that is drawn of `best`, which is all that top-k leaves.
    fn choose_of_best(&mut self, best: &[Candidate], index: u64) -> usize {
        let logits: Vec<f32> = best.iter().map(|c| c.logit).collect();
        self.ranking.reset();
        let distribution = Distribution::of_best(&logits, f64::from(self.params.temperature));
        self.draw(distribution, index) as usize
    }

    fn apply_bias(&self, logits: &mut [f32]) -> Result<(), SamplingError> {
        let vocabulary = logits.len();
        for &(token, bias) in &self.params.logit_bias {
            let Some(logit) = logits.get_mut(token as usize) else {
                return Err(SamplingError::BiasToken { token, vocabulary });
            };
            // Two finite numbers may add to infinity; a ban (-infinity) must stay one.
            *logit = (*logit + bias).min(f32::MAX);
        }
        Ok(())
    }

    fn choose(&mut self, logits: &[f32], index: u64) -> Result<u32, SamplingError> {
        let best = ranking::argmax(logits).ok_or(SamplingError::NothingLeft)?;
        if self.params.temperature == 0.0 || self.params.top_k == 1 {
            return Ok(best);
        }
        self.ranking.reset();
        let mut distribution = Distribution::new(logits, best, f64::from(self.params.temperature));
        distribution.keep_top_k(self.params.top_k, &mut self.ranking);
        Ok(self.draw(distribution, index))
    }

    /// The filters after top-k, and the draw.
    fn draw(&mut self, mut distribution: Distribution<'_>, index: u64) -> u32 {
        distribution.keep_top_p(f64::from(self.params.top_p), &mut self.ranking);
        distribution.keep_min_p(f64::from(self.params.min_p), &mut self.ranking);
        distribution.draw(draw::uniform(self.params.seed, index), &mut self.ranking)
    }
}

/// Refuses what no model with sound weights gives. -infinity is allowed: it means "never".
fn check_logits(logits: &[f32]) -> Result<(), SamplingError> {
    // One branch-free pass over all: NaN and +infinity are what is not below +infinity.
    if !logits.iter().fold(true, |sound, &l| sound & (l < f32::INFINITY)) {
        let token = logits.iter().position(|&l| l.is_nan() || l == f32::INFINITY).unwrap_or(0);
        return Err(SamplingError::BadLogit { token: token as u32, value: logits[token] });
    }
    Ok(())
}
