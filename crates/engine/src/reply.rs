//! A reply as it grows: its tokens, its text, and what ends it. Whoever draws tokens, replies end by these rules.

use crate::{Finish, ReplyText, Request, Sampled, SamplingError, Tokenizer};

/// The tokens drawn so far, and their bytes on the way to whole characters before any stop string.
#[derive(Debug)]
pub(crate) struct Reply {
    tokens: Vec<u32>,
    tokens_max: Option<usize>,
    ignore_end: bool,
    text: ReplyText,
}

impl Reply {
    /// The empty reply to a request.
    pub(crate) fn new(request: &Request) -> Result<Reply, SamplingError> {
        let text = ReplyText::new(request.stop.clone(), request.specials)?;
        let (tokens_max, ignore_end) = (request.tokens_max, request.ignore_end);
        Ok(Reply { tokens: Vec::new(), tokens_max, ignore_end, text })
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
        self.text.push(tokenizer, sampled.id, &mut |span| span.write(&mut text));
        let finish = match () {
            () if self.text.stopped() => Some(Finish::StopString),
            () if full => Some(Finish::ContextFull),
            () if self.is_long_enough() => Some(Finish::Length),
            () => None,
        };
        (text, finish)
    }

    /// Whether not all text of the tokens so far was given.
    pub(crate) fn holds(&self) -> bool {
        self.text.holds()
    }

    /// The text that was held back, at the end.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        self.text.finish(&mut |span| span.write(&mut text));
        text
    }

    /// The stop string that ended it.
    pub(crate) fn stop_string(&self) -> Option<&str> {
        self.text.stop_string()
    }
}
