//! Blocks of 32 features with their own scales: codes of any form, scales of f16, bf16 or f32, one or two a block.
//!
//! A block is `scales (16 rows) for each sub-block | minima likewise | codes`. Where the scales do not fill whole cache
//! lines (one of 16 bits without minima), they stand in a plane before all codes, so that codes stay on cache lines.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::{
    BlockAt, Layout, RowBlock,
    forms::{Chosen, Fives, Form, Fp4, Grid1, Nibbles, Pairs, Signs, Threes, Uneven, Whole},
};
use crate::{
    matmul::tile::{BLOCK, ROWS},
    simd::{CODE_BYTES, Simd},
};

/// A number as scales are stored.
pub(in crate::matmul) trait Scale: Copy + Send + Sync + 'static {
    /// Its size.
    const BYTES: usize;

    /// Loads 16, widened.
    ///
    /// # Safety
    /// `from` is valid for reading 16 of them.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32;

    /// Stores `v`, which it must hold exactly.
    fn store(to: &mut [u8], v: f32);
}

impl Scale for f16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16_at(from.cast()) }
    }

    fn store(to: &mut [u8], v: f32) {
        let half = f16::from_f32(v);
        assert_eq!(half.to_f32().to_bits(), v.to_bits(), "a layout with f16 scales got one that is not");
        to.copy_from_slice(&half.to_le_bytes());
    }
}

impl Scale for bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_bf16_at(from.cast()) }
    }

    fn store(to: &mut [u8], v: f32) {
        let short = bf16::from_f32(v);
        assert_eq!(short.to_f32().to_bits(), v.to_bits(), "a layout with bf16 scales got one that is not");
        to.copy_from_slice(&short.to_le_bytes());
    }
}

impl Scale for f32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_at(from.cast()) }
    }

    fn store(to: &mut [u8], v: f32) {
        to.copy_from_slice(&v.to_le_bytes());
    }
}

/// A layout of this family: codes of form `F`, scales of type `T`.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Blocks<F, T, const SUB: usize, const MIN: bool, const OFFSET: u8>(PhantomData<(F, T)>);

/// Q1_0: 6 bytes for 32 weights.
pub(in crate::matmul) type BlocksOf1 = Blocks<Signs, f16, 32, false, 1>;
/// TQ1_0, TQ2_0: 10 bytes.
pub(in crate::matmul) type BlocksOf2 = Blocks<Pairs, f16, 32, false, 1>;
/// IQ1_M: 20 bytes, of which two scales take four each; the file has 7.
pub(in crate::matmul) type BlocksGrid1Halves = Blocks<Chosen<Grid1, Threes>, f32, 16, false, 9>;
/// Q4_0: 18 bytes.
pub(in crate::matmul) type BlocksOf4 = Blocks<Nibbles, f16, 32, false, 8>;
/// Q4_1: 20 bytes.
pub(in crate::matmul) type BlocksOf4Min = Blocks<Nibbles, f16, 32, true, 0>;
/// 4-bit codes with f32 scales and minima: 24 bytes.
pub(in crate::matmul) type BlocksOf4WideMin = Blocks<Nibbles, f32, 32, true, 0>;
/// IQ4_NL: 18 bytes.
pub(in crate::matmul) type BlocksUneven = Blocks<Chosen<Uneven>, f16, 32, false, 128>;
/// MXFP4: 18 bytes, of which a power of two takes two.
pub(in crate::matmul) type BlocksFp4 = Blocks<Chosen<Fp4>, bf16, 32, false, 16>;
/// NVFP4: 20 bytes, of which two scales take two each.
pub(in crate::matmul) type BlocksFp4Halves = Blocks<Chosen<Fp4>, f16, 16, false, 16>;
/// Q5_0: 22 bytes.
pub(in crate::matmul) type BlocksOf5 = Blocks<Fives, f16, 32, false, 16>;
/// Q5_1: 24 bytes.
pub(in crate::matmul) type BlocksOf5Min = Blocks<Fives, f16, 32, true, 0>;
/// Q8_0: 34 bytes.
pub(in crate::matmul) type BlocksOf8 = Blocks<Whole, f16, 32, false, 128>;
/// Codes to bytes, f32 scales and minima: 40 bytes.
pub(in crate::matmul) type BlocksOf8WideMin = Blocks<Whole, f32, 32, true, 0>;

