//! IQ3_S: 256 weights; nine bits choose the sizes of four weights, a bit each is a sign, a 4-bit scale serves 32.

use super::{Integers, bits, grids::UNPACKED_IQ3_S};

/// Layout: `d: f16`, `low: 64 bytes` (an index each), `high: 8 bytes` (the upper index bits), `signs: 32 bytes`,
/// `scales: 4 bytes` of nibbles, low first. weight = d * (2 scale + 1) * (+- grid).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    let (low, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..110]);
    for (i, scale) in out.scales.iter_mut().enumerate() {
        *scale = d * f32::from(1 + 2 * (scales[i / 2] >> (4 * (i % 2)) & 15));
    }
    for (g, codes) in out.codes.chunks_exact_mut(4).enumerate() {
        let index = usize::from(low[g]) | usize::from(high[g / 8] >> (g % 8) & 1) << 8;
        bits::signed(&UNPACKED_IQ3_S[index], signs[g / 2] >> (4 * (g % 2)), 64, codes);
    }
}
