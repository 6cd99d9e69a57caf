//! Rows by index: token embeddings in, wanted logits out.

use tessera_formats::codec;

use super::Tensor;
use crate::{Batch, Error, MatrixSource};

/// All rows of a matrix as f32: (rows, depth).
pub(super) fn decode_all(source: &MatrixSource) -> Result<Vec<f32>, Error> {
    let row_bytes = source.row_bytes()?;
    let mut values = vec![0.0; source.rows * source.depth];
    for row in 0..source.rows {
        let out = &mut values[row * source.depth..][..source.depth];
        codec::decode(source.dtype, &source.bytes[row * row_bytes..][..row_bytes], out);
        if out.iter().any(|v| !v.is_finite()) {
            let what = if source.dtype.is_float() { "weight" } else { "scale" };
            return Err(Error::NotFinite { tensor: source.name.clone(), row, what });
        }
    }
    Ok(values)
}

pub(super) fn embed(table: &[f32], width: usize, batch: &Batch, scale: f32) -> Tensor {
    let mut y = Tensor::zeros(batch.len(), width);
    for (row, token) in batch.tokens.iter().enumerate() {
        for (out, v) in y.row_mut(row).iter_mut().zip(&table[*token as usize * width..][..width]) {
            *out = v * scale;
        }
    }
    y
}

pub(super) fn logit_rows(x: &Tensor, batch: &Batch) -> Tensor {
    let mut y = Tensor::zeros(batch.logit_rows.len(), x.width);
    for (to, from) in batch.logit_rows.iter().enumerate() {
        y.row_mut(to).copy_from_slice(x.row(*from as usize));
    }
    y
}
