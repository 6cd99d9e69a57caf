//! A table of rows fetched by token id, for devices that keep it as the file holds it and decode the few rows that a step reads.

use tessera_formats::codec;

use crate::{Error, MatrixSource};

/// Rows (tokens, width) in blocks, all weights of which are finite.
pub struct Table {
    source: MatrixSource,
    row_bytes: usize,
}

impl Table {
    /// Takes a table after a look at every scale.
    ///
    /// # Errors
    /// A weight or scale that is not finite, or a shape that does not fit.
    pub fn load(source: &MatrixSource) -> Result<Table, Error> {
        let row_bytes = source.row_bytes()?;
        match codec::first_non_finite_block(source.dtype, &source.bytes) {
            None => Ok(Table { source: source.clone(), row_bytes }),
            Some(block) => Err(Error::NotFinite {
                tensor: source.name.clone(),
                row: block * source.dtype.block_len() / source.depth,
                what: if source.dtype.is_float() { "weight" } else { "scale" },
            }),
        }
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.source.depth
    }

    /// The row of a token, multiplied by `scale`, into `out` (width).
    pub fn row(&self, token: u32, scale: f32, out: &mut [f32]) {
        let bytes = &self.source.bytes[token as usize * self.row_bytes..][..self.row_bytes];
        codec::decode(self.source.dtype, bytes, out);
        out.iter_mut().for_each(|v| *v *= scale);
    }
}
