//! Q4_K: 256 weights in eight sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.

use super::{Integers, bits};

/// Layout: `d: f16`, `dmin: f16`, `sub: 12 bytes`, `codes: 128 bytes` (four runs of 32 bytes, low nibbles first).
/// weight = d * scale * code - dmin * minimum.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    scales_and_mins(block, out.scales, out.mins);
    for (bytes, codes) in block[16..144].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        bits::nibbles(bytes, codes);
    }
}

/// The head that Q4_K and Q5_K share: two f16 scales, then eight 6-bit scales and minima in 12 bytes. Bytes 0..4 hold
/// scales 0..4, bytes 4..8 minima 0..4; bytes 8..12 hold the low nibbles of scales (low) and minima (high) 4..8, whose
/// upper two bits top the first eight bytes.
pub(super) fn scales_and_mins(block: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    let (d, dmin) = (bits::f16_at(block), bits::f16_at(&block[2..]));
    let sub = &block[4..16];
    for i in 0..4 {
        let (scale, min, low) = (sub[i], sub[4 + i], sub[8 + i]);
        scales[i] = d * f32::from(scale & 63);
        mins[i] = -(dmin * f32::from(min & 63));
        scales[4 + i] = d * f32::from(low & 15 | (scale >> 6) << 4);
        mins[4 + i] = -(dmin * f32::from(low >> 4 | (min >> 6) << 4));
    }
}
