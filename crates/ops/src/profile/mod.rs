//! A device that measures another: it passes every op on, and writes down how long it took and what it moved.
//!
//! Models know nothing of it. A projection is known by the names of its tensors, which the device sees when they are loaded;
//! everything else by its kind and by the projection that it stands next to. A device that is not wrapped pays nothing.
//! A device that enqueues times its stages itself ([`Device::mark`]); one that computes at once is timed by the host's clock.

mod held;
mod log;
mod work;

pub use held::{Cache, Routed, Selected, Table, Tensor, Vector, Weights};
pub use log::{Entry, Label};

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Attention, Batch, Candidate, Compressor, Device, Error, Gate, KvLayout, LatentAttention, Linear, LinearStack,
    MatrixSource, RingPart, Rope, Rotation, Rounding, Router, Selector, StreamGates,
};
use held::{with_compressor, with_linears, with_router, with_stacks, with_vector};
use log::{Log, Place, Work};
use work::{attention_work, latent_work, moves, projection, selection_work, sum};

/// The stage of all norms.
pub const NORM: &str = "norm";

/// The stage of what joins and mixes residual streams.
pub const STREAMS: &str = "streams";

const F32: usize = size_of::<f32>();

/// A measured device.
#[derive(Debug)]
pub struct Profiled<D> {
    device: D,
    label: fn(&str) -> Label,
    log: Log,
    is_paused: AtomicBool,
}

impl<D: Device> Profiled<D> {
    /// Measures `device`. `label` tells from a tensor's name what is computed with it.
    pub fn new(device: D, label: fn(&str) -> Label) -> Profiled<D> {
        Profiled { device, label, log: Log::default(), is_paused: AtomicBool::new(false) }
    }

    /// The device inside.
    pub fn inner(&self) -> &D {
        &self.device
    }

    /// The ops since this was called last, in order.
    ///
    /// # Errors
    /// If the device failed.
    pub fn take(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.log.take(&self.device.stages()?))
    }

    /// Whether ops are passed on without being timed: a device that times its stages is slowed by that.
    pub fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    /// Runs an op and writes it down.
    fn time<T>(&self, place: Place, stage: &'static str, work: Work, run: impl FnOnce() -> T) -> T {
        if self.is_paused.load(Ordering::Relaxed) {
            return run();
        }
        let result = self.log.time(place, stage, work, run);
        if self.device.mark() {
            self.log.mark();
        }
        result
    }

    fn place<T>(weights: &Weights<T>) -> (Place, &'static str) {
        (Place::Of(weights.label.layer), weights.label.stage)
    }

    /// Routes that `run` makes of the logits and the router inside.
    fn routed(
        &self,
        logits: &Tensor<D::Tensor>,
        router: &Router<Self>,
        run: impl FnOnce(&D::Tensor, &Router<D>) -> D::Routes,
    ) -> Routed<D::Routes> {
        let places = logits.rows * router.routing.slots;
        let inner = with_router(router, |router| {
            self.time(Place::Here, "router", moves(logits.bytes()), || run(&logits.inner, router))
        });
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        // What is not timed is not held up either. A device that failed says so when the step is read.
        if !self.is_paused.load(Ordering::Relaxed) {
            let _ = self.device.read_routes(&inner, &mut experts, &mut weights);
        }
        experts.sort_unstable();
        experts.dedup();
        Routed { inner, tokens: logits.rows, places, touched: experts.len() }
    }
}

fn tensor<T>(inner: T, rows: usize, width: usize) -> Tensor<T> {
    Tensor { inner, rows, width }
}

impl<D: Device> Device for Profiled<D> {
    type Matrix = Weights<D::Matrix>;
    type Stack = Weights<D::Stack>;
    type Embedding = Table<D::Embedding>;
    type Vector = Vector<D::Vector>;
    type Tensor = Tensor<D::Tensor>;
    type KvCache = Cache<D::KvCache>;
    type Selection = Selected<D::Selection>;
    type Routes = Routed<D::Routes>;
    type Choices = D::Choices;

    fn name(&self) -> String {
        self.device.name()
    }

    fn roles_agree(&self) -> bool {
        self.device.roles_agree()
    }

