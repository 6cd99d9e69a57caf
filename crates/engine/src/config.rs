//! A model's hyper-parameters, read from metadata and checked.

use std::ops::RangeInclusive;

use tessera_formats::gguf::Value;

use crate::{Checkpoint, Error, Pooling};

pub(crate) mod latent;

pub use latent::{IndexerShape, LatentShape};

/// What every architecture has. Shapes of all tensors follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// GGUF's name, such as `llama`.
    pub architecture: String,
    /// Transformer layers, in order. Layers that only predict further tokens (multi-token prediction) are not among them.
    pub layers: Vec<LayerShape>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Tokens in the vocabulary: rows of the embedding.
    pub vocabulary: usize,
    /// Added to the mean square in every norm.
    pub epsilon: f32,
    /// Soft cap of the final logits.
    pub logit_cap: Option<f32>,
    /// The experts of layers that have them.
    pub experts: Option<ExpertShape>,
    /// How it was trained to make an embedding of its rows, if it was.
    pub pooling: Option<Pooling>,
    /// What layers with latent rows have, and a residual of several streams.
    pub latent: Option<LatentShape>,
}

/// What may differ between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Width of the dense feed-forward layer.
    pub feed_forward: usize,
    /// A row sees so many tokens, its own among them; none: all.
    pub window: Option<usize>,
    /// The layer whose keys and values it reads: itself, or an earlier one of its kind.
    pub kv_from: usize,
}

impl LayerShape {
    /// Width of all heads of keys, or of values, together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Experts of a layer.
    pub count: usize,
    /// Experts of a token.
    pub used: usize,
    /// Width of each.
    pub feed_forward: usize,
    /// Experts that every token goes to, as one of this many times the width.
    pub shared: usize,
    /// The first layers, which have no experts.
    pub dense_layers: usize,
}

/// Limits that no sound model passes; they bound what a hostile file can make us allocate.
const LAYERS: RangeInclusive<usize> = 1..=10_000;
const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
const HEADS: RangeInclusive<usize> = 1..=1 << 14;
const HEAD_DIM: RangeInclusive<usize> = 2..=1 << 14;
const CONTEXT: RangeInclusive<usize> = 1..=1 << 30;
const EXPERTS: RangeInclusive<usize> = 1..=1 << 14;

/// Architectures whose metadata gives a window and not the layers that have it: every so many layers one attends to all.
const FULL_ATTENTION_EVERY: [(&str, usize); 2] = [("gemma3", 6), ("gpt-oss", 2)];

/// Every so many layers of an architecture one attends to all tokens, and the others have a window; none: the metadata says.
pub(crate) fn full_attention_every(architecture: &str) -> Option<usize> {
    FULL_ATTENTION_EVERY.iter().find(|(name, _)| *name == architecture).map(|(_, every)| *every)
}

impl Config {
    /// Reads the metadata of a checkpoint.
    ///
    /// # Errors
    /// If a key is missing, or a value is absurd or contradicts another.
    pub fn read(checkpoint: &Checkpoint) -> Result<Config, Error> {
        let keys = Keys::new(checkpoint)?;
        let hidden = keys.count("embedding_length", WIDTH)?;
        let heads = keys.count("attention.head_count", HEADS)?;
        let embedding = "token_embd.weight";
        let embedding = checkpoint
            .tensor(embedding)
            .ok_or_else(|| Error::MissingTensor { file: checkpoint.file().to_owned(), tensor: embedding.to_owned() })?;
        let blocks = keys.count("block_count", LAYERS)?;
        let drafts = latent::draft_blocks(&keys, blocks, keys.count_or("nextn_predict_layers", 0..=blocks - 1, 0)?);
        let mut config = Config {
            architecture: keys.architecture.to_owned(),
            layers: layers(&keys, hidden, heads, (blocks, blocks - drafts))?,
            hidden,
            heads,
            context: keys.count("context_length", CONTEXT)?,
            vocabulary: embedding.rows(),
            epsilon: keys.number("attention.layer_norm_rms_epsilon")?,
            logit_cap: keys.optional_number("final_logit_softcapping")?.filter(|c| *c > 0.0),
            experts: experts(&keys)?,
            pooling: pooling(&keys)?,
            latent: None,
        };
        config.latent = latent::read(&keys, &config, blocks)?;
        Ok(config)
    }

    /// Width of all query heads of a layer together.
    pub fn query_width(&self, layer: usize) -> usize {
        self.heads * self.layers[layer].head_dim
    }

    /// The layers that write keys and values, in order: each has an entry in the cache.
    pub fn kv_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|layer| self.layers[*layer].kv_from == *layer)
    }

    /// The entry of the cache that a layer reads.
    pub fn kv_entry(&self, layer: usize) -> usize {
        let from = self.layers[layer].kv_from;
        self.kv_layers().take_while(|writer| *writer < from).count()
    }
}

