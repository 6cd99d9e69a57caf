//! MXFP4: 32 weights of FP4 (E2M1) with a power-of-two scale, as the Open Compute Project's MX formats have it.

use super::{Integers, bits, grids::LEVELS_FP4};

/// Layout: `e: u8` (a biased exponent), `indices: 16 bytes`, low nibbles first. weight = 2^(e - 128) * level, the
/// levels being doubled FP4 values; the code is the level plus 16.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = half_power(block[0]);
    bits::nibbles(&block[1..17], out.codes);
    place_levels(out.codes);
}

/// 2^(e - 128). The two smallest are subnormal; e = 255, a NaN by the MX standard, is 2^127 as in ggml.
fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Replaces FP4 values by codes.
pub(super) fn place_levels(codes: &mut [u8]) {
    for code in codes {
        *code = 16u8.wrapping_add_signed(LEVELS_FP4[usize::from(*code)]);
    }
}
