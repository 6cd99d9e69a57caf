//! The same ops in f64, weights decoded and activations not quantized: the truth that tolerances are measured from.
//!
//! [`Float64Device`] runs whole models. Keys and values are kept unrounded, whatever the format of the cache. Sums run
//! in order; at 53 bits their rounding is far below anything that is measured against them.

mod gate;
mod latent;
mod segments;
mod streams;

use std::ops::Range;

use super::{KvPages, Routes, Selection, Stack, embed};
use crate::{
    Attention, Batch, Compressor, Device, Error, Gate, KvLayout, LatentAttention, Linear, LinearStack, MatrixSource,
    RingPart, Rope, Rotation, Rounding, Router, Selector, StreamGates, mask::check_ring,
};

/// Numbers in f64: (rows, width).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor64 {
    /// Rows.
    pub rows: usize,
    /// Numbers in a row.
    pub width: usize,
    /// (rows, width)
    pub values: Vec<f64>,
}

impl Tensor64 {
    fn zeros(rows: usize, width: usize) -> Tensor64 {
        Tensor64 { rows, width, values: vec![0.0; rows * width] }
    }

    /// Rows, and numbers of a row.
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.width..][..self.width]
    }
}

/// The ops in f64.
#[derive(Clone, Copy, Debug, Default)]
pub struct Float64Device;

impl Device for Float64Device {
    type Matrix = Tensor64;
    type Stack = Stack<Tensor64>;
    type Embedding = Tensor64;
    type Vector = Vec<f64>;
    type Tensor = Tensor64;
    type KvCache = KvPages<f64>;
    type Selection = Selection;
    type Routes = Routes<f64>;
    type Choices = Vec<u32>;

