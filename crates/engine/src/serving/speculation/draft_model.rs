//! A small model that guesses for a large one with the same vocabulary.
//!
//! It draws with the request's own parameters and random numbers, so that both models take the same token where they
//! agree on the probabilities, also when sampling. Its cache is its own and holds nothing that cannot be computed again: the
//! sequence that was asked for longest ago makes room.

use tessera_ops::Role;

use super::{Ask, Draft, Drafter};
use crate::{Error, Part, Sampler, SamplingParams, SequenceId, Sequences, Tokenizer, serving::RequestId};

/// Tokens of a prompt that it computes in one step before it guesses.
const CATCH_UP: usize = 64;

/// A small model that guesses for a large one.
pub struct DraftModel {
    sequences: Sequences,
    /// Sequences by request; the one that was asked for last stands last.
    held: Vec<(RequestId, SequenceId)>,
    /// Tokens that the large model knows.
    vocabulary: usize,
}

/// A request that is guessed for in this step.
struct Guessing<'a> {
    /// Which of the asks.
    ask: usize,
    sequence: SequenceId,
    sampler: Sampler,
    known: Vec<u32>,
    /// To be computed next.
    fresh: Vec<u32>,
    of: &'a Ask<'a>,
}

impl DraftModel {
    /// A drafter of a model whose sequences are all free.
    ///
    /// # Errors
    /// If its tokens are not those of the large model.
    pub fn new(sequences: Sequences, tokenizer: &Tokenizer, large: &Tokenizer) -> Result<DraftModel, Error> {
        let (found, expected) = (tokenizer.vocab_len(), large.vocab_len());
        if found != expected {
            return Err(Error::DraftVocabulary { found, expected });
        }
        let same = |id: &u32| {
            tokenizer.token_text(*id) == large.token_text(*id)
                && tokenizer.is_end_of_generation(*id) == large.is_end_of_generation(*id)
        };
        match (0..expected as u32).find(|id| !same(id)) {
            Some(token) => Err(Error::DraftToken { token }),
            None => Ok(DraftModel { sequences, held: Vec::new(), vocabulary: expected }),
        }
    }

    /// The model and its cache.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The sequence of a request, rewound to the tokens that it shares with `known`. None if all that there may be are those of
    /// other `asks`.
    fn sequence(&mut self, request: RequestId, known: &[u32], asks: &[Ask<'_>]) -> Option<SequenceId> {
        let at = self.held.iter().position(|(r, _)| *r == request);
        if at.is_none() && self.held.len() >= self.sequences.count_max() {
            let oldest = self.held.iter().position(|(r, _)| asks.iter().all(|a| a.request != *r))?;
            self.sequences.close(self.held.remove(oldest).1);
        }
        let held = at.map(|at| self.held.remove(at)).unwrap_or_else(|| (request, self.sequences.open()));
        self.held.push(held);
        let computed = self.sequences.tokens(held.1);
        let common = computed.iter().zip(known).take_while(|(a, b)| a == b).count();
        // The last is computed again if need be, for its logits.
        self.sequences.rewind(held.1, common.min(known.len() - 1));
        Some(held.1)
    }

    /// Makes room for `tokens` more tokens, at the cost of sequences that are not of `asks`.
    fn make_room(&mut self, sequence: SequenceId, tokens: usize, asks: &[Ask<'_>], promised: usize) -> bool {
        loop {
            if self.sequences.pages_to_take(sequence, tokens) + promised <= self.sequences.free_pages() {
                return true;
            }
            let idle = |(r, s): &(RequestId, SequenceId)| *s != sequence && asks.iter().all(|a| a.request != *r);
            let Some(oldest) = self.held.iter().position(idle) else { return false };
            self.sequences.close(self.held.remove(oldest).1);
        }
    }

    /// Who can be guessed for now. The others' prompts get on by one chunk.
    fn ready<'a>(&mut self, asks: &'a [Ask<'a>]) -> Result<Vec<Guessing<'a>>, Error> {
        let (mut ready, mut promised) = (Vec::new(), 0);
        for (i, ask) in asks.iter().enumerate() {
            let Some(sequence) = self.sequence(ask.request, ask.known, asks) else { continue };
            let computed = self.sequences.tokens(sequence).len();
            let fresh = &ask.known[computed..];
            if ask.known.iter().any(|t| *t as usize >= self.sequences.config().vocabulary) {
                continue;
            }
            let chunk = CATCH_UP.min(self.sequences.rows_max());
            if fresh.len() > chunk {
                if self.make_room(sequence, chunk, asks, promised) {
                    let part = Part { sequence, tokens: &fresh[..chunk], role: Role::Prefill, logits: 0 };
                    self.sequences.step(&[part])?;
                }
            } else if self.make_room(sequence, fresh.len() + ask.most, asks, promised) {
                promised += self.sequences.pages_to_take(sequence, fresh.len() + ask.most);
                let plain = SamplingParams { logprobs: None, stop_tokens: Vec::new(), ..ask.sampling.clone() };
                let (sampler, known) = (Sampler::new(plain)?, ask.known.to_vec());
                ready.push(Guessing { ask: i, sequence, sampler, known, fresh: fresh.to_vec(), of: ask });
            }
        }
        Ok(ready)
    }
}

impl Drafter for DraftModel {
    fn name(&self) -> &'static str {
        "draft model"
    }

    fn is_free(&self) -> bool {
        false
    }

    fn draft(&mut self, asks: &[Ask<'_>], _: &mut Sequences) -> Result<Vec<Draft>, Error> {
        let mut drafts = vec![Draft::default(); asks.len()];
        let mut guessing = self.ready(asks)?;
        let vocabulary = self.sequences.config().vocabulary;
        while !guessing.is_empty() {
            let parts: Vec<Part<'_>> = guessing
                .iter()
                .map(|g| Part { sequence: g.sequence, tokens: &g.fresh, role: Role::Decode, logits: 1 })
                .collect();
            self.sequences.step(&parts)?;
            let logits = self.sequences.logits().chunks_exact_mut(vocabulary);
            for (g, logits) in guessing.iter_mut().zip(logits) {
                let draft = &mut drafts[g.ask].tokens;
                let drawn = g.sampler.sample(logits, &g.known, g.of.index + draft.len() as u64)?;
                g.fresh.clear();
                if (drawn.id as usize) < self.vocabulary {
                    draft.push(drawn.id);
                    g.known.push(drawn.id);
                    g.fresh.push(drawn.id);
                }
            }
            guessing.retain(|g| !g.fresh.is_empty() && drafts[g.ask].tokens.len() < g.of.most);
        }
        Ok(drafts)
    }

    fn forget(&mut self, request: RequestId) {
        if let Some(at) = self.held.iter().position(|(r, _)| *r == request) {
            self.sequences.close(self.held.remove(at).1);
        }
    }
}
