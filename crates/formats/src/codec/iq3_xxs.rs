//! IQ3_XXS: 256 weights; a byte chooses the sizes of four weights, seven bits the signs of eight, a 4-bit scale
//! serves 32.

use super::{
    Integers, bits,
    grids::{UNPACKED_IQ3_XXS, even_signs},
};

/// Layout: `d: f16`, `index: 64 bytes`, then for each 32 weights a u32 of four times 7 signs and, on top, the scale.
/// weight = d * (scale + 1/2) / 2 * (+- grid).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let d = bits::f16_at(block);
    let (indices, rest) = (&block[2..66], &block[66..98]);
    for (s, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let signs = bits::u32_at(rest, s);
        out.scales[s] = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for (g, codes) in codes.chunks_exact_mut(4).enumerate() {
            let grid = &UNPACKED_IQ3_XXS[usize::from(indices[8 * s + g])];
            let signs = even_signs(signs >> (7 * (g / 2))) >> (4 * (g % 2));
            bits::signed(grid, signs, 64, codes);
        }
    }
}
