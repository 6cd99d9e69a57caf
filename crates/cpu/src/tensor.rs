//! Activations on the CPU: buffers that go back to a pool when dropped, so that a warm step allocates nothing.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::simd::LANES;

/// 16 numbers on a cache line: buffers start on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// One list of free buffers for each power of two of lines.
const CLASSES: usize = usize::BITS as usize;

/// What fills memory under audit: a NaN that no kernel makes.
const POISON: f32 = f32::from_bits(0x7fc0_dead);

/// The free buffers of a device.
pub struct Pool {
    free: Mutex<[Vec<Vec<Line>>; CLASSES]>,
    /// Under audit: tensors are poisoned, and so is what lies behind them.
    guarded: bool,
    /// Something was written behind a tensor.
    overrun: AtomicBool,
}

/// Activations: (rows, width) of f32.
pub struct Tensor {
    rows: usize,
    width: usize,
    /// At least rows · width numbers, all of them initialised.
    lines: Vec<Line>,
    pool: Arc<Pool>,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Arc<Pool> {
        Arc::new(Pool::empty(false))
    }

    /// An empty pool under audit: numbers that an op leaves unwritten are NaN, and [`Pool::overrun`] tells of those that
    /// it writes too far.
    pub fn guarded() -> Arc<Pool> {
        Arc::new(Pool::empty(true))
    }

    fn empty(guarded: bool) -> Pool {
        Pool { free: Mutex::new([const { Vec::new() }; CLASSES]), guarded, overrun: AtomicBool::new(false) }
    }

    /// A tensor whose numbers the caller has yet to write. Under audit and where assertions are on they are NaN, so that a
    /// gap shows.
    pub fn take(self: &Arc<Pool>, rows: usize, width: usize) -> Tensor {
        // Under audit there is at least a line behind the last number.
        let guard = usize::from(self.guarded);
        let count = ((rows * width).div_ceil(LANES) + guard).max(1).next_power_of_two();
        let recycled = self.lists()[count.trailing_zeros() as usize].pop();
        let mut lines = recycled.unwrap_or_else(|| vec![Line([0.0; LANES]); count]);
        if self.guarded {
            lines.fill(Line([POISON; LANES]));
        }
        let mut tensor = Tensor { rows, width, lines, pool: self.clone() };
        if cfg!(debug_assertions) && !self.guarded {
            tensor.as_mut_slice().fill(f32::NAN);
        }
        tensor
    }

    /// Whether, under audit, something was written behind a tensor that has been dropped since; asked once.
    pub fn overrun(&self) -> bool {
        self.overrun.swap(false, Ordering::Relaxed)
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, [Vec<Vec<Line>>; CLASSES]> {
        // A push or a pop cannot be left half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tensor {
    /// Rows: tokens of the step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// (rows, width)
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: a line is 16 f32 without padding, and the lines hold at least rows · width of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.rows * self.width) }
    }

    /// (rows, width)
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.rows * self.width) }
    }

    /// Whether, under audit, something was written behind the last number.
    pub fn is_overrun(&self) -> bool {
        let behind = self.lines.iter().flat_map(|line| line.0).skip(self.rows * self.width);
        self.pool.guarded && behind.into_iter().any(|v| v.to_bits() != POISON.to_bits())
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.as_slice()[row * self.width..][..self.width]
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if self.is_overrun() {
            self.pool.overrun.store(true, Ordering::Relaxed);
        }
        let lines = std::mem::take(&mut self.lines);
        self.pool.lists()[lines.len().trailing_zeros() as usize].push(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_serves_again() {
        let pool = Pool::new();
        for (rows, width) in [(0, 5), (1, 1), (1, 16), (1, 17), (3, 100)] {
            let first = pool.take(rows, width);
            assert_eq!(first.as_slice().len(), rows * width);
            let address = first.as_slice().as_ptr();
            assert!(address.addr().is_multiple_of(64));
            let second = pool.take(rows, width);
            assert_ne!(address, second.as_slice().as_ptr());
            drop(first);
            assert_eq!(address, pool.take(rows, width).as_slice().as_ptr());
        }
    }

    #[test]
    fn under_audit_gaps_are_nan_and_overruns_are_told() {
        let pool = Pool::guarded();
        for (rows, width) in [(0, 5), (1, 1), (1, 16), (2, 16), (3, 100)] {
            let mut tensor = pool.take(rows, width);
            assert!(tensor.as_slice().iter().all(|v| v.is_nan()));
            tensor.as_mut_slice().fill(1.0);
            assert!(!tensor.is_overrun());
            drop(tensor);
            assert!(!pool.overrun(), "{rows} x {width}");
            let mut tensor = pool.take(rows, width);
            assert!(tensor.as_slice().iter().all(|v| v.is_nan()), "what was there before is gone");
            tensor.lines[rows * width / LANES].0[rows * width % LANES] = f32::NAN;
            assert!(tensor.is_overrun());
            drop(tensor);
            assert!(pool.overrun() && !pool.overrun(), "{rows} x {width}");
        }
    }
}
