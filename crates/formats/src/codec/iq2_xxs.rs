//! IQ2_XXS: 256 weights; a byte chooses the sizes of eight weights, seven bits their signs, a 4-bit scale serves 32.

use super::{
    Integers, bits,
    grids::{UNPACKED_IQ2_XXS, even_signs},
};

/// Layout: `d: f16`, then for each 32 weights `index: 4 bytes` and a u32 of four times 7 signs and, on top, the scale.
/// weight = d * (scale + 1/2) / 4 * (+- grid).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    for (s, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let indices = &block[2 + 8 * s..][..4];
        let signs = bits::u32_at(&block[2..], 2 * s + 1);
        out.scales[s] = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (g, codes) in codes.chunks_exact_mut(8).enumerate() {
            let grid = &UNPACKED_IQ2_XXS[usize::from(indices[g])];
            bits::signed(grid, even_signs(signs >> (7 * g)), 64, codes);
        }
    }
}
