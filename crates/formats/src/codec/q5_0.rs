//! Q5_0: 32 weights, f16 scale, signed 5-bit codes.

use super::{Integers, bits};

/// Layout: `d: f16`, `high: 32 bits`, `low: 16 bytes` of nibbles. weight = d * (code - 16).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    bits::nibbles(&block[6..22], out.codes);
    bits::add_bits(&block[2..6], 16, out.codes);
}
