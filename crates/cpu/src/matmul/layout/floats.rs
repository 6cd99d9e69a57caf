//! Plain floating-point weights as they are: 16 rows interleaved, feature by feature. Two neighbouring chains stand side by side, link by
//! link, so that a kernel that goes along both reads memory in one stream.

use half::f16;
use tessera_ops::numerics::CHAIN_DEPTH;

use crate::{matmul::tile::ROWS, simd::Simd};

/// Features of two chains that stand side by side.
pub(in crate::matmul) const PAIR_DEPTH: usize = 2 * CHAIN_DEPTH;

/// Where the first feature of a chain stands in a row of `depth`, and how many places there are to the next: a chain at the end that
/// has no whole other one beside it stands alone.
pub(in crate::matmul) fn chain_place(first: usize, depth: usize) -> (usize, usize) {
    let pair = first / PAIR_DEPTH * PAIR_DEPTH;
    match pair + PAIR_DEPTH <= depth {
        true => (pair + (first - pair) / CHAIN_DEPTH, 2),
        false => (first, 1),
    }
}

/// A plain number as files store it.
pub(in crate::matmul) trait Float: Copy + Send + Sync + 'static {
    /// Its size.
    const BYTES: usize;

    /// Loads 16, widened, exactly.
    ///
    /// # Safety
    /// `from` is valid for reading 16 of them.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32;

    /// Whether its bytes hold a finite number.
    fn is_finite(bytes: &[u8]) -> bool;
}

impl Float for f32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_at(from.cast()) }
    }

    fn is_finite(bytes: &[u8]) -> bool {
        bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite())
    }
}

impl Float for f16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16_at(from.cast()) }
    }

    fn is_finite(bytes: &[u8]) -> bool {
        bytes.as_chunks::<2>().0.iter().all(|b| f16::from_le_bytes(*b).is_finite())
    }
}

impl Float for half::bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_bf16_at(from.cast()) }
    }

    fn is_finite(bytes: &[u8]) -> bool {
        bytes.as_chunks::<2>().0.iter().all(|b| half::bf16::from_le_bytes(*b).is_finite())
    }
}

/// Bytes of a group of rows of `depth` features; whole cache lines.
pub(in crate::matmul) fn group_bytes<T: Float>(depth: usize) -> usize {
    (depth * ROWS * T::BYTES).next_multiple_of(64)
}

/// Writes a row's bytes into lane `row` of a group.
pub(in crate::matmul) fn put<T: Float>(group: &mut [u8], row: usize, bytes: &[u8]) {
    let depth = bytes.len() / T::BYTES;
    for (chain, values) in bytes.chunks(CHAIN_DEPTH * T::BYTES).enumerate() {
        let (place, step) = chain_place(chain * CHAIN_DEPTH, depth);
        for (link, value) in values.chunks_exact(T::BYTES).enumerate() {
            let at = ((place + link * step) * ROWS + row) * T::BYTES;
            group[at..at + T::BYTES].copy_from_slice(value);
        }
    }
}
