//! Small moves that many formats share: reading a scale, spreading nibbles, placing signed values as codes.

use half::f16;

/// The little-endian f16 at the start of `bytes`, widened; exact.
pub(super) fn f16_at(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The little-endian u16 at index `i` of an array of them.
pub(super) fn u16_at(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

/// The little-endian u32 at index `i` of an array of them.
pub(super) fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// ggml's usual order of nibbles: the low ones of all bytes, then the high ones. `codes` is twice as long as `bytes`.
pub(super) fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
        *low = b & 15;
        *high = b >> 4;
    }
}

/// The low two bits of all bytes, then the next two, and so on. `codes` is four times as long as `bytes`.
pub(super) fn bit_pairs(bytes: &[u8], codes: &mut [u8]) {
    for (shift, codes) in codes.chunks_exact_mut(bytes.len()).enumerate() {
        for (code, b) in codes.iter_mut().zip(bytes) {
            *code = (b >> (2 * shift)) & 3;
        }
    }
}

/// Adds `weight` to each code whose bit is set; bit i of the little-endian `bits` belongs to code i.
pub(super) fn add_bits(bits: &[u8], weight: u8, codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code += ((bits[i / 8] >> (i % 8)) & 1) * weight;
    }
}

/// Signed values as codes around `offset`, negated where their bit of `signs` is set (bit i for value i).
pub(super) fn signed(values: &[i8], signs: u8, offset: u8, codes: &mut [u8]) {
    for (i, (code, &value)) in codes.iter_mut().zip(values).enumerate() {
        let value = if signs >> i & 1 == 1 { -value } else { value };
        *code = offset.wrapping_add_signed(value);
    }
}
