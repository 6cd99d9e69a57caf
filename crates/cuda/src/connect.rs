//! Several residual streams, from a block's result to the next one's input (`kernels/streams/connect.cu`): what the launch takes.

use std::ops::RangeInclusive;

use tessera_ops::{
    numerics::{CHAIN_DEPTH, PART_DEPTH},
    streams::STREAMS_MAX,
};

use crate::matmul::{layout::Float, tile::FloatsTile};

/// Blocks that share a row: as many as a cluster has on every card that has clusters.
pub(crate) const BLOCKS: usize = 8;

/// Threads of a block: a warp makes gates, the others all else.
pub(crate) const THREADS: usize = 512;

/// Rows that are taken so, at most: a wave of blocks. Where there are more, kernels of single ops share weights among them.
pub(crate) const ROWS_MAX: usize = 16;

/// How many streams there may be.
pub(crate) const STREAMS: RangeInclusive<u8> = 2..=STREAMS_MAX as u8;

/// Numbers of a row of gates, at most.
const GATES_MAX: usize = 32;

/// Numbers of shared memory that are of no shape.
const FIXED_NUMBERS: usize = 72;

/// Shared memory that a block can have.
const SHARED_BYTES_MAX: usize = 227 << 10;

/// What the kernel for so many streams is compiled with.
pub(crate) fn constants(float: Float, streams: u8) -> Vec<(&'static str, usize)> {
    let step = FloatsTile::SINGLE.step_features(float);
    let sizes = [("BLOCKS", BLOCKS), ("THREADS", THREADS), ("STEP_FEATURES", step), ("FIXED_NUMBERS", FIXED_NUMBERS)];
    [("STREAMS_MAX", streams.into())].into_iter().chain(sizes).collect()
}

/// Shared memory of a block: sums of all parts, and its own parts of each stream, as they are and normed, and of the result. None where
/// that is too much, or streams are not whole parts.
pub(crate) fn shared_bytes(count: usize, width: usize) -> Option<usize> {
    let parts = width / PART_DEPTH;
    let sums = count * parts * (GATES_MAX + 1) + parts + 1;
    let own = parts.div_ceil(BLOCKS) * PART_DEPTH;
    // Between chains lie four numbers.
    let normed = own + own / CHAIN_DEPTH * 4;
    let bytes = ((FIXED_NUMBERS + sums).next_multiple_of(4) + count * (own + normed) + own) * size_of::<f32>();
    (width.is_multiple_of(PART_DEPTH) && bytes <= SHARED_BYTES_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_shapes_fit() {
        // Beside them a processor has room for a product's block.
        assert!([4096, 7168].iter().all(|width| shared_bytes(4, *width).is_some_and(|bytes| bytes < 64 << 10)));
        assert_eq!(shared_bytes(4, 256), None);
        assert_eq!(shared_bytes(STREAMS_MAX, 1 << 20), None);
    }
}
