//! Rows by index: token embeddings in, wanted logits out.

use std::sync::Arc;

use tessera_ops::{Batch, Table};

use crate::{
    lanes::Workers,
    tensor::{Pool, Tensor},
};

pub(crate) fn embed(workers: &Workers, pool: &Arc<Pool>, table: &Table, batch: &Batch, scale: f32) -> Tensor {
    let width = table.width();
    let mut y = pool.take(batch.len(), width);
    workers.runs(y.as_mut_slice(), width, |first, y| {
        for (row, out) in y.chunks_exact_mut(width).enumerate() {
            table.row(batch.tokens[first + row], scale, out);
        }
    });
    y
}

pub(crate) fn logit_rows(pool: &Arc<Pool>, x: &Tensor, batch: &Batch) -> Tensor {
    let mut y = pool.take(batch.logit_rows.len(), x.width());
    if x.width() > 0 {
        for (to, from) in y.as_mut_slice().chunks_exact_mut(x.width()).zip(&batch.logit_rows) {
            to.copy_from_slice(x.row(*from as usize));
        }
    }
    y
}
