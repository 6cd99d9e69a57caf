//! What row-wise ops share: a pool with an instruction set, and walks over numbers 16 at a time.

use crate::{
    isa::{Isa, Kernel},
    simd::{LANES, Simd},
    threads::Threads,
};

/// Below this many numbers an op is not worth a second thread.
pub(crate) const ALONE_MAX: usize = 8 << 10;

/// Who computes, and with which instructions.
pub(crate) struct Workers {
    pub(crate) isa: Isa,
    pub(crate) pool: Threads,
}

impl Workers {
    /// Spreads runs of `unit` numbers over the pool where there are enough: `job(first run, runs)`.
    pub(crate) fn runs(&self, data: &mut [f32], unit: usize, job: impl Fn(usize, &mut [f32]) + Sync) {
        let numbers = data.len();
        self.runs_of(data, unit, numbers, job);
    }

    /// The same of anything, where there is work for so many `numbers`.
    pub(crate) fn runs_of<T: Send>(
        &self,
        data: &mut [T],
        unit: usize,
        numbers: usize,
        job: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if data.is_empty() {
            return;
        }
        if numbers <= ALONE_MAX {
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

/// `y = op(x, y)` element by element, 16 at a time: `zip_lanes!(simd, x, y, |a, b| simd.add(a, b))`. A macro, because a
/// closure is not always compiled into its caller, and outside it has none of the caller's instructions: it would run
/// ten times slower.
macro_rules! zip_lanes {
    ($simd:expr, $x:expr, $y:expr, |$a:ident, $b:ident| $op:expr) => {
        for (x, y) in $x.chunks($crate::simd::LANES).zip($y.chunks_mut($crate::simd::LANES)) {
            let ($a, $b) = ($crate::lanes::load($simd, x), $crate::lanes::load($simd, y));
            let v = $op;
            $crate::lanes::store($simd, y, v);
        }
    };
}
pub(crate) use zip_lanes;

/// `y = op(y)` element by element: `map_lanes!(simd, y, |a| simd.neg(a))`.
macro_rules! map_lanes {
    ($simd:expr, $y:expr, |$a:ident| $op:expr) => {
        for y in $y.chunks_mut($crate::simd::LANES) {
            let $a = $crate::lanes::load($simd, y);
            let v = $op;
            $crate::lanes::store($simd, y, v);
        }
    };
}
pub(crate) use map_lanes;

/// `y = fma(factor, x, y)`
pub(crate) struct AddScaled<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) factor: f32,
    pub(crate) y: &'a mut [f32],
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(self.factor);
        zip_lanes!(simd, self.x, self.y, |x, y| simd.fma(factor, x, y));
    }
}
