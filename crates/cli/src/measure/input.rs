//! Random weights and activations to measure a kernel with.

use anyhow::Result;
use tessera_cpu::tensor::Tensor;
use tessera_formats::{Bytes, DType, codec::random::RandomBlocks};
use tessera_ops::{Batch, Device, MatrixSource, PAGE_TOKENS, Role};

use crate::{
    device::Chosen,
    ui::{self, Failure},
};

/// More is a slip of the finger.
const BYTES_MAX: usize = 16 << 30;

/// A matrix of random weights.
///
/// # Errors
/// If blocks of the format do not divide a row, or it is absurdly large.
pub(super) fn weights(dtype: DType, rows: usize, depth: usize, seed: u64) -> Result<MatrixSource> {
    let blocks = RandomBlocks::new(dtype, (depth as f32).sqrt().recip());
    let Some(bytes) = dtype.row_bytes(depth).and_then(|row| row.checked_mul(rows)) else {
        let message =
            format!("{dtype} has blocks of {} weights, and a row of {depth} is not whole blocks", dtype.block_len());
        return Err(Failure::new(message, "give another --depth").into());
    };
    if bytes > BYTES_MAX {
        let message = format!("{rows} rows of {depth} weights in {dtype} are {}", ui::size(bytes as u64));
        let remedy = format!("measure fewer rows, experts or tokens: {} at most", ui::size(BYTES_MAX as u64));
        return Err(Failure::new(message, remedy).into());
    }
    let mut out = vec![0; bytes];
    blocks.fill(seed, 0, &mut out);
    Ok(MatrixSource { name: "random".to_owned(), dtype, rows, depth, bytes: Bytes::new(out) })
}

/// Activations of many tokens, of which some are taken at a time.
pub(super) struct Table {
    table: <Chosen as Device>::Embedding,
    rows: usize,
}

impl Table {
    /// Random numbers of size one, (rows, width).
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn new(device: &Chosen, rows: usize, width: usize, seed: u64) -> Result<Table> {
        let source = MatrixSource { rows, depth: width, ..weights(DType::F32, rows, width, seed)? };
        Ok(Table { table: device.load_embedding(&source)?, rows })
    }

    /// `count` rows from `first` on, (count, width); after the last comes the first.
    pub(super) fn take(&self, device: &Chosen, first: usize, count: usize, scale: f32) -> Tensor {
        let ids: Vec<u32> = (first..first + count).map(|id| (id % self.rows) as u32).collect();
        let mut batch = Batch::default();
        batch.push(&ids, 0, &vec![0; count.div_ceil(PAGE_TOKENS)], Role::Decode, 0);
        device.embed(&self.table, &batch, scale)
    }
}
