//! Q4_0: 32 weights, f16 scale, signed 4-bit codes.

use super::{Integers, bits};

/// Layout: `d: f16`, `codes: 16 bytes` (low nibbles are weights 0..16). weight = d * (code - 8).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    bits::nibbles(&block[2..18], out.codes);
}
