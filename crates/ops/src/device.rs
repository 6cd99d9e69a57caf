//! The ops a model is written in, as one trait. A device implements them; nothing else of a device is visible above.
//!
//! Ops return new tensors and never fail in the middle of a step: what a device cannot do it says when weights are
//! loaded, and a device that dies reports at [`Device::read`]. A CPU runs an op at once, a GPU enqueues it.
//! Tensors come from a pool of the device and go back to it when dropped, so that a warm step allocates nothing.

use std::{ops::Range, time::Duration};

use tessera_formats::{Bytes, DType};

use crate::{
    Batch, Compressor, Error, Gate, KvLayout, LatentAttention, RingPart, Rounding, Routing, Selector, StreamGates,
    ranking::{self, Candidate},
};

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

    /// Output features of each of `count` matrices that lie one after another in this one.
    ///
    /// # Errors
    /// As [`MatrixSource::row_bytes`], and where the rows are not that many equal parts.
    pub fn rows_each(&self, count: usize) -> Result<usize, Error> {
        self.row_bytes()?;
        match self.rows.checked_div(count) {
            Some(rows) if rows * count == self.rows => Ok(rows),
            _ => Err(Error::Stack { tensor: self.name.clone(), rows: self.rows, count }),
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

/// A stack of projections of one shape: the segments of a grouped or a routed projection.
pub struct LinearStack<D: Device> {
    /// (segments, rows, depth)
    pub matrices: D::Stack,
    /// (segments, rows)
    pub bias: Option<D::Vector>,
}

/// How a layer of experts routes its tokens.
pub struct Router<D: Device> {
    /// How experts are chosen and weighed.
    pub routing: Routing,
    /// (experts) added to the scores for the choice, but not for the weights.
    pub bias: Option<D::Vector>,
    /// (experts) factors on the weights.
    pub factors: Option<D::Vector>,
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

/// Which features of each head turn, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Numbers in a head.
    pub head_dim: usize,
    /// The first feature of a head that turns; as many follow as there are angles.
    pub first: usize,
    /// How they pair.
    pub layout: RopeLayout,
    /// Turns back: sines have the other sign.
    pub inverse: bool,
}

impl Rotation {
    /// Turns the first features of each head.
    pub const fn new(head_dim: usize, layout: RopeLayout) -> Rotation {
        Rotation { head_dim, first: 0, layout, inverse: false }
    }

    /// The same from another feature on.
    pub const fn from(self, first: usize) -> Rotation {
        Rotation { first, ..self }
    }

    /// The other way.
    pub const fn inverted(self) -> Rotation {
        Rotation { inverse: !self.inverse, ..self }
    }

    /// Holds what must be true of rows of `width` numbers and of `angles` cosines and sines.
    ///
    /// # Panics
    /// Where rows are not whole heads, or the angles do not fit into one.
    pub fn check(&self, width: usize, angles: usize) {
        assert!(self.head_dim > 0 && width.is_multiple_of(self.head_dim), "a row is whole heads");
        assert!(self.first + angles <= self.head_dim, "angles fit into a head");
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
    /// A stack of weight matrices of one shape, in the same form.
    type Stack: Send + Sync;
    /// A table of rows fetched by token id.
    type Embedding: Send + Sync;
    /// A vector of f32: norm weights, biases.
    type Vector: Send + Sync;
    /// Activations: (rows, width) of f32.
    type Tensor: Send;
    /// Pages and rings of keys and values.
    type KvCache: Send;
    /// Which compressed rows each row of a step attends to.
    type Selection: Send;
    /// Which experts each token of a step goes to, and with what weights: (rows, slots).
    type Routes: Send;
    /// The experts of each token of a step, where a model names them: (rows, slots).
    type Choices: Send;

    /// For people: `CPU (AVX-512 VNNI, 2 threads)`.
    fn name(&self) -> String;

    /// Whether rows of a prompt and decoded rows have one arithmetic, so that keys and values of either may stand for the
    /// other's.
    fn roles_agree(&self) -> bool {
        true
    }

    /// What the numbers in a cache, and the bytes of its pages, depend on beside model and layout: pages go from one device to
    /// another where this is the same.
    fn cache_form(&self) -> String {
        self.name()
    }

    /// Whether [`Device::best`] costs less than to read all logits.
    fn ranks(&self) -> bool {
        false
    }

    /// Appends the `count` likeliest tokens (or all there are) of each of `rows` rows of logits, in the order of [`ranking`], waiting
    /// for all work before it. `count` is at most [`ranking::BEST_MAX`].
    ///
    /// # Errors
    /// As [`Device::read`].
    fn best(&self, logits: &Self::Tensor, rows: usize, count: usize, out: &mut Vec<Candidate>) -> Result<(), Error> {
        let mut values = vec![];
        self.read(logits, &mut values)?;
        let width = values.len() / rows.max(1);
        values.chunks_exact(width.max(1)).for_each(|row| ranking::best(row, count, out));
        Ok(())
    }

    /// A stage ends here: its time is the device's from the end of the stage before it. Gives false where the device computes at once,
    /// so that its caller's clock tells.
    fn mark(&self) -> bool {
        false
    }

    /// The times of all stages that were marked since this was called last, waiting for them.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn stages(&self) -> Result<Vec<Duration>, Error> {
        Ok(vec![])
    }

    /// Packs a matrix for [`Device::project`]: a lossless re-ordering, in parallel.
    ///
    /// # Errors
    /// Formats without a kernel, wrong shapes, scales that are not finite, no memory.
    fn load_matrix(&self, source: &MatrixSource) -> Result<Self::Matrix, Error>;

    /// Packs `count` matrices of `source.rows / count` rows each, which lie one after another: experts, or groups.
    ///
    /// # Errors
    /// As [`Device::load_matrix`]; and rows that are not `count` equal parts.
    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<Self::Stack, Error>;

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

    /// A cache of `pages` pages and `rings` rings, all its memory taken now.
    ///
    /// # Errors
    /// No memory; entries without a kernel.
    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<Self::KvCache, Error>;

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

    /// A block-diagonal projection: segment g multiplies its own slice of each row. `x` (tokens, segments · depth) becomes
    /// (tokens, segments · rows), so that the next projection reads it as it lies:
    /// `y[t, g · rows + r] = x[t, g · depth ..][.. depth] · W[g, r] + bias[g, r]`.
    fn project_grouped(&self, x: &Self::Tensor, linear: &LinearStack<Self>) -> Self::Tensor;

    /// Chooses and weighs the experts of each token from router logits (tokens, experts), as [`crate::routing`] says.
    fn route(&self, logits: &Self::Tensor, router: &Router<Self>) -> Self::Routes;

    /// Takes the experts of each token (tokens, slots) for [`Device::route_chosen`]. A model names those of all layers before a step's
    /// first op that computes: what a device is sent then comes between no two of its launches.
    fn choices(&self, experts: Vec<u32>) -> Self::Choices;

    /// As [`Device::route`], to experts that are chosen already: (tokens, slots), each below the number of experts.
    /// Their weights follow from the logits; the router's bias and groups have no part in it.
    fn route_chosen(&self, logits: &Self::Tensor, router: &Router<Self>, chosen: Self::Choices) -> Self::Routes;

    /// Routed projections that share their input: for each stack, `x` (tokens, depth) becomes (tokens · slots, rows). Row
    /// `t · slots + s` is token t's row times the matrix of the expert in its slot s, plus that expert's bias.
    fn project_routed<const N: usize>(
        &self,
        x: &Self::Tensor,
        linears: [&LinearStack<Self>; N],
        routes: &Self::Routes,
    ) -> [Self::Tensor; N];

    /// The way back from the experts: `x` (tokens · slots, depth), in the order of [`Device::project_routed`], becomes
    /// (tokens, rows): `y[t] = sum over s of weight[t, s] · (x[t · slots + s] · W[expert[t, s]] + bias[expert[t, s]])`,
    /// in the order of slots.
    fn combine_routed(&self, x: &Self::Tensor, linear: &LinearStack<Self>, routes: &Self::Routes) -> Self::Tensor;

    /// Cosines and sines of a step: (rows, 2 · pairs), a row's cosines first.
    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Self::Tensor;

    /// Turns each head of `x` in place by the angles from [`Device::rope_angles`].
    fn rotate(&self, x: &mut Self::Tensor, rotation: &Rotation, angles: &Self::Tensor);

    /// Rounds each head of `x` in place, as [`Rounding::apply`].
    fn round(&self, x: &mut Self::Tensor, head_dim: usize, rounding: Rounding);

    /// Writes keys and values of the batch's rows, each (rows, kv_heads · head_dim), into the pages: each row where
    /// [`Batch::slot`] says.
    fn store_kv(
        &self,
        cache: &mut Self::KvCache,
        layer: usize,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        batch: &Batch,
    );

    /// Causal softmax attention of `queries` (rows, heads · head_dim) over the cache: the same shape. A row sees what
    /// [`crate::mask`] says of its own sequence up to its own position; its result depends on nothing else.
    /// `sinks` (heads) are scores of a key whose value is zero, one for each query head; they are neither scaled nor capped
    /// (Xiao et al. 2024).
    fn attention(
        &self,
        queries: &Self::Tensor,
        cache: &Self::KvCache,
        spec: &Attention,
        sinks: Option<&Self::Vector>,
        batch: &Batch,
    ) -> Self::Tensor;

    /// Writes `rows` (rows, width) of the batch into an entry of latent rows or of inputs: each where [`Batch::slot`] says.
    fn store_rows(&self, cache: &mut Self::KvCache, entry: usize, rows: &Self::Tensor, batch: &Batch);

    /// Makes the compressed rows that the batch's tokens complete, from inputs that are stored already, theirs among them. No
    /// sequence of the batch branches.
    fn compress(&self, cache: &mut Self::KvCache, compressor: &Compressor<Self>, batch: &Batch);

    /// For each row of the batch, the compressed rows that its attention is to read: all that are complete, or where these are more
    /// than `top_k`, as many of the highest scores. `queries` are (rows, heads · head_dim), `head_weights` (rows, heads).
    /// Equal scores go by the lowest row, and NaN comes before every number.
    fn select(
        &self,
        queries: &Self::Tensor,
        head_weights: &Self::Tensor,
        cache: &Self::KvCache,
        selector: &Selector,
        batch: &Batch,
    ) -> Self::Selection;

    /// Softmax attention of `queries` (rows, heads · head_dim) over latent rows, which are keys and values at once: those of the
    /// window, and then compressed ones, all that are complete or, of a `selection`, those selected. The same shape.
    /// `sinks` (heads) are as in [`Device::attention`]. No sequence of the batch branches.
    fn attend_latent(
        &self,
        queries: &Self::Tensor,
        cache: &Self::KvCache,
        spec: &LatentAttention,
        selection: Option<&Self::Selection>,
        sinks: &Self::Vector,
        batch: &Batch,
    ) -> Self::Tensor;

    /// `gate(x) * up`, element by element.
    fn gate(&self, x: &Self::Tensor, up: &Self::Tensor, gate: Gate) -> Self::Tensor;

    /// [`Device::gate`] of two halves of a row: `x` (rows, 2 · width), whose first half is the gate and whose second is up,
    /// becomes (rows, width).
    fn gate_halves(&self, x: &Self::Tensor, gate: Gate) -> Self::Tensor;

    /// Each row `count` times, side by side: (rows, count · width). The beginning of several streams ([`crate::streams`]).
    fn copies(&self, x: &Self::Tensor, count: usize) -> Self::Tensor;

    /// The gates of each row from its mix (rows, [`StreamGates::width`]): the same shape. `scale` has a factor for each part of
    /// the mix, `base` a summand for each number.
    fn stream_gates(
        &self,
        mix: &Self::Tensor,
        scale: &Self::Vector,
        base: &Self::Vector,
        spec: &StreamGates,
    ) -> Self::Tensor;

    /// The sum of `count` streams (rows, count · width), weighed by the first `count` gates of each row: (rows, width).
    fn collapse_streams(&self, streams: &Self::Tensor, gates: &Self::Tensor, count: usize) -> Self::Tensor;

    /// What a block gave, `y` (rows, width), goes to all `count` streams, and these mix, in place: stream k becomes
    /// `out[k] · y + sum over j of matrix[j][k] · stream_j`, by the gates (rows, [`StreamGates::width`]).
    fn spread_streams(&self, streams: &mut Self::Tensor, y: &Self::Tensor, gates: &Self::Tensor, count: usize);

    /// The numbers `columns` of each row: (rows, columns).
    fn columns(&self, x: &Self::Tensor, columns: Range<usize>) -> Self::Tensor;

    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Tensor, factor: f32);

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

    /// Appends what one page holds, of all entries that are no rings, to `out`, waiting for all work before it. The bytes are as the
    /// device lays them out, always as many: they fit a cache of the same layout on a device of the same kind.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_page(&self, cache: &Self::KvCache, page: u32, out: &mut Vec<u8>) -> Result<(), Error>;

    /// Writes what [`Device::read_page`] gave into a page, whichever it came from.
    ///
    /// # Errors
    /// Bytes that are no page of this cache.
    fn write_page(&self, cache: &mut Self::KvCache, page: u32, bytes: &[u8]) -> Result<(), Error>;

    /// Appends what a part of one ring holds, of all entries that are rings, as [`Device::read_page`].
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_ring(&self, cache: &Self::KvCache, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error>;

    /// Writes what [`Device::read_ring`] gave of the same part into a ring, whichever it came from.
    ///
    /// # Errors
    /// Bytes that are no such part of this cache.
    fn write_ring(&self, cache: &mut Self::KvCache, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error>;

    /// Copies a selection out, waiting for all work before it: for each row of the step the compressed rows, ascending. For tests
    /// and statistics.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_selection(&self, selection: &Self::Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error>;

    /// Copies routes out, waiting for all work before them: (tokens, slots) of experts and of weights. For tests and
    /// statistics.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn read_routes(&self, routes: &Self::Routes, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error>;
}
