//! What row-wise ops share: a pool with an instruction set, and walks over numbers 16 at a time.

use crate::{isa::Isa, simd::LANES, simd::Simd, threads::Threads};

/// Below this many numbers an op is not worth a second thread.
const ALONE_MAX: usize = 8 << 10;

/// Who computes, and with which instructions.
pub(crate) struct Workers {
    pub(crate) isa: Isa,
    pub(crate) pool: Threads,
}

impl Workers {
    /// Spreads runs of `unit` numbers over the pool where there are enough: `job(first run, runs)`.
    pub(crate) fn runs(&self, data: &mut [f32], unit: usize, job: impl Fn(usize, &mut [f32]) + Sync) {
        if data.is_empty() {
            return;
        }
        if data.len() <= ALONE_MAX {
            job(0, data);
        } else {
            self.pool.run_chunks(data, unit, job);
        }
    }

    /// Runs `job(from, to)` over `items` items, spread over the pool where they hold enough `numbers`.
    pub(crate) fn items(&self, items: usize, numbers: usize, job: impl Fn(usize, usize) + Sync) {
        if numbers <= ALONE_MAX {
            job(0, items);
        } else {
            self.pool.run(&|share, shares| job(items * share / shares, items * (share + 1) / shares));
        }
    }
}

/// Loads at most 16 numbers; the lanes beyond are 0.
#[inline(always)]
pub(crate) fn load<S: Simd>(simd: S, from: &[f32]) -> S::F32 {
    match from.first_chunk::<LANES>() {
        Some(full) => simd.load(full),
        None => simd.load_partial(from, 0.0),
    }
}

/// Stores the first lanes, at most 16.
#[inline(always)]
pub(crate) fn store<S: Simd>(simd: S, to: &mut [f32], v: S::F32) {
    match to.first_chunk_mut::<LANES>() {
        Some(full) => simd.store(full, v),
        None => simd.store_partial(to, v),
    }
}

/// `y = op(x, y)` element by element.
#[inline(always)]
pub(crate) fn zip_lanes<S: Simd>(simd: S, x: &[f32], y: &mut [f32], op: impl Fn(S::F32, S::F32) -> S::F32) {
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks_mut::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        let v = op(simd.load(x), simd.load(y));
        simd.store(y, v);
    }
    if !y_rest.is_empty() {
        let v = op(simd.load_partial(x_rest, 0.0), simd.load_partial(y_rest, 0.0));
        simd.store_partial(y_rest, v);
    }
}

/// `y = op(y)` element by element.
#[inline(always)]
pub(crate) fn map_lanes<S: Simd>(simd: S, y: &mut [f32], op: impl Fn(S::F32) -> S::F32) {
    let (ys, rest) = y.as_chunks_mut::<LANES>();
    for y in ys {
        let v = op(simd.load(y));
        simd.store(y, v);
    }
    if !rest.is_empty() {
        let v = op(simd.load_partial(rest, 0.0));
        simd.store_partial(rest, v);
    }
}
