//! The shape of a model whose layers attend to latent rows and whose residual is several streams (DeepSeek V4).

use tessera_formats::gguf::Value;
use tessera_ops::{KvEntry, Packing, Rounding, Selector, StreamGates, mask::ring_pages_min, streams::STREAMS_MAX};

use super::{CONTEXT, Config, HEADS, Keys, WIDTH};
use crate::Error;

/// The architecture.
pub(crate) const ARCHITECTURE: &str = "deepseek4";

/// Tokens of a compressed row in layers whose rows overlap and are selected by an indexer.
pub(crate) const SELECTED_RATIO: usize = 4;
/// Tokens of a compressed row in layers that attend to all of them.
const WIDE_RATIO: usize = 128;

/// The most numbers of a head that devices round.
const ROUNDED_MAX: usize = 1024;

/// More rounds than any model normalises.
const ROUNDS_MAX: usize = 1000;

/// What layers with latent rows have beside what all models have.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentShape {
    /// A row sees so many raw rows, its own among them.
    pub window: usize,
    /// (layers) tokens of a compressed row; 0: the layer has none.
    pub ratios: Vec<usize>,
    /// Numbers of a row.
    pub head_dim: usize,
    /// The last features of a head, which turn.
    pub turning: usize,
    /// Width between the two projections of queries.
    pub query_rank: usize,
    /// Groups of heads that the first projection of the output takes by themselves.
    pub output_groups: usize,
    /// Width that each of them leaves.
    pub output_rank: usize,
    /// What selects compressed rows, where layers have it.
    pub indexer: Option<IndexerShape>,
    /// Residual streams.
    pub streams: StreamGates,
    /// The first layers, whose experts a table gives for each token.
    pub table_layers: usize,
    /// (layers) the limit of gates in experts.
    pub limits: Vec<f32>,
    /// (layers) the same in the shared expert.
    pub shared_limits: Vec<f32>,
    /// Whether there is a layer that drafts further tokens: it has an entry of its own, the last.
    pub drafts: bool,
}

/// The indexer of layers whose compressed rows are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexerShape {
    /// Heads of queries.
    pub heads: usize,
    /// Numbers of a head, and of a key.
    pub head_dim: usize,
    /// Rows that are selected, at most.
    pub top_k: usize,
}

/// The entries of the cache that one layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LatentEntries {
    pub(crate) raw: usize,
    /// Inputs and compressed rows.
    pub(crate) compressed: Option<(usize, usize)>,
    /// Inputs and keys of the indexer.
    pub(crate) keys: Option<(usize, usize)>,
}

impl LatentShape {
    /// Numbers of a token's values, or scores, from which rows of this width are made.
    pub(crate) fn input_width(ratio: usize, head_dim: usize) -> usize {
        if ratio == SELECTED_RATIO { 2 * head_dim } else { head_dim }
    }

    /// What rows were rounded to in training: all but the features that turn.
    pub(crate) fn row_rounding(&self) -> Rounding {
        Rounding::Fp8 { features: self.head_dim - self.turning }
    }

    /// All entries of the cache, where a step has at most so many rows of a sequence, and those of each layer; behind them the
    /// layer that drafts. Packed rows are for models that round theirs.
    pub(crate) fn entries(&self, step_rows: usize, is_packed: bool) -> (Vec<KvEntry>, Vec<LatentEntries>) {
        let packed =
            |entry: KvEntry, rounding: Rounding| if is_packed { entry.packed(Packing::of(rounding)) } else { entry };
        let mut entries: Vec<KvEntry> = vec![];
        let mut add = |entry| {
            entries.push(entry);
            entries.len() - 1
        };
        let compressed = |add: &mut dyn FnMut(KvEntry) -> usize, ratio: usize, head_dim: usize, rounding: Rounding| {
            let window = if ratio == SELECTED_RATIO { 2 * ratio } else { ratio };
            let (width, ring_pages) =
                (2 * LatentShape::input_width(ratio, head_dim), ring_pages_min(window, step_rows));
            (add(KvEntry::Inputs { width, ring_pages }), add(packed(KvEntry::compressed(head_dim, ratio), rounding)))
        };
        let ring_pages = Some(ring_pages_min(self.window, step_rows));
        let draft = self.drafts.then_some(0);
        let of_layers = self.ratios.iter().copied().chain(draft).map(|ratio| LatentEntries {
            raw: add(packed(KvEntry::latent(self.head_dim, ring_pages), self.row_rounding())),
            compressed: (ratio > 0).then(|| compressed(&mut add, ratio, self.head_dim, self.row_rounding())),
            keys: self
                .indexer
                .filter(|_| ratio == SELECTED_RATIO)
                .map(|indexer| compressed(&mut add, ratio, indexer.head_dim, Rounding::HadamardFp4)),
        });
        let of_layers = of_layers.collect();
        (entries, of_layers)
    }
}

