//! Activations on the card, and launches of one thread a number.

use std::sync::Arc;

use tessera_ops::{Role, numerics::ACTIVATION_BLOCK};

use crate::{
    driver::{Arg, Gpu, Memory},
    matmul::{Codes, tile::Launch},
    roles::Roles,
};

/// Activations: (rows, width) of f32.
pub struct Tensor {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) memory: Memory,
    /// Why each row is computed; what is made of a row takes it on.
    pub(crate) roles: Roles,
    /// The same as codes, where whoever made it made them too. What changes a tensor takes them away.
    pub(crate) codes: Option<Arc<Codes>>,
}

impl Tensor {
    /// A tensor whose numbers the caller has yet to write.
    pub(crate) fn new(gpu: &Arc<Gpu>, rows: usize, width: usize, roles: Roles) -> Tensor {
        Tensor { rows, width, memory: gpu.take(rows * width * size_of::<f32>()), roles, codes: None }
    }

    /// The same of the rows of `x`, each of another width.
    pub(crate) fn like(gpu: &Arc<Gpu>, x: &Tensor, width: usize) -> Tensor {
        Tensor::new(gpu, x.rows, width, x.roles.clone())
    }

    /// As [`Tensor::like`], with room for its codes where a product may want them: all rows run in codes, and are whole blocks.
    pub(crate) fn coded_like(gpu: &Arc<Gpu>, x: &Tensor, width: usize) -> Tensor {
        let mut y = Tensor::like(gpu, x, width);
        let are_decoded = y.roles.runs().iter().all(|r| r.role == Role::Decode);
        if are_decoded && width.is_multiple_of(ACTIVATION_BLOCK) {
            y.codes = Some(Arc::new(Codes::new(gpu, x.rows, width)));
        }
        y
    }

    /// Where a kernel writes its codes, if it shall.
    pub(crate) fn code_args(&self) -> [Arg<'_>; 3] {
        self.codes.as_ref().map_or([Arg::Null; 3], |codes| codes.args())
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
