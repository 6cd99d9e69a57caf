//! A reply as it grows: its tokens, its text, and what ends it. Whoever draws tokens, replies end by these rules.

use crate::{Finish, Request, Sampled, SamplingError, StopStrings, TextStream, Tokenizer};

/// The tokens drawn so far, and their bytes on the way to whole characters before any stop string.
#[derive(Debug)]
pub(crate) struct Reply {
    tokens: Vec<u32>,
    tokens_max: Option<usize>,
    ignore_end: bool,
    stream: TextStream,
    stop: StopStrings,
}

impl Reply {
    /// The empty reply to a request.
    pub(crate) fn new(request: &Request) -> Result<Reply, SamplingError> {
        let stop = StopStrings::new(request.stop.clone())?;
        let (tokens_max, ignore_end) = (request.tokens_max, request.ignore_end);
        Ok(Reply { tokens: Vec::new(), tokens_max, ignore_end, stream: TextStream::new(false), stop })
    }

    /// The tokens, without an end token.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether it is as long as was asked for.
    pub(crate) fn is_long_enough(&self) -> bool {
        self.tokens_max.is_some_and(|max| self.tokens.len() >= max)
    }

    /// How many tokens may follow yet.
    pub(crate) fn tokens_left(&self) -> usize {
        self.tokens_max.unwrap_or(usize::MAX).saturating_sub(self.tokens.len())
    }

    /// Takes the next token. Gives the text that no stop string will take back, and why the reply ends, if it does. With
    /// `full`, the context has no room to compute the token.
    pub(crate) fn push(&mut self, sampled: &Sampled, full: bool, tokenizer: &Tokenizer) -> (String, Option<Finish>) {
        let ends = tokenizer.is_end_of_generation(sampled.id) && !self.ignore_end;
        if ends || sampled.stop {
            return (String::new(), Some(Finish::EndToken));
        }
        self.tokens.push(sampled.id);
        let mut text = String::new();
        if !tokenizer.is_control(sampled.id) {
            text = self.stop.push(&self.stream.push(tokenizer.token_bytes(sampled.id)));
        }
        let finish = match () {
            () if self.stop.stopped() => Some(Finish::StopString),
            () if full => Some(Finish::ContextFull),
            () if self.is_long_enough() => Some(Finish::Length),
            () => None,
        };
        (text, finish)
    }

    /// The text that was held back, at the end.
    pub(crate) fn finish(&mut self) -> String {
        if self.stop.stopped() {
            return String::new();
        }
        let text = self.stop.push(&self.stream.finish());
        if self.stop.stopped() { text } else { text + &self.stop.finish() }
    }

    /// The stop string that ended it.
    pub(crate) fn stop_string(&self) -> Option<&str> {
        self.stop.matched()
    }
}
