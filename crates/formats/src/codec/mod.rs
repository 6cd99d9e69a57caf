//! Blocks of weights to numbers and back. One file a format; this one dispatches.
//!
//! Three views of the same bytes:
//! - [`decode`]: f32 weights, bit for bit what ggml's `dequantize` gives.
//! - [`integers`]: codes, scales and minima, the exact integers that kernels multiply (see [`crate::dtype`]).
//! - `encode`: f32 weights to blocks, for the formats that can be written.

use crate::DType;

/// The integer view of one block: `weight = scale * (code - dtype.code_offset()) + min`.
/// `codes` has `block_len` entries; `scales` and `mins` one for each sub-block (`mins` zero without minima).
pub struct Integers<'a> {
    /// (block_len) unsigned codes.
    pub codes: &'a mut [u8],
    /// (block_len / sub_block_len) scales.
    pub scales: &'a mut [f32],
    /// (block_len / sub_block_len) minima.
    pub mins: &'a mut [f32],
}

/// Decodes whole blocks. `bytes` holds `out.len() / block_len` blocks.
///
/// # Panics
/// If the lengths do not fit each other; callers check shapes when a file is opened.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "{dtype}: bytes and weights disagree");
    match dtype {
        DType::F32 => plain(bytes, out, f32::from_le_bytes),
        DType::F16 => plain(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
        DType::BF16 => plain(bytes, out, |[lo, hi]| f32::from_le_bytes([0, 0, lo, hi])),
        DType::I8 => plain(bytes, out, |b| i8::from_le_bytes(b).into()),
        DType::I16 => plain(bytes, out, |b| i16::from_le_bytes(b).into()),
        DType::I32 => plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        DType::F64 => plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        other => unreachable!("{other}"),
    }
}

/// Decodes values of `N` bytes that stand alone.
fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (w, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *w = read(*b);
    }
}

/// The integer view of one block of a quantized format.
///
/// # Panics
/// If `dtype` is a floating-point format or the lengths do not fit.
pub fn integers(dtype: DType, block: &[u8], out: Integers<'_>) {
    let _ = (block, out);
    unreachable!("{dtype}")
}
