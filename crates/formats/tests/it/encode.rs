//! Encoders: their error beside ggml's, their bounds, and what they refuse.

use proptest::prelude::*;
use tessera_formats::{
    DType,
    codec::{
        self, EncodeError,
        encode::{ENCODABLE, can_encode, encode},
    },
};

use crate::decode::random_bytes;

/// Root mean squared errors of ggml without an importance matrix, or of the `gguf` package where that is better, on the
/// weights of [`weights`]; printed by tools/compare_encoders.py.
const THEIRS: [(DType, &str, f64); 33] = [
    (DType::F16, "normal", 7.572724e-06),
    (DType::F16, "outliers", 1.037461e-05),
    (DType::F16, "shifted", 9.904482e-06),
    (DType::BF16, "normal", 6.053535e-05),
    (DType::BF16, "outliers", 8.344761e-05),
    (DType::BF16, "shifted", 7.908781e-05),
    (DType::Q4_0, "normal", 2.956364e-03),
    (DType::Q4_0, "outliers", 7.356253e-03),
    (DType::Q4_0, "shifted", 3.728088e-03),
    (DType::Q4_1, "normal", 2.733668e-03),
    (DType::Q4_1, "outliers", 4.940983e-03),
    (DType::Q4_1, "shifted", 2.728561e-03),
    (DType::Q5_0, "normal", 1.462054e-03),
    (DType::Q5_0, "outliers", 3.677460e-03),
    (DType::Q5_0, "shifted", 1.857974e-03),
    (DType::Q5_1, "normal", 1.321856e-03),
    (DType::Q5_1, "outliers", 2.380492e-03),
    (DType::Q5_1, "shifted", 1.320037e-03),
    (DType::Q8_0, "normal", 1.832914e-04),
    (DType::Q8_0, "outliers", 4.630904e-04),
    (DType::Q8_0, "shifted", 2.347779e-04),
    (DType::Q2_K, "normal", 1.039938e-02),
    (DType::Q2_K, "outliers", 1.709979e-02),
    (DType::Q2_K, "shifted", 1.005510e-02),
    (DType::Q4_K, "normal", 2.489664e-03),
    (DType::Q4_K, "outliers", 4.603245e-03),
    (DType::Q4_K, "shifted", 2.474189e-03),
    (DType::Q5_K, "normal", 1.257863e-03),
    (DType::Q5_K, "outliers", 2.318105e-03),
    (DType::Q5_K, "shifted", 1.241343e-03),
    (DType::Q6_K, "normal", 6.160434e-04),
    (DType::Q6_K, "outliers", 1.348133e-03),
    (DType::Q6_K, "shifted", 7.885192e-04),
];

/// The weights that tools/compare_encoders.py makes.
fn weights(kind: &str) -> Vec<f32> {
    let seed = 1 + ["normal", "outliers", "shifted"].iter().position(|k| *k == kind).unwrap() as u64;
    let bytes = random_bytes(seed, 8 * 65536);
    let weight = |(i, bytes): (usize, &[u8; 8])| {
        let mut sum: i32 = bytes.as_chunks().0.iter().map(|b| i32::from(i16::from_le_bytes(*b))).sum();
        match kind {
            "outliers" if i % 64 == 0 => sum *= 8,
            "shifted" => sum += 1 << 15,
            _ => {}
        }
        sum as f32 * 2f32.powi(-20)
    };
    bytes.as_chunks().0.iter().enumerate().map(weight).collect()
}

fn round_trip(dtype: DType, weights: &[f32]) -> Vec<f32> {
    let mut bytes = Vec::new();
    encode(dtype, weights, &mut bytes).unwrap();
    let mut out = vec![0.0; weights.len()];
    codec::decode(dtype, &bytes, &mut out);
    out
}

