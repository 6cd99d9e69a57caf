//! IQ2_XS: 256 weights; nine bits choose the sizes of eight weights, seven their signs, a 4-bit scale serves 16.

use super::{
    Integers, bits,
    grids::{UNPACKED_IQ2_XS, even_signs},
};

/// Layout: `d: f16`, `groups: 32 x u16` (index low, signs high), `scales: 8 bytes` of nibbles, low first.
/// weight = d * (scale + 1/2) / 4 * (+- grid).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    for (i, scale) in out.scales.iter_mut().enumerate() {
        *scale = d * (0.5 + f32::from(block[66 + i / 2] >> (4 * (i % 2)) & 15)) * 0.25;
    }
    for (g, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let group = bits::u16_at(&block[2..], g);
        let grid = &UNPACKED_IQ2_XS[usize::from(group & 511)];
        bits::signed(grid, even_signs(u32::from(group >> 9)), 64, codes);
    }
}
