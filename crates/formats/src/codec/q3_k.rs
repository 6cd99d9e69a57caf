//! Q3_K: 256 weights in 16 sub-blocks of 16, each with a signed 6-bit scale; 3-bit codes, the high bits apart.

use super::{Integers, bits};

/// Layout: `high: 32 bytes` (bit s of byte i belongs to weight 32 s + i), `low: 64 bytes` of bit pairs as in Q2_K,
/// `scales: 12 bytes`, `d: f16`. weight = d * (scale - 32) * (code - 4).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let (high, low, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = bits::f16_at(&block[108..]);
    for (i, scale) in out.scales.iter_mut().enumerate() {
        // Low nibbles of the scales: eight bytes as nibbles. High pairs: four bytes as bit pairs.
        let nibble = (scales[i % 8] >> (4 * (i / 8))) & 15;
        let pair = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
        *scale = d * (f32::from(nibble | pair << 4) - 32.0);
    }
    for (bytes, codes) in low.chunks_exact(32).zip(out.codes.chunks_exact_mut(128)) {
        bits::bit_pairs(bytes, codes);
    }
    for (s, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, h) in codes.iter_mut().zip(high) {
            *code |= (h >> s & 1) << 2;
        }
    }
}
