//! How keys and values are kept: in pages of a fixed number of tokens, so that sequences share and free them.

/// Tokens in a page. Attention also cuts its sums here, at absolute positions, so that the cut never depends on the
/// batch: a page is the unit of the cache and of the canonical order alike.
pub const PAGE_TOKENS: usize = 64;

/// How a cached number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 4 bytes: exact; for tests against float references.
    F32,
    /// 2 bytes, rounded to nearest even: the default.
    F16,
}

/// Width of one layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Heads of keys and values.
    pub heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
}

/// What a cache must hold for a model. Layers that share keys and values share an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// One entry for each layer that writes keys and values.
    pub layers: Vec<KvLayer>,
    /// How numbers are stored.
    pub format: KvFormat,
}

impl KvLayout {
    /// Bytes of one page over all layers, keys and values.
    pub fn page_bytes(&self) -> usize {
        let numbers: usize = self.layers.iter().map(|l| 2 * l.heads * l.head_dim * PAGE_TOKENS).sum();
        numbers
            * match self.format {
                KvFormat::F32 => 4,
                KvFormat::F16 => 2,
            }
    }
}
