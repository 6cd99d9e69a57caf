//! Limits of the engine. None of them changes a reply.

use crate::Pooling;

/// Limits of the engine. How much memory the cache has is decided when the model is loaded
/// ([`crate::LoadOptions::context`]: tokens over all sequences).
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Requests that are computed at once, at least 1.
    pub slots: usize,
    /// Requests that may wait, besides those that are computed or were pre-empted.
    pub queue: usize,
    /// Tokens of a step, at least `slots`.
    pub step_tokens: usize,
    /// How many times longer a step may take because prompts are computed beside decoding sequences, above 1.
    pub stall: f64,
    /// The longest sequence, prompt and reply; none: what the model was trained for. Never more than the cache holds.
    pub context: Option<usize>,
    /// Whether pages with tokens of a reply may serve another request's prompt. Never where both roles are not computed
    /// alike ([`crate::LanguageModel::roles_agree`]).
    pub share_replies: bool,
    /// How embeddings are made; none: as the model was trained, if it was.
    pub pooling: Option<Pooling>,
    /// Logits of one step from which on threads share the draws from them; fewer are faster drawn than shared.
    pub shared_draws: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            slots: 16,
            queue: 256,
            step_tokens: 512,
            stall: 2.0,
            context: None,
            share_replies: true,
            pooling: None,
            shared_draws: 1 << 17,
        }
    }
}

/// Rows for prompts beside decodes while nothing is measured yet.
const UNMEASURED_ROWS: usize = 16;

impl Options {
    /// Limits that make sense.
    pub(super) fn sound(mut self) -> Options {
        self.slots = self.slots.max(1);
        self.step_tokens = self.step_tokens.max(2 * self.slots);
        self.stall = self.stall.max(1.0);
        self
    }

    /// Rows that `prompts` prompts share in a step with `decodes` decoding sequences. `affordable` is how many of them the step has
    /// time for, if that is known.
    pub fn prompt_rows(&self, decodes: usize, prompts: usize, affordable: Option<usize>) -> usize {
        let rest = self.step_tokens - decodes;
        if decodes == 0 {
            return rest;
        }
        // Every prompt gets on, even where any row costs too much.
        affordable.unwrap_or(UNMEASURED_ROWS).max(prompts).min(rest)
    }
}
