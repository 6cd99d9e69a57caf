//! Chains of products with plain weights: those of a part go on side by side where there are few tokens, since a chain alone waits for
//! each of its links.

use std::{marker::PhantomData, ops::Range};

use tessera_ops::numerics::{CHAIN_DEPTH, PART_DEPTH, part_count};

use super::{Chain, Operands, Segments};
use crate::{
    matmul::{
        layout::floats::Float,
        tile::{ROWS, unroll},
    },
    simd::Simd,
};

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
        // SAFETY: the caller's promises; chains are features of the part.
        unsafe {
            if const { C <= S::TOKENS_MAX / CHAINS } && features.len() == PART_DEPTH {
                let [first, second, third, fourth] = chains::<S, T, C, CHAINS>(simd, from, features.start, CHAIN_DEPTH);
                return add_chains::<S, C>(simd, add_chains(simd, add_chains(simd, first, second), third), fourth);
            }
            let length = |start: usize| CHAIN_DEPTH.min(features.end - start);
            let [mut part] = chains::<S, T, C, 1>(simd, from, features.start, length(features.start));
            let mut start = features.start + CHAIN_DEPTH;
            while start < features.end {
                let [chain] = chains::<S, T, C, 1>(simd, from, start, length(start));
                part = add_chains(simd, part, chain);
                start += CHAIN_DEPTH;
            }
            part
        }
    }
}

/// Sums of R neighbouring chains of so many features, for C tokens, which go on side by side.
///
/// # Safety
/// As [`run`], for one group and one panel, which have these features.
#[inline(always)]
unsafe fn chains<S: Simd, T: Float, const C: usize, const R: usize>(
    simd: S,
    from: &Operands,
    first: usize,
    length: usize,
) -> [[S::F32; C]; R] {
    let mut acc = [[simd.splat(0.0); C]; R];
    for k in first..first + length {
        unroll!(4, r, {
            if const { r < R } {
                let k = k + r * CHAIN_DEPTH;
                let at = from.group.wrapping_add(k * ROWS * T::BYTES);
                if from.prefetch.first == 0 {
                    simd.prefetch(at.wrapping_add(from.prefetch.bytes));
                }
                // SAFETY: a group holds 16 weights for each feature, `x` a row of activations for each token.
                unsafe {
                    let w = T::load(simd, at);
                    unroll!(12, c, {
                        if const { c < C } {
                            let x = simd.splat(from.x.add(c * from.x_stride + k).read());
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

/// Chains of a part.
const CHAINS: usize = PART_DEPTH / CHAIN_DEPTH;

const _: () = assert!(CHAINS == 4, "chains that go on side by side are counted out");
