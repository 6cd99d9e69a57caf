//! IQ1_M: as IQ1_S, but with a scale for 16 weights, a shift for 8, and its f16 scale scattered over four nibbles.

use half::f16;

use super::{Integers, bits, grids::UNPACKED_IQ1};

/// Layout: `low: 32 bytes` (an index each), `high: 16 bytes` (a nibble each: 3 upper index bits and the shift's
/// sign), `scales: 4 x u16` (four 3-bit scales and, on top, a nibble of d). weight = d * (2 scale + 1) * (grid +- 1/8).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let (low, high, scales) = (&block[..32], &block[32..48], &block[48..56]);
    let d = (0..4).map(|i| (bits::u16_at(scales, i) >> 12) << (4 * i)).fold(0, |d, nibble| d | nibble);
    let d = f16::from_bits(d).to_f32();
    for (i, scale) in out.scales.iter_mut().enumerate() {
        let three_bits = bits::u16_at(scales, i / 4) >> (3 * (i % 4)) & 7;
        *scale = d * f32::from(2 * three_bits + 1) * 0.125;
    }
    for (g, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let nibble = high[g / 2] >> (4 * (g % 2)) & 15;
        let index = usize::from(low[g]) | usize::from(nibble & 7) << 8;
        let offset = if nibble & 8 == 0 { 17 } else { 15 };
        bits::signed(&UNPACKED_IQ1[index], 0, offset, codes);
    }
}
