//! Blocks of 32 features with their own scales: nibbles or bytes, f16 or f32 scales, one or two a block.
//!
//! A block is `scales (16 rows) for each sub-block | minima likewise | codes`. Where the scales do not fill whole cache
//! lines (f16 without minima), they stand in a plane before all codes, so that codes stay on cache lines.

use std::marker::PhantomData;

use half::f16;

use super::{BlockAt, Layout, RowBlock, load_nibbles, put_bytes, put_nibbles};
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

/// A layout of this family.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Blocks<T, const NIBBLES: bool, const SUB: usize, const MIN: bool, const OFFSET: u8>(
    PhantomData<T>,
);

/// Q4_0: 18 bytes for 32 weights.
pub(in crate::matmul) type Nibbles = Blocks<f16, true, 32, false, 8>;
/// Q4_1: 20 bytes.
pub(in crate::matmul) type NibblesMin = Blocks<f16, true, 32, true, 0>;
/// 4-bit codes with f32 scales and minima: 24 bytes.
pub(in crate::matmul) type NibblesWideMin = Blocks<f32, true, 32, true, 0>;
/// Q8_0: 34 bytes.
pub(in crate::matmul) type Bytes = Blocks<f16, false, 32, false, 128>;
/// Codes to bytes, f16 scales and minima: 36 bytes.
pub(in crate::matmul) type BytesMin = Blocks<f16, false, 32, true, 0>;
/// Codes to bytes, f32 scales: 36 bytes.
pub(in crate::matmul) type BytesWide = Blocks<f32, false, 32, false, 128>;
/// Codes to bytes, f32 scales and minima: 40 bytes.
pub(in crate::matmul) type BytesWideMin = Blocks<f32, false, 32, true, 0>;
/// Codes to bytes, two f32 scales a block: 40 bytes.
pub(in crate::matmul) type BytesHalves = Blocks<f32, false, 16, false, 128>;
/// Codes to bytes, two f32 scales and minima a block: 48 bytes.
pub(in crate::matmul) type BytesHalvesMin = Blocks<f32, false, 16, true, 0>;

impl<T: Scale, const NIBBLES: bool, const SUB: usize, const MIN: bool, const OFFSET: u8>
    Blocks<T, NIBBLES, SUB, MIN, OFFSET>
{
    /// Scales of 16 rows.
    const LINE: usize = ROWS * T::BYTES;
    /// All scales, or all minima, of a block.
    const SCALES: usize = BLOCK / SUB * Self::LINE;
    /// Scales and minima of a block.
    const HEAD: usize = if MIN { 2 * Self::SCALES } else { Self::SCALES };
    /// Codes of a block.
    const CODES: usize = if NIBBLES { ROWS * BLOCK / 2 } else { ROWS * BLOCK };
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
            let start = index * (Self::HEAD + Self::CODES);
            (start, start + Self::HEAD)
        } else {
            (index * Self::HEAD, Self::plane(blocks) + index * Self::CODES)
        }
    }
}

impl<T: Scale, const NIBBLES: bool, const SUB: usize, const MIN: bool, const OFFSET: u8> Layout
    for Blocks<T, NIBBLES, SUB, MIN, OFFSET>
{
    const SUB_BLOCK: usize = SUB;
    const HAS_MIN: bool = MIN;
    const CODE_OFFSET: u8 = OFFSET;
    const SMALL_CODES: bool = NIBBLES;
    const BLOCK_BYTES: usize = Self::HEAD + Self::CODES;

    fn group_bytes(blocks: usize) -> usize {
        if Self::INLINE { blocks * (Self::HEAD + Self::CODES) } else { Self::plane(blocks) + blocks * Self::CODES }
    }

    #[inline(always)]
    fn block(group: *const u8, blocks: usize, index: usize) -> BlockAt {
        let (scales, codes) = Self::offsets(blocks, index);
        BlockAt { head: group, scales: group.wrapping_add(scales), codes: group.wrapping_add(codes) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(simd: S, at: BlockAt, quad: usize) -> S::U8 {
        // SAFETY: a block has all its quads.
        unsafe {
            if NIBBLES { load_nibbles(simd, at.codes, quad) } else { simd.load_codes(at.codes.add(quad * CODE_BYTES)) }
        }
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
        for (i, codes) in weights.codes.chunks_exact(BLOCK).enumerate() {
            let (scales, at) = Self::offsets(blocks, first + i);
            for half in 0..halves {
                let lane = scales + half * Self::LINE + row * T::BYTES;
                T::store(&mut group[lane..lane + T::BYTES], weights.scales[i * halves + half]);
                if MIN {
                    let lane = lane + Self::SCALES;
                    T::store(&mut group[lane..lane + T::BYTES], weights.mins[i * halves + half]);
                }
            }
            if NIBBLES {
                put_nibbles(&mut group[at..], row, codes);
            } else {
                put_bytes(&mut group[at..], row, codes);
            }
        }
    }
}
