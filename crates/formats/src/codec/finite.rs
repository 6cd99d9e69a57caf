//! Finds infinite and NaN weights without decoding: in a quantized block only the few scale fields can cause them.
//!
//! One bad scale turns every later activation into NaN, and the text into noise without a cause; so a model is checked
//! once when it is loaded. The check reads a few bytes of each block and is as fast as the file comes in.

use super::bits;
use crate::DType;

/// The index of the first block with a weight that is infinite or not a number, or with a scale that could make one.
///
/// # Panics
/// If `bytes` are not whole blocks.
pub fn first_non_finite_block(dtype: DType, bytes: &[u8]) -> Option<usize> {
    assert!(bytes.len().is_multiple_of(dtype.block_bytes()), "{dtype}: not whole blocks");
    let blocks = || bytes.chunks_exact(dtype.block_bytes());
    // One loop for each kind of field, so that none chooses within.
    match fields(dtype) {
        Fields::Always => None,
        Fields::F16(&[a]) => blocks().position(|b| f16_is_bad(&b[a..])),
        Fields::F16(offsets) => blocks().position(|b| offsets.iter().any(|&at| f16_is_bad(&b[at..]))),
        Fields::BF16 => blocks().position(|b| b[1] & 0x7f == 0x7f && b[0] & 0x80 == 0x80),
        Fields::F32 => blocks().position(|b| !f32_at(b, 0).is_finite()),
        Fields::F64 => blocks().position(|b| !f64::from_le_bytes(*b.first_chunk().expect("eight bytes")).is_finite()),
        // The upper nibbles of its f16 are those of bytes 55 and 53.
        Fields::Iq1M => blocks().position(|b| b[55] & 0x70 == 0x70 && b[53] & 0xc0 == 0xc0),
        Fields::Mxfp4 => blocks().position(|b| b[0] > MXFP4_LARGEST),
        Fields::Mlx(most) => blocks().position(|b| !(f32_at(b, 0) * most + f32_at(b, 1)).is_finite()),
    }
}

/// 2^(252 - 128) * 12 is the largest product that f32 holds.
const MXFP4_LARGEST: u8 = 252;

/// What in a block can make its weights infinite or NaN.
enum Fields {
    /// Nothing can.
    Always,
    /// f16 numbers at these bytes.
    F16(&'static [usize]),
    BF16,
    F32,
    F64,
    /// The four nibbles of IQ1_M's scale.
    Iq1M,
    /// A power of two in the first byte.
    Mxfp4,
    /// An f32 scale and bias, and the largest code. Weights lie between those of code 0 and of this.
    Mlx(f32),
}

fn fields(dtype: DType) -> Fields {
    match dtype {
        DType::F32 => Fields::F32,
        DType::BF16 => Fields::BF16,
        DType::F64 => Fields::F64,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::NVFP4 => Fields::Always,
        DType::F16 | DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::Q1_0 | DType::IQ4_NL | DType::IQ4_XS => {
            Fields::F16(&[0])
        }
        DType::IQ1_S | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => {
            Fields::F16(&[0])
        }
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => Fields::F16(&[0, 2]),
        DType::Q2_K => Fields::F16(&[80, 82]),
        DType::Q3_K => Fields::F16(&[108]),
        DType::Q6_K => Fields::F16(&[208]),
        DType::TQ1_0 => Fields::F16(&[52]),
        DType::TQ2_0 => Fields::F16(&[64]),
        DType::IQ1_M => Fields::Iq1M,
        DType::MXFP4 => Fields::Mxfp4,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => Fields::Mlx(15.0),
        DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => Fields::Mlx(255.0),
    }
}

/// All exponent bits set.
fn f16_is_bad(bytes: &[u8]) -> bool {
    bytes[1] & 0x7c == 0x7c
}

fn f32_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_bits(bits::u32_at(bytes, i))
}