/// The shape, of an architecture that has one.
pub(super) fn read(keys: &Keys<'_>, config: &Config, blocks: usize) -> Result<Option<LatentShape>, Error> {
    if keys.architecture != ARCHITECTURE {
        return Ok(None);
    }
    let (layers, head_dim) = (config.layers.len(), config.layers[0].head_dim);
    if head_dim > ROUNDED_MAX {
        return Err(keys.wrong("attention.key_length", head_dim, format!("at most {ROUNDED_MAX}")));
    }
    let ratios = ratios(keys, layers)?;
    let indexer = match ratios.contains(&SELECTED_RATIO) {
        true => Some(IndexerShape {
            heads: keys.count("attention.indexer.head_count", 1..=Selector::HEADS_MAX)?,
            head_dim: keys.count("attention.indexer.key_length", 2..=ROUNDED_MAX)?,
            top_k: keys.count("attention.indexer.top_k", CONTEXT)?,
        }),
        false => None,
    };
    if let Some(IndexerShape { head_dim, .. }) = indexer.filter(|i| !i.head_dim.is_power_of_two()) {
        return Err(keys.wrong("attention.indexer.key_length", head_dim, "a power of two"));
    }
    let turning = keys.count_or("rope.dimension_count", 2..=head_dim, head_dim)?;
    if !turning.is_multiple_of(2) || indexer.is_some_and(|i| turning > i.head_dim) {
        let expected = "even, and no more than a head of queries or of the indexer has";
        return Err(keys.wrong("rope.dimension_count", turning, expected));
    }
    let output_groups = keys.count("attention.output_group_count", HEADS)?;
    if !config.heads.is_multiple_of(output_groups) {
        let expected = format!("a divisor of the {} heads", config.heads);
        return Err(keys.wrong("attention.output_group_count", output_groups, expected));
    }
    if let Some(wrong) = config.layers.iter().find(|layer| layer.kv_heads != 1) {
        return Err(keys.wrong("attention.head_count_kv", wrong.kv_heads, "1"));
    }
    let limits = keys.numbers("swiglu_clamp_exp", layers)?.unwrap_or_else(|| vec![f32::INFINITY; layers]);
    let shared_limits = keys.numbers("swiglu_clamp_shexp", layers)?.unwrap_or_else(|| limits.clone());
    if let Some(wrong) = limits.iter().chain(&shared_limits).find(|limit| **limit <= 0.0) {
        return Err(keys.wrong("swiglu_clamp_exp", wrong, "above 0"));
    }
    Ok(Some(LatentShape {
        window: keys.count("attention.sliding_window", CONTEXT)?,
        ratios,
        head_dim,
        turning,
        query_rank: keys.count("attention.q_lora_rank", WIDTH)?,
        output_groups,
        output_rank: keys.count("attention.output_lora_rank", WIDTH)?,
        indexer,
        streams: StreamGates {
            count: keys.count("hyper_connection.count", 1..=STREAMS_MAX)?,
            rounds: Some(keys.count("hyper_connection.sinkhorn_iterations", 1..=ROUNDS_MAX)?),
            epsilon: keys.number("hyper_connection.epsilon")?,
        },
        table_layers: keys.count_or("hash_layer_count", 0..=layers, 0)?,
        limits,
        shared_limits,
        drafts: blocks > layers || has_draft(keys, layers),
    }))
}

/// Whether the tensors of a layer that drafts are there, though metadata does not count it: they came from a file of their own.
fn has_draft(keys: &Keys<'_>, layers: usize) -> bool {
    let names = [format!("blk.{layers}.nextn.eh_proj.weight"), "mtp.0.e_proj.weight".to_owned()];
    names.iter().any(|name| keys.checkpoint.tensor(name).is_some())
}

/// Blocks at the end that draft: those that metadata counts, if their tensors are there.
pub(super) fn draft_blocks(keys: &Keys<'_>, blocks: usize, counted: usize) -> usize {
    let first = blocks - counted;
    let is_there = keys.checkpoint.tensor(&format!("blk.{first}.nextn.eh_proj.weight")).is_some();
    if keys.architecture == ARCHITECTURE && !is_there { 0 } else { counted }
}

