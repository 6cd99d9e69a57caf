//! What a model's training did to rows that are cached: rounding to 8-bit or 4-bit floats with a scale for each block.
//!
//! DeepSeek V4 was trained with its latent rows in E4M3 and its indexer's keys and queries in E2M1, so the model's own graph
//! rounds them whatever a cache can hold. Scales are powers of two, taken from exponent bits: no logarithm can be off at
//! a boundary. All is done by IEEE operations in a fixed order, so every device gives the same bits.

/// Features that share a scale in [`Rounding::Fp8`].
pub const FP8_BLOCK: usize = 64;

/// Features that share a scale in [`Rounding::HadamardFp4`].
pub const FP4_BLOCK: usize = 32;

/// The least size that an E4M3 block's scale is taken from.
pub const FP8_FLOOR: f32 = 1e-4;

/// The least size that an E2M1 block's scale is taken from: its scale is then the least normal f32.
pub const FP4_FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;

/// A rounding of a row of numbers (a head, or a cached row).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The first `features` numbers to E4M3 in blocks of [`FP8_BLOCK`], the last of which may be shorter; the rest stays.
    Fp8 {
        /// How many numbers are rounded.
        features: usize,
    },
    /// The row times the Hadamard matrix of its length, which is a power of two, divided by the root of that length;
    /// then to E2M1 in blocks of [`FP4_BLOCK`].
    HadamardFp4,
}

impl Rounding {
    /// Whether rows of `width` numbers can be rounded so.
    pub const fn fits(self, width: usize) -> bool {
        match self {
            Rounding::Fp8 { features } => features <= width,
            Rounding::HadamardFp4 => width.is_power_of_two(),
        }
    }

    /// Rounds a row in place: the definition for every device.
    ///
    /// # Panics
    /// Where the row does not fit ([`Rounding::fits`]): a model's loader has to refuse that.
    pub fn apply(self, row: &mut [f32]) {
        assert!(self.fits(row.len()), "a row fits its rounding");
        match self {
            Rounding::Fp8 { features } => row[..features].chunks_mut(FP8_BLOCK).for_each(round_fp8),
            Rounding::HadamardFp4 => {
                hadamard(row);
                row.chunks_mut(FP4_BLOCK).for_each(round_fp4);
            }
        }
    }
}

/// A small binary float: its bits of fraction, least normal exponent, and largest number `LARGEST_FRACTION · 2^LARGEST_EXPONENT`.
struct SmallFloat {
    fraction_bits: i32,
    exponent_min: i32,
    largest_exponent: i32,
    /// From 1 to 2.
    largest_fraction: f32,
}

/// 4 bits of exponent, 3 of fraction, no infinity: up to 448, down to steps of 2^-9.
const E4M3: SmallFloat = SmallFloat { fraction_bits: 3, exponent_min: -6, largest_exponent: 8, largest_fraction: 1.75 };

/// 2 bits of exponent, 1 of fraction: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
const E2M1: SmallFloat = SmallFloat { fraction_bits: 1, exponent_min: 0, largest_exponent: 2, largest_fraction: 1.5 };

/// 2^exponent, for exponents of normal numbers.
pub(crate) const fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The exponent of a normal number of any sign.
const fn exponent(x: f32) -> i32 {
    ((x.to_bits() >> 23) & 255) as i32 - 127
}

impl SmallFloat {
    /// The exponent of the least power of two that brings `size` (positive, normal) into range.
    fn scale_exponent(&self, size: f32) -> i32 {
        let fraction = f32::from_bits((size.to_bits() & 0x007f_ffff) | 0x3f80_0000);
        exponent(size) - self.largest_exponent + i32::from(fraction > self.largest_fraction)
    }

    /// The nearest number of this kind, ties to the even code; what is larger than the largest becomes that. Zero has no
    /// sign.
    fn round(&self, x: f32) -> f32 {
        let largest = self.largest_fraction * power(self.largest_exponent);
        let x = if x > largest { largest } else { x };
        let x = if x < -largest { -largest } else { x };
        let step = exponent(x).max(self.exponent_min) - self.fraction_bits;
        // Sums with 1.5 · 2^23 steps are rounded to whole steps, ties to even.
        let magic = 1.5 * power(step + 23);
        (x + magic) - magic
    }

