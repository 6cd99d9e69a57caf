//! The CPU as a device: the ops of [`Device`], each at once, spread over a pool of threads.

use std::{
    num::NonZero,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use tessera_ops::{
    Attention, Batch, Compressor, Device, Error, Gate, KvEntry, KvLayout, LatentAttention, Linear, LinearStack,
    MatrixSource, RingPart, Rope, Rotation, Rounding, Router, Selector, StreamGates, Table,
    numerics::quantization_rest, ranking::Candidate,
};

use crate::{
    attention::{self, Selection, SelectionPool},
    best,
    compress::compress,
    embed, gate,
    isa::Isa,
    kv::{self, KvPages},
    lanes::Workers,
    matmul::{Activations, Job, Kernels, Overrides, PackedMatrix, SegmentTable, Tuning, project_segments},
    norm, rope,
    routes::{self, Routes, RoutesPool},
    simd::LANES,
    streams,
    tensor::{Pool, Tensor},
    threads::{Threads, default_thread_count},
};

/// The CPU.
pub struct CpuDevice {
    workers: Workers,
    pool: Arc<Pool>,
    routes: Arc<RoutesPool>,
    kernels: Kernels,
    activations: Mutex<Activations>,
    attention: attention::Means,
    selections: Arc<SelectionPool>,
}

impl CpuDevice {
    /// A device of `threads` threads (none: as many as there are cores) and an instruction set (none: the one that
    /// `TESSERA_KERNELS` or `TESSERA_ISA` names, or the best), with the other switches of `TESSERA_KERNELS`.
    ///
    /// # Errors
    /// `TESSERA_ISA` names an instruction set that this CPU lacks, or `TESSERA_KERNELS` a switch that does not exist.
    pub fn new(threads: Option<NonZero<usize>>, isa: Option<Isa>) -> Result<CpuDevice, Error> {
        let overrides = Overrides::from_environment()?;
        let isa = match isa.or(overrides.isa) {
            Some(isa) => isa,
            None => Isa::choose()?,
        };
        Ok(CpuDevice::with_kernels(threads, Kernels { overrides, ..Kernels::new(isa) }))
    }

    /// A device of `threads` threads (none: as many as there are cores) with these kernels.
    pub fn with_kernels(threads: Option<NonZero<usize>>, kernels: Kernels) -> CpuDevice {
        let pool = Threads::new(threads.unwrap_or_else(default_thread_count));
        CpuDevice {
            workers: Workers { isa: kernels.isa, pool },
            pool: Pool::new(),
            routes: RoutesPool::new(),
            kernels,
            activations: Mutex::new(Activations::new()),
            attention: attention::Means::default(),
            selections: Arc::default(),
        }
    }

    /// The same device under audit: all memory that ops write to is NaN before, and an op that writes behind the end of a
    /// tensor is told of at the next [`Device::read`].
    pub fn under_audit(threads: Option<NonZero<usize>>, kernels: Kernels) -> CpuDevice {
        CpuDevice {
            pool: Pool::guarded(),
            activations: Mutex::new(Activations::poisoned()),
            ..CpuDevice::with_kernels(threads, kernels)
        }
    }

    /// What its projections are computed with.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Computes with other measured numbers from now on: faster or slower, and the same bits.
    pub fn retune(&mut self, tuning: Tuning) {
        self.kernels.tuning = tuning;
    }

    /// The instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.workers.isa
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.workers.pool.count()
    }

    /// Under audit, whether an op wrote behind the end of a tensor.
    fn check_ends(&self, x: &Tensor) -> Result<(), Error> {
        if x.is_overrun() || self.pool.overrun() {
            let reason = "an op wrote behind the end of a tensor".to_owned();
            return Err(Error::DeviceLost { device: self.name(), reason });
        }
        Ok(())
    }

    /// Runs projections of `x`.
    fn run_jobs(&self, x: &Tensor, depth: usize, table: &SegmentTable<'_>, jobs: &mut [Job<'_>]) {
        // Scratch is written anew by every projection, so one that panicked leaves nothing behind.
        let mut scratch = self.activations.lock().unwrap_or_else(PoisonError::into_inner);
        project_segments(&self.kernels, &self.workers.pool, &mut scratch, x.as_slice(), depth, table, jobs);
    }
}

