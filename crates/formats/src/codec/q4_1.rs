//! Q4_1: 32 weights, f16 scale and minimum, 4-bit codes.

use super::{Integers, bits};

/// Layout: `d: f16`, `m: f16`, `codes: 16 bytes` (low nibbles are weights 0..16). weight = d * code + m.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    out.mins[0] = bits::f16_at(&block[2..]);
    bits::nibbles(&block[4..20], out.codes);
}
