//! Q4_K as its file has it: two f16 factors for 256 weights, and 6-bit sub-scales and minima, widened to bytes.
//!
//! A super-block of 16 rows is `d (f16) | -dmin (f16) | 8 x (16 sub-scales, 16 sub-minima) | 8 x codes`: 18.5 bytes for 32
//! weights where the file has 18. The products `d * scale` and `dmin * minimum` have 17 bits, so they are exact.

use half::f16;

use super::{BlockAt, Layout, RowBlock, load_nibbles, put_nibbles};
use crate::{
    matmul::tile::{BLOCK, ROWS},
    simd::Simd,
};

/// The layout of Q4_K.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Q4K;

/// Blocks of a super-block.
const BLOCKS: usize = 8;
/// Bytes of the two factors.
const FACTORS: usize = 2 * ROWS * 2;
/// Bytes of a block's sub-scales and sub-minima.
const SUBS: usize = 2 * ROWS;
/// Bytes of a block's codes.
const CODES: usize = ROWS * BLOCK / 2;
/// Bytes before the codes.
const HEAD: usize = FACTORS + BLOCKS * SUBS;
/// Bytes of a super-block.
const SUPER: usize = HEAD + BLOCKS * CODES;

/// Offsets in a group of a block's super-block, sub-scales and codes.
#[inline(always)]
const fn offsets(index: usize) -> (usize, usize, usize) {
    let start = index / BLOCKS * SUPER;
    let i = index % BLOCKS;
    (start, start + FACTORS + i * SUBS, start + HEAD + i * CODES)
}

impl Layout for Q4K {
    const SUB_BLOCK: usize = 32;
    const HAS_MIN: bool = true;
    const CODE_OFFSET: u8 = 0;
    const SMALL_CODES: bool = true;
    const BLOCK_BYTES: usize = SUPER / BLOCKS;

    fn group_bytes(blocks: usize) -> usize {
        blocks / BLOCKS * SUPER
    }

    #[inline(always)]
    fn block(group: *const u8, _blocks: usize, index: usize) -> BlockAt {
        let (head, scales, codes) = offsets(index);
        BlockAt { head: group.wrapping_add(head), scales: group.wrapping_add(scales), codes: group.wrapping_add(codes) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(simd: S, at: BlockAt, quad: usize) -> S::U8 {
        // SAFETY: a block has 256 bytes of nibbles.
        unsafe { load_nibbles(simd, at.codes, quad) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, at: BlockAt, _half: usize) -> S::F32 {
        // SAFETY: the super-block's first 16 f16, and a block's first 16 bytes.
        unsafe { simd.mul(simd.load_f16_at(at.head.cast()), simd.load_u8_at(at.scales)) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(simd: S, at: BlockAt, _half: usize) -> S::F32 {
        // SAFETY: the super-block's second 16 f16, and a block's second 16 bytes.
        unsafe { simd.mul(simd.load_f16_at(at.head.add(FACTORS / 2).cast()), simd.load_u8_at(at.scales.add(ROWS))) }
    }

    fn put(group: &mut [u8], _blocks: usize, row: usize, first: usize, weights: &RowBlock<'_>) {
        let raw = weights.raw;
        let (head, _, _) = offsets(first);
        let (d, dmin) = (f16::from_le_bytes([raw[0], raw[1]]), f16::from_le_bytes([raw[2], raw[3]]));
        group[head + 2 * row..][..2].copy_from_slice(&d.to_le_bytes());
        group[head + FACTORS / 2 + 2 * row..][..2].copy_from_slice(&(-dmin).to_le_bytes());
        for (i, codes) in weights.codes.chunks_exact(BLOCK).enumerate() {
            let (_, subs, at) = offsets(first + i);
            let (scale, min) = sub_scale(&raw[4..16], i);
            group[subs + row] = scale;
            group[subs + ROWS + row] = min;
            put_nibbles(&mut group[at..], row, codes);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `i`: the first four lie in bytes 0..4 and 4..8; of the last four the low
/// nibbles lie in bytes 8..12 and the upper two bits on top of the first eight.
fn sub_scale(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4)
    }
}