    /// The exponent of the scale of numbers that share one, whose size is at least `floor`.
    fn scale_of(&self, block: &[f32], floor: f32) -> i32 {
        self.scale_exponent(block.iter().fold(floor, |m, v| if v.abs() > m { v.abs() } else { m }))
    }

    /// Rounds numbers that share a scale, whose size is at least `floor`.
    fn round_block(&self, block: &mut [f32], floor: f32) {
        let scale = self.scale_of(block, floor);
        let (down, up) = (power(-scale), power(scale));
        block.iter_mut().for_each(|v| *v = self.round(*v * down) * up);
    }
}

/// The exponent of the scale of E4M3 numbers that share one.
pub(crate) fn fp8_scale(block: &[f32]) -> i32 {
    E4M3.scale_of(block, FP8_FLOOR)
}

/// The exponent of the scale of E2M1 numbers that share one.
pub(crate) fn fp4_scale(block: &[f32]) -> i32 {
    E2M1.scale_of(block, FP4_FLOOR)
}

/// The nearest number of E4M3.
pub(crate) fn fp8(v: f32) -> f32 {
    E4M3.round(v)
}

/// The nearest number of E2M1.
pub(crate) fn fp4(v: f32) -> f32 {
    E2M1.round(v)
}

/// Rounds numbers that share a scale to E4M3.
pub fn round_fp8(block: &mut [f32]) {
    E4M3.round_block(block, FP8_FLOOR);
}

/// Rounds numbers that share a scale to E2M1.
pub fn round_fp4(block: &mut [f32]) {
    E2M1.round_block(block, FP4_FLOOR);
}

/// What [`hadamard`] multiplies with at the end: 1 / sqrt(width), rounded once.
pub fn hadamard_factor(width: usize) -> f32 {
    (1.0 / (width as f64).sqrt()) as f32
}

