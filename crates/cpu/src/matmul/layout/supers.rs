//! Super-blocks of 256 features, as most K formats and nearly all IQ formats have them: one f16 factor (or two, with minima) for
//! all, and small whole numbers by which it, or an eighth or a quarter of it, is multiplied, one a sub-block.
//!
//! A super-block of 16 rows is `d (f32), or with minima d and -dmin (f16) | sub-scales of 8 blocks | 8 x codes`. Sub-scales keep to
//! bytes: one i8 without minima; with minima two u8. So all parts fill cache lines, and where there is one factor it is the part
//! that is counted, ready to be multiplied.
//! The product of an f16 (or of a power of two's part of it) and a byte has at most 19 bits, so it is exact, and the scale is the
//! file's to the bit.

use std::marker::PhantomData;

use half::f16;

use super::{
    BlockAt, Layout, RowBlock,
    forms::{Chosen, Fives, Form, Grid1, Grid2, Grid3, Nibbles, Odd3, Sixes, Threes, Uneven},
};
use crate::{
    matmul::tile::{BLOCK, ROWS},
    simd::{CODE_BYTES, Simd},
};

/// A layout of this family: codes of form `F`, sub-blocks of `SUB` weights. `D_AT` is where a block of the file has
/// its factor; the one of the minima follows it. Sub-scales count parts of the factor, `PARTS` of which are the whole.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Supers<
    F,
    const SUB: usize,
    const MIN: bool,
    const OFFSET: u8,
    const D_AT: usize,
    const PARTS: u8 = 1,
>(PhantomData<F>);

/// Q3_K: 14.5 bytes for 32 weights; the file has 13.75.
pub(in crate::matmul) type SupersOf3 = Supers<Threes, 16, false, 4, 108>;
/// Q4_K: 18.5 bytes; the file has 18.
pub(in crate::matmul) type SupersOf4 = Supers<Nibbles, 32, true, 0, 0>;
/// Q5_K: 22.5 bytes; the file has 22.
pub(in crate::matmul) type SupersOf5 = Supers<Fives, 32, true, 0, 0>;
/// Q6_K: 26.5 bytes; the file has 26.25.
pub(in crate::matmul) type SupersOf6 = Supers<Sixes, 16, false, 32, 208>;
/// IQ4_XS: 17.5 bytes; the file has 17.
pub(in crate::matmul) type SupersUneven = Supers<Chosen<Uneven>, 32, false, 128, 0>;
/// IQ1_S: 13.5 bytes; the file has 6.25.
pub(in crate::matmul) type SupersGrid1 = Supers<Chosen<Grid1, Threes>, 32, false, 9, 0, 8>;
/// IQ2_XXS: 13.5 bytes; the file has 8.25.
pub(in crate::matmul) type SupersGrid2 = Supers<Chosen<Grid2, Threes>, 32, false, 43, 0, 8>;
/// IQ2_XS, IQ2_S: 14.5 bytes; the files have 9.25 and 10.25.
pub(in crate::matmul) type SupersGrid2Halves = Supers<Chosen<Grid2, Threes>, 16, false, 43, 0, 8>;
/// IQ3_XXS: 17.5 bytes; the file has 12.25.
pub(in crate::matmul) type SupersGrid3 = Supers<Chosen<Grid3>, 32, false, 62, 0, 4>;
/// IQ3_S: 17.5 bytes; the file has 13.75.
pub(in crate::matmul) type SupersOdd3 = Supers<Chosen<Odd3>, 32, false, 15, 0>;

/// Blocks of a super-block.
const BLOCKS: usize = 8;
/// Bytes of a factor of 16 rows where there are two.
const FACTOR: usize = 2 * ROWS;
/// Bytes of the factors.
const FACTORS: usize = 2 * FACTOR;

impl<F: Form, const SUB: usize, const MIN: bool, const OFFSET: u8, const D_AT: usize, const PARTS: u8>
    Supers<F, SUB, MIN, OFFSET, D_AT, PARTS>
{
    /// Sub-blocks of a block.
    const HALVES: usize = BLOCK / SUB;
    /// Bytes of a sub-block's sub-scales, and sub-minima.
    const SUBS: usize = if MIN { 2 * ROWS } else { ROWS };
    /// Bytes before the codes.
    const HEAD: usize = {
        let head = FACTORS + BLOCKS * Self::HALVES * Self::SUBS;
        assert!(head.is_multiple_of(CODE_BYTES), "codes stand on cache lines");
        assert!(!MIN || PARTS == 1, "two factors stand as they are");
        head
    };
    /// Bytes of a super-block.
    const SUPER: usize = Self::HEAD + BLOCKS * F::BYTES;

    /// Offsets in a group of a block's super-block, sub-scales and codes.
    #[inline(always)]
    const fn offsets(index: usize) -> (usize, usize, usize) {
        let (start, i) = (index / BLOCKS * Self::SUPER, index % BLOCKS);
        (start, start + FACTORS + i * Self::HALVES * Self::SUBS, start + Self::HEAD + i * F::BYTES)
    }
}

