//! A model's hyper-parameters, read from metadata and checked.

use std::ops::RangeInclusive;

use tessera_formats::gguf::Value;

use crate::{Checkpoint, Error};

/// What every architecture has. Shapes of all tensors follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// GGUF's name, such as `llama`.
    pub architecture: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Tokens in the vocabulary: rows of the embedding.
    pub vocabulary: usize,
    /// Added to the mean square in every norm.
    pub epsilon: f32,
    /// A sliding window of attention, in tokens, for the layers that have one.
    pub window: Option<usize>,
    /// Soft cap of the final logits.
    pub logit_cap: Option<f32>,
}

/// Limits that no sound model passes; they bound what a hostile file can make us allocate.
const LAYERS: RangeInclusive<usize> = 1..=10_000;
const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
const HEADS: RangeInclusive<usize> = 1..=1 << 14;
const HEAD_DIM: RangeInclusive<usize> = 2..=1 << 14;
const CONTEXT: RangeInclusive<usize> = 1..=1 << 30;

impl Config {
    /// Reads the metadata of a checkpoint.
    ///
    /// # Errors
    /// If a key is missing, or a value is absurd or contradicts another.
    pub fn read(checkpoint: &Checkpoint) -> Result<Config, Error> {
        let keys = Keys::new(checkpoint)?;
        let hidden = keys.count("embedding_length", WIDTH)?;
        let heads = keys.count("attention.head_count", HEADS)?;
        let kv_heads = keys.count_or("attention.head_count_kv", HEADS, heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.wrong("attention.head_count_kv", kv_heads, format!("a divisor of the {heads} heads")));
        }
        let head_dim = keys.count_or("attention.key_length", HEAD_DIM, hidden / heads)?;
        let value_dim = keys.count_or("attention.value_length", HEAD_DIM, head_dim)?;
        if value_dim != head_dim || head_dim < 2 || !head_dim.is_multiple_of(2) {
            let expected = format!("even and the same as attention.key_length, {head_dim}");
            return Err(keys.wrong("attention.value_length", value_dim, expected));
        }
        let embedding = "token_embd.weight";
        let embedding = checkpoint
            .tensor(embedding)
            .ok_or_else(|| Error::MissingTensor { file: checkpoint.file().to_owned(), tensor: embedding.to_owned() })?;
        Ok(Config {
            architecture: keys.architecture.to_owned(),
            layers: keys.count("block_count", LAYERS)?,
            hidden,
            feed_forward: keys.count("feed_forward_length", WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            context: keys.count("context_length", CONTEXT)?,
            vocabulary: embedding.rows(),
            epsilon: keys.number("attention.layer_norm_rms_epsilon")?,
            window: keys.optional_count("attention.sliding_window", CONTEXT)?,
            logit_cap: keys.optional_number("final_logit_softcapping")?.filter(|c| *c > 0.0),
        })
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all heads of keys, or of values, together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Metadata of one architecture: keys are given without its name.
pub struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys of the checkpoint's own architecture.
    ///
    /// # Errors
    /// If the metadata does not name one.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Keys<'a>, Error> {
        Ok(Keys { checkpoint, architecture: checkpoint.architecture()? })
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.checkpoint.get(&self.full(key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::MissingKey { file: self.checkpoint.file().to_owned(), key: self.full(key) }
    }

    /// The error that `key` has a value it must not have.
    pub fn wrong(&self, key: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
        let (file, key) = (self.checkpoint.file().to_owned(), self.full(key));
        Error::Key { file, key, found: found.to_string(), expected: expected.into() }
    }

    /// A count that must be there.
    ///
    /// # Errors
    /// If it is missing, no integer, or outside `range`.
    pub fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, Error> {
        self.optional_count(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A count with a default.
    ///
    /// # Errors
    /// If it is no integer, or outside `range`.
    pub fn count_or(&self, key: &str, range: RangeInclusive<usize>, default: usize) -> Result<usize, Error> {
        Ok(self.optional_count(key, range)?.unwrap_or(default))
    }

    /// A count that may be missing. An array of equal numbers, one a layer, counts as that number.
    ///
    /// # Errors
    /// If it is no integer, or outside `range`.
    pub fn optional_count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value.as_array().and_then(|a| a.to_i64s()) {
            Some(all) if all.windows(2).all(|w| w[0] == w[1]) => all.first().and_then(|v| u64::try_from(*v).ok()),
            Some(_) => return Err(self.wrong(key, "an array of different numbers", "one number for all layers")),
            None => value.as_u64(),
        };
        let number = number.and_then(|v| usize::try_from(v).ok()).filter(|v| range.contains(v));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| self.wrong(key, short(value), expected()))
    }

    /// A finite number that must be there.
    ///
    /// # Errors
    /// If it is missing or not a finite number.
    pub fn number(&self, key: &str) -> Result<f32, Error> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number that may be missing.
    ///
    /// # Errors
    /// If it is not a finite number.
    pub fn optional_number(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f32().or_else(|| value.as_u64().map(|v| v as f32)).filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, short(value), "a finite number"))
    }

    /// A word that may be missing.
    pub fn word(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// A value as a few words, however long it is.
fn short(value: &Value) -> String {
    let text = format!("{value:?}");
    if text.chars().count() <= 40 { text } else { format!("{}…", text.chars().take(40).collect::<String>()) }
}
