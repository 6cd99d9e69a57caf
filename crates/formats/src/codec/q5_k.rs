//! Q5_K: Q4_K with a fifth bit.

use super::{Integers, bits, q4_k};

/// Layout: `d: f16`, `dmin: f16`, `sub: 12 bytes` as in Q4_K, `high: 32 bytes` (bit s of byte i belongs to weight
/// 32 s + i), `low: 128 bytes` as in Q4_K. weight = d * scale * code - dmin * minimum.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    q4_k::scales_and_mins(block, out.scales, out.mins);
    for (bytes, codes) in block[48..176].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        bits::nibbles(bytes, codes);
    }
    for (s, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, h) in codes.iter_mut().zip(&block[16..48]) {
            *code |= (h >> s & 1) << 4;
        }
    }
}
