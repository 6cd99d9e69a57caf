//! Q6_K: 256 weights in 16 sub-blocks of 16, each with a signed 8-bit scale; 6-bit codes.

use super::{Integers, bits};

/// Layout: `low: 128 bytes` (two runs of 64 bytes, low nibbles first), `high: 64 bytes` (two runs of 32 bytes of bit
/// pairs), `scales: 16 x i8`, `d: f16`. weight = d * scale * (code - 32).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(&block[208..]);
    for (scale, &s) in out.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(s as i8);
    }
    for half in 0..2 {
        let codes = &mut out.codes[128 * half..][..128];
        let mut high = [0; 128];
        bits::bit_pairs(&block[128 + 32 * half..][..32], &mut high);
        bits::nibbles(&block[64 * half..][..64], codes);
        for (code, h) in codes.iter_mut().zip(high) {
            *code |= h << 4;
        }
    }
}
