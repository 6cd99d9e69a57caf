//! Vocabularies with ranked merges: the `tokenizers` crate's BPE over our pieces.

use std::borrow::Cow;

use tokenizers::{Model, models::bpe::BPE};

use super::{
    byte_level,
    error::TokenizerError,
    pre_tokenizer::{Rule, Spelling, Splitter},
    spm::SPACE,
    vocabulary::Vocabulary,
};

/// A vocabulary with merges, ready to merge.
#[derive(Debug)]
pub(super) struct Bpe {
    model: BPE,
    splitter: Splitter,
    spelling: Spelling,
}

impl Bpe {
    /// `merges` are two tokens each, separated by a space, the first to be made first.
    ///
    /// # Errors
    /// If a merge is not of two tokens that make a third.
    pub(super) fn new(vocabulary: &Vocabulary, merges: &[String], rule: &Rule) -> Result<Bpe, TokenizerError> {
        let ids: tokenizers::models::bpe::Vocab = vocabulary.texts.iter().cloned().zip(0u32..).collect();
        let pairs = merges.iter().map(|m| split_merge(m)).collect::<Result<Vec<_>, _>>()?;
        let model = BPE::builder()
            .vocab_and_merges(ids, pairs)
            .ignore_merges(rule.whole_pieces)
            .byte_fallback(rule.spelling == Spelling::Escaped)
            .build()
            .map_err(|e| TokenizerError::Merges(e.to_string()))?;
        Ok(Bpe { model, splitter: rule.splitter(), spelling: rule.spelling })
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &[u8], out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let (text, surrogates) = to_characters(text);
        match self.spelling {
            Spelling::ByteLevel => {
                let mut spelled = String::new();
                for piece in self.splitter.split(&text) {
                    spelled.clear();
                    for (valid, surrogate) in parts(&text[piece], surrogates) {
                        byte_level::encode(valid.as_bytes(), &mut spelled);
                        byte_level::encode(&surrogate, &mut spelled);
                    }
                    self.merge(&spelled, out)?;
                }
            }
            Spelling::Escaped => {
                let text = text.replace(' ', SPACE);
                for piece in self.splitter.split(&text) {
                    for (valid, surrogate) in parts(&text[piece], surrogates) {
                        self.merge_escaped(valid, out)?;
                        out.extend(surrogate.iter().filter_map(|b| self.model.token_to_id(&format!("<0x{b:02X}>"))));
                    }
                }
            }
        }
        Ok(())
    }

    fn merge_escaped(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        // Runs of line breaks are tokens that no merge makes.
        match self.model.token_to_id(text) {
            Some(id) if text.starts_with('\n') => out.push(id),
            _ => self.merge(text, out)?,
        }
        Ok(())
    }

    fn merge(&self, word: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let tokens = self.model.tokenize(word).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        out.extend(tokens.into_iter().map(|t| t.id));
        Ok(())
    }
}

/// The two tokens of a merge. The first is never empty, and may itself begin with a space.
fn split_merge(merge: &str) -> Result<(String, String), TokenizerError> {
    let after_first = merge.chars().next().map_or(0, char::len_utf8);
    match merge[after_first..].split_once(' ') {
        Some((first, second)) if !second.is_empty() => {
            Ok((format!("{}{first}", &merge[..after_first]), second.to_owned()))
        }
        _ => Err(TokenizerError::Merges(format!("{merge:?} is not two tokens separated by a space"))),
    }
}

/// Surrogates (U+D800 to U+DFFF) are no characters, but llama.cpp lets their bytes pass. While a text is cut, each
/// is stood in for by an unassigned character, which no pattern treats otherwise.
const STAND_INS: u32 = 0x4_0000;
const SURROGATES: std::ops::Range<u32> = 0xd800..0xe000;

fn is_stand_in(c: char) -> bool {
    (STAND_INS..STAND_INS + SURROGATES.len() as u32).contains(&u32::from(c))
}

/// A piece cut after each stand-in, if there are `surrogates`: the text before it, and the bytes of the surrogate.
fn parts(piece: &str, surrogates: bool) -> impl Iterator<Item = (&str, Vec<u8>)> {
    let ends = move |c: char| surrogates && is_stand_in(c);
    piece.split_inclusive(ends).map(move |part| match part.char_indices().next_back() {
        Some((at, c)) if ends(c) => {
            let code = u32::from(c) - STAND_INS + SURROGATES.start;
            let byte = |shift: u32, mask: u32| (code >> shift & mask) as u8;
            (&part[..at], vec![0xe0 | byte(12, 0xf), 0x80 | byte(6, 0x3f), 0x80 | byte(0, 0x3f)])
        }
        _ => (part, Vec::new()),
    })
}

/// The text with U+FFFD for every byte that is not part of a character, as llama.cpp reads it: a character is a first
/// byte and as many continuation bytes as it announces, be it over-long or not. And whether stand-ins are in it.
fn to_characters(text: &[u8]) -> (Cow<'_, str>, bool) {
    if let Ok(valid) = std::str::from_utf8(text) {
        return (valid.into(), false);
    }
    let mut surrogates = false;
    let mut out = String::with_capacity(text.len() + 8);
    let mut at = 0;
    while at < text.len() {
        let (code, len) = code_point(&text[at..]).unwrap_or((0xfffd, 1));
        at += len;
        if SURROGATES.contains(&code) {
            surrogates = true;
            out.extend(char::from_u32(code - SURROGATES.start + STAND_INS));
        } else {
            // An unassigned character that is taken for a stand-in's place, in a text that is invalid anyway, is lost.
            let c = char::from_u32(code).filter(|c| !is_stand_in(*c));
            out.push(c.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }
    (out.into(), surrogates)
}

/// The code point at the beginning, and its length in bytes.
fn code_point(bytes: &[u8]) -> Option<(u32, usize)> {
    let first = *bytes.first()?;
    let (len, bits) = match first {
        0x00..=0x7f => (1, u32::from(first)),
        0xc0..=0xdf => (2, u32::from(first & 0x1f)),
        0xe0..=0xef => (3, u32::from(first & 0x0f)),
        0xf0..=0xf7 => (4, u32::from(first & 0x07)),
        _ => return None,
    };
    let mut code = bits;
    for &byte in bytes.get(1..len)? {
        if byte & 0xc0 != 0x80 {
            return None;
        }
        code = code << 6 | u32::from(byte & 0x3f);
    }
    Some((code, len))
}
