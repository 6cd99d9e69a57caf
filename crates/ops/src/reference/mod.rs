//! The plainest implementation of every op. It is the specification: a device is right when it gives these bits.
//!
//! One file an op, loops as they are written on paper, no cleverness. [`ReferenceDevice`] puts them behind the
//! [`Device`] trait, so that models can run on it and every device can be compared with it. Slots of the cache that
//! nothing was written to hold NaN, so an op that reads too far is seen at once.
//!
//! [`float64`] holds the same ops in f64 without quantized activations: the truth that tolerances are measured from.

mod attention;
pub mod dense;
mod embed;
pub mod float64;
mod gate;
mod kv;
mod latent;
mod matmul;
mod norm;
mod rope;
mod route;
mod segments;
pub mod softmax;
mod streams;

pub use kv::KvPages;
pub use latent::Selection;
pub use matmul::Matrix;
pub use route::Routes;
pub use segments::Stack;

use std::ops::Range;

use crate::{
    Attention, Batch, Compressor, Device, Error, Gate, KvLayout, LatentAttention, Linear, LinearStack, MatrixSource,
    RingPart, Rope, Rotation, Rounding, Router, Selector, StreamGates,
};

/// Activations of the reference: (rows, width).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Rows: tokens of the step.
    pub rows: usize,
    /// Numbers in a row.
    pub width: usize,
    /// (rows, width)
    pub values: Vec<f32>,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(rows: usize, width: usize) -> Tensor {
        Tensor { rows, width, values: vec![0.0; rows * width] }
    }

    /// Rows, and numbers of a row.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// One row, to be changed.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }
}

/// A table of rows fetched by token id.
#[derive(Clone, Debug)]
pub struct Embedding {
    width: usize,
    /// (token ids, width)
    values: Vec<f32>,
}

/// The specification as a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceDevice;

impl Device for ReferenceDevice {
    type Matrix = Matrix;
    type Stack = Stack<Matrix>;
    type Embedding = Embedding;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type KvCache = KvPages<f32>;
    type Selection = Selection;
    type Routes = Routes<f32>;
    type Choices = Vec<u32>;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<Matrix, Error> {
        Matrix::load(source)
    }

    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<Stack<Matrix>, Error> {
        Stack::load(source, count, Matrix::load)
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Embedding, Error> {
        Ok(Embedding { width: source.depth, values: embed::decode_all(source)? })
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(values.to_vec())
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<KvPages<f32>, Error> {
        KvPages::new(&self.name(), layout, (pages, rings), f32::NAN)
    }

    fn embed(&self, table: &Embedding, batch: &Batch, scale: f32) -> Tensor {
        embed::embed(&table.values, table.width, batch, scale)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, epsilon: f32) -> Tensor {
        norm::rms_norm(x, weight, epsilon)
    }

    fn project<const N: usize>(&self, x: &Tensor, linears: [&Linear<Self>; N]) -> [Tensor; N] {
        linears.map(|linear| matmul::project(x, &linear.matrix, linear.bias.as_deref()))
    }

    fn project_fine(&self, x: &Tensor, linear: &Linear<Self>) -> Tensor {
        matmul::project_fine(x, &linear.matrix, linear.bias.as_deref())
    }

    fn project_grouped(&self, x: &Tensor, linear: &LinearStack<Self>) -> Tensor {
        segments::project_grouped(x, &linear.matrices, linear.bias.as_deref())
    }

    fn route(&self, logits: &Tensor, router: &Router<Self>) -> Routes<f32> {
        route::route(logits, &router.routing, router.bias.as_deref(), router.factors.as_deref(), None)
    }

    fn choices(&self, experts: Vec<u32>) -> Vec<u32> {
        experts
    }

    fn route_chosen(&self, logits: &Tensor, router: &Router<Self>, chosen: Vec<u32>) -> Routes<f32> {
        route::route(logits, &router.routing, None, router.factors.as_deref(), Some(&chosen))
    }

    fn project_routed<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&LinearStack<Self>; N],
        routes: &Routes<f32>,
    ) -> [Tensor; N] {
        linears.map(|l| segments::project_routed(x, &l.matrices, l.bias.as_deref(), routes))
    }

