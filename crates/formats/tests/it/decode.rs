//! Every decoder against the `gguf` package, bit for bit (tests/data/dequant.bin, made by
//! tools/make_dequant_fixtures.py), and the integer view against the decoder.

use std::collections::BTreeSet;

use tessera_formats::{
    DType,
    codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS},
};

/// What the fixture file holds for one format.
struct Fixture {
    dtype: DType,
    bytes: Vec<u8>,
    values: Vec<f32>,
    more_blocks: usize,
    seed: u64,
    checksum: u64,
}

fn fixtures() -> Vec<Fixture> {
    let mut rest = &include_bytes!("../data/dequant.bin")[..];
    let mut take = move |n: usize| rest.split_off(..n).expect("the fixture file is whole");
    let count = u32::from_le_bytes(take(4).try_into().unwrap());
    let mut read = || {
        let name_len = take(1)[0].into();
        let name = std::str::from_utf8(take(name_len)).unwrap();
        let dtype = DType::from_name(name).unwrap_or_else(|| panic!("no format {name}"));
        let blocks = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
        let bytes = take(blocks * dtype.block_bytes()).to_vec();
        let values = take(4 * blocks * dtype.block_len());
        let values = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let more_blocks = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
        let [seed, checksum] = [0; 2].map(|_| u64::from_le_bytes(take(8).try_into().unwrap()));
        Fixture { dtype, bytes, values, more_blocks, seed, checksum }
    };
    (0..count).map(|_| read()).collect()
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64, as the script has it.
pub(crate) fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let numbers = (1..=len.div_ceil(8) as u64).map(|i| {
        let z = seed.wrapping_add(i.wrapping_mul(GOLDEN));
        let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    });
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn checksum(values: &[f32]) -> u64 {
    let bits = |v: &f32| u64::from(if v.is_nan() { 0x7FC0_0000 } else { v.to_bits() });
    let place = |i: usize| (2 * i as u64 + 1).wrapping_mul(GOLDEN);
    values.iter().enumerate().fold(0, |sum: u64, (i, v)| sum.wrapping_add(bits(v).wrapping_mul(place(i))))
}

#[test]
fn every_format_has_fixtures() {
    let covered: BTreeSet<_> = fixtures().iter().map(|f| f.dtype).collect();
    assert_eq!(covered, DType::all().collect());
}

#[test]
fn decoded_blocks_equal_the_reference_bit_for_bit() {
    for f in fixtures() {
        let mut got = vec![0.0; f.values.len()];
        codec::decode(f.dtype, &f.bytes, &mut got);
        for (i, (got, want)) in got.iter().zip(&f.values).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{}: weight {i} is {got:e}, not {want:e}", f.dtype);
        }
    }
}

#[test]
fn many_decoded_blocks_equal_the_reference_by_checksum() {
    for f in fixtures() {
        let bytes = random_bytes(f.seed, f.more_blocks * f.dtype.block_bytes());
        let mut got = vec![0.0; f.more_blocks * f.dtype.block_len()];
        codec::decode(f.dtype, &bytes, &mut got);
        assert_eq!(checksum(&got), f.checksum, "{}", f.dtype);
    }
}

/// The most bits that a format's codes take: what integer kernels count on.
fn code_limit(dtype: DType) -> u8 {
    match dtype.name() {
        "Q4_0" | "Q4_1" | "Q4_K" | "MLX4_G32" | "MLX4_G64" | "MLX4_G128" => 15,
        "Q5_0" | "Q5_1" | "Q5_K" => 31,
        "Q2_K" | "TQ2_0" => 3,
        "Q3_K" => 7,
        "Q6_K" => 63,
        "TQ1_0" | "Q1_0" => 2,
        "IQ1_S" | "IQ1_M" => 25,
        "IQ2_XXS" | "IQ2_XS" | "IQ2_S" => 64 + 0x2b,
        "IQ3_XXS" => 64 + 0x3e,
        "IQ3_S" => 64 + 15,
        "IQ4_NL" | "IQ4_XS" => 128 + 113,
        "MXFP4" | "NVFP4" => 16 + 12,
        "Q8_0" | "MLX8_G32" | "MLX8_G64" | "MLX8_G128" => 255,
        other => panic!("{other} has no codes"),
    }
}

#[test]
fn the_integer_view_means_the_decoded_weights() {
    for dtype in DType::all().filter(|d| !d.is_float()) {
        let (len, sub_len) = (dtype.block_len(), dtype.sub_block_len());
        let bytes = random_bytes(7, 256 * dtype.block_bytes());
        let mut weights = vec![0.0; 256 * len];
        codec::decode(dtype, &bytes, &mut weights);
        let mut highest = 0;
        for (block, weights) in bytes.chunks(dtype.block_bytes()).zip(weights.chunks(len)) {
            // Junk in the output must not shine through.
            let (mut codes, mut scales, mut mins) = ([99; MAX_BLOCK_LEN], [9.0; MAX_SUB_BLOCKS], [9.0; MAX_SUB_BLOCKS]);
            let (codes, subs) = (&mut codes[..len], len / sub_len);
            codec::integers(dtype, block, Integers { codes, scales: &mut scales[..subs], mins: &mut mins[..subs] });
            highest = highest.max(*codes.iter().max().unwrap());
            for (i, (&code, &weight)) in codes.iter().zip(weights).enumerate() {
                let (scale, min) = (f64::from(scales[i / sub_len]), f64::from(mins[i / sub_len]));
                assert!(dtype.has_min() || min == 0.0, "{dtype}: a minimum of {min}");
                let product = scale * (f64::from(code) - f64::from(dtype.code_offset()));
                let exact = product + min;
                // Two roundings to f32: of the product, and of the sum.
                let allowed = (product.abs() + exact.abs()) * f64::from(f32::EPSILON) / 2.0;
                let close = (exact - f64::from(weight)).abs() <= allowed;
                let overflows = !weight.is_finite() && !(exact as f32).is_finite() || !(product as f32).is_finite();
                assert!(close || overflows, "{dtype}: weight {i} is {weight:e}, its integers mean {exact:e}");
            }
        }
        assert_eq!(highest, code_limit(dtype), "{dtype}: the highest code");
    }
}

#[test]
fn non_finite_weights_are_found_in_the_scales() {
    for f in fixtures() {
        let (block_len, block_bytes) = (f.dtype.block_len(), f.dtype.block_bytes());
        let bytes = random_bytes(f.seed + 1, f.more_blocks * block_bytes);
        let mut found = [0; 2];
        for block in bytes.chunks(block_bytes) {
            let mut weights = vec![0.0; block_len];
            codec::decode(f.dtype, block, &mut weights);
            let bad = codec::first_non_finite_block(f.dtype, block).is_some();
            let finite = weights.iter().all(|w| w.is_finite());
            // A scale that is too large for some code is refused even if the block lacks that code.
            let strict = matches!(f.dtype.name(), "MXFP4") || f.dtype.name().starts_with("MLX");
            assert!(bad != finite || bad && strict, "{}: {weights:?}", f.dtype);
            found[usize::from(bad)] += 1;
        }
        // NVFP4's scales are always finite; every other format must show both kinds.
        assert!(found[0] > 0 && (found[1] > 0 || f.dtype == DType::NVFP4), "{}: {found:?}", f.dtype);
        let bad = |block: &&[u8]| codec::first_non_finite_block(f.dtype, block).is_some();
        let first = bytes.chunks(block_bytes).position(|block| bad(&block));
        assert_eq!(codec::first_non_finite_block(f.dtype, &bytes), first, "{}", f.dtype);
    }
}
