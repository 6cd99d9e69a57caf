//! Attention of the last rows of one sequence. Layers of the cache take turns, so that keys and values come from memory as they
//! do in a model, where the other layers have pushed them out.

use anyhow::Result;
use tessera_cpu::{KvPages, tensor::Tensor};
use tessera_ops::{Attention as Spec, Batch, Device, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, Role};

use super::input::Table;
use crate::device::Chosen;

/// Rows that are stored at a time.
const CHUNK: usize = 512;

/// Layers at most: what is that small stays in no cache of any machine for long.
const LAYERS_MAX: usize = 64;

/// What is attended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) format: KvFormat,
}

/// A sequence of some tokens in every layer of a cache.
pub(crate) struct Attention {
    spec: Spec,
    format: KvFormat,
    tokens: usize,
    layers: usize,
    cache: KvPages,
    pages: Vec<u32>,
    table: Table,
}

impl Attention {
    /// A sequence of `tokens` tokens, in as many layers as have `cold_bytes` together and one more.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn new(device: &Chosen, heads: &Heads, tokens: usize, cold_bytes: usize) -> Result<Attention> {
        let &Heads { heads, kv_heads, head_dim, window, format } = heads;
        let page_count = tokens.div_ceil(PAGE_TOKENS);
        let pages: Vec<u32> = (0..page_count as u32).collect();
        let layer = KvEntry::pairs(kv_heads, head_dim);
        let layer_bytes = KvLayout::new(vec![layer], format).cache_bytes(page_count, 0).max(1);
        let layers = (cold_bytes / layer_bytes + 1).min(LAYERS_MAX);
        let mut cache = device.kv_cache(&KvLayout::new(vec![layer; layers], format), page_count, 0)?;
        let scale = (head_dim as f32).sqrt().recip();
        let spec = Spec { layer: 0, heads, kv_heads, head_dim, scale, window, soft_cap: None };
        let table = |width: usize, seed| Table::new(device, tokens, width, seed);
        let (keys, values) = (table(kv_heads * head_dim, 1)?, table(kv_heads * head_dim, 2)?);
        let size = ((kv_heads * head_dim) as f32).sqrt();
        for start in (0..tokens).step_by(CHUNK) {
            let rows = CHUNK.min(tokens - start);
            let (keys, values) = (keys.take(device, start, rows, size), values.take(device, start, rows, size));
            let batch = batch(start, rows, &pages);
            (0..layers).for_each(|layer| device.store_kv(&mut cache, layer, &keys, &values, &batch));
        }
        Ok(Attention { spec, format, tokens, layers, cache, pages, table: table(heads * head_dim, 3)? })
    }

    /// Turns until the first layer is in no cache any more.
    pub(crate) fn turns(&self) -> usize {
        self.layers
    }

    /// The queries of `rows` rows from `first` on.
    pub(crate) fn queries(&self, device: &Chosen, first: usize, rows: usize) -> Rows {
        let size = ((self.spec.heads * self.spec.head_dim) as f32).sqrt();
        Rows { queries: self.table.take(device, first, rows, size), batch: batch(first, rows, &self.pages) }
    }

    /// Computes rows over the layer whose turn it is.
    pub(crate) fn run(&self, device: &Chosen, rows: &Rows, turn: usize) -> Tensor {
        let spec = Spec { layer: turn % self.layers, ..self.spec };
        device.attention(&rows.queries, &self.cache, &spec, None, &rows.batch)
    }

    /// Additions and multiplications of the last `rows` rows.
    pub(crate) fn operations(&self, rows: usize) -> f64 {
        let pairs: usize = (self.tokens - rows..self.tokens).map(|p| self.spec.visible(p).len()).sum();
        4.0 * (pairs * self.spec.heads * self.spec.head_dim) as f64
    }

    /// Bytes of the keys and values that these see.
    pub(crate) fn bytes(&self, rows: usize) -> f64 {
        let seen = self.tokens - self.spec.visible(self.tokens - rows).start;
        (2 * seen * self.spec.kv_heads * self.format.head_bytes(self.spec.head_dim)) as f64
    }
}

/// Rows of a step.
pub(crate) struct Rows {
    queries: Tensor,
    batch: Batch,
}

fn batch(start: usize, rows: usize, pages: &[u32]) -> Batch {
    let mut batch = Batch::default();
    batch.push(&vec![0; rows], start, pages, Role::Prefill, 0);
    batch
}
