//! Random weights, made as blocks and not from numbers: for tests and benchmarks, at gigabytes a second.
//!
//! Nearly every pattern of bits is a sound block; only the scales decide how large weights are. So a block is filled
//! with random bits and its block scale (and the scale of its minima) is then taken from a palette of 16. Codes,
//! sub-scales, signs and codebook indices stay as random as a file may have them.
//!
//! Weights have mean zero: formats without minima take scales of both signs, in those with minima the minimum's scale
//! is such that the mean cancels. Their deviation is measured, not derived: blocks with scales around one are decoded,
//! and the palette is made so many times smaller.
//!
//! Every block has its own place in one sequence of random numbers, so that any part of a tensor can be made alone,
//! by any thread. The sequence is SplitMix64 (Steele, Lea and Flood 2014), whose n-th number needs none before it.

use half::{bf16, f16};

use crate::{DType, codec};

/// The step between two states of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scales to choose from; a choice takes four bits.
const PALETTE: usize = 16;

/// Weights from which a format's deviation at scale one is measured: to about one in a hundred.
const MEASURED_WEIGHTS: usize = 1 << 15;

/// Makes blocks of one format with weights of one deviation.
#[derive(Clone, Debug)]
pub struct RandomBlocks {
    dtype: DType,
    scale: Scale,
    /// The bytes of the scale's fields, as many as it has.
    palette: [[u8; 8]; PALETTE],
    /// Half the width of the range from which plain floats are drawn.
    spread: f32,
}

/// Where a block's scales are.
#[derive(Clone, Copy, Debug)]
enum Scale {
    /// Plain floats have none.
    None,
    /// An f16 at this byte.
    F16(usize),
    /// An f16 at this byte, and after it one for minima, this many times the first.
    F16AndMin(usize, f32),
    /// Four nibbles, see [`super::iq1_m`].
    Iq1M,
    /// A power of two in the first byte.
    Mxfp4,
    /// Four FP8 numbers in the first bytes.
    Nvfp4,
    /// An f32 and, this many times as large, an f32 bias.
    Mlx(f32),
}

impl RandomBlocks {
    /// Blocks of `dtype` whose weights have mean zero and about this standard deviation.
    ///
    /// # Panics
    /// If `dtype` is none of [`DType::all`].
    pub fn new(dtype: DType, deviation: f32) -> RandomBlocks {
        let scale = scale_of(dtype);
        // A uniform distribution of width 2 s has deviation s / sqrt(3).
        let mut blocks =
            RandomBlocks { dtype, scale, palette: palette(dtype, scale, 1.0), spread: deviation * 3f32.sqrt() };
        if !dtype.is_float() {
            blocks.palette = palette(dtype, scale, deviation / blocks.measured());
        }
        blocks
    }

    /// The deviation of what these blocks hold.
    fn measured(&self) -> f32 {
        let mut weights = vec![0.0; MEASURED_WEIGHTS];
        let bytes = self.dtype.row_bytes(MEASURED_WEIGHTS).expect("a power of two divides into blocks");
        let mut blocks = vec![0; bytes];
        self.fill(0, 0, &mut blocks);
        codec::decode(self.dtype, &blocks, &mut weights);
        let squares: f64 = weights.iter().map(|w| f64::from(w * w)).sum();
        (squares / MEASURED_WEIGHTS as f64).sqrt() as f32
    }

    /// Fills `out` with the blocks from `first_block` on of the sequence that `key` names.
    ///
    /// # Panics
    /// If `out` is not whole blocks.
    pub fn fill(&self, key: u64, first_block: u64, out: &mut [u8]) {
        let len = self.dtype.block_bytes();
        assert!(out.len().is_multiple_of(len), "{}: not whole blocks", self.dtype);
        // As many numbers as the block's bytes need, and one for its scales.
        let numbers = len.div_ceil(8) as u64 + 1;
        let mut random = SplitMix(key.wrapping_add(first_block.wrapping_mul(numbers).wrapping_mul(STEP)));
        let spread = self.spread / (1u64 << 31) as f32;
        let number = |bits: u64| (bits >> 32) as i32 as f32 * spread;
        match self.dtype {
            DType::F32 => each(out, &mut random, |bits| number(bits).to_le_bytes()),
            DType::F16 => each(out, &mut random, |bits| f16::from_f32(number(bits)).to_le_bytes()),
            DType::BF16 => each(out, &mut random, |bits| bf16::from_f32(number(bits)).to_le_bytes()),
            _ => out.chunks_exact_mut(len).for_each(|block| self.fill_block(block, &mut random)),
        }
    }

