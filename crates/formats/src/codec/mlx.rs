//! MLX's affine groups of 32, 64 or 128 weights with 4- or 8-bit codes.

use super::{Integers, bits};

/// Layout: `scale: f32`, `bias: f32`, `codes`: two to a byte, low nibble first. weight = scale * code + bias.
pub(super) fn unpack_4(block: &[u8], out: Integers<'_>) {
    head(block, out.scales, out.mins);
    for (codes, b) in out.codes.as_chunks_mut::<2>().0.iter_mut().zip(&block[8..]) {
        *codes = [b & 15, b >> 4];
    }
}

/// Layout: `scale: f32`, `bias: f32`, `codes`: a byte each. weight = scale * code + bias.
pub(super) fn unpack_8(block: &[u8], out: Integers<'_>) {
    head(block, out.scales, out.mins);
    out.codes.copy_from_slice(&block[8..]);
}

/// A group's scale and bias, repeated for each sub-block of 32.
fn head(block: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    scales.fill(f32::from_bits(bits::u32_at(block, 0)));
    mins.fill(f32::from_bits(bits::u32_at(block, 1)));
}
