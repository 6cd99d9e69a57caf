//! From a reply's tokens to its text: whole characters before any stop string, with special tokens told apart if wanted.
//!
//! A stop string may hold the name of a special token, or end inside of one, so it watches the text with the names in it.
//! What it lets through is cut at the names again.

use std::{collections::VecDeque, ops::Range};

use crate::{SamplingError, StopStrings, TextStream, Tokenizer};

/// A piece of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    /// Whole characters.
    Text(&'a str),
    /// A special token.
    Special {
        /// Its text.
        text: &'a str,
        /// Whether it is shown where nobody knows what it means: it is no control token.
        shown: bool,
    },
}

/// Stand before a special token that is shown, before one that is not, and behind: code points that Unicode promises never to
/// be characters. A text that holds some by itself loses them.
const SHOWN: char = '\u{fdd2}';
const HIDDEN: char = '\u{fdd3}';
const BEHIND: char = '\u{fdd4}';

impl<'a> Span<'a> {
    /// Adds the piece to a text in which special tokens are marked. A text without any is itself.
    pub fn write(self, out: &mut String) {
        match self {
            Span::Text(text) => out.push_str(text),
            Span::Special { text, shown } => {
                out.push(if shown { SHOWN } else { HIDDEN });
                out.push_str(text);
                out.push(BEHIND);
            }
        }
    }

    /// The first piece of a marked text, and the rest of it; none of an empty one.
    pub fn split(text: &'a str) -> Option<(Span<'a>, &'a str)> {
        let first = text.chars().next()?;
        let special = (matches!(first, SHOWN | HIDDEN)).then(|| text[first.len_utf8()..].split_once(BEHIND)).flatten();
        if let Some((name, rest)) = special {
            return Some((Span::Special { text: name, shown: first == SHOWN }, rest));
        }
        let end = text[first.len_utf8()..].find([SHOWN, HIDDEN]).map_or(text.len(), |at| at + first.len_utf8());
        Some((Span::Text(&text[..end]), &text[end..]))
    }
}

/// The text of one reply.
#[derive(Debug)]
pub struct ReplyText {
    stream: TextStream,
    stop: StopStrings,
    specials: bool,
    /// Where the special tokens lie that were not given yet, in bytes of the text with their names.
    marks: VecDeque<(Range<usize>, bool)>,
    /// Bytes that went to the stop strings, and bytes that were given.
    pushed: usize,
    given: usize,
    /// The beginning of a special token's name that a stop string let through.
    begun: String,
}

impl ReplyText {
    /// The text before any of these stop strings. Without `specials`, control tokens are nothing and other special tokens text.
    ///
    /// # Errors
    /// If a stop string is empty.
    pub fn new(stop: Vec<String>, specials: bool) -> Result<ReplyText, SamplingError> {
        Ok(ReplyText {
            stream: TextStream::new(false),
            stop: StopStrings::new(stop)?,
            specials,
            marks: VecDeque::new(),
            pushed: 0,
            given: 0,
            begun: String::new(),
        })
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stop.stopped()
    }

    /// Whether not all text of the tokens so far was given.
    pub fn holds(&self) -> bool {
        self.stream.holds() || self.stop.holds() || !self.begun.is_empty()
    }

    /// The stop string that has come.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop.matched()
    }

    /// Reads the next token, which is not one that ends the reply.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, on_span: &mut dyn FnMut(Span<'_>)) {
        let control = tokenizer.is_control(id);
        let bytes = tokenizer.token_bytes(id);
        if self.specials && tokenizer.is_special(id) {
            let rest = self.stream.finish();
            self.text(&rest, on_span);
            let name = String::from_utf8_lossy(bytes);
            let name = name.replace([SHOWN, HIDDEN, BEHIND], "");
            self.marks.push_back((self.pushed..self.pushed + name.len(), !control));
            self.text(&name, on_span);
        } else if !control {
            let text = self.stream.push(bytes);
            self.text(&text, on_span);
        }
    }

    /// At the end of the reply: what waited.
    pub fn finish(&mut self, on_span: &mut dyn FnMut(Span<'_>)) {
        let rest = self.stream.finish();
        self.text(&rest, on_span);
        let held = self.stop.finish();
        if !self.stopped() {
            self.give(&held, on_span);
        }
        if !self.begun.is_empty() {
            on_span(Span::Text(&std::mem::take(&mut self.begun)));
        }
    }

    fn text(&mut self, text: &str, on_span: &mut dyn FnMut(Span<'_>)) {
        let clean = self.specials && text.contains([SHOWN, HIDDEN, BEHIND]);
        let text = if clean { &text.replace([SHOWN, HIDDEN, BEHIND], "") } else { text };
        self.pushed += text.len();
        let text = self.stop.push(text);
        self.give(&text, on_span);
    }

    /// Gives text that no stop string will take back, cut at the special tokens.
    fn give(&mut self, mut text: &str, on_span: &mut dyn FnMut(Span<'_>)) {
        while !text.is_empty() {
            let next = self.marks.front().cloned();
            let (length, special) = match &next {
                Some((mark, _)) if mark.start <= self.given => (mark.end - self.given, true),
                Some((mark, _)) => (mark.start - self.given, false),
                None => (text.len(), false),
            };
            let (now, later) = text.split_at(length.min(text.len()));
            self.given += now.len();
            text = later;
            if !special {
                on_span(Span::Text(now));
            } else {
                self.begun.push_str(now);
                if let Some((_, shown)) = next.filter(|_| now.len() == length) {
                    self.marks.pop_front();
                    on_span(Span::Special { text: &std::mem::take(&mut self.begun), shown });
                }
            }
        }
    }
}
