//! Cuts special tokens out of a text before anything else looks at it.
//!
//! Longer tokens come first over the whole text (not: the leftmost first), and each takes its occurrences from left to
//! right where nothing was taken yet, as llama.cpp does. One pass finds all occurrences of all tokens.

use aho_corasick::AhoCorasick;

use super::{
    Special,
    error::TokenizerError,
    vocabulary::{Kind, Vocabulary},
};

/// A part of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'t> {
    Text(&'t [u8]),
    Token(u32),
}

/// Finds special tokens.
#[derive(Debug)]
pub(super) struct Partition {
    finder: AhoCorasick,
    /// The tokens, longest first; a pattern's number is its priority.
    tokens: Vec<(u32, bool)>,
}

impl Partition {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Partition, TokenizerError> {
        let mut tokens: Vec<(u32, bool)> = Vec::new();
        for (id, kind) in (0u32..).zip(&vocabulary.kinds) {
            match kind {
                Kind::UserDefined => tokens.push((id, true)),
                Kind::Control | Kind::Unknown => tokens.push((id, false)),
                Kind::Normal | Kind::Unused | Kind::Byte => {}
            }
        }
        tokens.sort_by_key(|(id, _)| std::cmp::Reverse(vocabulary.texts[*id as usize].len()));
        let finder = AhoCorasick::new(tokens.iter().map(|(id, _)| &vocabulary.texts[*id as usize]))
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(Partition { finder, tokens })
    }

    /// Where every name in a text begins, overlapping ones too, and whether it is a control token's.
    pub(super) fn occurrences(&self, text: &[u8]) -> impl Iterator<Item = (usize, bool)> {
        self.finder.find_overlapping_iter(text).map(|m| (m.start(), !self.tokens[m.pattern().as_usize()].1))
    }

    /// The parts of a text in order. Without [`Special::Parse`], only user-defined tokens are found.
    pub(super) fn split<'t>(&self, text: &'t [u8], special: Special) -> Vec<Part<'t>> {
        let allowed = |priority: usize| special == Special::Parse || self.tokens[priority].1;
        let mut found: Vec<(usize, usize, usize)> = self
            .finder
            .find_overlapping_iter(text)
            .map(|m| (m.pattern().as_usize(), m.start(), m.end()))
            .filter(|m| allowed(m.0))
            .collect();
        found.sort_unstable();
        // Taken ranges by their beginnings; they never overlap.
        let mut taken = std::collections::BTreeMap::new();
        for (priority, start, end) in found {
            let free_before = taken.range(..end).next_back().is_none_or(|(_, &(taken_end, _))| taken_end <= start);
            if free_before {
                taken.insert(start, (end, self.tokens[priority].0));
            }
        }
        let mut parts = Vec::with_capacity(2 * taken.len() + 1);
        let mut at = 0;
        for (start, (end, id)) in taken {
            if at < start {
                parts.push(Part::Text(&text[at..start]));
            }
            parts.push(Part::Token(id));
            at = end;
        }
        if at < text.len() {
            parts.push(Part::Text(&text[at..]));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_tokens_come_first_and_control_tokens_only_when_asked() {
        let texts = ["ab", "bcd", "<x>", "a"].map(str::to_owned).to_vec();
        let kinds = vec![Kind::UserDefined, Kind::UserDefined, Kind::Control, Kind::Normal];
        let vocabulary = Vocabulary::new(texts, kinds, |t| t.as_bytes().to_vec()).unwrap();
        let partition = Partition::new(&vocabulary).unwrap();
        let plain = partition.split(b"abcdab<x>", Special::Plain);
        assert_eq!(plain, [Part::Text(b"a"), Part::Token(1), Part::Token(0), Part::Text(b"<x>")]);
        let parsed = partition.split(b"<x><x>ab", Special::Parse);
        assert_eq!(parsed, [Part::Token(2), Part::Token(2), Part::Token(0)]);
        assert_eq!(partition.split(b"", Special::Parse), []);
    }
}