fn rmse(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn errors_beside_ggml() {
    for (dtype, kind, theirs) in THEIRS {
        let weights = weights(kind);
        let ours = rmse(&weights, &round_trip(dtype, &weights));
        println!("rmse {dtype} {kind} {ours:e}"); // read by the script
        // The recorded numbers have seven digits; where rounding is all there is (F16), both are equal.
        assert!(ours <= theirs * 1.000_001, "{dtype}, {kind}: {ours:e} against {theirs:e}");
        assert!(
            dtype.is_float() || ours < theirs * 0.99,
            "{dtype}, {kind}: a search should gain: {ours:e}, {theirs:e}"
        );
        assert!(ours > theirs * 0.5, "{dtype}, {kind}: too good to be true: {ours:e} against {theirs:e}");
    }
    let named: Vec<_> = THEIRS.iter().map(|t| t.0).collect();
    assert!(ENCODABLE.iter().all(|d| *d == DType::F32 || named.contains(d)), "every encoder has its oracle");
}

/// The error a weight may have if every value is rounded to the nearest step of the plain formula, in root mean square
/// over the block: half a step, and for K formats what the quantized scale and minimum may add.
fn bound(dtype: DType, block: &[f32]) -> f32 {
    let low = block.iter().fold(0f32, |m, w| m.min(*w));
    let high = block.iter().fold(0f32, |m, w| m.max(*w));
    let (extreme, span) = (high.max(-low), high - low);
    let subnormal = 2f32.powi(-24); // f16 has no finer scale or minimum
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => (extreme / 2048.0).max(subnormal / 2.0),
        DType::BF16 => (extreme / 256.0).max(f32::from_bits(0x8000)),
        DType::Q4_0 => extreme / 14.0 + 8.0 * subnormal,
        DType::Q5_0 => extreme / 30.0 + 16.0 * subnormal,
        DType::Q8_0 => extreme / 254.0 * 1.1 + 127.0 * subnormal,
        DType::Q4_1 => span / 30.0 + extreme / 1024.0 + 16.0 * subnormal,
        DType::Q5_1 => span / 62.0 + extreme / 1024.0 + 32.0 * subnormal,
        DType::Q2_K => span / 6.0 + extreme / 15.0 + 45.0 * subnormal,
        DType::Q4_K => span / 30.0 + extreme / 63.0 + 945.0 * subnormal,
        DType::Q5_K => span / 62.0 + extreme / 63.0 + 1953.0 * subnormal,
        DType::Q6_K => extreme / 62.0 + extreme / 128.0 + 4096.0 * subnormal,
        other => unreachable!("{other}"),
    }
}

/// Weights as models have them: around zero or a little off, and not so small that f16 scales become coarse.
fn typical_block() -> impl Strategy<Value = Vec<f32>> {
    let weights = proptest::collection::vec(-1f32..1.0, 256);
    (weights, -0.5f32..0.5, -5i32..5).prop_map(|(mut weights, base, exponent)| {
        weights.iter_mut().for_each(|w| *w = (*w + base) * 2f32.powi(exponent));
        weights
    })
}

