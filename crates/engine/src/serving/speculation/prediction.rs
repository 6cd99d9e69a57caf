//! The model's own guesses, where it was trained to make them.
//!
//! The engine lets the model predict after each step ([`crate::Sequences::predict`]), so the first draft is there when it is
//! asked for; each further one is a prediction more. They are drawn with the request's own parameters and random numbers, so that
//! a draft is the token that comes where the probabilities agree, also when sampling.

use super::{Ask, Draft, Drafter};
use crate::{Error, Sampler, SamplingParams, Sequences, serving::RequestId};

/// Drafts of the model itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction;

/// A request that is guessed for in this step.
struct Guessing<'a> {
    /// Which of the asks.
    index: usize,
    sampler: Sampler,
    known: Vec<u32>,
    of: &'a Ask<'a>,
}

impl Drafter for Prediction {
    fn name(&self) -> &'static str {
        "prediction"
    }

    fn is_free(&self) -> bool {
        false
    }

    fn uses_predictions(&self) -> bool {
        true
    }

    fn draft(&mut self, asks: &[Ask<'_>], sequences: &mut Sequences) -> Result<Vec<Draft>, Error> {
        let mut drafts = vec![Draft::default(); asks.len()];
        let mut guessing = Vec::new();
        for (index, ask) in asks.iter().enumerate().filter(|(_, ask)| sequences.predicted(ask.sequence).is_some()) {
            let plain = SamplingParams { logprobs: None, stop_tokens: Vec::new(), ..ask.sampling.clone() };
            guessing.push(Guessing { index, sampler: Sampler::new(plain)?, known: ask.known.to_vec(), of: ask });
        }
        let mut logits = Vec::new();
        loop {
            let mut next = Vec::new();
            guessing.retain_mut(|g| {
                let draft = &mut drafts[g.index].tokens;
                logits.clear();
                logits.extend_from_slice(sequences.predicted(g.of.sequence).expect("it was predicted for"));
                // Where the layer has not seen all rows (they came from a cache, of a request without drafts), it may have nothing
                // sound to say: then this is no draft.
                let drawn = g.sampler.sample(&mut logits, &g.known, g.of.index + draft.len() as u64);
                let Ok(drawn) = drawn else { return false };
                draft.push(drawn.id);
                g.known.push(drawn.id);
                next.push((g.of.sequence, drawn.id));
                draft.len() < g.of.most
            });
            next.retain(|(sequence, _)| guessing.iter().any(|g| g.of.sequence == *sequence));
            if guessing.is_empty() {
                return Ok(drafts);
            }
            sequences.predict_on(&next)?;
        }
    }

    fn forget(&mut self, _: RequestId) {}
}
