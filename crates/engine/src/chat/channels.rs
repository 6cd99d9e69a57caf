//! The head of a message where every message has one: who speaks, in which channel, and to whom.

use super::{format::Mark, tools::Tools};

/// A head as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Whether a mark began it; a reply may also begin in the middle of one.
    marked: bool,
    part: Part,
    role: String,
    channel: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Role,
    Channel,
    Form,
}

/// What a message is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Thinking,
    Content,
    /// The arguments of a call to this.
    Call(String),
}

impl Head {
    /// A head of which the role is read: the model speaks.
    pub(super) fn new() -> Head {
        Head { marked: true, role: "assistant".to_owned(), ..Head::default() }
    }

    /// Whether no more than that is read.
    pub(super) fn is_new(&self) -> bool {
        self.marked && self.part == Part::Role && self.role.trim() == "assistant"
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        self.marked = true;
        match mark {
            Mark::Channel => self.part = Part::Channel,
            Mark::Constrain => self.part = Part::Form,
            _ => *self = Head { marked: mark == Mark::Start, ..Head::default() },
        }
    }

    /// Reads a character; none if this is no head, with the text that it is instead.
    pub(super) fn char(&mut self, c: char, to: &str) -> Option<String> {
        match self.part {
            Part::Role => self.role.push(c),
            Part::Channel => self.channel.push(c),
            Part::Form => {}
        }
        let text = self.role.trim_start();
        let may_be = self.marked || to.starts_with(text) || text.starts_with(to);
        (!may_be).then(|| std::mem::take(&mut self.role))
    }

    /// At its end.
    pub(super) fn message(&self, to: &str, prefix: &str, thinking: &[&str], tools: &Tools) -> Message {
        let words = || self.role.split_whitespace().chain(self.channel.split_whitespace());
        let recipient = words().find_map(|word| word.strip_prefix(to)).filter(|name| !name.is_empty());
        let called = recipient.and_then(|name| match name.strip_prefix(prefix) {
            Some(name) if !name.is_empty() => Some(name),
            _ => Some(name).filter(|name| tools.has(name)),
        });
        let channel = self.channel.split_whitespace().next().unwrap_or_default();
        match called {
            Some(name) => Message::Call(name.to_owned()),
            None if thinking.contains(&channel) => Message::Thinking,
            None => Message::Content,
        }
    }

    /// What was read and is no head after all.
    pub(super) fn into_text(self) -> String {
        if self.marked { String::new() } else { self.role }
    }
}
