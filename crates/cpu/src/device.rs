//! The CPU as a device: the ops of [`Device`], each at once, spread over a pool of threads.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
};

use tessera_ops::{
    Attention, Batch, Device, Error, Gate, KvLayout, Linear, MatrixSource, Rope, RopeLayout,
    numerics::quantization_rest,
};

use crate::{
    attention,
    embed::{self, Embedding},
    gate,
    isa::Isa,
    kv::{self, KvPages},
    lanes::Workers,
    matmul::{Activations, Job, PackedMatrix, project},
    norm, rope,
    tensor::{Pool, Tensor},
    threads::{Threads, default_thread_count},
};

/// The CPU.
pub struct CpuDevice {
    workers: Workers,
    pool: Arc<Pool>,
    activations: Mutex<Activations>,
}

impl CpuDevice {
    /// A device of `threads` threads (none: as many as there are cores) and an instruction set (none: the one that
    /// `TESSERA_ISA` names, or the best).
    ///
    /// # Errors
    /// `TESSERA_ISA` names an instruction set that this CPU lacks.
    pub fn new(threads: Option<NonZero<usize>>, isa: Option<Isa>) -> Result<CpuDevice, Error> {
        let isa = match isa {
            Some(isa) => isa,
            None => Isa::choose()?,
        };
        Ok(CpuDevice {
            workers: Workers { isa, pool: Threads::new(threads.unwrap_or_else(default_thread_count)) },
            pool: Pool::new(),
            activations: Mutex::new(Activations::new()),
        })
    }

    /// The instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.workers.isa
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.workers.pool.count()
    }

    /// Runs projections of `x` (tokens, depth).
    fn run_jobs(&self, x: &Tensor, jobs: &mut [Job<'_>]) {
        // Scratch is written anew by every projection, so one that panicked leaves nothing behind.
        let mut scratch = self.activations.lock().unwrap_or_else(PoisonError::into_inner);
        project(self.workers.isa, &self.workers.pool, &mut scratch, x.as_slice(), x.rows(), x.width(), jobs);
    }
}

impl Device for CpuDevice {
    type Matrix = PackedMatrix;
    type Embedding = Embedding;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type KvCache = KvPages;

    fn name(&self) -> String {
        let threads = self.threads();
        format!("CPU ({}, {threads} thread{})", self.workers.isa.title(), if threads == 1 { "" } else { "s" })
    }

    fn load_matrix(&self, source: &MatrixSource) -> Result<PackedMatrix, Error> {
        PackedMatrix::pack(source, &self.workers.pool)
    }

    fn load_embedding(&self, source: &MatrixSource) -> Result<Embedding, Error> {
        Embedding::load(source)
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        Ok(values.to_vec())
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvPages, Error> {
        KvPages::new(layout, pages)
    }

    fn embed(&self, table: &Embedding, batch: &Batch, scale: f32) -> Tensor {
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
        self.run_jobs(x, &mut jobs);
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
        self.run_jobs(&both, &mut [Job::new(&linear.matrix, None, sums.as_mut_slice())]);
        let mut y = self.pool.take(x.rows(), rows);
        let (codes, rest) = sums.as_slice().split_at(x.rows() * rows);
        for (out, (a, b)) in y.as_mut_slice().iter_mut().zip(codes.iter().zip(rest)) {
            *out = a + b;
        }
        if let Some(bias) = &linear.bias {
            for row in y.as_mut_slice().chunks_exact_mut(rows) {
                row.iter_mut().zip(bias).for_each(|(out, b)| *out += b);
            }
        }
        y
    }

    fn rope_angles(&self, rope: &Rope, batch: &Batch) -> Tensor {
        rope::angles(&self.workers, &self.pool, rope, batch)
    }

    fn rotate(&self, x: &mut Tensor, head_dim: usize, layout: RopeLayout, angles: &Tensor) {
        rope::rotate(&self.workers, x, head_dim, layout, angles);
    }

    fn store_kv(&self, cache: &mut KvPages, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
        kv::store(&self.workers, cache, layer, keys, values, batch);
    }

    fn attention(&self, queries: &Tensor, cache: &KvPages, spec: &Attention, batch: &Batch) -> Tensor {
        attention::attention(&self.workers, &self.pool, queries, cache, spec, batch)
    }

    fn gate(&self, x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
        gate::gate(&self.workers, &self.pool, x, up, gate)
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
        out.clear();
        out.extend_from_slice(x.as_slice());
        Ok(())
    }
}
