//! Q1_0: 128 weights of one bit with an f16 scale.

use super::{Integers, bits};

/// Layout: `d: f16`, `signs: 128 bits`, lowest first. weight = d where the bit is set, else -d; the code is 2 or 0.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales.fill(bits::f16_at(block));
    out.codes.fill(0);
    bits::add_bits(&block[2..18], 2, out.codes);
}