    fn fill_block(&self, block: &mut [u8], random: &mut SplitMix) {
        let (words, rest) = block.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = random.next().to_le_bytes());
        if !rest.is_empty() {
            rest.copy_from_slice(&random.next().to_le_bytes()[..rest.len()]);
        }
        let choices = random.next();
        let choice = |n: u32| &self.palette[(choices >> (4 * n) & 15) as usize];
        match self.scale {
            Scale::None => {}
            Scale::F16(at) => block[at..at + 2].copy_from_slice(&choice(0)[..2]),
            Scale::F16AndMin(at, _) => block[at..at + 4].copy_from_slice(&choice(0)[..4]),
            Scale::Iq1M => {
                let d = u16::from_le_bytes([choice(0)[0], choice(0)[1]]);
                for nibble in 0..4 {
                    let byte = &mut block[49 + 2 * nibble];
                    *byte = *byte & 15 | (d >> (4 * nibble) << 4) as u8;
                }
            }
            Scale::Mxfp4 => block[0] = choice(0)[0],
            Scale::Nvfp4 => (0..4).for_each(|n| block[n] = choice(n as u32)[0]),
            Scale::Mlx(_) => block[..8].copy_from_slice(choice(0)),
        }
        if self.dtype == DType::TQ2_0 {
            // Writers use no code 3; it becomes 1, which keeps the mean.
            block[..64].iter_mut().for_each(|b| *b &= !(*b & *b << 1 & 0xaa));
        }
    }
}

/// Plain floats of `N` bytes, each from the first of its two numbers (see [`RandomBlocks::fill`]).
fn each<const N: usize>(out: &mut [u8], random: &mut SplitMix, make: impl Fn(u64) -> [u8; N]) {
    for bytes in out.as_chunks_mut::<N>().0 {
        *bytes = make(random.next());
        random.0 = random.0.wrapping_add(STEP);
    }
}

/// A source of random bits.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }
}

/// Spreads every bit over all others: SplitMix64's finishing function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A key for [`RandomBlocks::fill`] from a seed and a name: equal for equal pairs, else unrelated.
pub fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed.wrapping_add(STEP)), |key, byte| mix(key.wrapping_add(STEP) ^ u64::from(byte)))
}

fn scale_of(dtype: DType) -> Scale {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Scale::None,
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::Q1_0 | DType::IQ4_NL | DType::IQ4_XS => Scale::F16(0),
        DType::IQ1_S | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => Scale::F16(0),
        DType::Q3_K => Scale::F16(108),
        DType::Q6_K => Scale::F16(208),
        DType::TQ1_0 => Scale::F16(52),
        DType::TQ2_0 => Scale::F16(64),
        // The ratio is the mean code. K-quants subtract minima, whose sub-scales have the same mean as the scales'.
        DType::Q4_1 => Scale::F16AndMin(0, -7.5),
        DType::Q5_1 => Scale::F16AndMin(0, -15.5),
        DType::Q2_K => Scale::F16AndMin(80, 1.5),
        DType::Q4_K => Scale::F16AndMin(0, 7.5),
        DType::Q5_K => Scale::F16AndMin(0, 15.5),
        DType::IQ1_M => Scale::Iq1M,
        DType::MXFP4 => Scale::Mxfp4,
        DType::NVFP4 => Scale::Nvfp4,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => Scale::Mlx(-7.5),
        DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => Scale::Mlx(-127.5),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64 => panic!("{dtype} holds no weights"),
    }
}

