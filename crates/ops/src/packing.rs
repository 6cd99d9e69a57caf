//! Rows that a model rounded to small floats ([`crate::rounding`]), kept as these: nothing is lost, and they take half of F16 or less.
//!
//! A number is a code times its block's scale, a power of two; both are found again from the rounded numbers, so it does not matter that
//! the scale may not be the one that they were rounded with. What a device keeps of any row is defined here, by [`Packing::round`]: of a
//! row that the model rounded it is the row itself.

use half::f16;

use crate::{
    Rounding,
    rounding::{self, FP4_BLOCK, FP8_BLOCK},
};

/// How a row of small floats is kept. Its bytes, on every device:
///
/// ```text
/// Fp8   the features behind those that are rounded, F16 each | a code a feature | a scale a block of 64
/// Fp4   a code in four bits a feature, the first in the low bits | a scale a block of 32
/// ```
///
/// and nothing up to the next multiple of 4. A scale is an exponent plus 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// What [`Rounding::Fp8`] leaves of a row: the first `features` numbers E4M3, the others F16.
    Fp8 {
        /// How many numbers are codes.
        features: usize,
    },
    /// What [`Rounding::HadamardFp4`] leaves of a row: E2M1.
    Fp4,
}

/// Where the parts of a row begin, and its length, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRow {
    /// Codes; the numbers in F16 are before them.
    pub codes: usize,
    /// Scales, a byte each.
    pub scales: usize,
    /// All of it: a multiple of 4.
    pub bytes: usize,
}

impl Packing {
    /// The one that loses nothing of rows that were rounded so.
    pub const fn of(rounding: Rounding) -> Packing {
        match rounding {
            Rounding::Fp8 { features } => Packing::Fp8 { features },
            Rounding::HadamardFp4 => Packing::Fp4,
        }
    }

    /// `fp8` or `fp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Packing::Fp8 { .. } => "fp8",
            Packing::Fp4 => "fp4",
        }
    }

    /// Features of a row of `width` that are codes.
    pub const fn coded(self, width: usize) -> usize {
        match self {
            Packing::Fp8 { features } if features < width => features,
            _ => width,
        }
    }

    /// Features that share a scale.
    pub const fn block(self) -> usize {
        match self {
            Packing::Fp8 { .. } => FP8_BLOCK,
            Packing::Fp4 => FP4_BLOCK,
        }
    }

    /// The parts of a row of `width` numbers.
    pub const fn row(self, width: usize) -> PackedRow {
        let coded = self.coded(width);
        let codes = 2 * (width - coded);
        let scales = match self {
            Packing::Fp8 { .. } => codes + coded,
            Packing::Fp4 => codes + coded.div_ceil(2),
        };
        PackedRow { codes, scales, bytes: (scales + coded.div_ceil(self.block())).next_multiple_of(4) }
    }

    /// The codes of numbers that share a scale, one each, in `codes`; and the scale.
    pub fn encode(self, block: &[f32], codes: &mut [u8]) -> u8 {
        let exponent = match self {
            Packing::Fp8 { .. } => rounding::fp8_scale(block),
            Packing::Fp4 => rounding::fp4_scale(block),
        };
        let down = rounding::power(-exponent);
        for (code, v) in codes.iter_mut().zip(block) {
            *code = match self {
                Packing::Fp8 { .. } => fp8_code(rounding::fp8(v * down)),
                Packing::Fp4 => fp4_code(rounding::fp4(v * down)),
            };
        }
        let is_number = !matches!(self, Packing::Fp4) || block.iter().all(|v| !v.is_nan());
        if is_number { (exponent + 127) as u8 } else { NAN_SCALE }
    }

    /// The number of a code with the factor of its scale ([`scale_factor`]).
    #[inline(always)]
    pub fn decode(self, code: u8, factor: f32) -> f32 {
        match self {
            Packing::Fp8 { .. } => fp8_value(code) * factor,
            Packing::Fp4 => fp4_value(code) * factor,
        }
    }

    /// What is kept of a row: the definition for every device.
    pub fn round(self, row: &mut [f32]) {
        let (rounded, rest) = row.split_at_mut(self.coded(row.len()));
        let mut codes = [0; FP8_BLOCK];
        for block in rounded.chunks_mut(self.block()) {
            let factor = scale_factor(self.encode(block, &mut codes));
            block.iter_mut().zip(codes).for_each(|(v, code)| *v = self.decode(code, factor));
        }
        rest.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
    }
}

/// The scale of a block of E2M1 that has what is no number, for which there is no code.
const NAN_SCALE: u8 = 255;

/// What a scale multiplies with.
#[inline(always)]
pub fn scale_factor(scale: u8) -> f32 {
    if scale == NAN_SCALE { f32::NAN } else { f32::from_bits(u32::from(scale) << 23) }
}

/// 2^120: brings the exponent of an E4M3 code to that of an f32.
const FP8_BIAS: f32 = rounding::power(120);

/// 2^126: the same for E2M1.
const FP4_BIAS: f32 = rounding::power(126);

