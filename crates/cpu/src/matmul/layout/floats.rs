//! Plain floating-point weights as they are: 16 rows interleaved, feature by feature.

use half::f16;

use crate::{matmul::tile::ROWS, simd::Simd};

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
    for (feature, value) in bytes.chunks_exact(T::BYTES).enumerate() {
        let at = (feature * ROWS + row) * T::BYTES;
        group[at..at + T::BYTES].copy_from_slice(value);
    }
}
