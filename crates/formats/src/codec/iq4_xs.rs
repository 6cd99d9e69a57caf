//! IQ4_XS: 256 weights in eight sub-blocks of 32 with signed 6-bit scales; the levels of IQ4_NL.

use super::{Integers, bits, iq4_nl};

/// Layout: `d: f16`, `high: u16` (eight times 2 upper scale bits), `low: 4 bytes` of nibbles, `indices: 128 bytes`
/// (16 for each sub-block, low nibbles first). weight = d * (scale - 32) * level.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    let high = bits::u16_at(&block[2..], 0);
    for (s, scale) in out.scales.iter_mut().enumerate() {
        let low = u16::from(block[4 + s / 2] >> (4 * (s % 2)) & 15);
        *scale = d * (f32::from(low | (high >> (2 * s) & 3) << 4) - 32.0);
    }
    for (bytes, codes) in block[8..136].chunks_exact(16).zip(out.codes.chunks_exact_mut(32)) {
        bits::nibbles(bytes, codes);
    }
    iq4_nl::place_levels(out.codes);
}
