//! Q2_K: 256 weights in 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum.

use super::{Factors, Integers, bits};

/// Layout: `sub: 16 bytes` (scale low, minimum high), `codes: 64 bytes` of bit pairs (two runs of 32 bytes, each four
/// times 32 weights), `d: f16`, `dmin: f16`. weight = d * scale * code - dmin * minimum.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    let factors = factors(block);
    let [d, minus_dmin] = factors.units.map(f32::from);
    for (sub, (scale, min)) in out.scales.iter_mut().zip(out.mins).enumerate() {
        *scale = d * f32::from(factors.scales[sub]);
        *min = minus_dmin * f32::from(factors.mins[sub]);
    }
    for (bytes, codes) in block[16..80].chunks_exact(32).zip(out.codes.chunks_exact_mut(128)) {
        bits::bit_pairs(bytes, codes);
    }
}

/// Scales and minima as they stand.
pub(super) fn factors(block: &[u8]) -> Factors {
    let sub = |i: usize| block[i];
    let unit = |at: usize| half::f16::from_bits(bits::u16_at(&block[at..], 0));
    Factors {
        units: [unit(80), -unit(82)],
        scales: std::array::from_fn(|i| sub(i) & 15),
        mins: std::array::from_fn(|i| sub(i) >> 4),
    }
}
