//! Rows of the table of tokens. It stays where the model file lies: a step sends the few rows that it needs.

use std::thread;

use tessera_ops::Table;

use crate::threads;

/// Rows that are worth a thread of their own.
const THREAD_ROWS: usize = 32;

/// Writes the rows of tokens (tokens, width), multiplied by `scale`, into `values`, whose memory is used again: to take that of many rows
/// from the system takes longer than to decode them. Many are decoded by several threads.
pub(crate) fn rows<'a>(table: &Table, tokens: &[u32], scale: f32, values: &'a mut Vec<f32>) -> &'a [f32] {
    let width = table.width();
    values.resize(values.len().max(tokens.len() * width), 0.0);
    let values = &mut values[..tokens.len() * width];
    let threads = threads::most().min(tokens.len() / THREAD_ROWS).max(1);
    let rows_each = tokens.len().div_ceil(threads).max(1);
    let decode = |values: &mut [f32], tokens: &[u32]| {
        let rows = values.chunks_exact_mut(width.max(1)).zip(tokens);
        rows.for_each(|(row, token)| table.row(*token, scale, row));
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

#[cfg(test)]
mod tests {
    use tessera_formats::{DType, codec::RandomBlocks};
    use tessera_ops::MatrixSource;

    use super::*;

    #[test]
    fn threads_do_not_show() {
        let (dtype, rows, depth) = (DType::Q8_0, 40, 64);
        let mut bytes = vec![0; rows * dtype.row_bytes(depth).unwrap()];
        RandomBlocks::new(dtype, 1.0).fill(7, 0, &mut bytes);
        let source = MatrixSource { name: "t".to_owned(), dtype, rows, depth, bytes: bytes.into() };
        let table = Table::load(&source).unwrap();
        let tokens: Vec<u32> = (0..7 * THREAD_ROWS as u32 + 5).map(|i| i * 17 % rows as u32).collect();
        let mut memory = vec![];
        let mut rows = |tokens: &[u32]| super::rows(&table, tokens, 0.5, &mut memory).to_vec();
        let all = rows(&tokens);
        assert_eq!(all, tokens.iter().flat_map(|token| rows(&[*token])).collect::<Vec<_>>());
        assert!(rows(&[]).is_empty());
    }
}
