//! Q5_1: 32 weights, f16 scale and minimum, 5-bit codes.

use super::{Integers, bits};

/// Layout: `d: f16`, `m: f16`, `high: 32 bits`, `low: 16 bytes` of nibbles. weight = d * code + m.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    out.mins[0] = bits::f16_at(&block[2..]);
    bits::nibbles(&block[8..24], out.codes);
    bits::add_bits(&block[4..8], 16, out.codes);
}