/// Tokens of a compressed row of each layer. The list may go on for layers that draft.
fn ratios(keys: &Keys<'_>, layers: usize) -> Result<Vec<usize>, Error> {
    let key = "attention.compress_ratios";
    let all = keys.get(key).ok_or_else(|| keys.missing(key))?.as_array().and_then(|a| a.to_i64s());
    let all = all.filter(|all| all.len() >= layers);
    let all =
        all.ok_or_else(|| keys.wrong(key, "something else", format!("a whole number for each of {layers} layers")))?;
    let known = |ratio: i64| [0, SELECTED_RATIO, WIDE_RATIO].into_iter().find(|known| *known as i64 == ratio);
    all[..layers].iter().map(|r| known(*r).ok_or_else(|| keys.wrong(key, r, "0, 4 or 128 for each layer"))).collect()
}

impl Keys<'_> {
    /// A number for each of `layers` layers, from an array, which may go on, or one number for all.
    ///
    /// # Errors
    /// If one is not a finite number, or the array is shorter.
    pub(super) fn numbers(&self, key: &str, layers: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(array) = self.get(key).and_then(Value::as_array) else {
            return Ok(self.optional_number(key)?.map(|number| vec![number; layers]));
        };
        let all = array.to_f32s().or_else(|| Some(array.to_i64s()?.into_iter().map(|v| v as f32).collect()));
        let all = all.filter(|all: &Vec<f32>| all.len() >= layers && all.iter().all(|v| v.is_finite()));
        let wrong =
            || self.wrong(key, format!("{} values", array.len()), format!("a number for each of {layers} layers"));
        all.map(|all| Some(all[..layers].to_vec())).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flash() -> LatentShape {
        let ratios = (0..43)
            .map(|l| {
                if l < 2 {
                    0
                } else if l % 2 == 0 {
                    4
                } else {
                    128
                }
            })
            .collect();
        LatentShape {
            window: 128,
            ratios,
            head_dim: 512,
            turning: 64,
            query_rank: 1024,
            output_groups: 8,
            output_rank: 1024,
            indexer: Some(IndexerShape { heads: 64, head_dim: 128, top_k: 512 }),
            streams: StreamGates { count: 4, rounds: Some(20), epsilon: 1e-6 },
            table_layers: 3,
            limits: vec![10.0; 43],
            shared_limits: vec![10.0; 43],
            drafts: true,
        }
    }

    #[test]
    fn growing_rows_take_what_the_model_s_shape_says() {
        let shape = flash();
        let (entries, of_layers) = shape.entries(512, false);
        assert_eq!(of_layers.len(), 44, "one more that drafts");
        let per_token: f64 = entries
            .iter()
            .map(|e| {
                if let KvEntry::Compressed { head_dim, ratio, .. } = e { *head_dim as f64 / *ratio as f64 } else { 0.0 }
            })
            .sum();
        assert_eq!(per_token, 3440.0, "21 layers of (512 + 128) / 4 and 20 of 512 / 128 numbers");
        for (layer, own) in of_layers.iter().enumerate() {
            let KvEntry::Latent { head_dim: 512, ring_pages: Some(10), packing: None } = entries[own.raw] else {
                panic!("layer {layer}")
            };
            let ratio = shape.ratios.get(layer).copied().unwrap_or(0);
            assert_eq!((own.compressed.is_some(), own.keys.is_some()), (ratio > 0, ratio == 4), "layer {layer}");
            if let Some((inputs, rows)) = own.compressed {
                let width = if ratio == 4 { 2048 } else { 1024 };
                let ring_pages = if ratio == 4 { 9 } else { 10 };
                assert_eq!(entries[inputs], KvEntry::Inputs { width, ring_pages });
                assert_eq!(entries[rows], KvEntry::compressed(512, ratio));
            }
            if let Some((inputs, rows)) = own.keys {
                assert_eq!(entries[inputs], KvEntry::Inputs { width: 512, ring_pages: 9 });
                assert_eq!(entries[rows], KvEntry::compressed(128, 4));
            }
        }
    }

    #[test]
    fn a_million_tokens_take_what_the_specification_says() {
        use tessera_ops::{KvFormat, KvLayout, PAGE_TOKENS};
        let per_token = |is_packed: bool| {
            let layout = KvLayout::new(flash().entries(512, is_packed).0, KvFormat::F16);
            layout.page_bytes() as f64 / PAGE_TOKENS as f64
        };
        // A page of a ratio of 128 has a whole row, though it completes half of one: 20 layers, half a row in 64 tokens.
        let spare = |row: f64| 20.0 * row / 128.0;
        assert_eq!(per_token(false) - spare(1024.0), 6880.0);
        assert_eq!(per_token(true) - spare(584.0), 21.0 * (584.0 + 68.0) / 4.0 + 20.0 * 584.0 / 128.0);
    }
}