    fn combine_routed(&self, x: &Tensor, linear: &LinearStack<Self>, routes: &Routes<f32>) -> Tensor {
        segments::combine_routed(x, &linear.matrices, linear.bias.as_deref(), routes)
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Tensor {
        rope::angles(rope, batch)
    }

    fn rotate(&self, x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
        rope::rotate(x, rotation, angles);
    }

    fn round(&self, x: &mut Tensor, head_dim: usize, rounding: Rounding) {
        streams::round(x, head_dim, rounding);
    }

    fn store_kv(&self, cache: &mut KvPages<f32>, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
        kv::store_kv(cache, layer, keys, values, batch);
    }

    fn attention(
        &self,
        queries: &Tensor,
        cache: &KvPages<f32>,
        spec: &Attention,
        sinks: Option<&Vec<f32>>,
        batch: &Batch,
    ) -> Tensor {
        attention::attention(queries, cache, spec, sinks.map(Vec::as_slice), batch)
    }

    fn store_rows(&self, cache: &mut KvPages<f32>, entry: usize, rows: &Tensor, batch: &Batch) {
        kv::store_rows(cache, entry, rows, batch);
    }

    fn compress(&self, cache: &mut KvPages<f32>, compressor: &Compressor<Self>, batch: &Batch) {
        latent::compress(cache, compressor, batch);
    }

    fn select(
        &self,
        queries: &Tensor,
        head_weights: &Tensor,
        cache: &KvPages<f32>,
        selector: &Selector,
        batch: &Batch,
    ) -> Selection {
        latent::select(queries, head_weights, cache, selector, batch)
    }

    fn attend_latent(
        &self,
        queries: &Tensor,
        cache: &KvPages<f32>,
        spec: &LatentAttention,
        selection: Option<&Selection>,
        sinks: &Vec<f32>,
        batch: &Batch,
    ) -> Tensor {
        latent::attend(queries, cache, spec, selection, sinks, batch)
    }

    fn gate(&self, x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
        gate::gate(x, up, gate)
    }

    fn gate_halves(&self, x: &Tensor, gate: Gate) -> Tensor {
        gate::gate_halves(x, gate)
    }

    fn copies(&self, x: &Tensor, count: usize) -> Tensor {
        streams::copies(x, count)
    }

    fn stream_gates(&self, mix: &Tensor, scale: &Vec<f32>, base: &Vec<f32>, spec: &StreamGates) -> Tensor {
        streams::gates(mix, scale, base, spec)
    }

    fn collapse_streams(&self, streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
        streams::collapse(streams, gates, count)
    }

    fn spread_streams(&self, streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
        streams::spread(streams, y, gates, count);
    }

    fn columns(&self, x: &Tensor, columns: Range<usize>) -> Tensor {
        gate::columns(x, columns)
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        gate::scale(x, factor);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        gate::add(x, y);
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        gate::soft_cap(x, cap);
    }

    fn logit_rows(&self, x: &Tensor, batch: &Batch) -> Tensor {
        embed::logit_rows(x, batch)
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<(), Error> {
        out.clear();
        out.extend_from_slice(&x.values);
        Ok(())
    }

    fn read_page(&self, cache: &KvPages<f32>, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_page(page, out);
        Ok(())
    }

    fn write_page(&self, cache: &mut KvPages<f32>, page: u32, bytes: &[u8]) -> Result<(), Error> {
        cache.write_page(page, bytes)
    }

    fn read_ring(&self, cache: &KvPages<f32>, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_ring(ring, part, out);
        Ok(())
    }

    fn write_ring(&self, cache: &mut KvPages<f32>, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        cache.write_ring(ring, part, bytes)
    }

    fn read_selection(&self, selection: &Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        rows.clone_from(&selection.rows);
        Ok(())
    }

    fn read_routes(&self, routes: &Routes<f32>, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error> {
        experts.clone_from(&routes.experts);
        weights.clone_from(&routes.weights);
        Ok(())
    }
}