impl Device for CpuDevice {
    type Matrix = PackedMatrix;
    type Stack = PackedMatrix;
    type Embedding = Table;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type KvCache = KvPages;
    type Selection = Selection;
    type Routes = Routes;
    type Choices = Vec<u32>;

    fn name(&self) -> String {
        let threads = self.threads();
        let s = if threads == 1 { "" } else { "s" };
        let forced = Overrides { isa: None, ..self.kernels.overrides }.to_string();
        let comma = if forced.is_empty() { "" } else { ", " };
        format!("CPU ({}, {threads} thread{s}{comma}{forced})", self.workers.isa.title())
    }

    fn cache_form(&self) -> String {
        // Threads and instruction sets change no bit.
        "CPU".to_owned()
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<PackedMatrix, Error> {
        PackedMatrix::pack(source, &self.workers.pool)
    }

    fn load_stack(&self, source: &MatrixSource, count: usize) -> Result<PackedMatrix, Error> {
        PackedMatrix::pack_stack(source, count, &self.workers.pool)
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Table, Error> {
        Table::load(source)
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(values.to_vec())
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize, rings: usize) -> Result<KvPages, Error> {
        KvPages::new(layout, pages, rings, &self.workers.pool)
    }

    fn embed(&self, table: &Table, batch: &Batch, scale: f32) -> Tensor {
        embed::embed(&self.workers, &self.pool, table, batch, scale)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, epsilon: f32) -> Tensor {
        norm::rms_norm(&self.workers, &self.pool, x, weight, epsilon)
    }

    fn project<const N: usize>(&self, x: &Tensor, linears: [&Linear<Self>; N]) -> [Tensor; N] {
        let mut y = linears.map(|l| self.pool.take(x.rows(), l.matrix.rows()));
        let mut next = y.iter_mut();
        let mut jobs = linears.map(|l| {
            let out = next.next().map_or(&mut [][..], Tensor::as_mut_slice);
            Job::new(&l.matrix, l.bias.as_deref(), out)
        });
        self.run_jobs(x, x.width(), &SegmentTable::dense(x.rows()), &mut jobs);
        y
    }

    fn project_fine(&self, x: &Tensor, linear: &Linear<Self>) -> Tensor {
        if linear.matrix.layout().is_float() {
            let [y] = self.project(x, [linear]);
            return y;
        }
        // The rows and what their codes leave of them run as one batch, so that weights are read once.
        let (count, rows) = (x.as_slice().len(), linear.matrix.rows());
        let mut both = self.pool.take(2 * x.rows(), x.width());
        let (codes, rest) = both.as_mut_slice().split_at_mut(count);
        codes.copy_from_slice(x.as_slice());
        for (x, rest) in codes.chunks(x.width().max(1)).zip(rest.chunks_mut(x.width().max(1))) {
            quantization_rest(x, rest);
        }
        let mut sums = self.pool.take(2 * x.rows(), rows);
        let table = SegmentTable::dense(both.rows());
        self.run_jobs(&both, x.width(), &table, &mut [Job::new(&linear.matrix, None, sums.as_mut_slice())]);
        let mut y = self.pool.take(x.rows(), rows);
        let (codes, rest) = sums.as_slice().split_at(x.rows() * rows);
        self.workers.runs(y.as_mut_slice(), LANES, |first, out| {
            let at = first * LANES;
            for (i, out) in out.iter_mut().enumerate() {
                *out = codes[at + i] + rest[at + i];
            }
        });
        if let Some(bias) = &linear.bias {
            for row in y.as_mut_slice().chunks_exact_mut(rows) {
                row.iter_mut().zip(bias).for_each(|(out, b)| *out += b);
            }
        }
        y
    }

    fn project_grouped(&self, x: &Tensor, linear: &LinearStack<Self>) -> Tensor {
        let (stack, groups) = (&linear.matrices, linear.matrices.segments());
        assert_eq!(x.width(), groups * stack.depth(), "each group has its slice of a row");
        let mut y = self.pool.take(x.rows(), groups * stack.rows());
        let job = Job::new(stack, linear.bias.as_deref(), y.as_mut_slice());
        self.run_jobs(x, stack.depth(), &SegmentTable::grouped(x.rows(), groups), &mut [job]);
        y
    }

    fn route(&self, logits: &Tensor, router: &Router<Self>) -> Routes {
        let (bias, factors) = (router.bias.as_deref(), router.factors.as_deref());
        routes::route(&self.workers, &self.pool, &self.routes, logits, &router.routing, (bias, factors), None)
    }

    fn choices(&self, experts: Vec<u32>) -> Vec<u32> {
        experts
    }

    fn route_chosen(&self, logits: &Tensor, router: &Router<Self>, chosen: Vec<u32>) -> Routes {
        let factors = router.factors.as_deref();
        routes::route(&self.workers, &self.pool, &self.routes, logits, &router.routing, (None, factors), Some(&chosen))
    }

    fn project_routed<const N: usize>(
        &self,
        x: &Tensor,
        linears: [&LinearStack<Self>; N],
        routes: &Routes,
    ) -> [Tensor; N] {
        let mut y = linears.map(|l| self.pool.take(routes.places().len(), l.matrices.rows()));
        let mut next = y.iter_mut();
        let mut jobs = linears.map(|l| {
            let out = next.next().map_or(&mut [][..], Tensor::as_mut_slice);
            Job::new(&l.matrices, l.bias.as_deref(), out)
        });
        self.run_jobs(x, x.width(), &SegmentTable::routed(routes, false), &mut jobs);
        y
    }

    fn combine_routed(&self, x: &Tensor, linear: &LinearStack<Self>, routes: &Routes) -> Tensor {
        let mut sums = self.pool.take(routes.places().len(), linear.matrices.rows());
        let job = Job::new(&linear.matrices, linear.bias.as_deref(), sums.as_mut_slice());
        self.run_jobs(x, x.width(), &SegmentTable::routed(routes, true), &mut [job]);
        routes::combine(&self.workers, &self.pool, &sums, routes)
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Tensor {
        rope::angles(&self.workers, &self.pool, rope, batch)
    }

    fn rotate(&self, x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
        rope::rotate(&self.workers, x, rotation, angles);
    }

    fn round(&self, x: &mut Tensor, head_dim: usize, rounding: Rounding) {
        streams::round(&self.workers, x, head_dim, rounding);
    }

    fn store_kv(&self, cache: &mut KvPages, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
        kv::store(&self.workers, cache, layer, keys, values, batch);
    }

    fn attention(
        &self,
        queries: &Tensor,
        cache: &KvPages,
        spec: &Attention,
        sinks: Option<&Vec<f32>>,
        batch: &Batch,
    ) -> Tensor {
        let (forced, sinks) = (self.kernels.overrides.attention, sinks.map(Vec::as_slice));
        let (workers, pool) = (&self.workers, &self.pool);
        attention::attention(workers, pool, &self.attention, forced, queries, cache, (spec, sinks), batch)
    }

    fn store_rows(&self, cache: &mut KvPages, entry: usize, rows: &Tensor, batch: &Batch) {
        let to = cache.rows_mut(entry);
        let (kind, shape) = (to.kind(), (rows.rows(), rows.width()));
        assert!(!matches!(kind, KvEntry::Compressed { .. }), "compressed rows are made, not stored");
        assert_eq!(shape, (batch.len(), kind.row_numbers()), "each row fills its slot");
        let place = |row: usize| batch.slot(row, batch.positions[row] as usize, kind.ring_pages());
        kv::store_rows(&self.workers, to, rows.as_slice(), &place);
    }

    fn compress(&self, cache: &mut KvPages, compressor: &Compressor<Self>, batch: &Batch) {
        compress(&self.workers, &self.pool, cache, compressor, batch);
    }

    fn select(
        &self,
        queries: &Tensor,
        head_weights: &Tensor,
        cache: &KvPages,
        selector: &Selector,
        batch: &Batch,
    ) -> Selection {
        let (workers, pool, free) = (&self.workers, &self.pool, &self.selections);
        attention::select(workers, pool, free, queries, head_weights, cache, selector, batch)
    }

    fn attend_latent(
        &self,
        queries: &Tensor,
        cache: &KvPages,
        spec: &LatentAttention,
        selection: Option<&Selection>,
        sinks: &Vec<f32>,
        batch: &Batch,
    ) -> Tensor {
        attention::attend(&self.workers, &self.pool, queries, cache, spec, selection, sinks, batch)
    }

    fn gate(&self, x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
        gate::gate(&self.workers, &self.pool, x, up, gate)
    }

    fn gate_halves(&self, x: &Tensor, gate: Gate) -> Tensor {
        gate::gate_halves(&self.workers, &self.pool, x, gate)
    }

    fn copies(&self, x: &Tensor, count: usize) -> Tensor {
        streams::copies(&self.workers, &self.pool, x, count)
    }

    fn stream_gates(&self, mix: &Tensor, scale: &Vec<f32>, base: &Vec<f32>, spec: &StreamGates) -> Tensor {
        streams::gates(&self.workers, &self.pool, mix, scale, base, spec)
    }

    fn collapse_streams(&self, streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
        streams::collapse(&self.workers, &self.pool, streams, gates, count)
    }

    fn spread_streams(&self, streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
        streams::spread(&self.workers, streams, y, gates, count);
    }

    fn columns(&self, x: &Tensor, columns: Range<usize>) -> Tensor {
        gate::columns(&self.workers, &self.pool, x, columns)
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        gate::scale(&self.workers, x, factor);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        gate::add(&self.workers, x, y);
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        gate::soft_cap(&self.workers, x, cap);
    }

    fn logit_rows(&self, x: &Tensor, batch: &Batch) -> Tensor {
        embed::logit_rows(&self.pool, x, batch)
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<(), Error> {
        self.check_ends(x)?;
        // Logits of many sequences are megabytes.
        let x = x.as_slice();
        out.resize(x.len(), 0.0);
        self.workers.runs(out, LANES, |first, part| part.copy_from_slice(&x[first * LANES..][..part.len()]));
        Ok(())
    }

    fn ranks(&self) -> bool {
        true
    }

    fn best(&self, logits: &Tensor, _rows: usize, count: usize, out: &mut Vec<Candidate>) -> Result<(), Error> {
        self.check_ends(logits)?;
        best::best(&self.workers, logits, count, out);
        Ok(())
    }

    fn read_page(&self, cache: &KvPages, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_page(page, out);
        Ok(())
    }

    fn write_page(&self, cache: &mut KvPages, page: u32, bytes: &[u8]) -> Result<(), Error> {
        cache.write_page(page, bytes)
    }

    fn read_ring(&self, cache: &KvPages, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        cache.read_ring(ring, part, out);
        Ok(())
    }

    fn write_ring(&self, cache: &mut KvPages, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        cache.write_ring(ring, part, bytes)
    }

    fn read_selection(&self, selection: &Selection, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        selection.read(rows);
        Ok(())
    }

    fn read_routes(&self, routes: &Routes, experts: &mut Vec<u32>, weights: &mut Vec<f32>) -> Result<(), Error> {
        experts.clear();
        experts.extend_from_slice(routes.experts());
        weights.clear();
        weights.extend_from_slice(routes.weights());
        Ok(())
    }
}
