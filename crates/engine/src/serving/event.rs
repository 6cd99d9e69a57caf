//! What comes of a request, as it comes.

use std::{sync::Arc, time::Duration};

use crate::{Error, Finish, Sampled};

/// What comes of a request: `Started`, then `Token`s or `Embedded`, then `Finished`; or `Failed`, or `Finished`, at any time.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt is computed.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that were in the cache.
        cached_tokens: usize,
    },
    /// A token was drawn. An end token is not emitted.
    Token {
        /// The token, with log-probabilities if these were asked for.
        sampled: Sampled,
        /// Whole characters that no stop string will take back; may be empty.
        text: String,
        /// Whether text of it, or of tokens before it, is still held back.
        held: bool,
    },
    /// The prompt's embedding, a vector of length one: (hidden). It comes in the place of tokens.
    Embedded(Vec<f32>),
    /// The reply is complete.
    Finished(Box<Outcome>),
    /// The model or the device failed; nothing more comes.
    Failed(Arc<Error>),
}

/// The end of a reply.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// Text that was held back for a stop string that did not come: the end of the reply's text.
    pub text: String,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// The token that ended it; not part of the reply.
    pub end_token: Option<u32>,
    /// What it took.
    pub usage: Usage,
}

/// What a request took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache.
    pub cached_tokens: usize,
    /// Tokens of the reply, without an end token.
    pub reply_tokens: usize,
    /// How often its pages were taken away and computed again.
    pub preemptions: usize,
    /// Guesses.
    pub speculation: SpeculationUse,
    /// From submission to the first admission.
    pub queued: Duration,
    /// From there until the prompt was computed.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
}

/// How guessing went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpeculationUse {
    /// Steps in which the sequence decoded.
    pub passes: usize,
    /// Those of them that verified drafts.
    pub drafted_passes: usize,
    /// Drafts that were verified.
    pub drafted: usize,
    /// Those that were right.
    pub accepted: usize,
}

impl SpeculationUse {
    /// Part of the drafts that were right; none without drafts.
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }

    /// Tokens that a decoding step gave; none before the first.
    pub fn tokens_a_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| (self.passes + self.accepted) as f64 / self.passes as f64)
    }

    pub(super) fn add(&mut self, drafted: usize, accepted: usize) {
        self.passes += 1;
        self.drafted_passes += usize::from(drafted > 0);
        self.drafted += drafted;
        self.accepted += accepted;
    }
}