impl<F: Form, const SUB: usize, const MIN: bool, const OFFSET: u8, const D_AT: usize, const PARTS: u8> Layout
    for Supers<F, SUB, MIN, OFFSET, D_AT, PARTS>
{
    const SUB_BLOCK: usize = SUB;
    const HAS_MIN: bool = MIN;
    const CODE_OFFSET: u8 = OFFSET;
    const SMALL_CODES: bool = F::SMALL;
    const BLOCK_BYTES: usize = Self::SUPER / BLOCKS;

    fn group_bytes(blocks: usize) -> usize {
        blocks / BLOCKS * Self::SUPER
    }

    #[inline(always)]
    fn block(group: *const u8, _blocks: usize, index: usize) -> BlockAt {
        let (head, scales, codes) = Self::offsets(index);
        BlockAt { head: group.wrapping_add(head), scales: group.wrapping_add(scales), codes: group.wrapping_add(codes) }
    }

    #[inline(always)]
    unsafe fn codes<S: Simd>(simd: S, at: BlockAt, quad: usize) -> S::U8 {
        // SAFETY: a block has all its codes.
        unsafe { F::load(simd, at.codes, quad) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32 {
        // SAFETY: the super-block starts with 16 factors, and a sub-block has at least 16 bytes.
        unsafe {
            let from = at.scales.add(half * Self::SUBS);
            let subs = if MIN { simd.load_u8_at(from) } else { simd.load_i8_at(from.cast()) };
            let part = if MIN { simd.load_f16_at(at.head.cast()) } else { simd.load_at(at.head.cast()) };
            simd.mul(part, subs)
        }
    }

    #[inline(always)]
    unsafe fn mins<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32 {
        // SAFETY: with minima there are a second factor, and 16 more bytes a sub-block.
        unsafe {
            let from = at.scales.add(half * Self::SUBS);
            simd.mul(simd.load_f16_at(at.head.add(FACTOR).cast()), simd.load_u8_at(from.add(ROWS)))
        }
    }

    fn put(group: &mut [u8], _blocks: usize, row: usize, first: usize, weights: &RowBlock<'_>) {
        let (head, _, _) = Self::offsets(first);
        let factor = |at: usize| f16::from_le_bytes([weights.raw[at], weights.raw[at + 1]]);
        let (d, minus_dmin) = (factor(D_AT), if MIN { -factor(D_AT + 2) } else { f16::ZERO });
        let part = d.to_f32() / f32::from(PARTS);
        if MIN {
            group[head + 2 * row..][..2].copy_from_slice(&d.to_le_bytes());
            group[head + FACTOR + 2 * row..][..2].copy_from_slice(&minus_dmin.to_le_bytes());
        } else {
            group[head + 4 * row..][..4].copy_from_slice(&part.to_le_bytes());
        }
        for (i, codes) in weights.codes.iter().enumerate() {
            let (_, subs, at) = Self::offsets(first + i);
            for half in 0..Self::HALVES {
                let (lane, sub) = (subs + half * Self::SUBS + row, i * Self::HALVES + half);
                let scale = multiple(part, weights.scales[sub]);
                let min = if MIN { multiple(minus_dmin.to_f32(), weights.mins[sub]) } else { 0 };
                if MIN {
                    (group[lane], group[lane + ROWS]) = (unsigned(scale), unsigned(min));
                } else {
                    group[lane] = signed(scale);
                }
            }
            F::put(&mut group[at..at + F::BYTES], row, codes);
        }
    }
}

/// The whole number of which `scale` is the product with a factor, to the bit, signs of zeros included.
fn multiple(factor: f32, scale: f32) -> i32 {
    let n = if factor != 0.0 {
        // The quotient is a whole number, so the division is exact.
        (scale / factor) as i32
    } else if scale.is_sign_negative() == factor.is_sign_negative() {
        0
    } else {
        -1
    };
    assert_eq!((factor * n as f32).to_bits(), scale.to_bits(), "a scale is no multiple of its block's factor");
    n
}

const NO_FIT: &str = "a sub-scale has more bits than its format";

fn signed(n: i32) -> u8 {
    i8::try_from(n).expect(NO_FIT) as u8
}

fn unsigned(n: i32) -> u8 {
    u8::try_from(n).expect(NO_FIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_factor_gives_back_every_multiple() {
        let multiples = [-128i8, -127, -33, -32, -1, 0, 1, 3, 31, 63, 127];
        for d in (0..=u16::MAX).map(f16::from_bits).filter(|d| d.is_finite()) {
            for (n, parts) in multiples.into_iter().flat_map(|n| [1.0f32, 4.0, 8.0].map(|parts| (n, parts))) {
                let factor = d.to_f32() / parts;
                let scale = factor * f32::from(n);
                let got = multiple(factor, scale);
                assert_eq!((factor * got as f32).to_bits(), scale.to_bits());
                assert!(got == i32::from(n) || d == f16::ZERO, "{d} / {parts} times {n}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "no multiple")]
    fn anything_else_is_refused() {
        multiple(1.0, 1.5);
    }
}
