//! SentencePiece vocabularies with scores: the neighbours that make the best-scored piece merge first.
//!
//! This is llama.cpp's reading of SentencePiece BPE: a text is cut into characters (by their first bytes, so that
//! invalid UTF-8 passes through), every pair of neighbours that makes a token waits in a queue by score, the leftmost
//! first among equals, and what is left over in the end is spelled out in byte tokens. The `tokenizers` crate has no
//! such model: its BPE wants ranked merges, and its Unigram looks for the best sum of scores.

use std::{cmp::Ordering, collections::BinaryHeap, collections::HashMap};

use super::{
    error::TokenizerError,
    vocabulary::{Kind, Vocabulary, byte_named},
};

/// What stands for a space in the vocabulary.
pub(super) const SPACE: &str = "\u{2581}";

/// A vocabulary with scores, ready to merge.
#[derive(Debug)]
pub(super) struct Spm {
    pieces: HashMap<Box<[u8]>, u32>,
    scores: Vec<f32>,
    bytes: Box<[u32; 256]>,
    longest: usize,
}

/// A part of the text that is a token, or a character that may not be one. An empty one was merged into another.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that would make a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// # Errors
    /// If a byte has no token and there is no unknown token to stand in for it.
    pub(super) fn new(vocabulary: &Vocabulary, scores: Vec<f32>) -> Result<Spm, TokenizerError> {
        let mut pieces = HashMap::with_capacity(vocabulary.len());
        let mut byte_ids = [vocabulary.unknown; 256];
        for (id, text) in (0u32..).zip(&vocabulary.texts) {
            pieces.insert(text.as_bytes().into(), id);
            if let &[byte] = text.as_bytes() {
                byte_ids[usize::from(byte)] = Some(id);
            }
        }
        for (id, text) in (0u32..).zip(&vocabulary.texts) {
            if let (Kind::Byte, Some(byte)) = (vocabulary.kinds[id as usize], byte_named(text)) {
                byte_ids[usize::from(byte)] = Some(id);
            }
        }
        let mut bytes = Box::new([0; 256]);
        for (byte, id) in (0u8..=255).zip(byte_ids) {
            bytes[usize::from(byte)] = id.ok_or(TokenizerError::NoByte(byte))?;
        }
        let longest = vocabulary.texts.iter().map(String::len).max().unwrap_or(0);
        // -0.0 and NaN would break the order of the queue.
        let scores = scores.into_iter().map(|s| if s.is_nan() { f32::NEG_INFINITY } else { s + 0.0 }).collect();
        Ok(Spm { pieces, scores, bytes, longest })
    }

    /// Appends the tokens of a text in which spaces are [`SPACE`] already.
    pub(super) fn encode(&self, text: &[u8], out: &mut Vec<u32>) {
        let mut symbols = characters(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.queue_pair(text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            // One of them was merged into something else in the meantime.
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = right.next;
            symbols[pair.right].len = 0;
            if let Some(next) = right.next {
                symbols[next].previous = Some(pair.left);
                self.queue_pair(text, &symbols, pair.left, next, &mut queue);
            }
            if let Some(previous) = left.previous {
                self.queue_pair(text, &symbols, previous, pair.left, &mut queue);
            }
        }
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.pieces.get(piece) {
                Some(&id) => out.push(id),
                None => out.extend(piece.iter().map(|b| self.bytes[usize::from(*b)])),
            }
        }
    }

    fn queue_pair(&self, text: &[u8], symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Pair>) {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        if len > self.longest {
            return;
        }
        if let Some(&id) = self.pieces.get(&text[start..start + len]) {
            queue.push(Pair { score: self.scores[id as usize], left, right, len });
        }
    }
}

/// The characters of a text as their first bytes announce them, whether or not the rest keeps the promise.
fn characters(text: &[u8]) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut start = 0;
    while start < text.len() {
        let announced = match text[start] >> 4 {
            0xc | 0xd => 2,
            0xe => 3,
            0xf => 4,
            _ => 1,
        };
        let len = announced.min(text.len() - start);
        let index = symbols.len();
        let next = (start + len < text.len()).then_some(index + 1);
        symbols.push(Symbol { start, len, previous: index.checked_sub(1), next });
        start += len;
    }
    symbols
}