/// The Walsh-Hadamard transform in natural order, orthonormal: butterflies of strides 1, 2, 4, …, then one factor.
///
/// # Panics
/// Where the length is no power of two.
pub fn hadamard(row: &mut [f32]) {
    assert!(row.len().is_power_of_two(), "a Hadamard matrix of this length");
    let mut stride = 1;
    while stride < row.len() {
        for pair in row.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let factor = hadamard_factor(row.len());
    row.iter_mut().for_each(|v| *v *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All magnitudes, in the order of codes, by the formats' definitions.
    fn magnitudes(exponent_bits: u32, fraction_bits: u32, codes: u32) -> Vec<f64> {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let value = |code: u32| {
            let (e, f) = ((code >> fraction_bits) as i32, f64::from(code & ((1 << fraction_bits) - 1)));
            let f = f / f64::from(1 << fraction_bits);
            if e == 0 { f * 2f64.powi(1 - bias) } else { (1.0 + f) * 2f64.powi(e - bias) }
        };
        (0..codes).map(value).collect()
    }

    fn kinds() -> [(&'static SmallFloat, Vec<f64>); 2] {
        // The last E4M3 code is NaN.
        [(&E4M3, magnitudes(4, 3, 127)), (&E2M1, magnitudes(2, 1, 8))]
    }

    /// The nearest by looking at all, the even code where two are as near.
    fn nearest(x: f64, magnitudes: &[f64]) -> f64 {
        let distance = |code: usize| (magnitudes[code] - x.abs()).abs();
        let best =
            (0..magnitudes.len()).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a % 2).cmp(&(b % 2))));
        magnitudes[best.unwrap()] * if x < 0.0 { -1.0 } else { 1.0 }
    }

    #[test]
    fn every_code_stays_and_midpoints_go_to_the_even_code() {
        for (kind, magnitudes) in kinds() {
            let last = *magnitudes.last().unwrap();
            assert_eq!(last as f32, kind.largest_fraction * power(kind.largest_exponent));
            for m in &magnitudes {
                assert_eq!((kind.round(*m as f32), kind.round(-*m as f32)), (*m as f32, -*m as f32));
            }
            for (code, pair) in magnitudes.windows(2).enumerate() {
                let middle = ((pair[0] + pair[1]) / 2.0) as f32;
                let even = pair[code % 2] as f32;
                assert_eq!(
                    (kind.round(middle), kind.round(-middle)),
                    (even, -even),
                    "between codes {code} and the next"
                );
                assert_eq!(kind.round(middle.next_down()), pair[0] as f32);
                assert_eq!(kind.round(middle.next_up()), pair[1] as f32);
            }
            assert_eq!((kind.round(1e30), kind.round(-f32::INFINITY)), (last as f32, -last as f32));
            assert!(kind.round(f32::NAN).is_nan());
            assert_eq!(kind.round(-1e-20).to_bits(), 0, "zero has no sign");
        }
    }

    #[test]
    fn scales_step_up_only_beyond_an_exact_power() {
        for shift in [-20, -13, 0, 1, 40, 100] {
            let largest = 448.0 * power(shift);
            assert_eq!(E4M3.scale_exponent(largest), shift);
            assert_eq!(E4M3.scale_exponent(largest.next_up()), shift + 1);
            assert_eq!(E2M1.scale_exponent(6.0 * power(shift)), shift);
            assert_eq!(E2M1.scale_exponent((6.0 * power(shift)).next_up()), shift + 1);
        }
        // The floors: a block of less has the scale of the floor.
        let mut tiny = [power(-31), 1e-9, power(-32), 0.0];
        round_fp8(&mut tiny);
        assert_eq!(tiny, [power(-31), power(-30), 0.0, 0.0]);
        assert_eq!(E4M3.scale_exponent(FP8_FLOOR), -22);
        let mut least = [f32::MIN_POSITIVE, 0.3 * f32::MIN_POSITIVE, f32::from_bits(1)];
        round_fp4(&mut least);
        assert_eq!(least, [f32::MIN_POSITIVE, 0.5 * f32::MIN_POSITIVE, 0.0]);
    }

    #[test]
    fn blocks_share_scales_and_the_tail_stays() {
        let mut row: Vec<f32> = (0..130).map(|i| if i < 64 { 1.03 } else { 1000.0 + i as f32 }).collect();
        let tail = row[100..].to_vec();
        Rounding::Fp8 { features: 100 }.apply(&mut row);
        assert_eq!(row[63], 1.0, "a block by itself");
        assert_eq!(row[64], 1024.0, "steps of 128 there");
        assert_eq!(row[99], 1152.0);
        assert_eq!(row[100..], tail);
        assert!(!Rounding::HadamardFp4.fits(96) && !Rounding::Fp8 { features: 65 }.fits(64));
    }

    #[test]
    fn the_hadamard_matrix_is_the_one_of_natural_order() {
        for width in [1usize, 2, 32, 128] {
            let row: Vec<f32> = (0..width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let mut turned = row.clone();
            hadamard(&mut turned);
            for (i, got) in turned.iter().enumerate() {
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let want: f64 = row.iter().enumerate().map(|(j, v)| sign(j) * f64::from(*v)).sum();
                assert!((f64::from(*got) - want / (width as f64).sqrt()).abs() < 1e-4, "{width}, {i}");
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_are_rounded_to_the_nearest(values in prop::collection::vec(-1f32..1.0, 1..=64), shift in -25i32..60) {
            let source: Vec<f32> = values.iter().map(|v| v * power(shift)).collect();
            for ((_, magnitudes), (round, floor)) in
                kinds().into_iter().zip([(round_fp8 as fn(&mut [f32]), f64::from(FP8_FLOOR)), (round_fp4, f64::from(FP4_FLOOR))])
            {
                let size = source.iter().fold(floor, |m, v| m.max(f64::from(v.abs())));
                let scale = (size / magnitudes.last().unwrap()).log2().ceil().exp2();
                let mut block = source.clone();
                round(&mut block);
                for (v, got) in source.iter().zip(block) {
                    prop_assert_eq!(f64::from(got), nearest(f64::from(*v) / scale, &magnitudes) * scale);
                }
            }
        }
    }
}
