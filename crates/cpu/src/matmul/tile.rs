//! The one definition of a tile: what packing, activation panels, register blocks and loop bounds are derived from.

use crate::simd::{CODE_BYTES, LANES};

/// Weight rows of a tile, and of a packed group: one lane each.
pub const ROWS: usize = LANES;

/// The most tokens of a tile on any instruction set. The width of a tile is the width of its activation panel.
pub const TOKENS_MAX: usize = 12;

/// Weights of a row that meet one activation scale.
pub const BLOCK: usize = tessera_ops::numerics::ACTIVATION_BLOCK;

/// Consecutive features of a row that one integer dot instruction takes.
pub const QUAD: usize = CODE_BYTES / ROWS;

/// Dot instructions of a block.
pub const QUADS: usize = BLOCK / QUAD;

/// Token columns taken together inside a block: enough integer sums to hide the latency of one.
pub const COLUMN_RUN: usize = 4;

/// Bytes that a block of `tokens` takes in an activation panel: codes, scales, scaled sums, sums.
pub const fn record_bytes(tokens: usize) -> usize {
    tokens * (BLOCK + 3 * 4)
}

/// Bytes of the same block's halves: both sums in 16 bits each, and two sums.
pub const fn halves_bytes(tokens: usize) -> usize {
    tokens * 3 * 4
}

/// Repeats a block with a constant index, so that arrays of registers stay in registers. The index is a `const`: what stands
/// behind `if const { i < C }` is not even generated where it is false, which halves the time to compile the kernels.
macro_rules! unroll {
    (2, $i:ident, $b:block) => {{
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 0;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 1;
            $b
        }
    }};
    (3, $i:ident, $b:block) => {{
        $crate::matmul::tile::unroll!(2, $i, $b);
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 2;
            $b
        }
    }};
    (4, $i:ident, $b:block) => {{
        $crate::matmul::tile::unroll!(3, $i, $b);
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 3;
            $b
        }
    }};
    (8, $i:ident, $b:block) => {{
        $crate::matmul::tile::unroll!(4, $i, $b);
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 4;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 5;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 6;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 7;
            $b
        }
    }};
    (12, $i:ident, $b:block) => {{
        $crate::matmul::tile::unroll!(8, $i, $b);
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 8;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 9;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 10;
            $b
        }
        {
            #[allow(non_upper_case_globals)]
            const $i: usize = 11;
            $b
        }
    }};
}
pub(crate) use unroll;

// The counts that kernels unroll by are written as literals there; these keep them true.
const _: () = assert!(TOKENS_MAX == 12 && COLUMN_RUN == 4 && QUADS == 8 && TOKENS_MAX.is_multiple_of(COLUMN_RUN));
