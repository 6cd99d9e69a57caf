//! How keys and values are kept: in pages of a fixed number of tokens, so that sequences share and free them.

use half::f16;

use crate::numerics;

/// Tokens in a page. Attention also cuts its sums here, at absolute positions, so that the cut never depends on the
/// batch: a page is the unit of the cache and of the canonical order alike.
pub const PAGE_TOKENS: usize = 64;

/// Features of a head that share a scale in [`KvFormat::Q8_0`].
pub const CODE_BLOCK: usize = numerics::ACTIVATION_BLOCK;

/// How a cached number is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the formats' own names
pub enum KvFormat {
    /// 4 bytes: exact; for tests against float references.
    F32,
    /// 2 bytes, rounded to nearest even: the default.
    #[default]
    F16,
    /// A byte, and two for the scale of each 32 features of a token's head: half of F16, at the cost of some accuracy.
    Q8_0,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];

    /// `f32`, `f16` or `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one head's key or value of `head_dim` numbers. A device may widen scales.
    pub const fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::F16 => 2 * head_dim,
            KvFormat::Q8_0 => head_dim + 2 * head_dim.div_ceil(CODE_BLOCK),
        }
    }

    /// What the cache keeps of a head's key or value: the definition for every device. Q8_0 has the codes of
    /// [`numerics::quantize_block`], and its scale rounded to F16; the product of both is exact.
    pub fn round(self, head: &mut [f32]) {
        match self {
            KvFormat::F32 => {}
            KvFormat::F16 => head.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            KvFormat::Q8_0 => {
                for block in head.chunks_mut(CODE_BLOCK) {
                    let quantized = numerics::quantize_block(block);
                    let scale = f16::from_f32(quantized.scale).to_f32();
                    block.iter_mut().zip(quantized.codes).for_each(|(v, code)| *v = scale * f32::from(code));
                }
            }
        }
    }
}

/// Width of one layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Heads of keys and values.
    pub heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// The entry is a ring of this many pages of each sequence ([`crate::mask`]); none: all positions are kept.
    pub ring_pages: Option<usize>,
}

impl KvLayer {
    /// An entry that keeps all positions.
    pub const fn new(heads: usize, head_dim: usize) -> KvLayer {
        KvLayer { heads, head_dim, ring_pages: None }
    }
}

/// What a cache must hold for a model. Layers that share keys and values share an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// One entry for each layer that writes keys and values.
    pub layers: Vec<KvLayer>,
    /// How numbers are stored.
    pub format: KvFormat,
    /// The cache serves one sequence at a time, whose page table is 0, 1, 2, …: a ring then takes no more memory than its
    /// own pages. Otherwise any page may be in a ring, and a ring's entry has room for all.
    pub is_single: bool,
}

impl KvLayout {
    /// A cache for any number of sequences.
    pub fn new(layers: Vec<KvLayer>, format: KvFormat) -> KvLayout {
        KvLayout { layers, format, is_single: false }
    }

    /// Pages that a layer's entry has room for, in a cache of `pages`.
    pub fn pages_of(&self, layer: &KvLayer, pages: usize) -> usize {
        layer.ring_pages.filter(|_| self.is_single).map_or(pages, |ring| ring.min(pages))
    }

    /// Bytes of a cache of `pages` pages.
    pub fn cache_bytes(&self, pages: usize) -> usize {
        let bytes = |l: &KvLayer| 2 * PAGE_TOKENS * l.heads * self.format.head_bytes(l.head_dim);
        self.layers.iter().map(|l| bytes(l).saturating_mul(self.pages_of(l, pages))).fold(0, usize::saturating_add)
    }

    /// Bytes of one page over all layers, keys and values.
    pub fn page_bytes(&self) -> usize {
        let heads = self.layers.iter().map(|l| l.heads * self.format.head_bytes(l.head_dim));
        heads.map(|bytes| 2 * PAGE_TOKENS * bytes).sum()
    }
}
