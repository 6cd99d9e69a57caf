//! What is asked of the engine, and why it may be refused.

use std::time::Duration;

use crate::{Request, SamplingError};

/// Names a request; counted up from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request and how it is to be served. `n` replies to one prompt are n jobs with different seeds: they share the prompt's
/// pages.
pub struct Job {
    /// Prompt, sampling, and what ends the reply.
    pub request: Request,
    /// Restricts which tokens may come.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whether tokens may be guessed and verified together.
    pub speculation: Speculation,
    /// Higher goes first, and is pre-empted last.
    pub priority: i32,
    /// Asks for the prompt's embedding in the place of a reply.
    pub embed: bool,
    /// Longest time from now until the reply is complete; what there is by then is the reply.
    pub deadline: Option<Duration>,
}

impl Job {
    /// An unconstrained job without a deadline.
    pub fn new(request: Request) -> Job {
        let (speculation, priority) = (Speculation::Auto, 0);
        Job { request, constraint: None, speculation, priority, embed: false, deadline: None }
    }

    /// Asks for the embedding of a text, in the engine's way to make one ([`super::Engine::pooling`]).
    pub fn embedding(prompt: Vec<u32>) -> Job {
        Job { embed: true, ..Job::new(Request { prompt, tokens_max: Some(0), ..Request::default() }) }
    }
}

/// A grammar, as the engine sees it. It is asked for every token that is drawn, in order, and never taken back.
pub trait Constraint: Send {
    /// Sets the logits, (vocabulary), of all tokens that must not come next to -infinity.
    ///
    /// # Errors
    /// What is wrong, in words: the request fails with it.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// A token was drawn and is part of the reply (also an end token).
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// Tokens that are likely to come next because the grammar leaves no choice; they are verified like any draft, so a wrong
    /// one costs time and nothing else. None where it does not say.
    fn forced(&mut self) -> Vec<u32> {
        Vec::new()
    }
}

/// Whether tokens may be guessed and verified together. No choice changes a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where it is likely to gain, by what was measured.
    Auto,
    /// Up to so many drafts a step, whenever there is a guess.
    Depth(usize),
}

/// Why a job is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Refused {
    #[error("{limit} requests are waiting already; try again later, or raise the queue's limit")]
    QueueFull { limit: usize },
    #[error(
        "the model was not trained to make embeddings; use one that was, or say how its rows are to be pooled \
         (`--pooling mean` or `last`)"
    )]
    NoEmbeddings,
    #[error("the prompt has no tokens; there is nothing to continue")]
    EmptyPrompt,
    #[error(
        "a prompt of {tokens} tokens does not fit the context of {context}; shorten it, or ask for a larger context"
    )]
    TooLong { tokens: usize, context: usize },
    #[error("token {token} does not exist; the vocabulary has {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error("the engine is stopped and takes no more requests")]
    Stopped,
}