/// Sixteen scales around `scale`, as the bytes that a block has for them.
fn palette(dtype: DType, scale: Scale, target: f32) -> [[u8; 8]; PALETTE] {
    std::array::from_fn(|i| {
        // Eight sizes from 0.65 to 1.35, of either sign where the mean needs it.
        let sign = if i % 2 == 1 && !dtype.has_min() { -1.0 } else { 1.0 };
        let d = target * sign * (0.65 + 0.1 * (i / 2) as f32);
        let mut bytes = [0; 8];
        match scale {
            Scale::None => {}
            Scale::F16(_) | Scale::Iq1M => bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes()),
            Scale::F16AndMin(_, ratio) => {
                let d = f16::from_f32(d);
                bytes[..2].copy_from_slice(&d.to_le_bytes());
                bytes[2..4].copy_from_slice(&f16::from_f32(ratio * d.to_f32()).to_le_bytes());
            }
            Scale::Mxfp4 => bytes[0] = neighbour(target, i, 1, 252, |e| 2f32.powi(i32::from(e) - 128)),
            Scale::Nvfp4 => bytes[0] = neighbour(target, i, 0, 0x7d, codec::nvfp4::half_e4m3),
            Scale::Mlx(ratio) => {
                bytes[..4].copy_from_slice(&d.to_le_bytes());
                bytes[4..].copy_from_slice(&(ratio * d).to_le_bytes());
            }
        }
        bytes
    })
}

/// Of the bytes from `first` to `last`, whose values rise, the two around `target`: the upper one for so many of the
/// sixteen that the mean square is the target's.
fn neighbour(target: f32, index: usize, first: u8, last: u8, value: impl Fn(u8) -> f32) -> u8 {
    let low = (first..last).rev().find(|&byte| value(byte) <= target).unwrap_or(first);
    let (low_square, high_square) = (value(low).powi(2), value(low + 1).powi(2));
    let share = (target.powi(2) - low_square) / (high_square - low_square);
    if (index as f32 + 0.5) < share * PALETTE as f32 { low + 1 } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dtype: DType, deviation: f32, key: u64, weights: usize) -> Vec<u8> {
        let mut bytes = vec![0; dtype.row_bytes(weights).unwrap()];
        RandomBlocks::new(dtype, deviation).fill(key, 0, &mut bytes);
        bytes
    }

    #[test]
    fn weights_have_the_deviation_asked_for_and_mean_zero() {
        let count = 1 << 17;
        for dtype in DType::all() {
            for deviation in [0.5, 1.0 / 64.0, 1.0 / 256.0] {
                let bytes = make(dtype, deviation, 99, count);
                assert_eq!(codec::first_non_finite_block(dtype, &bytes), None, "{dtype}");
                let mut weights = vec![0.0; count];
                codec::decode(dtype, &bytes, &mut weights);
                let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
                let squares: f64 = weights.iter().map(|w| f64::from(w * w)).sum();
                let (mean, found) = (sum / count as f64, (squares / count as f64).sqrt());
                let relative = found / f64::from(deviation);
                assert!((0.93..1.07).contains(&relative), "{dtype} {deviation}: {relative} times");
                assert!(mean.abs() < 0.05 * found, "{dtype} {deviation}: mean {mean}");
            }
        }
    }

    #[test]
    fn any_part_can_be_made_alone() {
        for dtype in DType::all() {
            let blocks = RandomBlocks::new(dtype, 0.1);
            let len = dtype.block_bytes();
            let mut whole = vec![0; 12 * len];
            blocks.fill(5, 0, &mut whole);
            let mut parts = vec![0; 12 * len];
            for (first, count) in [(7, 5), (0, 3), (3, 4)] {
                blocks.fill(5, first as u64, &mut parts[first * len..][..count * len]);
            }
            assert_eq!(whole, parts, "{dtype}");
            blocks.fill(6, 0, &mut parts);
            assert_ne!(whole, parts, "{dtype}: another key");
        }
    }

    #[test]
    fn keys_tell_seeds_and_names_apart() {
        let pairs = [(0, ""), (0, "a"), (0, "b"), (1, ""), (1, "a"), (0, "ab"), (0, "ba"), (u64::MAX, "a")];
        let keys: std::collections::HashSet<u64> = pairs.iter().map(|(seed, name)| key(*seed, name)).collect();
        assert_eq!(keys.len(), pairs.len());
    }

    #[test]
    fn ternary_codes_are_those_that_writers_use() {
        let bytes = make(DType::TQ2_0, 0.1, 1, 1 << 14);
        for block in bytes.chunks_exact(66) {
            assert!(block[..64].iter().all(|b| (0..4).all(|i| b >> (2 * i) & 3 != 3)));
        }
    }
}
