//! TQ2_0: 256 ternary weights, two bits each.

use super::{Integers, bits};

/// Layout: `codes: 64 bytes` of bit pairs (two runs of 32 bytes), `d: f16`. weight = d * (code - 1).
/// Writers use codes 0 to 2; a file may hold 3, which then means 2 d.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales.fill(bits::f16_at(&block[64..]));
    for (bytes, codes) in block[..64].chunks_exact(32).zip(out.codes.chunks_exact_mut(128)) {
        bits::bit_pairs(bytes, codes);
    }
}
