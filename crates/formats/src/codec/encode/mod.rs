//! Numbers to blocks: the encoders, which choose scales and codes for the least squared error.
//!
//! Every encoder is a search of its own kind: starts from several scales, least squares for scale and minimum with the
//! codes held, nearest codes with these held, and for formats whose scales are quantized too a search among the
//! neighbouring ones. [`fit`] holds the arithmetic. An encoder decides nothing about layout that its decoder does not
//! state; what a block decodes to is compared with its input in the tests.

mod affine_k;
mod fit;
mod single;
mod symmetric_k;

use half::{bf16, f16};

use crate::DType;

/// Why weights cannot be encoded. Whoever knows the tensor's name adds it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum EncodeError {
    #[error("{dtype} cannot be written; these can: {}", encodable())]
    NoEncoder { dtype: DType },
    #[error("{len} weights do not divide into {dtype} blocks of {}; choose another format", dtype.block_len())]
    PartialBlock { dtype: DType, len: usize },
    #[error("weight {index} is {value}; the model is damaged, download or train it again")]
    NotFinite { index: usize, value: f32 },
    #[error("weight {index} is {value}, and {dtype} reaches {max}; choose a format with more range, such as BF16")]
    TooLarge { dtype: DType, index: usize, value: f32, max: f32 },
}

impl EncodeError {
    /// The same for weights that begin at `start` of a longer row of them.
    pub fn counted_from(mut self, start: usize) -> EncodeError {
        if let EncodeError::NotFinite { index, .. } | EncodeError::TooLarge { index, .. } = &mut self {
            *index += start;
        }
        self
    }
}

/// The formats with an encoder, in the order of the format table.
pub const ENCODABLE: [DType; 12] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

fn encodable() -> String {
    ENCODABLE.map(DType::name).join(", ")
}

/// Whether [`encode`] can write this format.
pub fn can_encode(dtype: DType) -> bool {
    ENCODABLE.contains(&dtype)
}

/// The largest magnitude that a format is sure to hold: what its largest code and scales make.
fn reach(dtype: DType) -> f32 {
    const F16: f32 = 65504.0;
    match dtype {
        DType::F16 => F16,
        DType::BF16 => bf16::MAX.to_f32(),
        DType::Q4_0 => F16 * 7.0,
        DType::Q5_0 => F16 * 15.0,
        DType::Q8_0 => F16 * 127.0,
        // Here the f16 minimum is the bound; for the K formats it is multiplied by a level of 4 or 6 bits.
        DType::Q4_1 | DType::Q5_1 => F16,
        DType::Q2_K => F16 * 15.0,
        DType::Q4_K | DType::Q5_K => F16 * 63.0,
        DType::Q6_K => F16 * 127.0 * 31.0,
        _ => f32::MAX,
    }
}

/// Encodes `weights`, which are whole blocks, and appends their bytes to `out`.
///
/// # Errors
/// If the format has no encoder, the last block is not full, or a weight is not finite or beyond the format's reach.
/// `out` is then as it was.
pub fn encode(dtype: DType, weights: &[f32], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !can_encode(dtype) {
        return Err(EncodeError::NoEncoder { dtype });
    }
    let Some(bytes) = dtype.row_bytes(weights.len()) else {
        return Err(EncodeError::PartialBlock { dtype, len: weights.len() });
    };
    let max = reach(dtype);
    // Written so that NaN fails too.
    if let Some(index) = weights.iter().position(|w| !matches!(w.abs().partial_cmp(&max), Some(o) if o.is_le())) {
        let value = weights[index];
        return Err(match value.is_finite() {
            true => EncodeError::TooLarge { dtype, index, value, max },
            false => EncodeError::NotFinite { index, value },
        });
    }
    out.reserve(bytes);
    match dtype {
        DType::F32 => out.extend(weights.iter().flat_map(|w| w.to_le_bytes())),
        DType::F16 => out.extend(weights.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes())),
        DType::BF16 => out.extend(weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes())),
        quantized => blocks(quantized, weights, out),
    }
    Ok(())
}

fn blocks(dtype: DType, weights: &[f32], out: &mut Vec<u8>) {
    let write: fn(&[f32], &mut Vec<u8>) = match dtype {
        DType::Q4_0 => single::q4_0,
        DType::Q4_1 => single::q4_1,
        DType::Q5_0 => single::q5_0,
        DType::Q5_1 => single::q5_1,
        DType::Q8_0 => single::q8_0,
        DType::Q2_K => affine_k::q2_k,
        DType::Q4_K => affine_k::q4_k,
        DType::Q5_K => affine_k::q5_k,
        DType::Q6_K => symmetric_k::q6_k,
        other => unreachable!("{other} is not in the list of encodable formats"),
    };
    for weights in weights.chunks_exact(dtype.block_len()) {
        let start = out.len();
        write(weights, out);
        assert_eq!(out.len() - start, dtype.block_bytes(), "{dtype}: bytes of a block");
    }
}

/// The nearest f16, within its finite range. A scale that is not 0 never becomes 0: with a scale too large the codes
/// can still be 0, without one they must.
fn scale_to_f16(scale: f32) -> f16 {
    let near = f16::from_f32(scale.clamp(-65504.0, 65504.0));
    if near == f16::ZERO && scale != 0.0 { f16::from_bits(1 | near.to_bits()) } else { near }
}

/// Codes of 4 bits, two a byte: low nibbles are the first half of `codes`.
fn put_nibbles(codes: &[u8], out: &mut Vec<u8>) {
    let (low, high) = codes.split_at(codes.len() / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

/// Bit `bit` of each code, eight codes a byte, the first lowest.
fn put_bits(codes: &[u8], bit: u32, out: &mut Vec<u8>) {
    out.extend(codes.chunks(8).map(|codes| codes.iter().rev().fold(0, |byte, code| byte << 1 | (code >> bit & 1))));
}
