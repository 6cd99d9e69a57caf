//! NVFP4: 64 weights of FP4 (E2M1) in four sub-blocks of 16, each with an unsigned FP8 (E4M3) scale.

use super::{Integers, bits, mxfp4};

/// Layout: `scales: 4 bytes`, `indices: 32 bytes` (8 for each sub-block, low nibbles first).
/// weight = scale / 2 * level, the levels being doubled FP4 values; the code is the level plus 16.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    for (scale, &byte) in out.scales.iter_mut().zip(&block[..4]) {
        *scale = half_e4m3(byte);
    }
    for (bytes, codes) in block[4..36].chunks_exact(8).zip(out.codes.chunks_exact_mut(16)) {
        bits::nibbles(bytes, codes);
    }
    mxfp4::place_levels(out.codes);
}

/// Half of an E4M3 value without its sign. 0x7f, a NaN by the standard, counts as zero, as in ggml.
pub(super) fn half_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}
