//! A reference file of `tessera perplexity`: token ids of some chunks of text, and for some positions of each the most
//! likely next tokens with their log-probabilities.
//!
//! ```json
//! { "n_ctx": 512, "n_vocab": 49152,
//!   "chunks": [ { "tokens": [...], "first_scored": 256, "top": [ [[ids], [log-probabilities]], ... ] } ] }
//! ```
//!
//! `top[i]` is about the token that follows position `first_scored + i`. A model whose texts all begin with a token of
//! their own (BOS) sees it in place of each chunk's first token, as chunks cut from a text are measured everywhere.

use std::{fs, path::Path};

use anyhow::Result;
use serde::Deserialize;

use crate::{divergence::Listed, ui::Failure};

/// A reference, checked.
#[derive(Clone, Debug)]
pub(crate) struct ReferenceFile {
    pub(crate) chunks: Vec<Chunk>,
}

/// One run of tokens that a model computes from an empty cache.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) tokens: Vec<u32>,
    /// The position of `top[0]`.
    pub(crate) first_scored: usize,
    pub(crate) top: Vec<Listed>,
}

#[derive(Deserialize)]
struct RawFile {
    n_vocab: Option<u64>,
    chunks: Vec<RawChunk>,
}

#[derive(Deserialize)]
struct RawChunk {
    tokens: Vec<u32>,
    first_scored: usize,
    top: Vec<(Vec<u32>, Vec<f64>)>,
}

impl ReferenceFile {
    /// Reads a file for a model with `vocabulary` tokens.
    ///
    /// # Errors
    /// Where it cannot be read, is no reference file, or is one of another model.
    pub(crate) fn open(path: &Path, vocabulary: usize) -> Result<ReferenceFile> {
        let name = path.display();
        let text = fs::read_to_string(path)
            .map_err(|e| Failure::new(format!("cannot read the reference {name}"), "check the path").caused_by(e))?;
        parse(&text, vocabulary).map_err(|problem| {
            let remedy = "give a file as `tessera perplexity --help` describes, made with the same model";
            Failure::new(format!("{name}: {problem}"), remedy).into()
        })
    }

    /// Puts the token that begins every text of a model into each chunk's first place, as the reference was computed.
    pub(crate) fn begin_with(&mut self, token: u32) {
        self.chunks.iter_mut().filter_map(|chunk| chunk.tokens.first_mut()).for_each(|first| *first = token);
    }

    /// The most tokens in a chunk.
    pub(crate) fn longest(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).max().unwrap_or(0)
    }
}

fn parse(text: &str, vocabulary: usize) -> Result<ReferenceFile, String> {
    let raw: RawFile = serde_json::from_str(text).map_err(|e| format!("not a reference file: {e}"))?;
    if let Some(n) = raw.n_vocab
        && n != vocabulary as u64
    {
        return Err(format!("made with a vocabulary of {n} tokens, and the model's has {vocabulary}"));
    }
    let chunks = raw.chunks.into_iter().enumerate();
    let chunks = chunks.map(|(i, chunk)| check(chunk, vocabulary).map_err(|problem| format!("chunk {i}: {problem}")));
    let chunks: Vec<_> = chunks.collect::<Result<_, _>>()?;
    if chunks.iter().all(|chunk| chunk.top.is_empty()) {
        return Err("no position to score".to_owned());
    }
    Ok(ReferenceFile { chunks })
}

fn check(raw: RawChunk, vocabulary: usize) -> Result<Chunk, String> {
    let outside = |ids: &[u32]| ids.iter().copied().find(|&id| id as usize >= vocabulary);
    if let Some(id) = outside(&raw.tokens) {
        return Err(format!("token {id} is not in the model's vocabulary of {vocabulary}"));
    }
    if raw.first_scored.checked_add(raw.top.len()).is_none_or(|end| end > raw.tokens.len()) {
        return Err(format!(
            "{} positions from {} on exceed its {} tokens",
            raw.top.len(),
            raw.first_scored,
            raw.tokens.len()
        ));
    }
    let mut top = Vec::with_capacity(raw.top.len());
    for (i, (tokens, log_probabilities)) in raw.top.into_iter().enumerate() {
        let position = raw.first_scored + i;
        if tokens.is_empty() || tokens.len() != log_probabilities.len() {
            return Err(format!(
                "position {position} lists {} tokens and {} numbers",
                tokens.len(),
                log_probabilities.len()
            ));
        }
        if let Some(id) = outside(&tokens) {
            return Err(format!("position {position}: token {id} is not in the model's vocabulary of {vocabulary}"));
        }
        // Rounding may lift a log-probability a little above zero.
        if let Some(bad) = log_probabilities.iter().find(|p| !p.is_finite() || **p > 0.01) {
            return Err(format!("position {position}: {bad} is no log-probability"));
        }
        top.push(Listed { tokens, log_probabilities });
    }
    Ok(Chunk { tokens: raw.tokens, first_scored: raw.first_scored, top })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_or_refused() {
        let good =
            r#"{"n_vocab":9,"chunks":[{"tokens":[1,2,8],"first_scored":1,"top":[[[3,4],[-0.5,-1.5]],[[1],[0.0]]]}]}"#;
        let file = parse(good, 9).unwrap();
        assert_eq!((file.longest(), file.chunks[0].first_scored, file.chunks[0].top.len()), (3, 1, 2));
        assert_eq!(file.chunks[0].top[0], Listed { tokens: vec![3, 4], log_probabilities: vec![-0.5, -1.5] });
        let cases = [
            (good.replace("\"n_vocab\":9", "\"n_vocab\":7"), "vocabulary of 7 tokens"),
            (good.replace("[1,2,8]", "[1,2,9]"), "token 9 is not in"),
            (good.replace("[3,4]", "[3,9]"), "position 1: token 9"),
            (good.replace("[3,4]", "[3]"), "lists 1 tokens and 2 numbers"),
            (good.replace("\"first_scored\":1", "\"first_scored\":2"), "exceed its 3 tokens"),
            (good.replace("\"first_scored\":1", "\"first_scored\":18446744073709551615"), "exceed its 3 tokens"),
            (good.replace("-0.5", "1.5"), "1.5 is no log-probability"),
            (good.replace("-0.5", "1e999"), "not a reference file"),
            (good.replace("[-0.5,-1.5]", "[]"), "lists 2 tokens and 0 numbers"),
            ("{}".to_owned(), "not a reference file"),
            ("{\"chunks\":[]}".to_owned(), "no position to score"),
            (good[..40].to_owned(), "not a reference file"),
        ];
        for (text, expect) in cases {
            let error = parse(&text, 9).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
