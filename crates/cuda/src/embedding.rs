//! The table of tokens. It stays where the model file lies: a step sends the few rows that it needs.

use std::thread;

use tessera_formats::codec;
use tessera_ops::{Error, MatrixSource};

/// Rows that are worth a thread of their own.
const THREAD_ROWS: usize = 32;

/// A table of rows fetched by token id.
pub struct Embedding {
    source: MatrixSource,
    row_bytes: usize,
}

impl Embedding {
    /// A table whose weights are finite.
    ///
    /// # Errors
    /// A weight or scale that is not finite, or a shape that does not fit.
    pub(crate) fn load(source: &MatrixSource) -> Result<Embedding, Error> {
        let row_bytes = source.row_bytes()?;
        let what = if source.dtype.is_float() { "weight" } else { "scale" };
        if let Some(block) = codec::first_non_finite_block(source.dtype, &source.bytes) {
            let row = block * source.dtype.block_len() / source.depth.max(1);
            return Err(Error::NotFinite { tensor: source.name.clone(), row, what });
        }
        Ok(Embedding { source: source.clone(), row_bytes })
    }

    /// Numbers of a row.
    pub(crate) fn width(&self) -> usize {
        self.source.depth
    }

    /// The rows of tokens (tokens, width), multiplied by `scale`; many are decoded by several threads.
    pub(crate) fn rows(&self, tokens: &[u32], scale: f32) -> Vec<f32> {
        let width = self.width();
        let mut values = vec![0.0f32; tokens.len() * width];
        let bytes: &[u8] = &self.source.bytes;
        let threads = thread::available_parallelism().map_or(1, usize::from).min(tokens.len() / THREAD_ROWS).max(1);
        let rows_each = tokens.len().div_ceil(threads).max(1);
        let decode = |values: &mut [f32], tokens: &[u32]| {
            for (row, token) in values.chunks_exact_mut(width.max(1)).zip(tokens) {
                codec::decode(self.source.dtype, &bytes[*token as usize * self.row_bytes..][..self.row_bytes], row);
                row.iter_mut().for_each(|v| *v *= scale);
            }
        };
        thread::scope(|scope| {
            let mut parts = values.chunks_mut((rows_each * width).max(1)).zip(tokens.chunks(rows_each));
            // One part is this thread's own.
            let own = parts.next();
            for (values, tokens) in parts {
                let decode = &decode;
                scope.spawn(move || decode(values, tokens));
            }
            if let Some((values, tokens)) = own {
                decode(values, tokens);
            }
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use tessera_formats::{DType, codec::RandomBlocks};

    use super::*;

    #[test]
    fn threads_do_not_show() {
        let (dtype, rows, depth) = (DType::Q8_0, 40, 64);
        let mut bytes = vec![0; rows * dtype.row_bytes(depth).unwrap()];
        RandomBlocks::new(dtype, 1.0).fill(7, 0, &mut bytes);
        let source = MatrixSource { name: "t".to_owned(), dtype, rows, depth, bytes: bytes.into() };
        let table = Embedding::load(&source).unwrap();
        let tokens: Vec<u32> = (0..7 * THREAD_ROWS as u32 + 5).map(|i| i * 17 % rows as u32).collect();
        let all = table.rows(&tokens, 0.5);
        assert_eq!(all, tokens.iter().flat_map(|token| table.rows(&[*token], 0.5)).collect::<Vec<_>>());
        assert!(table.rows(&[], 1.0).is_empty());
    }
}