    fn cache_form(&self) -> String {
        self.device.cache_form()
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<Self::Matrix, Error> {
        Ok(Weights::new(self.device.load_matrix(source)?, (self.label)(&source.name), 1, source))
    }

    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<Self::Stack, Error> {
        Ok(Weights::new(self.device.load_stack(source, count)?, (self.label)(&source.name), count, source))
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Self::Embedding, Error> {
        let row_bytes = source.row_bytes()?;
        Ok(Table { inner: self.device.load_embedding(source)?, width: source.depth, row_bytes })
    }

    fn load_vector(&self, values: &[f32]) -> Result<Self::Vector, Error> {
        Ok(Vector::new(self.device.load_vector(values)?, values.len()))
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<Self::KvCache, Error> {
        Ok(Cache::new(self.device.kv_cache(layout, pages, rings)?, layout))
    }

    fn embed(&self, table: &Self::Embedding, batch: &Batch, scale: f32) -> Self::Tensor {
        let work = moves(batch.len() * (table.row_bytes + table.width * F32));
        let y = self.time(Place::Outside, "embed", work, || self.device.embed(&table.inner, batch, scale));
        tensor(y, batch.len(), table.width)
    }

    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, epsilon: f32) -> Self::Tensor {
        let work = moves(2 * x.bytes() + weight.len * F32);
        let y = weight.with(|w| self.time(Place::Here, NORM, work, || self.device.rms_norm(&x.inner, w, epsilon)));
        tensor(y, x.rows, x.width)
    }

    fn project<const N: usize>(&self, x: &Self::Tensor, linears: [&Linear<Self>; N]) -> [Self::Tensor; N] {
        let work = sum(x.bytes(), linears.iter().map(|l| projection(&l.matrix, 1, x.rows)));
        let (place, stage) = linears.first().map_or((Place::Here, ""), |l| Self::place(&l.matrix));
        let y = with_linears(linears, |inner| self.time(place, stage, work, || self.device.project(&x.inner, inner)));
        let mut rows = linears.iter().map(|l| l.matrix.rows);
        y.map(|y| tensor(y, x.rows, rows.next().unwrap_or(0)))
    }

    fn project_fine(&self, x: &Self::Tensor, linear: &Linear<Self>) -> Self::Tensor {
        let mut work = sum(x.bytes(), [projection(&linear.matrix, 1, x.rows)]);
        work.operations *= 2;
        let (place, stage) = Self::place(&linear.matrix);
        let y = with_linears([linear], |[inner]| {
            self.time(place, stage, work, || self.device.project_fine(&x.inner, inner))
        });
        tensor(y, x.rows, linear.matrix.rows)
    }

    fn project_grouped(&self, x: &Self::Tensor, linear: &LinearStack<Self>) -> Self::Tensor {
        let groups = linear.matrices.count;
        let work = sum(x.bytes() + linear.matrices.bytes, (0..groups).map(|_| projection(&linear.matrices, 0, x.rows)));
        let (place, stage) = Self::place(&linear.matrices);
        let y = with_stacks([linear], |[inner]| {
            self.time(place, stage, work, || self.device.project_grouped(&x.inner, inner))
        });
        tensor(y, x.rows, groups * linear.matrices.rows)
    }

    fn route(&self, logits: &Self::Tensor, router: &Router<Self>) -> Self::Routes {
        self.routed(logits, router, |logits, router| self.device.route(logits, router))
    }

    fn choices(&self, experts: Vec<u32>) -> D::Choices {
        self.device.choices(experts)
    }

    fn route_chosen(&self, logits: &Self::Tensor, router: &Router<Self>, chosen: D::Choices) -> Self::Routes {
        self.routed(logits, router, |logits, router| self.device.route_chosen(logits, router, chosen))
    }

    fn project_routed<const N: usize>(
        &self,
        x: &Self::Tensor,
        linears: [&LinearStack<Self>; N],
        routes: &Self::Routes,
    ) -> [Self::Tensor; N] {
        let work = linears.iter().map(|l| projection(&l.matrices, routes.touched, routes.places));
        let work = sum(x.bytes(), work);
        let (place, stage) = linears.first().map_or((Place::Here, ""), |l| Self::place(&l.matrices));
        let y = with_stacks(linears, |inner| {
            self.time(place, stage, work, || self.device.project_routed(&x.inner, inner, &routes.inner))
        });
        let mut rows = linears.iter().map(|l| l.matrices.rows);
        y.map(|y| tensor(y, routes.places, rows.next().unwrap_or(0)))
    }

    fn combine_routed(&self, x: &Self::Tensor, linear: &LinearStack<Self>, routes: &Self::Routes) -> Self::Tensor {
        let work = sum(x.bytes(), [projection(&linear.matrices, routes.touched, routes.places)]);
        let (place, stage) = Self::place(&linear.matrices);
        let y = with_stacks([linear], |[inner]| {
            self.time(place, stage, work, || self.device.combine_routed(&x.inner, inner, &routes.inner))
        });
        tensor(y, routes.tokens, linear.matrices.rows)
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Self::Tensor {
        let width = 2 * rope.frequencies.len();
        let work = moves(batch.len() * width * F32);
        let y = self.time(Place::Outside, "rope", work, || self.device.rope_angles(rope, batch));
        tensor(y, batch.len(), width)
    }

    fn rotate(&self, x: &mut Self::Tensor, rotation: &Rotation, angles: &Self::Tensor) {
        let work = moves(2 * x.bytes() + angles.bytes());
        self.time(Place::Here, "rope", work, || self.device.rotate(&mut x.inner, rotation, &angles.inner));
    }

    fn round(&self, x: &mut Self::Tensor, head_dim: usize, rounding: Rounding) {
        let work = moves(2 * x.bytes());
        self.time(Place::Here, "round", work, || self.device.round(&mut x.inner, head_dim, rounding));
    }

    fn store_kv(
        &self,
        cache: &mut Self::KvCache,
        layer: usize,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        batch: &Batch,
    ) {
        let work = moves(keys.bytes() + values.bytes() + cache.bytes(layer, keys.rows));
        self.time(Place::Here, "store k/v", work, || {
            self.device.store_kv(&mut cache.inner, layer, &keys.inner, &values.inner, batch);
        });
    }

    fn attention(
        &self,
        queries: &Self::Tensor,
        cache: &Self::KvCache,
        spec: &Attention,
        sinks: Option<&Self::Vector>,
        batch: &Batch,
    ) -> Self::Tensor {
        let work = attention_work(cache, spec, batch, queries.bytes());
        let y = with_vector(sinks, |sinks| {
            self.time(Place::Here, "attention", work, || {
                self.device.attention(&queries.inner, &cache.inner, spec, sinks, batch)
            })
        });
        tensor(y, queries.rows, queries.width)
    }

    fn store_rows(&self, cache: &mut Self::KvCache, entry: usize, rows: &Self::Tensor, batch: &Batch) {
        let work = moves(rows.bytes() + cache.bytes(entry, rows.rows));
        self.time(Place::Here, "store k/v", work, || {
            self.device.store_rows(&mut cache.inner, entry, &rows.inner, batch);
        });
    }

    fn compress(&self, cache: &mut Self::KvCache, compressor: &Compressor<Self>, batch: &Batch) {
        let completed = batch.positions.iter().filter(|p| compressor.completed_by(**p as usize).is_some()).count();
        let inputs = cache.bytes(compressor.inputs, completed * compressor.window());
        let work = moves(inputs + cache.bytes(compressor.output, completed));
        with_compressor(compressor, |inner| {
            self.time(Place::Here, "compress", work, || self.device.compress(&mut cache.inner, inner, batch));
        });
    }

    fn select(
        &self,
        queries: &Self::Tensor,
        head_weights: &Self::Tensor,
        cache: &Self::KvCache,
        selector: &Selector,
        batch: &Batch,
    ) -> Self::Selection {
        let work = selection_work(cache, selector, batch, queries.bytes() + head_weights.bytes());
        let inner = self.time(Place::Here, "select", work, || {
            self.device.select(&queries.inner, &head_weights.inner, &cache.inner, selector, batch)
        });
        Selected { inner, top_k: selector.top_k }
    }

    fn attend_latent(
        &self,
        queries: &Self::Tensor,
        cache: &Self::KvCache,
        spec: &LatentAttention,
        selection: Option<&Self::Selection>,
        sinks: &Self::Vector,
        batch: &Batch,
    ) -> Self::Tensor {
        let work = latent_work(cache, spec, selection.map(|s| s.top_k), batch, queries.bytes());
        let selection = selection.map(|s| &s.inner);
        let y = sinks.with(|sinks| {
            self.time(Place::Here, "attention", work, || {
                self.device.attend_latent(&queries.inner, &cache.inner, spec, selection, sinks, batch)
            })
        });
        tensor(y, queries.rows, queries.width)
    }

    fn gate(&self, x: &Self::Tensor, up: &Self::Tensor, gate: Gate) -> Self::Tensor {
        let work = moves(3 * x.bytes());
        let y = self.time(Place::Here, "gate", work, || self.device.gate(&x.inner, &up.inner, gate));
        tensor(y, x.rows, x.width)
    }

    fn gate_halves(&self, x: &Self::Tensor, gate: Gate) -> Self::Tensor {
        let (width, work) = (x.width / 2, moves(x.bytes() + x.bytes() / 2));
        let y = self.time(Place::Here, "gate", work, || self.device.gate_halves(&x.inner, gate));
        tensor(y, x.rows, width)
    }

    fn copies(&self, x: &Self::Tensor, count: usize) -> Self::Tensor {
        let work = moves((1 + count) * x.bytes());
        let y = self.time(Place::Here, STREAMS, work, || self.device.copies(&x.inner, count));
        tensor(y, x.rows, count * x.width)
    }

    fn stream_gates(
        &self,
        mix: &Self::Tensor,
        scale: &Self::Vector,
        base: &Self::Vector,
        spec: &StreamGates,
    ) -> Self::Tensor {
        let run = |scale: &_, base: &_| self.device.stream_gates(&mix.inner, scale, base, spec);
        let work = moves(2 * mix.bytes());
        let y = scale.with(|scale| base.with(|base| self.time(Place::Here, STREAMS, work, || run(scale, base))));
        tensor(y, mix.rows, mix.width)
    }

    fn collapse_streams(&self, streams: &Self::Tensor, gates: &Self::Tensor, count: usize) -> Self::Tensor {
        let (width, work) = (streams.width / count, moves(streams.bytes() + streams.bytes() / count));
        let run = || self.device.collapse_streams(&streams.inner, &gates.inner, count);
        tensor(self.time(Place::Here, STREAMS, work, run), streams.rows, width)
    }

    fn spread_streams(&self, streams: &mut Self::Tensor, y: &Self::Tensor, gates: &Self::Tensor, count: usize) {
        let work = moves(2 * streams.bytes() + y.bytes());
        self.time(Place::Here, STREAMS, work, || {
            self.device.spread_streams(&mut streams.inner, &y.inner, &gates.inner, count);
        });
    }

    fn columns(&self, x: &Self::Tensor, columns: Range<usize>) -> Self::Tensor {
        let (width, work) = (columns.len(), moves(2 * x.rows * columns.len() * F32));
        let y = self.time(Place::Here, "columns", work, || self.device.columns(&x.inner, columns));
        tensor(y, x.rows, width)
    }

    fn scale(&self, x: &mut Self::Tensor, factor: f32) {
        let work = moves(2 * x.bytes());
        self.time(Place::Here, "residual", work, || self.device.scale(&mut x.inner, factor));
    }

    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) {
        let work = moves(3 * y.bytes());
        self.time(Place::Here, "residual", work, || self.device.add(&mut x.inner, &y.inner));
    }

    fn soft_cap(&self, x: &mut Self::Tensor, cap: f32) {
        let work = moves(2 * x.bytes());
        self.time(Place::Here, "soft cap", work, || self.device.soft_cap(&mut x.inner, cap));
    }

    fn logit_rows(&self, x: &Self::Tensor, batch: &Batch) -> Self::Tensor {
        let rows = batch.logit_rows.len();
        let work = moves(2 * rows * x.width * F32);
        let y = self.time(Place::Outside, "head", work, || self.device.logit_rows(&x.inner, batch));
        tensor(y, rows, x.width)
    }

    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<(), Error> {
        self.time(Place::Outside, "read", moves(2 * x.bytes()), || self.device.read(&x.inner, out))
    }

    fn ranks(&self) -> bool {
        self.device.ranks()
    }

    fn best(&self, logits: &Self::Tensor, rows: usize, count: usize, out: &mut Vec<Candidate>) -> Result<(), Error> {
        let work = moves(logits.bytes());
        self.time(Place::Outside, "best", work, || self.device.best(&logits.inner, rows, count, out))
    }

    fn read_page(&self, cache: &Self::KvCache, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.device.read_page(&cache.inner, page, out)
    }

    fn write_page(&self, cache: &mut Self::KvCache, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.device.write_page(&mut cache.inner, page, bytes)
    }

    fn read_ring(&self, cache: &Self::KvCache, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        self.device.read_ring(&cache.inner, ring, part, out)
    }

    fn write_ring(&self, cache: &mut Self::KvCache, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        self.device.write_ring(&mut cache.inner, ring, part, bytes)
    }

    fn read_selection(&self, selection: &Self::Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        self.device.read_selection(&selection.inner, rows)
    }

    fn read_routes(&self, routes: &Self::Routes, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error> {
        self.device.read_routes(&routes.inner, experts, weights)
    }
}
