//! Several residual streams, from a block's result to the next one's input (`kernels/streams/connect.cu`): what the launch takes.

use tessera_ops::{numerics::SEGMENTS_MAX, streams::STREAMS_MAX};

/// Blocks that share a row: one for each segment of the depth.
pub(crate) const BLOCKS: usize = SEGMENTS_MAX;

/// Threads of a block.
pub(crate) const THREADS: usize = 512;

/// Rows that are taken so, at most: a wave of blocks. Where there are more, kernels of single ops share weights among them.
pub(crate) const ROWS_MAX: usize = 16;

/// Runs of weights that are copied together, and how many of these are in a ring.
const STAGE_RUNS: usize = 8;
const STAGES: usize = 16;

/// Bytes of a run of 32 rows.
const RUN_BYTES: usize = 512;

/// Numbers of shared memory that are of no shape.
const FIXED_NUMBERS: usize = 64;

/// Shared memory that a block can have.
const SHARED_BYTES_MAX: usize = 227 << 10;

/// What the kernel is compiled with.
pub(crate) fn constants() -> Vec<(&'static str, usize)> {
    vec![
        ("STREAMS_MAX", STREAMS_MAX),
        ("BLOCKS", BLOCKS),
        ("THREADS", THREADS),
        ("STAGES", STAGES),
        ("STAGE_RUNS", STAGE_RUNS),
        ("FIXED_NUMBERS", FIXED_NUMBERS),
    ]
}

/// Shared memory of a block: all streams, a segment of them, what is read of them, and a ring of weights. None where that is too much, or
/// features do not fall into equal parts.
pub(crate) fn shared_bytes(count: usize, width: usize, split: usize) -> Option<usize> {
    let depth = count * width;
    let longest = (depth / 256).div_ceil(split.max(1)) * 256 + depth % 256;
    let bytes = (FIXED_NUMBERS + depth + longest + width) * size_of::<f32>() + STAGES * STAGE_RUNS * RUN_BYTES;
    (width.is_multiple_of(32 * BLOCKS) && bytes <= SHARED_BYTES_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use tessera_ops::numerics::{segment, segment_count};

    use super::*;

    #[test]
    fn segments_fit() {
        for width in (256..8192).step_by(256) {
            for count in 1..=STREAMS_MAX {
                let (depth, split) = (count * width, segment_count(count * width));
                let longest = (0..split).map(|i| segment(depth, i).len()).max().unwrap();
                let least =
                    (FIXED_NUMBERS + depth + longest + width) * size_of::<f32>() + STAGES * STAGE_RUNS * RUN_BYTES;
                assert!(shared_bytes(count, width, split).is_none_or(|b| b >= least), "{count} of {width}");
            }
        }
        // Both released shapes.
        assert!([4096, 7168].iter().all(|width| shared_bytes(4, *width, 8).is_some()));
        assert_eq!(shared_bytes(4, 128, 2), None);
    }
}
