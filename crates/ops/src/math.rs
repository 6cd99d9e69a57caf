//! Our own exp, sine and cosine: fixed sequences of IEEE operations, so that every device and platform gives the
//! same bits. Devices follow these operation for operation; `mul_add` is a fused multiply-add everywhere.

/// Below this, [`exp`] is 0 (the true value is under the smallest normal f32).
pub const EXP_MIN: f32 = -87.0;

/// Above this, [`exp`] is held at its value here, about 2.4e38.
pub const EXP_MAX: f32 = 88.3;

/// Added to a value below 2^22, 1.5 · 2^23 rounds it to the nearest integer, ties to even.
pub const ROUND_MAGIC: f32 = 12_582_912.0;

/// ln 2 in two parts; the high part has few bits, so that `n * LN2_HIGH` is exact.
pub const LN2_HIGH: f32 = 0.693_359_4;
/// The rest of ln 2.
pub const LN2_LOW: f32 = -2.121_944_4e-4;

/// Coefficients of e^r on |r| <= ln 2 / 2, highest power first (the Taylor series to r^7; error below 1e-8 there).
pub const EXP_COEFFICIENTS: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// e^x to about 1 ulp. NaN gives NaN; below [`EXP_MIN`] 0; above [`EXP_MAX`] the value there.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND_MAGIC) - ROUND_MAGIC;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = EXP_COEFFICIENTS[0];
    for c in &EXP_COEFFICIENTS[1..] {
        p = p.mul_add(r, *c);
    }
    // n is in -126..=127, so the exponent field stays normal.
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// x · sigmoid(x) (Swish-1, Ramachandran et al. 2017).
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// sqrt(2 / pi) · 2, the factor of [`gelu_tanh`] folded for the sigmoid form.
pub const GELU_SCALE: f32 = 1.595_769;
/// The cubic coefficient of [`gelu_tanh`].
pub const GELU_CUBIC: f32 = 0.044_715;

/// The tanh form of GELU (Hendrycks and Gimpel 2016): 0.5 x (1 + tanh u) = x · sigmoid(2u),
/// u = sqrt(2 / pi) (x + 0.044715 x^3).
pub fn gelu_tanh(x: f32) -> f32 {
    let cubic = (x * x).mul_add(GELU_CUBIC, 1.0);
    x / (1.0 + exp(-(GELU_SCALE * x * cubic)))
}

/// The largest gate, and the largest size of up, in [`swiglu_oai`].
pub const SWIGLU_LIMIT: f32 = 7.0;
/// The slope of the sigmoid in [`swiglu_oai`].
pub const SWIGLU_SLOPE: f32 = 1.702;

/// The gate of gpt-oss (OpenAI 2025): x · sigmoid(1.702 x) · (up + 1), x at most 7, up from -7 to 7. NaN stays NaN.
pub fn swiglu_oai(x: f32, up: f32) -> f32 {
    let x = if SWIGLU_LIMIT < x { SWIGLU_LIMIT } else { x };
    let up = if -SWIGLU_LIMIT > up { -SWIGLU_LIMIT } else { up };
    let up = if SWIGLU_LIMIT < up { SWIGLU_LIMIT } else { up };
    x / (1.0 + exp(-(SWIGLU_SLOPE * x))) * (up + 1.0)
}

/// The gate of DeepSeek V4: silu(x) · up, x at most `limit`, up from -`limit` to `limit`. NaN stays NaN.
pub fn swiglu_clamped(x: f32, up: f32, limit: f32) -> f32 {
    let x = if limit < x { limit } else { x };
    let up = if -limit > up { -limit } else { up };
    let up = if limit < up { limit } else { up };
    silu(x) * up
}

/// Coefficients of atanh(t) / t in powers of t², highest first.
pub const ATANH_COEFFICIENTS: [f32; 8] =
    [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];

/// ln(1 + x) for x from 0 to 1, by 2 atanh(x / (2 + x)): a relative error of 2e-7 at most.
pub fn ln_1p(x: f32) -> f32 {
    let t = x / (2.0 + x);
    let z = t * t;
    let mut p = ATANH_COEFFICIENTS[0];
    for c in &ATANH_COEFFICIENTS[1..] {
        p = p.mul_add(z, *c);
    }
    (t + t) * p
}

/// ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|).
pub fn softplus(x: f32) -> f32 {
    let size = if x > -x { x } else { -x };
    let larger = if x > 0.0 { x } else { 0.0 };
    larger + ln_1p(exp(-size))
}

