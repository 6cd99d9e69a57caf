//! Chains of products with plain weights: two go on side by side where registers hold their sums, since a chain of few tokens alone
//! waits for each of its links.

use std::{marker::PhantomData, ops::Range};

use tessera_ops::numerics::{CHAIN_DEPTH, PART_DEPTH, part_count};

use super::{Chain, Operands, Segments};
use crate::{
    matmul::{
        layout::floats::{self, Float, PAIR_DEPTH},
        tile::{ROWS, unroll},
    },
    simd::{LINE_BYTES, Simd},
};

/// How far ahead a group's further panels ask for its weights, which the first one left in the second-level cache.
const NEAR_BYTES: usize = 1024;

/// Sums over plain floating-point weights.
pub(super) struct Floats<T>(pub(super) PhantomData<T>);

impl<T> Clone for Floats<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Floats<T> {}

impl<T: Float> Chain for Floats<T> {
    #[inline(always)]
    fn count(_segments: &Segments, depth: usize) -> usize {
        // Of a depth of zero, one that is empty.
        part_count(depth).max(1)
    }

    #[inline(always)]
    fn features(_segments: &Segments, depth: usize, index: usize) -> Range<usize> {
        index * PART_DEPTH..depth.min((index + 1) * PART_DEPTH)
    }

    #[inline(always)]
    unsafe fn segment<S: Simd, const C: usize>(simd: S, from: &Operands, features: Range<usize>) -> [S::F32; C] {
        // SAFETY: the caller's promises; chains are features of the part, and a pair ends where the row does or before.
        unsafe {
            let mut part = [simd.splat(0.0); C];
            let mut start = features.start;
            while const { 2 * C <= S::SUMS_MAX } && features.end - start >= PAIR_DEPTH {
                let [first, second] = links::<S, T, C, 2>(simd, from, start, start, (CHAIN_DEPTH, 2));
                part = if start == features.start { first } else { add_chains(simd, part, first) };
                part = add_chains(simd, part, second);
                start += PAIR_DEPTH;
            }
            while start < features.end {
                let (place, step) = floats::chain_place(start, from.depth);
                let length = CHAIN_DEPTH.min(features.end - start);
                let [chain] = links::<S, T, C, 1>(simd, from, start, place, (length, step));
                part = if start == features.start { chain } else { add_chains(simd, part, chain) };
                start += CHAIN_DEPTH;
            }
            part
        }
    }
}

/// Sums of R neighbouring chains, which go on side by side, for C tokens: from a feature and its place in a group on, so many links, whose
/// places are so many apart.
///
/// # Safety
/// As [`run`], for one group and one panel, which have these features and places.
#[inline(always)]
unsafe fn links<S: Simd, T: Float, const C: usize, const R: usize>(
    simd: S,
    from: &Operands,
    first: usize,
    place: usize,
    (length, step): (usize, usize),
) -> [[S::F32; C]; R] {
    let ahead = if from.prefetch.first == 0 { from.prefetch.bytes } else { NEAR_BYTES };
    let mut acc = [[simd.splat(0.0); C]; R];
    for k in 0..length {
        unroll!(2, r, {
            if const { r < R } {
                let at = from.group.wrapping_add((place + k * step + r) * ROWS * T::BYTES);
                // Two chains may share a line, which is asked for once.
                if r == 0 || T::BYTES * ROWS >= LINE_BYTES {
                    simd.prefetch(at.wrapping_add(ahead));
                }
                // SAFETY: a group holds 16 weights for each feature, `x` a row of activations for each token.
                unsafe {
                    let w = T::load(simd, at);
                    unroll!(12, c, {
                        if const { c < C } {
                            let x = simd.splat(from.x.add(c * from.x_stride + first + r * CHAIN_DEPTH + k).read());
                            acc[r][c] = simd.fma(w, x, acc[r][c]);
                        }
                    });
                }
            }
        });
    }
    acc
}

/// Sums of two chains, for C tokens.
#[inline(always)]
fn add_chains<S: Simd, const C: usize>(simd: S, mut sums: [S::F32; C], chain: [S::F32; C]) -> [S::F32; C] {
    unroll!(12, c, {
        if const { c < C } {
            sums[c] = simd.add(sums[c], chain[c]);
        }
    });
    sums
}

const _: () = assert!(PART_DEPTH.is_multiple_of(PAIR_DEPTH), "a pair of chains is of one part");