/// The shapes of the first `count` of `blocks` layers.
fn layers(
    keys: &Keys<'_>,
    hidden: usize,
    heads: usize,
    (blocks, count): (usize, usize),
) -> Result<Vec<LayerShape>, Error> {
    let kv_heads = keys.counts("attention.head_count_kv", blocks, HEADS)?.unwrap_or_else(|| vec![heads; count]);
    if let Some(wrong) = kv_heads.iter().find(|n| !heads.is_multiple_of(**n)) {
        return Err(keys.wrong("attention.head_count_kv", wrong, format!("a divisor of the {heads} heads")));
    }
    let head_dim = head_dim(keys, "", hidden / heads)?;
    let windowed_dim = self::head_dim(keys, "_swa", head_dim)?;
    let mut feed_forward = keys.counts("feed_forward_length", blocks, WIDTH)?;
    if keys.architecture == latent::ARCHITECTURE {
        // No layer is dense.
        feed_forward = keys.optional_count("expert_feed_forward_length", WIDTH)?.map(|width| vec![width; blocks]);
    }
    let feed_forward = feed_forward.ok_or_else(|| keys.missing("feed_forward_length"))?;
    let windows = windows(keys, blocks, count)?;
    let shared = keys.count_or("attention.shared_kv_layers", 0..=count, 0)?;
    let mut layers: Vec<LayerShape> = Vec::with_capacity(count);
    for layer in 0..count {
        let window = windows[layer];
        let writers = 0..layer.min(count - shared);
        let kv_from = match layer < count - shared {
            true => Some(layer),
            false => writers.rev().find(|writer| layers[*writer].window == window),
        };
        let expected = || "fewer layers than leave a layer of each kind to share from";
        let kv_from = kv_from.ok_or_else(|| keys.wrong("attention.shared_kv_layers", shared, expected()))?;
        let head_dim = if window.is_some() { windowed_dim } else { head_dim };
        let (kv_heads, feed_forward) = (kv_heads[layer], feed_forward[layer]);
        layers.push(LayerShape { kv_heads, head_dim, feed_forward, window, kv_from });
        if layers[kv_from].kv_heads != kv_heads {
            let expected = "the same for layers that share keys and values";
            return Err(keys.wrong("attention.head_count_kv", kv_heads, expected));
        }
    }
    Ok(layers)
}

/// Numbers in a head, which are as many in keys and values.
fn head_dim(keys: &Keys<'_>, suffix: &str, default: usize) -> Result<usize, Error> {
    let head_dim = keys.count_or(&format!("attention.key_length{suffix}"), HEAD_DIM, default)?;
    let key = format!("attention.value_length{suffix}");
    let value_dim = keys.count_or(&key, HEAD_DIM, head_dim)?;
    if value_dim != head_dim || head_dim < 2 || !head_dim.is_multiple_of(2) {
        let expected = format!("even and the same as attention.key_length{suffix}, {head_dim}");
        return Err(keys.wrong(&key, value_dim, expected));
    }
    Ok(head_dim)
}

/// The window of each of the first `count` of `blocks` layers.
fn windows(keys: &Keys<'_>, blocks: usize, count: usize) -> Result<Vec<Option<usize>>, Error> {
    let key = "attention.sliding_window_pattern";
    let pattern = keys.get(key).and_then(Value::as_array).and_then(|a| a.as_bools());
    let windowed: Vec<bool> = match (pattern, full_attention_every(keys.architecture)) {
        (Some(pattern), _) if pattern.len() == blocks => pattern[..count].to_vec(),
        (Some(pattern), _) => return Err(keys.wrong(key, format!("{} layers", pattern.len()), format!("{blocks}"))),
        (None, Some(every)) => (1..=count).map(|layer| !layer.is_multiple_of(every)).collect(),
        (None, None) => return Ok(vec![None; count]),
    };
    let window = keys.optional_count("attention.sliding_window", CONTEXT)?;
    Ok(windowed.into_iter().map(|windowed| window.filter(|_| windowed)).collect())
}

fn experts(keys: &Keys<'_>) -> Result<Option<ExpertShape>, Error> {
    let count = keys.count_or("expert_count", 0..=*EXPERTS.end(), 0)?;
    if count == 0 {
        return Ok(None);
    }
    Ok(Some(ExpertShape {
        count,
        used: keys.count("expert_used_count", 1..=count)?,
        feed_forward: keys.count("expert_feed_forward_length", WIDTH)?,
        shared: keys.count_or("expert_shared_count", 0..=*EXPERTS.end(), 0)?,
        dense_layers: keys.count_or("leading_dense_block_count", 0..=*LAYERS.end(), 0)?,
    }))
}

/// GGUF's numbers of the ways to make one embedding of a text; 0 is none, and the others need a head of their own.
const POOLINGS: [(usize, Pooling); 3] = [(1, Pooling::Mean), (2, Pooling::First), (3, Pooling::Last)];

fn pooling(keys: &Keys<'_>) -> Result<Option<Pooling>, Error> {
    let number = keys.count_or("pooling_type", 0..=usize::from(u8::MAX), 0)?;
    Ok(POOLINGS.iter().find(|(known, _)| *known == number).map(|(_, pooling)| *pooling))
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

    /// The architecture's name.
    pub fn architecture(&self) -> &'a str {
        self.architecture
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

    /// A count for each of `layers` layers, from an array or one number for all.
    ///
    /// # Errors
    /// If one is no integer or outside `range`, or the array has another length.
    pub fn counts(&self, key: &str, layers: usize, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>, Error> {
        let Some(all) = self.get(key).and_then(Value::as_array).and_then(|a| a.to_i64s()) else {
            return Ok(self.optional_count(key, range)?.map(|count| vec![count; layers]));
        };
        if all.len() != layers {
            return Err(self.wrong(key, format!("{} numbers", all.len()), format!("one for each of {layers} layers")));
        }
        let count = |v: &i64| usize::try_from(*v).ok().filter(|v| range.contains(v));
        let wrong = |v: &i64| self.wrong(key, v, format!("whole numbers from {} to {}", range.start(), range.end()));
        all.iter().map(|v| count(v).ok_or_else(|| wrong(v))).collect::<Result<_, Error>>().map(Some)
    }

    /// Whether something is so, if the metadata says.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, short(value), "true or false"))
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