/// Blocks of many kinds and magnitudes: each a base, a spread, and perhaps an outlier.
fn block() -> impl Strategy<Value = Vec<f32>> {
    let weights = proptest::collection::vec(-1f32..1.0, 256);
    let outlier = prop_oneof![Just(None), (0..256usize, -1000f32..1000.0).prop_map(Some)];
    (weights, prop_oneof![Just(0f32), -3f32..3.0], -30i32..5, outlier).prop_map(
        |(mut weights, base, exponent, outlier)| {
            let size = 2f32.powi(exponent);
            weights.iter_mut().for_each(|w| *w = (*w + base) * size);
            if let Some((i, times)) = outlier {
                weights[i] *= times;
            }
            weights
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn errors_keep_within_a_step(block in block()) {
        for dtype in ENCODABLE {
            let out = round_trip(dtype, &block);
            for (block, out) in block.chunks(dtype.block_len()).zip(out.chunks(dtype.block_len())) {
                let (error, bound) = (rmse(block, out) as f32, bound(dtype, block));
                prop_assert!(error <= bound, "{}: {} beyond {}", dtype, error, bound);
            }
        }
    }

    #[test]
    fn encoding_again_changes_little(block in typical_block()) {
        for dtype in ENCODABLE {
            let once = round_trip(dtype, &block);
            let twice = round_trip(dtype, &once);
            let (first, second) = (rmse(&block, &once), rmse(&once, &twice));
            match dtype {
                DType::F32 | DType::F16 | DType::BF16 => prop_assert_eq!(&once, &twice),
                _ => prop_assert!(second <= 0.75 * first, "{}: {} after {}", dtype, second, first),
            }
        }
    }

    #[test]
    fn blocks_of_the_usual_formula_are_kept(codes in proptest::collection::vec(0..16u8, 32), bits in 0x1000..0x7000u16) {
        // What the plain formula writes: the largest magnitude at -8, the range over 0..=15.
        let (mut four_0, mut four_1) = (codes.clone(), codes);
        four_0[5] = 0;
        (four_1[5], four_1[9]) = (0, 15);
        let scale = half::f16::from_bits(bits).to_f32();
        let min = half::f16::from_f32(-7.0 * scale).to_f32();
        let signed: Vec<f32> = four_0.iter().map(|c| scale * (f32::from(*c) - 8.0)).collect();
        prop_assert_eq!(&round_trip(DType::Q4_0, &signed), &signed);
        if min.is_finite() && scale < 4000.0 {
            let lifted: Vec<f32> = four_1.iter().map(|c| scale * f32::from(*c) + min).collect();
            let again = round_trip(DType::Q4_1, &lifted);
            prop_assert!(rmse(&again, &lifted) <= f64::from(scale) * 1e-3, "{:?} {:?}", lifted, again);
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in ENCODABLE {
        assert!(round_trip(dtype, &[0.0; 512]).iter().all(|w| *w == 0.0), "{dtype}");
        assert!(round_trip(dtype, &[-0.0; 256]).iter().all(|w| *w == 0.0), "{dtype}");
        let mut none = vec![7];
        encode(dtype, &[], &mut none).unwrap();
        assert_eq!(none, [7]);
    }
}

#[test]
fn edges_of_the_range() {
    for dtype in ENCODABLE {
        for value in [1e-45f32, 1e-38, 6e-8, 1e-6, 1.0, 65504.0] {
            for sign in [1.0, -1.0] {
                let constant = [sign * value; 256];
                let mut one = [0.0; 256];
                one[77] = sign * value;
                for weights in [constant, one] {
                    let (error, bound) = (rmse(&weights, &round_trip(dtype, &weights)) as f32, bound(dtype, &weights));
                    assert!(error <= bound, "{dtype}: {value} {sign}: {error} beyond {bound}");
                }
            }
        }
    }
}

#[test]
fn the_largest_values_are_held_and_larger_ones_refused() {
    for dtype in ENCODABLE.into_iter().filter(|d| *d != DType::F32) {
        let refused = encode(dtype, &[f32::MAX; 256], &mut Vec::new()).unwrap_err();
        let EncodeError::TooLarge { index: 0, value: f32::MAX, max, .. } = refused else { panic!("{refused}") };
        for sign in [1.0, -1.0] {
            let mut weights = [0.25 * max; 256];
            weights[3] = sign * max;
            let out = round_trip(dtype, &weights);
            assert!(out.iter().all(|w| w.is_finite()), "{dtype}");
            assert!((out[3] / weights[3] - 1.0).abs() < 0.2, "{dtype}: {} for {}", out[3], weights[3]);
            weights[3] = sign * max.next_up();
            assert!(matches!(encode(dtype, &weights, &mut Vec::new()), Err(EncodeError::TooLarge { index: 3, .. })));
        }
    }
}

#[test]
fn refusals_name_what_is_wrong_and_leave_the_output() {
    let mut out = vec![1, 2, 3];
    for dtype in ENCODABLE {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = [0.5; 512];
            weights[300] = bad;
            let refused = encode(dtype, &weights, &mut out).unwrap_err();
            assert!(matches!(refused, EncodeError::NotFinite { index: 300, .. }), "{dtype}: {refused}");
        }
        if dtype.block_len() > 1 {
            let refused = encode(dtype, &[0.5; 300], &mut out).unwrap_err();
            assert_eq!(refused, EncodeError::PartialBlock { dtype, len: 300 });
        }
    }
    for dtype in DType::all().filter(|d| !can_encode(*d)) {
        let message = encode(dtype, &[0.5; 256], &mut out).unwrap_err().to_string();
        assert!(message.contains(dtype.name()) && message.contains("Q4_0, Q4_1"), "{message}");
    }
    assert_eq!(out, [1, 2, 3]);
}
