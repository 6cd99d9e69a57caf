//! Q2_K: super-blocks of 256 features whose scales and minima are whole numbers of four bits, which are folded into the codes and
//! their sums (`numerics`).
//!
//! A super-block of 16 rows is `d (f16) | -dmin (f16) | factors of 8 blocks (u16) | 8 x codes`, 10.5 bytes for 32 weights, as in the
//! file. A row's factors of a block are its two scales and its two minima, four bits each.

use tessera_formats::{DType, codec};

use super::{
    BlockAt, Layout, RowBlock,
    forms::{Form, Pairs},
};
use crate::{
    matmul::tile::ROWS,
    simd::{CODE_BYTES, Simd},
};

/// The layout of Q2_K.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct SupersOf2;

/// Blocks of a super-block.
const BLOCKS: usize = 8;
/// Bytes of a number of 16 rows that has 16 bits: a unit, or the factors of a block.
const NUMBER: usize = 2 * ROWS;
/// Bytes before the codes.
const HEAD: usize = (2 + BLOCKS) * NUMBER;
/// Bytes of a super-block.
const SUPER: usize = HEAD + BLOCKS * Pairs::BYTES;

const _: () = assert!(HEAD.is_multiple_of(CODE_BYTES));

/// Offsets in a group of a block's super-block, factors and codes.
#[inline(always)]
const fn offsets(index: usize) -> (usize, usize, usize) {
    let (start, i) = (index / BLOCKS * SUPER, index % BLOCKS);
    (start, start + (2 + i) * NUMBER, start + HEAD + i * Pairs::BYTES)
}

impl Layout for SupersOf2 {
    const SUB_BLOCK: usize = 16;
    const HAS_MIN: bool = true;
    const CODE_OFFSET: u8 = 0;
    // Times their factors, too.
    const SMALL_CODES: bool = true;
    const FOLDED: bool = true;
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
        // SAFETY: a block has all its codes.
        unsafe { Pairs::load(simd, at.codes, quad) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, at: BlockAt, _half: usize) -> S::F32 {
        // SAFETY: the super-block starts with 16 f16.
        unsafe { simd.load_f16_at(at.head.cast()) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(simd: S, at: BlockAt, _half: usize) -> S::F32 {
        // SAFETY: behind these are 16 more.
        unsafe { simd.load_f16_at(at.head.add(NUMBER).cast()) }
    }

    #[inline(always)]
    unsafe fn factors<S: Simd>(simd: S, at: BlockAt) -> S::I32 {
        // SAFETY: a block has 16 numbers of 16 bits.
        unsafe { simd.load_u16_at(at.scales.cast()) }
    }

    fn put(group: &mut [u8], _blocks: usize, row: usize, first: usize, weights: &RowBlock<'_>) {
        let (head, _, _) = offsets(first);
        let factors = codec::factors(DType::Q2_K, weights.raw);
        for (i, unit) in factors.units.iter().enumerate() {
            group[head + i * NUMBER + 2 * row..][..2].copy_from_slice(&unit.to_le_bytes());
        }
        for (i, codes) in weights.codes.iter().enumerate() {
            let (_, subs, at) = offsets(first + i);
            let two = |of: &[u8]| of[2 * i] | of[2 * i + 1] << 4;
            group[subs + 2 * row..][..2].copy_from_slice(&[two(&factors.scales), two(&factors.mins)]);
            Pairs::put(&mut group[at..at + Pairs::BYTES], row, codes);
        }
    }
}
