//! IQ1_S: 256 weights; eleven bits choose eight ternary weights, a 3-bit scale and a shift serve 32.

use super::{Integers, bits, grids::UNPACKED_IQ1};

/// Layout: `d: f16`, `low: 32 bytes` (an index each), `high: 8 x u16` (four times 3 upper index bits, 3 bits of scale,
/// the shift's sign). weight = d * (2 scale + 1) * (grid +- 1/8), here in eighths.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    let (low, high) = (&block[2..34], &block[34..50]);
    for (s, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let high = bits::u16_at(high, s);
        out.scales[s] = d * f32::from(2 * (high >> 12 & 7) + 1) * 0.125;
        let offset = if high & 0x8000 == 0 { 17 } else { 15 };
        for (g, codes) in codes.chunks_exact_mut(8).enumerate() {
            let index = usize::from(low[4 * s + g]) | usize::from(high >> (3 * g) & 7) << 8;
            bits::signed(&UNPACKED_IQ1[index], 0, offset, codes);
        }
    }
}
