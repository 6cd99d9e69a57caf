//! Rows by index: token embeddings in, wanted logits out.

use std::sync::Arc;

use tessera_formats::codec;
use tessera_ops::{Batch, Error, MatrixSource};

use crate::{
    lanes::Workers,
    tensor::{Pool, Tensor},
};

/// A table of rows fetched by token id. It stays as the file holds it: the page cache is its memory.
pub struct Embedding {
    source: MatrixSource,
    row_bytes: usize,
}

impl Embedding {
    /// Takes a table after a look at every scale.
    pub(crate) fn load(source: &MatrixSource) -> Result<Embedding, Error> {
        let row_bytes = source.row_bytes()?;
        match codec::first_non_finite_block(source.dtype, &source.bytes) {
            None => Ok(Embedding { source: source.clone(), row_bytes }),
            Some(block) => Err(Error::NotFinite {
                tensor: source.name.clone(),
                row: block * source.dtype.block_len() / source.depth,
                what: if source.dtype.is_float() { "weight" } else { "scale" },
            }),
        }
    }
}

pub(crate) fn embed(workers: &Workers, pool: &Arc<Pool>, table: &Embedding, batch: &Batch, scale: f32) -> Tensor {
    let width = table.source.depth;
    let mut y = pool.take(batch.len(), width);
    workers.runs(y.as_mut_slice(), width, |first, y| {
        for (row, out) in y.chunks_exact_mut(width).enumerate() {
            let token = batch.tokens[first + row] as usize;
            codec::decode(table.source.dtype, &table.source.bytes[token * table.row_bytes..][..table.row_bytes], out);
            out.iter_mut().for_each(|v| *v *= scale);
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
