//! Blocks of weights to numbers and back. One file a format; this one dispatches.
//!
//! Three views of the same bytes:
//! - [`decode`]: f32 weights, bit for bit what ggml's `dequantize` gives.
//! - [`integers`]: codes, scales and minima, the exact integers that kernels multiply (see [`crate::dtype`]).
//! - [`encode`](fn@encode): f32 weights to blocks, for the formats that can be written.
//!
//! And [`random`] makes blocks out of nothing, for tests and benchmarks.
//!
//! A quantized format is described once, by the `unpack` of its file, which fills the integer view. Decoding follows
//! from it: every scale and minimum is a product that f32 holds exactly, so `scale * (code - offset) + min` rounds
//! where ggml rounds.

mod bits;
pub mod encode;
mod finite;
pub mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mlx;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub mod random;
mod tq1_0;
mod tq2_0;

pub use encode::{ENCODABLE, EncodeError, can_encode, encode};
pub use finite::first_non_finite_block;
pub use random::RandomBlocks;

use half::f16;

use crate::DType;

/// The most weights in a block of any quantized format.
pub const MAX_BLOCK_LEN: usize = 256;

/// The most sub-blocks in a block of any quantized format.
pub const MAX_SUB_BLOCKS: usize = 16;

/// The integer view of one block: `weight = scale * (code - dtype.code_offset()) + min`.
/// `codes` has `block_len` entries; `scales` and `mins` one for each sub-block (`mins` zero without minima).
pub struct Integers<'a> {
    /// (block_len) unsigned codes.
    pub codes: &'a mut [u8],
    /// (block_len / sub_block_len) scales.
    pub scales: &'a mut [f32],
    /// (block_len / sub_block_len) minima.
    pub mins: &'a mut [f32],
}

/// Decodes whole blocks. `bytes` holds `out.len() / block_len` blocks.
///
/// # Panics
/// If the lengths do not fit each other; callers check shapes when a file is opened.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "{dtype}: bytes and weights disagree");
    match dtype {
        DType::F32 => plain(bytes, out, f32::from_le_bytes),
        DType::F16 => plain(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
        DType::BF16 => plain(bytes, out, |[lo, hi]| f32::from_le_bytes([0, 0, lo, hi])),
        DType::I8 => plain(bytes, out, |b| i8::from_le_bytes(b).into()),
        DType::I16 => plain(bytes, out, |b| i16::from_le_bytes(b).into()),
        DType::I32 => plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        DType::F64 => plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        quantized => decode_quantized(quantized, bytes, out),
    }
}

/// Decodes values of `N` bytes that stand alone.
fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (w, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *w = read(*b);
    }
}

fn decode_quantized(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let unpack = unpacker(dtype);
    let (len, sub_len) = (dtype.block_len(), dtype.sub_block_len());
    let offset = f32::from(dtype.code_offset());
    let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
    let (codes, subs) = (&mut codes[..len], len / sub_len);
    for (block, weights) in bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(len)) {
        unpack(block, Integers { codes, scales: &mut scales[..subs], mins: &mut mins[..subs] });
        let subs = weights.chunks_exact_mut(sub_len).zip(codes.chunks_exact(sub_len)).zip(scales.iter().zip(&mins));
        for ((weights, codes), (&scale, &min)) in subs {
            for (w, &code) in weights.iter_mut().zip(codes) {
                *w = scale * (f32::from(code) - offset);
            }
            // Without minima nothing may be added: even a zero would turn -0 into 0.
            if dtype.has_min() {
                weights.iter_mut().for_each(|w| *w += min);
            }
        }
    }
}

/// The integer view of one block of a quantized format.
///
/// # Panics
/// If `dtype` is a plain format or the lengths do not fit.
pub fn integers(dtype: DType, block: &[u8], out: Integers<'_>) {
    assert!(!dtype.is_float(), "{dtype} has no codes");
    let subs = dtype.block_len() / dtype.sub_block_len();
    assert_eq!(
        (block.len(), out.codes.len(), out.scales.len(), out.mins.len()),
        (dtype.block_bytes(), dtype.block_len(), subs, subs),
        "{dtype}: lengths of a block"
    );
    if !dtype.has_min() {
        out.mins.fill(0.0);
    }
    unpacker(dtype)(block, out);
}

/// The whole numbers of a block whose format folds them ([`DType::is_folded`]): of sub-block h the scale is `units[0] * scales[h]`
/// and the minimum `units[1] * mins[h]`, products that f32 holds exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// What scales count, and what minima count, which is mostly negative.
    pub units: [f16; 2],
    /// One a sub-block, below 16.
    pub scales: [u8; MAX_SUB_BLOCKS],
    /// Likewise.
    pub mins: [u8; MAX_SUB_BLOCKS],
}

/// The factors of one block of a folded format.
///
/// # Panics
/// If `dtype` is not folded or the length does not fit.
pub fn factors(dtype: DType, block: &[u8]) -> Factors {
    assert_eq!((dtype.is_folded(), block.len()), (true, dtype.block_bytes()), "{dtype}: factors of a block");
    q2_k::factors(block)
}

/// The function that fills a format's integer view. It need not touch `mins` where the format has none.
fn unpacker(dtype: DType) -> fn(&[u8], Integers<'_>) {
    match dtype {
        DType::Q4_0 => q4_0::unpack,
        DType::Q4_1 => q4_1::unpack,
        DType::Q5_0 => q5_0::unpack,
        DType::Q5_1 => q5_1::unpack,
        DType::Q8_0 => q8_0::unpack,
        DType::Q2_K => q2_k::unpack,
        DType::Q3_K => q3_k::unpack,
        DType::Q4_K => q4_k::unpack,
        DType::Q5_K => q5_k::unpack,
        DType::Q6_K => q6_k::unpack,
        DType::IQ1_S => iq1_s::unpack,
        DType::IQ1_M => iq1_m::unpack,
        DType::IQ2_XXS => iq2_xxs::unpack,
        DType::IQ2_XS => iq2_xs::unpack,
        DType::IQ2_S => iq2_s::unpack,
        DType::IQ3_XXS => iq3_xxs::unpack,
        DType::IQ3_S => iq3_s::unpack,
        DType::IQ4_NL => iq4_nl::unpack,
        DType::IQ4_XS => iq4_xs::unpack,
        DType::TQ1_0 => tq1_0::unpack,
        DType::TQ2_0 => tq2_0::unpack,
        DType::MXFP4 => mxfp4::unpack,
        DType::NVFP4 => nvfp4::unpack,
        DType::Q1_0 => q1_0::unpack,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => mlx::unpack_4,
        DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => mlx::unpack_8,
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("{dtype} has no codes"),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64 => unreachable!("{dtype} has no codes"),
    }
}