/// The code of a number that is one of E4M3's.
fn fp8_code(v: f32) -> u8 {
    if v.is_nan() {
        return 0x7f;
    }
    // Exact: the least becomes a number whose last bit is where the code's is.
    let bits = (v.abs() * rounding::power(-120)).to_bits();
    (bits >> 20) as u8 | u8::from(v.is_sign_negative()) << 7
}

/// The number of an E4M3 code.
#[inline(always)]
pub fn fp8_value(code: u8) -> f32 {
    let (size, sign) = (u32::from(code & 0x7f), u32::from(code & 0x80) << 24);
    let v = f32::from_bits(size << 20 | sign) * FP8_BIAS;
    if size == 0x7f { f32::NAN } else { v }
}

/// The code of a number that is one of E2M1's.
fn fp4_code(v: f32) -> u8 {
    let bits = (v.abs() * rounding::power(-126)).to_bits();
    (bits >> 22) as u8 & 7 | u8::from(v.is_sign_negative()) << 3
}

/// The number of an E2M1 code, in the low four bits.
#[inline(always)]
pub fn fp4_value(code: u8) -> f32 {
    let (size, sign) = (u32::from(code & 7), u32::from(code & 8) << 28);
    f32::from_bits(size << 22 | sign) * FP4_BIAS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_code_is_a_number_of_its_own_and_comes_back() {
        for code in 0..=255u8 {
            let v = fp8_value(code);
            assert_eq!(v.is_nan(), code & 0x7f == 0x7f, "{code}");
            if !v.is_nan() {
                assert_eq!(fp8_code(v), code);
                assert_eq!(rounding::fp8(v), v);
            }
        }
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for code in 0..16u8 {
            let v = fp4_value(code);
            assert_eq!(v.abs(), magnitudes[usize::from(code & 7)]);
            assert_eq!((v.is_sign_negative(), fp4_code(v)), (code > 7, code));
        }
        assert_eq!((fp8_value(0x7e), fp8_value(1), fp8_value(0x80 | 0x38)), (448.0, 2f32.powi(-9), -1.0));
    }

    #[test]
    fn rows_take_what_the_model_s_shape_says() {
        let (latent, key) = (Packing::Fp8 { features: 448 }.row(512), Packing::Fp4.row(128));
        assert_eq!(latent, PackedRow { codes: 128, scales: 576, bytes: 584 });
        assert_eq!(key, PackedRow { codes: 0, scales: 64, bytes: 68 });
        assert_eq!(Packing::Fp8 { features: 74 }.row(80), PackedRow { codes: 12, scales: 86, bytes: 88 });
        assert_eq!(Packing::Fp4.row(33), PackedRow { codes: 0, scales: 17, bytes: 20 });
        assert_eq!(Packing::Fp8 { features: 9 }.row(4).codes, 0, "no more codes than numbers");
    }

    #[test]
    fn what_is_no_number_stays_so() {
        for packing in [Packing::Fp8 { features: 40 }, Packing::Fp4] {
            let mut row = [1.0f32; 64];
            (row[3], row[50]) = (f32::NAN, f32::NAN);
            packing.round(&mut row);
            assert!(row[3].is_nan() && row[50].is_nan(), "{packing:?}");
            let mut row = [f32::INFINITY; 32];
            packing.round(&mut row);
            assert!(row.iter().all(|v| *v == f32::INFINITY), "{packing:?}: {row:?}");
        }
    }

    proptest! {
        /// Of rows as a model leaves them nothing is lost: of codes not a bit, of the rest what F16 takes.
        #[test]
        fn rounded_rows_come_back_bit_for_bit(
            values in prop::collection::vec(prop_oneof![-1f32..1.0, -1e-3f32..1e-3, Just(0.0), Just(-0.0), -1e-30f32..1e-30], 1..300),
            shift in -30i32..60,
            coded in 0usize..300,
        ) {
            let source: Vec<f32> = values.iter().map(|v| v * rounding::power(shift)).collect();
            let features = coded.min(source.len());
            let mut row = source.clone();
            Rounding::Fp8 { features }.apply(&mut row);
            row[features..].iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            let mut kept = row.clone();
            Packing::of(Rounding::Fp8 { features }).round(&mut kept);
            prop_assert_eq!(bits(&kept), bits(&row));

            let mut row = source[..1 << source.len().ilog2()].to_vec();
            Rounding::HadamardFp4.apply(&mut row);
            let mut kept = row.clone();
            Packing::of(Rounding::HadamardFp4).round(&mut kept);
            prop_assert_eq!(bits(&kept), bits(&row));
        }

        /// Of any row the same is kept again.
        #[test]
        fn what_is_kept_stays(row in prop::collection::vec(-1e4f32..1e4, 1..200), features in 0usize..200) {
            for packing in [Packing::Fp8 { features }, Packing::Fp4] {
                let mut once = row.clone();
                packing.round(&mut once);
                let mut twice = once.clone();
                packing.round(&mut twice);
                prop_assert_eq!(bits(&twice), bits(&once));
            }
        }
    }

    fn bits(row: &[f32]) -> Vec<u32> {
        row.iter().map(|v| v.to_bits()).collect()
    }
}
