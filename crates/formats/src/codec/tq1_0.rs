//! TQ1_0: 256 ternary weights, five to a byte.

use super::{Integers, bits};

/// Layout: `fives: 48 bytes` (32 bytes of five weights each, then 16), `fours: 4 bytes`, `d: f16`.
/// weight = d * (code - 1).
///
/// A byte b stands for the fraction b / 256 in base three: its n-th digit is the integer part of 3 * frac(3^n b / 256).
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales.fill(bits::f16_at(&block[52..]));
    let (first, rest) = out.codes.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    digits(&block[..32], first);
    digits(&block[32..48], second);
    digits(&block[48..52], third);
}

/// The first digits of all bytes, then the second ones, and so on.
fn digits(bytes: &[u8], codes: &mut [u8]) {
    let mut power = 1u8;
    for codes in codes.chunks_exact_mut(bytes.len()) {
        for (code, b) in codes.iter_mut().zip(bytes) {
            *code = ((u16::from(b.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}
