//! IQ2_S: 256 weights; ten bits choose the sizes of eight weights, a byte their signs, a 4-bit scale serves 16.

use super::{Integers, bits, grids::UNPACKED_IQ2_S};

/// Layout: `d: f16`, `low: 32 bytes` (an index each), `signs: 32 bytes`, `high: 8 bytes` (2 upper index bits each),
/// `scales: 8 bytes` of nibbles, low first. weight = d * (scale + 1/2) / 4 * (+- grid).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    let (low, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..82]);
    for (i, scale) in out.scales.iter_mut().enumerate() {
        *scale = d * (0.5 + f32::from(scales[i / 2] >> (4 * (i % 2)) & 15)) * 0.25;
    }
    for (g, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let index = usize::from(low[g]) | usize::from(high[g / 4] >> (2 * (g % 4)) & 3) << 8;
        bits::signed(&UNPACKED_IQ2_S[index], signs[g], 64, codes);
    }
}