    fn name(&self) -> String {
        "float64 reference".to_owned()
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<Tensor64, Error> {
        let values = embed::decode_all(source)?.into_iter().map(f64::from).collect();
        Ok(Tensor64 { rows: source.rows, width: source.depth, values })
    }

    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<Stack<Tensor64>, Error> {
        Stack::load(source, count, |part| self.load_matrix(part))
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Tensor64, Error> {
        self.load_matrix(source)
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vec<f64>, Error> {
        Ok(values.iter().copied().map(f64::from).collect())
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<KvPages<f64>, Error> {
        KvPages::new(&self.name(), layout, (pages, rings), f64::NAN)
    }

    fn embed(&self, table: &Tensor64, batch: &Batch, scale: f32) -> Tensor64 {
        let mut y = Tensor64::zeros(batch.len(), table.width);
        for (row, token) in batch.tokens.iter().enumerate() {
            y.row_mut(row).copy_from_slice(table.row(*token as usize));
        }
        y.values.iter_mut().for_each(|v| *v *= f64::from(scale));
        y
    }

    fn rms_norm(&self, x: &Tensor64, weight: &Vec<f64>, epsilon: f32) -> Tensor64 {
        let mut y = x.clone();
        for run in y.values.chunks_exact_mut(weight.len()) {
            let mean = run.iter().map(|v| v * v).sum::<f64>() / weight.len() as f64;
            let root = (mean + f64::from(epsilon)).sqrt();
            run.iter_mut().zip(weight).for_each(|(v, w)| *v = *v / root * w);
        }
        y
    }

    fn project<const N: usize>(&self, x: &Tensor64, linears: [&Linear<Self>; N]) -> [Tensor64; N] {
        linears.map(|linear| {
            assert_eq!(x.width, linear.matrix.width, "a row of activations is as long as a row of weights");
            let mut y = Tensor64::zeros(x.rows, linear.matrix.rows);
            for row in 0..x.rows {
                for (feature, out) in y.row_mut(row).iter_mut().enumerate() {
                    *out =
                        linear.bias.as_ref().map_or(0.0, |b| b[feature]) + dot(x.row(row), linear.matrix.row(feature));
                }
            }
            y
        })
    }

    fn project_fine(&self, x: &Tensor64, linear: &Linear<Self>) -> Tensor64 {
        let [y] = self.project(x, [linear]);
        y
    }

    fn project_grouped(&self, x: &Tensor64, linear: &LinearStack<Self>) -> Tensor64 {
        segments::project_grouped(x, linear)
    }

    fn route(&self, logits: &Tensor64, router: &Router<Self>) -> Routes<f64> {
        segments::route(logits, router, None)
    }

    fn choices(&self, experts: Vec<u32>) -> Vec<u32> {
        experts
    }

    fn route_chosen(&self, logits: &Tensor64, router: &Router<Self>, chosen: Vec<u32>) -> Routes<f64> {
        segments::route(logits, router, Some(&chosen))
    }

    fn project_routed<const N: usize>(
        &self,
        x: &Tensor64,
        linears: [&LinearStack<Self>; N],
        routes: &Routes<f64>,
    ) -> [Tensor64; N] {
        linears.map(|linear| segments::project_routed(x, linear, routes))
    }

    fn combine_routed(&self, x: &Tensor64, linear: &LinearStack<Self>, routes: &Routes<f64>) -> Tensor64 {
        segments::combine_routed(x, linear, routes)
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Tensor64 {
        let pairs = rope.frequencies.len();
        let mut y = Tensor64::zeros(batch.len(), 2 * pairs);
        for (row, position) in batch.positions.iter().enumerate() {
            for (i, frequency) in rope.frequencies.iter().enumerate() {
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                y.row_mut(row)[i] = cos * f64::from(rope.magnitude);
                y.row_mut(row)[pairs + i] = sin * f64::from(rope.magnitude);
            }
        }
        y
    }

    fn rotate(&self, x: &mut Tensor64, rotation: &Rotation, angles: &Tensor64) {
        let pairs = angles.width / 2;
        for row in 0..x.rows {
            for head in x.row_mut(row).chunks_exact_mut(rotation.head_dim) {
                for pair in 0..pairs {
                    let (first, second) = rotation.layout.pair(pair, pairs);
                    let (first, second) = (rotation.first + first, rotation.first + second);
                    let (cos, sin) = (angles.row(row)[pair], angles.row(row)[pairs + pair]);
                    let sin = if rotation.inverse { -sin } else { sin };
                    let (a, b) = (head[first], head[second]);
                    head[first] = a * cos - b * sin;
                    head[second] = b * cos + a * sin;
                }
            }
        }
    }

    fn round(&self, x: &mut Tensor64, head_dim: usize, rounding: Rounding) {
        streams::round(x, head_dim, rounding);
    }

    fn store_kv(&self, cache: &mut KvPages<f64>, layer: usize, keys: &Tensor64, values: &Tensor64, batch: &Batch) {
        for (row, position) in batch.positions.iter().enumerate() {
            let (page, slot) = batch.slot(row, *position as usize, cache.ring_pages(layer));
            cache.put(layer, page, slot, &[keys.row(row), values.row(row)]);
        }
    }

    fn attention(
        &self,
        queries: &Tensor64,
        cache: &KvPages<f64>,
        spec: &Attention,
        sinks: Option<&Vec<f64>>,
        batch: &Batch,
    ) -> Tensor64 {
        spec.check();
        let ring_pages = cache.ring_pages(spec.layer);
        check_ring(spec.window, ring_pages, batch);
        let mut y = Tensor64::zeros(queries.rows, queries.width);
        for row in 0..queries.rows {
            let slots = spec.visible(batch.positions[row] as usize).map(|t| batch.slot(row, t, ring_pages));
            let slots: Vec<_> = slots.collect();
            for head in 0..spec.heads {
                let features = head * spec.head_dim..(head + 1) * spec.head_dim;
                let out = &mut y.row_mut(row)[features.clone()];
                let sink = sinks.map(|sinks| sinks[head]);
                one_head(&queries.row(row)[features], head / spec.group(), cache, spec, sink, &slots, out);
            }
        }
        y
    }

    fn store_rows(&self, cache: &mut KvPages<f64>, entry: usize, rows: &Tensor64, batch: &Batch) {
        latent::store_rows(cache, entry, rows, batch);
    }

    fn compress(&self, cache: &mut KvPages<f64>, compressor: &Compressor<Self>, batch: &Batch) {
        latent::compress(cache, compressor, batch);
    }

    fn select(
        &self,
        queries: &Tensor64,
        head_weights: &Tensor64,
        cache: &KvPages<f64>,
        selector: &Selector,
        batch: &Batch,
    ) -> Selection {
        latent::select(queries, head_weights, cache, selector, batch)
    }

    fn attend_latent(
        &self,
        queries: &Tensor64,
        cache: &KvPages<f64>,
        spec: &LatentAttention,
        selection: Option<&Selection>,
        sinks: &Vec<f64>,
        batch: &Batch,
    ) -> Tensor64 {
        latent::attend(queries, cache, spec, selection, sinks, batch)
    }

    fn gate(&self, x: &Tensor64, up: &Tensor64, gate: Gate) -> Tensor64 {
        gate::gate(x, up, gate)
    }

    fn gate_halves(&self, x: &Tensor64, gate: Gate) -> Tensor64 {
        let half = x.width / 2;
        gate::gate(&gate::columns(x, 0..half), &gate::columns(x, half..x.width), gate)
    }

    fn copies(&self, x: &Tensor64, count: usize) -> Tensor64 {
        streams::copies(x, count)
    }

    fn stream_gates(&self, mix: &Tensor64, scale: &Vec<f64>, base: &Vec<f64>, spec: &StreamGates) -> Tensor64 {
        streams::gates(mix, scale, base, spec)
    }

    fn collapse_streams(&self, streams: &Tensor64, gates: &Tensor64, count: usize) -> Tensor64 {
        streams::collapse(streams, gates, count)
    }

    fn spread_streams(&self, streams: &mut Tensor64, y: &Tensor64, gates: &Tensor64, count: usize) {
        streams::spread(streams, y, gates, count);
    }

    fn columns(&self, x: &Tensor64, columns: Range<usize>) -> Tensor64 {
        gate::columns(x, columns)
    }

    fn scale(&self, x: &mut Tensor64, factor: f32) {
        x.values.iter_mut().for_each(|v| *v *= f64::from(factor));
    }

    fn add(&self, x: &mut Tensor64, y: &Tensor64) {
        x.values.iter_mut().zip(&y.values).for_each(|(v, u)| *v += u);
    }

    fn soft_cap(&self, x: &mut Tensor64, cap: f32) {
        let cap = f64::from(cap);
        x.values.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }

    fn logit_rows(&self, x: &Tensor64, batch: &Batch) -> Tensor64 {
        let mut y = Tensor64::zeros(batch.logit_rows.len(), x.width);
        for (to, from) in batch.logit_rows.iter().enumerate() {
            y.row_mut(to).copy_from_slice(x.row(*from as usize));
        }
        y
    }

    fn read(&self, x: &Tensor64, out: &mut Vec<f32>) -> Result<(), Error> {
        out.clear();
        out.extend(x.values.iter().map(|v| *v as f32));
        Ok(())
    }

    fn read_page(&self, cache: &KvPages<f64>, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_page(page, out);
        Ok(())
    }

    fn write_page(&self, cache: &mut KvPages<f64>, page: u32, bytes: &[u8]) -> Result<(), Error> {
        cache.write_page(page, bytes)
    }

    fn read_ring(&self, cache: &KvPages<f64>, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_ring(ring, part, out);
        Ok(())
    }

    fn write_ring(&self, cache: &mut KvPages<f64>, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        cache.write_ring(ring, part, bytes)
    }

    fn read_selection(&self, selection: &Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        rows.clone_from(&selection.rows);
        Ok(())
    }

    fn read_routes(&self, routes: &Routes<f64>, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error> {
        experts.clone_from(&routes.experts);
        weights.clear();
        weights.extend(routes.weights.iter().map(|w| *w as f32));
        Ok(())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Softmax attention in two passes over the visible `slots`, given as (page, slot in page).
fn one_head(
    query: &[f64],
    kv_head: usize,
    cache: &KvPages<f64>,
    spec: &Attention,
    sink: Option<f64>,
    slots: &[(u32, usize)],
    out: &mut [f64],
) {
    let at = |&(page, slot): &(u32, usize)| cache.pair(spec.layer, page, slot, kv_head);
    let mut weights: Vec<f64> = slots.iter().map(|s| f64::from(spec.scale) * dot(query, at(s).0)).collect();
    if let Some(cap) = spec.soft_cap.map(f64::from) {
        weights.iter_mut().for_each(|w| *w = cap * (*w / cap).tanh());
    }
    let highest = weights.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|w| *w = (*w - highest).exp());
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
    for (weight, slot) in weights.iter().zip(slots) {
        for (o, v) in out.iter_mut().zip(at(slot).1) {
            *o += weight / total * v;
        }
    }
}
