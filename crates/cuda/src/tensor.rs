//! Activations on the card, and launches of one thread a number.

use std::sync::Arc;

use crate::{
    driver::{Gpu, Memory},
    matmul::tile::Launch,
};

/// Activations: (rows, width) of f32.
pub struct Tensor {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) memory: Memory,
}

impl Tensor {
    /// A tensor whose numbers the caller has yet to write.
    pub(crate) fn new(gpu: &Arc<Gpu>, rows: usize, width: usize) -> Tensor {
        Tensor { rows, width, memory: gpu.take(rows * width * size_of::<f32>()) }
    }

    /// All its numbers.
    pub(crate) fn count(&self) -> usize {
        self.rows * self.width
    }
}

/// Threads of a block that takes numbers one by one.
const THREADS: usize = 256;

/// A thread for each of `count` numbers.
pub(crate) fn each(count: usize) -> Launch {
    Launch { grid: [count.div_ceil(THREADS), 1, 1], threads: THREADS, shared_bytes: 0, groups: 1 }
}

/// Blocks of `threads` in a grid.
pub(crate) fn blocks(grid: [usize; 3], threads: usize) -> Launch {
    Launch { grid, threads, shared_bytes: 0, groups: 1 }
}