/// c · tanh(x / c), the soft cap of logits and scores, by tanh u = 1 - 2 / (e^2u + 1).
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * (1.0 - 2.0 / (exp(2.0 * (x / cap)) + 1.0))
}

/// Sine and cosine of an angle in radians up to 2^40, in f64 by plain products and sums (never fused, so that every
/// compiler gives the same bits), rounded once to f32. Error below 1e-9.
pub fn sin_cos(angle: f64) -> (f32, f32) {
    let n = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    // pi / 2 in three parts of 33 bits each: n * part is exact for |n| < 2^20 and good to 1e-10 far beyond.
    let r = ((angle - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_303_966e-11) - n * 2.022_266_248_795_950_6e-21;
    let z = r * r;
    let sin = r + r
        * z
        * horner(
            z,
            [1.0 / 6_227_020_800.0, -1.0 / 39_916_800.0, 1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0],
        );
    let cos =
        1.0 + z * horner(z, [1.0 / 479_001_600.0, -1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5]);
    let (s, c) = match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    };
    (s as f32, c as f32)
}

fn horner(z: f64, coefficients: [f64; 6]) -> f64 {
    coefficients.into_iter().reduce(|p, c| p * z + c).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relative(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs() / want.abs().max(1e-30)
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-87.1), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert!(relative(exp(EXP_MIN), f64::from(EXP_MIN).exp()) < 2e-7);
        assert!(relative(exp(EXP_MAX), f64::from(EXP_MAX).exp()) < 2e-7);
    }

    #[test]
    fn gates_at_the_edges() {
        for x in [-1e30f32, -200.0, -30.0] {
            assert!(silu(x).abs() < 1e-6 * x.abs());
            assert!(gelu_tanh(x).abs() < 1e-6 * x.abs());
        }
        assert_eq!(silu(1e30), 1e30);
        assert_eq!(gelu_tanh(1e10), 1e10);
        assert_eq!(swiglu_oai(1e10, 1e10), swiglu_oai(7.0, 7.0));
        assert_eq!(swiglu_oai(2.0, -1e10), swiglu_oai(2.0, -7.0));
        assert_eq!(swiglu_oai(5.0, -1.0), 0.0);
        assert!(swiglu_oai(f32::NAN, 1.0).is_nan() && swiglu_oai(1.0, f32::NAN).is_nan());
        assert_eq!(swiglu_clamped(1e10, 1e10, 10.0), silu(10.0) * 10.0);
        assert_eq!(swiglu_clamped(2.0, -1e10, 10.0), silu(2.0) * -10.0);
        assert_eq!(swiglu_clamped(-20.0, 3.0, 10.0), silu(-20.0) * 3.0, "no limit below");
        assert!(swiglu_clamped(f32::NAN, 1.0, 2.0).is_nan() && swiglu_clamped(1.0, f32::NAN, 2.0).is_nan());
        assert_eq!((softplus(100.0), softplus(-100.0)), (100.0, 0.0));
        assert!(softplus(f32::NAN).is_nan() && softplus(f32::INFINITY) == f32::INFINITY);
    }

    proptest! {
        #[test]
        fn exp_is_close(x in EXP_MIN..EXP_MAX) {
            prop_assert!(relative(exp(x), f64::from(x).exp()) < 2e-7);
        }

        #[test]
        fn softplus_is_close(x in -80f32..30.0) {
            let v = f64::from(x);
            prop_assert!(relative(softplus(x), v.exp().ln_1p()) < 4e-7);
            prop_assert!(relative(ln_1p(v.sin().abs() as f32), f64::from(v.sin().abs() as f32).ln_1p()) < 3e-7);
        }

        #[test]
        fn sines_are_close(angle in -2e6f64..2e6) {
            let (s, c) = sin_cos(angle);
            prop_assert!((f64::from(s) - angle.sin()).abs() < 1e-7);
            prop_assert!((f64::from(c) - angle.cos()).abs() < 1e-7);
        }

        #[test]
        fn gates_are_close(x in -20f32..20.0) {
            let v = f64::from(x);
            let silu64 = v / (1.0 + (-v).exp());
            let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            let gelu64 = 0.5 * v * (1.0 + u.tanh());
            prop_assert!((f64::from(silu(x)) - silu64).abs() < 1e-6 * v.abs().max(1.0));
            prop_assert!((f64::from(gelu_tanh(x)) - gelu64).abs() < 2e-6 * v.abs().max(1.0));
            prop_assert!((f64::from(soft_cap(x, 30.0)) - 30.0 * (v / 30.0).tanh()).abs() < 1e-5);
        }
    }
}
