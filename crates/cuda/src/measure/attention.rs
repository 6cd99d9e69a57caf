//! Measurements of attention on the card, held to the reference in the same run.

use tessera_ops::{
    Attention, Batch, Device, Error, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, Role,
    reference::{self, ReferenceDevice},
};

use super::median;
use crate::{
    CudaDevice, KvPages,
    attention::AttentionTile,
    kernels::{Module, Pages},
};

/// Bytes of keys and values that are gone through before some are read again: several times the L2 cache of any card.
const COLD_BYTES: usize = 400 << 20;

/// Samples; the median counts.
const SAMPLES: usize = 11;

/// Launches of a sample.
const LAUNCHES: usize = 8;

/// Tokens that are stored at once.
const STORED_ROWS: usize = 1024;

/// Tokens whose result is held to the reference, which takes its time.
const CHECKED_TOKENS: usize = 700;

/// Attention over a cache of random numbers, in as many entries as keep the L2 cache cold.
pub struct AttentionSubject<'a> {
    device: &'a CudaDevice,
    spec: Attention,
    layers: usize,
    cache: KvPages,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredAttention {
    /// All launches of one attention.
    pub us: f64,
    /// Bytes of the keys and values that are seen, each once.
    pub kv_bytes: usize,
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// The rows at the end of one sequence of `tokens`.
fn batch(tokens: usize, rows: usize) -> Batch {
    let table: Vec<u32> = (0..tokens.div_ceil(PAGE_TOKENS) as u32).collect();
    let mut batch = Batch::default();
    batch.push(&vec![0; rows], tokens - rows, &table, Role::Decode, 0);
    batch
}

fn fill<D: Device>(
    device: &D,
    tensor: &dyn Fn(usize, &[f32]) -> D::Tensor,
    (spec, layers): (&Attention, usize),
    tokens: usize,
) -> Result<D::KvCache, Error> {
    let layout = KvLayout::new(vec![KvEntry::pairs(spec.kv_heads, spec.head_dim); layers], KvFormat::F16);
    let mut cache = device.kv_cache(&layout, tokens.div_ceil(PAGE_TOKENS), 0)?;
    let width = spec.kv_heads * spec.head_dim;
    for first in (0..tokens).step_by(STORED_ROWS) {
        let rows = STORED_ROWS.min(tokens - first);
        let keys = tensor(rows, &numbers(rows * width, first * width));
        let values = tensor(rows, &numbers(rows * width, first * width + 1_000_003));
        for layer in 0..layers {
            device.store_kv(&mut cache, layer, &keys, &values, &batch(first + rows, rows));
        }
    }
    Ok(cache)
}

impl<'a> AttentionSubject<'a> {
    /// Fills a cache with `tokens` tokens.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(device: &'a CudaDevice, spec: Attention, tokens: usize) -> Result<AttentionSubject<'a>, Error> {
        let layers = COLD_BYTES.div_ceil(kv_bytes(&spec, tokens)).max(2);
        let cache = fill(device, &|rows, values| device.sent_rows(rows, values), (&spec, layers), tokens)?;
        Ok(AttentionSubject { device, spec, layers, cache })
    }

    /// Attends in a tile from now on.
    ///
    /// # Errors
    /// If its kernels do not compile.
    pub fn force_tile(&mut self, tile: AttentionTile) -> Result<(), Error> {
        let pages = Pages { head_dim: self.spec.head_dim, format: KvFormat::F16 };
        self.device.gpu().prepare(&[Module::Scores(pages, tile), Module::Values(pages, tile)])?;
        self.cache.forced = Some(tile);
        Ok(())
    }

    /// Measures `rows` decode rows of one sequence that sees `tokens` tokens; none where it is not the reference's result, bit for bit,
    /// at a shorter length.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, tokens: usize, rows: usize) -> Result<Option<MeasuredAttention>, Error> {
        if !self.is_right(tokens.min(CHECKED_TOKENS), rows)? {
            return Ok(None);
        }
        let (device, batch) = (self.device, batch(tokens, rows));
        let width = self.spec.heads * self.spec.head_dim;
        let queries = device.sent_rows(rows, &numbers(rows * width, 5));
        let attend = |turn: usize| {
            let spec = Attention { layer: turn % self.layers, ..self.spec };
            drop(device.attention(&queries, &self.cache, &spec, None, &batch));
            device.gpu().flush();
        };
        (0..LAUNCHES).for_each(attend);
        let us = median(device.gpu(), SAMPLES, LAUNCHES, &attend)?;
        Ok(Some(MeasuredAttention { us, kv_bytes: kv_bytes(&self.spec, tokens) }))
    }

    fn is_right(&self, tokens: usize, rows: usize) -> Result<bool, Error> {
        let (spec, batch) = (Attention { layer: 0, ..self.spec }, batch(tokens, rows));
        let width = spec.heads * spec.head_dim;
        let queries = numbers(rows * width, 5);
        let y = self.device.attention(&self.device.sent_rows(rows, &queries), &self.cache, &spec, None, &batch);
        let mut got = vec![];
        self.device.read(&y, &mut got)?;
        let tensor = |rows: usize, values: &[f32]| reference::Tensor {
            rows,
            width: values.len() / rows.max(1),
            values: values.to_vec(),
        };
        let cache = fill(&ReferenceDevice, &tensor, (&spec, 1), tokens)?;
        let want = ReferenceDevice.attention(&tensor(rows, &queries), &cache, &spec, None, &batch);
        Ok(got.iter().zip(&want.values).all(|(g, w)| g.to_bits() == w.to_bits()))
    }
}

fn kv_bytes(spec: &Attention, tokens: usize) -> usize {
    2 * tokens * spec.kv_heads * KvFormat::F16.head_bytes(spec.head_dim)
}
