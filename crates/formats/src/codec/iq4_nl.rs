//! IQ4_NL: 32 weights, f16 scale, 4-bit indices into sixteen uneven levels.

use super::{Integers, bits, grids::LEVELS_IQ4};

/// Layout: `d: f16`, `indices: 16 bytes`, low nibbles first. weight = d * level.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    bits::nibbles(&block[2..18], out.codes);
    place_levels(out.codes);
}

/// Replaces level indices by codes: the level plus 128.
pub(super) fn place_levels(codes: &mut [u8]) {
    for code in codes {
        *code = 128u8.wrapping_add_signed(LEVELS_IQ4[usize::from(*code)]);
    }
}
