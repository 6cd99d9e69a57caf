//! Random weight matrices of any format, and random activations, from a seed.

use tessera_formats::{
    Bytes, DType,
    codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS},
};
use tessera_ops::MatrixSource;

/// A small generator (xorshift*), so that a failure names a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// In -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A matrix of random blocks. Of codes every bit is random; scales are those random bits that are finite and of middling
/// size, so that sums neither overflow nor vanish.
pub(crate) fn matrix(dtype: DType, rows: usize, depth: usize, seed: u64) -> MatrixSource {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(dtype.row_bytes(depth).unwrap() * rows);
    for _ in 0..rows * depth / dtype.block_len() {
        match dtype {
            DType::F32 => bytes.extend(random.unit().to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f32(random.unit()).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(random.unit()).to_le_bytes()),
            quantized => bytes.extend(block(quantized, &mut random)),
        }
    }
    MatrixSource { name: format!("random {dtype}"), dtype, rows, depth, bytes: Bytes::new(bytes) }
}

fn block(dtype: DType, random: &mut Random) -> Vec<u8> {
    let subs = dtype.block_len() / dtype.sub_block_len();
    let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
    loop {
        let block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
        let (codes, scales, mins) = (&mut codes[..dtype.block_len()], &mut scales[..subs], &mut mins[..subs]);
        codec::integers(dtype, &block, Integers { codes, scales, mins });
        if scales.iter().chain(mins.iter()).all(|v| v.abs() < 1e4) && scales.iter().any(|v| v.abs() > 1e-4) {
            return block;
        }
    }
}

/// Activations with outliers, as models have them: (tokens, depth).
pub(crate) fn activations(tokens: usize, depth: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..tokens * depth).map(|_| random.unit() * if random.bits().is_multiple_of(50) { 8.0 } else { 1.0 }).collect()
}
