//! The ops a model is written in, as one trait. A device implements them; nothing else of a device is visible above.
//!
//! Ops return new tensors and never fail in the middle of a step: what a device cannot do it says when weights are
//! loaded, and a device that dies reports at [`Device::read`]. A CPU runs an op at once, a GPU enqueues it.
//! Tensors come from a pool of the device and go back to it when dropped, so that a warm step allocates nothing.

use std::ops::Range;

use tessera_formats::{Bytes, DType};

use crate::{Batch, Error, KvLayout};

/// One weight matrix as a file holds it: `rows` output features of `depth` inputs each, row by row.
#[derive(Clone, Debug)]
pub struct MatrixSource {
    /// The tensor's name, for errors.
    pub name: String,
    /// Its format.
    pub dtype: DType,
    /// Output features.
    pub rows: usize,
    /// Inputs of a row.
    pub depth: usize,
    /// (rows, depth) weights in blocks.
    pub bytes: Bytes,
}

impl MatrixSource {
    /// Bytes of one row.
    ///
    /// # Errors
    /// Where rows, depth, format and bytes do not fit each other.
    pub fn row_bytes(&self) -> Result<usize, Error> {
        let row = self.dtype.row_bytes(self.depth);
        match row {
            Some(row) if row.checked_mul(self.rows) == Some(self.bytes.len()) => Ok(row),
            _ => Err(Error::Shape {
                tensor: self.name.clone(),
                dtype: self.dtype,
                rows: self.rows,
                depth: self.depth,
                bytes: self.bytes.len(),
            }),
        }
    }
}

/// A projection: a matrix and, in some models, a bias.
pub struct Linear<D: Device> {
    /// (rows, depth)
    pub matrix: D::Matrix,
    /// (rows)
    pub bias: Option<D::Vector>,
}

/// The gate of a gated feed-forward layer: `gate(x) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// x · sigmoid(x)
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
}

/// Which features of a head a rotation pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Features 2i and 2i + 1.
    Interleaved,
    /// Features i and i + dims / 2.
    Halves,
}

impl RopeLayout {
    /// The two features of pair `pair` of `pairs`.
    pub const fn pair(self, pair: usize, pairs: usize) -> (usize, usize) {
        match self {
            RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
            RopeLayout::Halves => (pair, pair + pairs),
        }
    }
}

/// A rotary position embedding (Su et al. 2021): pair i turns by `position * frequencies[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How features pair.
    pub layout: RopeLayout,
    /// Angular frequency of each pair, in radians a position, with any scaling applied. The first
    /// `2 * frequencies.len()` features of a head turn; the rest stay.
    pub frequencies: Vec<f64>,
    /// Factor on cosine and sine (1 but for some scaled variants).
    pub magnitude: f32,
}

/// What attention of one layer needs beside its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// The cache entry that holds this layer's keys and values.
    pub layer: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A row sees its own position and the `window - 1` before it; none: all before it.
    pub window: Option<usize>,
    /// Soft cap on the scores.
    pub soft_cap: Option<f32>,
}

impl Attention {
    /// Query heads that share one head of keys and values.
    pub const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a row at `position` sees.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let seen = self.window.unwrap_or(usize::MAX).min(position + 1);
        position + 1 - seen..position + 1
    }

    /// Holds what must be true of every spec.
    ///
    /// # Panics
    /// Where heads are not whole groups or a window is empty: a model's loader has to refuse these.
    pub fn check(&self) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "query heads are whole groups");
        assert!(self.window != Some(0), "a row sees at least itself");
    }
}

/// A device: packs weights when a model is loaded, and computes ops in a step. All tensors are f32 and (rows, width).
pub trait Device: Send + Sync + Sized + 'static {
    /// A weight matrix in the form its kernels read.
    type Matrix: Send + Sync;
    /// A table of rows fetched by token id.
    type Embedding: Send + Sync;
    /// A vector of f32: norm weights, biases.
    type Vector: Send + Sync;
    /// Activations: (rows, width) of f32.
    type Tensor: Send;
    /// Pages of keys and values.
    type KvCache: Send;

    /// For people: `CPU (AVX-512 VNNI, 2 threads)`.
    fn name(&self) -> String;

    /// Packs a matrix for [`Device::project`]: a lossless re-ordering, in parallel.
    ///
    /// # Errors
    /// Formats without a kernel, wrong shapes, scales that are not finite, no memory.
    fn load_matrix(&self, source: &MatrixSource) -> Result<Self::Matrix, Error>;

    /// Takes a table for [`Device::embed`].
    ///
    /// # Errors
    /// As [`Device::load_matrix`].
    fn load_embedding(&self, source: &MatrixSource) -> Result<Self::Embedding, Error>;

    /// Takes a vector.
    ///
    /// # Errors
    /// No memory.
    fn load_vector(&self, values: &[f32]) -> Result<Self::Vector, Error>;

    /// A cache of `pages` pages, all its memory taken now.
    ///
    /// # Errors
    /// No memory.
    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<Self::KvCache, Error>;

    /// Rows of the table for the batch's tokens, times `scale`: (rows, table width). Ids are below the table's rows.
    fn embed(&self, table: &Self::Embedding, batch: &Batch, scale: f32) -> Self::Tensor;

    /// Root-mean-square norm (Zhang and Sennrich 2019): `x / sqrt(mean(x²) + epsilon) * weight`. A tensor wider than
    /// `weight` is normed in runs of the weight's length: head by head.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, epsilon: f32) -> Self::Tensor;

    /// Projections that share their input: `x · matrixᵀ + bias` for each, (rows, matrix rows). The input is quantized
    /// once, and all matrices run as one launch.
    fn project<const N: usize>(&self, x: &Self::Tensor, linears: [&Linear<Self>; N]) -> [Self::Tensor; N];

    /// One projection in the fine arithmetic of [`crate::numerics`]: the input is quantized to about 15 bits. For the
    /// output head, whose input errors go straight into the logits.
    fn project_fine(&self, x: &Self::Tensor, linear: &Linear<Self>) -> Self::Tensor;

    /// Cosines and sines of a step: (rows, 2 · pairs), a row's cosines first.
    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Self::Tensor;

    /// Turns each head of `x` in place by the angles from [`Device::rope_angles`].
    fn rotate(&self, x: &mut Self::Tensor, head_dim: usize, layout: RopeLayout, angles: &Self::Tensor);

    /// Writes keys and values of the batch's rows, each (rows, kv_heads · head_dim), into the pages.
    fn store_kv(
        &self,
        cache: &mut Self::KvCache,
        layer: usize,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        batch: &Batch,
    );

    /// Causal softmax attention of `queries` (rows, heads · head_dim) over the cache: the same shape. A row sees its own
    /// sequence up to its own position; its result depends on nothing else.
    fn attention(&self, queries: &Self::Tensor, cache: &Self::KvCache, spec: &Attention, batch: &Batch)
    -> Self::Tensor;

    /// `gate(x) * up`, element by element.
    fn gate(&self, x: &Self::Tensor, up: &Self::Tensor, gate: Gate) -> Self::Tensor;

    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);

    /// `x = cap · tanh(x / cap)`.
    fn soft_cap(&self, x: &mut Self::Tensor, cap: f32);

    /// The rows of `x` whose logits the batch wants, in order.
    fn logit_rows(&self, x: &Self::Tensor, batch: &Batch) -> Self::Tensor;

    /// Copies a tensor to `out`, waiting for all work before it.
    ///
    /// # Errors
    /// The device failed somewhere in the step.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<(), Error>;
}