impl<F: Form, T: Scale, const SUB: usize, const MIN: bool, const OFFSET: u8> Blocks<F, T, SUB, MIN, OFFSET> {
    /// Scales of 16 rows.
    const LINE: usize = ROWS * T::BYTES;
    /// All scales, or all minima, of a block.
    const SCALES: usize = BLOCK / SUB * Self::LINE;
    /// Scales and minima of a block.
    const HEAD: usize = if MIN { 2 * Self::SCALES } else { Self::SCALES };
    /// Whether a block's scales stand before its codes rather than in a plane.
    const INLINE: bool = Self::HEAD.is_multiple_of(CODE_BYTES);

    /// Bytes of the plane of scales.
    const fn plane(blocks: usize) -> usize {
        if Self::INLINE { 0 } else { (blocks * Self::HEAD).next_multiple_of(CODE_BYTES) }
    }

    /// Offsets of a block's scales and codes in a group.
    #[inline(always)]
    const fn offsets(blocks: usize, index: usize) -> (usize, usize) {
        if Self::INLINE {
            let start = index * Self::BLOCK_BYTES;
            (start, start + Self::HEAD)
        } else {
            (index * Self::HEAD, Self::plane(blocks) + index * F::BYTES)
        }
    }
}

impl<F: Form, T: Scale, const SUB: usize, const MIN: bool, const OFFSET: u8> Layout for Blocks<F, T, SUB, MIN, OFFSET> {
    const SUB_BLOCK: usize = SUB;
    const HAS_MIN: bool = MIN;
    const CODE_OFFSET: u8 = OFFSET;
    const SMALL_CODES: bool = F::SMALL;
    const BLOCK_BYTES: usize = Self::HEAD + F::BYTES;

    fn group_bytes(blocks: usize) -> usize {
        if Self::INLINE { blocks * Self::BLOCK_BYTES } else { Self::plane(blocks) + blocks * F::BYTES }
    }

    #[inline(always)]
    fn block(group: *const u8, blocks: usize, index: usize) -> BlockAt {
        let (scales, codes) = Self::offsets(blocks, index);
        BlockAt { head: group, scales: group.wrapping_add(scales), codes: group.wrapping_add(codes) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(simd: S, at: BlockAt, quad: usize) -> S::U8 {
        // SAFETY: a block has all its codes.
        unsafe { F::load(simd, at.codes, quad) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32 {
        // SAFETY: a block has a line of scales for each sub-block.
        unsafe { T::load(simd, at.scales.add(half * Self::LINE)) }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32 {
        // SAFETY: with minima, a block has as many lines of them behind its scales.
        unsafe { T::load(simd, at.scales.add(Self::SCALES + half * Self::LINE)) }
    }

    fn put(group: &mut [u8], blocks: usize, row: usize, first: usize, weights: &RowBlock<'_>) {
        let halves = BLOCK / SUB;
        for (i, codes) in weights.codes.iter().enumerate() {
            let (scales, at) = Self::offsets(blocks, first + i);
            for half in 0..halves {
                let lane = scales + half * Self::LINE + row * T::BYTES;
                T::store(&mut group[lane..lane + T::BYTES], weights.scales[i * halves + half]);
                if MIN {
                    let lane = lane + Self::SCALES;
                    T::store(&mut group[lane..lane + T::BYTES], weights.mins[i * halves + half]);
                }
            }
            F::put(&mut group[at..at + F::BYTES], row, codes);
        }
    }
}
