//! Q2_K: 256 weights in 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum.

use super::{Integers, bits};

/// Layout: `sub: 16 bytes` (scale low, minimum high), `codes: 64 bytes` of bit pairs (two runs of 32 bytes, each four
/// times 32 weights), `d: f16`, `dmin: f16`. weight = d * scale * code - dmin * minimum.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let (d, dmin) = (bits::f16_at(&block[80..]), bits::f16_at(&block[82..]));
    for ((scale, min), sub) in out.scales.iter_mut().zip(out.mins).zip(&block[..16]) {
        *scale = d * f32::from(sub & 15);
        *min = -(dmin * f32::from(sub >> 4));
    }
    for (bytes, codes) in block[16..80].chunks_exact(32).zip(out.codes.chunks_exact_mut(128)) {
        bits::bit_pairs(bytes, codes);
    }
}
