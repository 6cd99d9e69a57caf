//! Every instruction set against the portable one, and that against the contract: equal bits, all operations.

use half::f16;
use proptest::prelude::*;
use tessera_ops::{math, numerics};

use super::{LANES, Simd};
use crate::isa::{Isa, Kernel};

/// Something to look up.
const TABLE: [u8; 16] = [3, 1, 4, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 0, 127];

/// What codes times factors are multiplied by.
const TIMES: [i8; 4] = [53, -127, 3, 127];

/// All operations on some vectors; bits of all results.
struct Everything<'a> {
    a: &'a [f32; LANES],
    b: &'a [f32; LANES],
    codes: &'a [u8; 64],
    x: [i8; 4],
}

impl Kernel for Everything<'_> {
    type Output = Vec<(&'static str, Vec<u32>)>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = Vec::new();
        let mut keep = |name, v: S::F32| {
            let mut lanes = [f32::NAN; LANES];
            s.store(&mut lanes, v);
            out.push((name, lanes.map(canonical_nan).to_vec()));
        };
        let (a, b) = (s.load(self.a), s.load(self.b));
        keep("add", s.add(a, b));
        keep("sub", s.sub(a, b));
        keep("mul", s.mul(a, b));
        keep("div", s.div(a, b));
        keep("fma", s.fma(a, b, s.splat(0.3)));
        keep("sqrt", s.sqrt(a));
        keep("max", s.max(a, b));
        keep("min", s.min(a, b));
        keep("neg", s.neg(a));
        keep("select_less", s.select_less(a, b, s.splat(1.0), a));
        keep("select_nan", s.select_nan(a, b, a));
        keep("exp", s.exp(a));
        keep("load_partial", s.load_partial(&self.a[..5], 7.0));
        let mut halves = [f16::ZERO; LANES];
        s.store_f16(&mut halves, a);
        keep("f16", s.load_f16(&halves));
        let words = self.codes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>();
        // SAFETY: 32 words and 64 bytes are there.
        unsafe {
            keep("bf16", s.load_bf16_at(words.as_ptr()));
            keep("u8", s.load_u8_at(self.codes.as_ptr()));
            keep("i8", s.load_i8_at(self.codes.as_ptr().cast()));
            let whole = s.load_u16_at(words.as_ptr());
            keep("u16", s.to_f32(whole));
            let pairs = s.nibbles(whole, 0, 4);
            keep("nibbles", s.to_f32(pairs));
            keep("high nibbles", s.to_f32(s.nibbles(whole, 8, 12)));
            keep("pairs", s.to_f32(s.dot_pairs(pairs, -2032 & 0xffff | 1777 << 16)));
            let few = s.field(s.load_codes(self.codes.as_ptr()), 0, 3);
            keep(
                "times",
                s.to_f32(s.dot_small(
                    s.splat_i32(5),
                    s.times(few, s.nibbles(whole, 4, 4)),
                    i32::from_le_bytes(TIMES.map(|v| v as u8)),
                )),
            );
        }
        // SAFETY: 64 bytes are there.
        let codes = unsafe { s.load_codes(self.codes.as_ptr()) };
        let x = i32::from_le_bytes(self.x.map(|v| v as u8));
        let start = s.splat_i32(-77);
        let (low, high) = (s.field(codes, 0, 15), s.field(codes, -4, 15));
        keep("low", s.to_f32(s.dot_small(start, low, x)));
        keep("high", s.to_f32(s.dot_small(start, high, x)));
        keep("left", s.to_f32(s.dot_small(start, s.field(codes, 3, 0x78), x)));
        keep("or", s.to_f32(s.dot_small(start, s.or(low, s.field(codes, -2, 0x30)), x)));
        keep("look_up", s.to_f32(s.dot_small(start, s.look_up(&TABLE, low), x)));
        let sum: i32 = self.x.iter().map(|v| i32::from(*v)).sum();
        keep("bytes", s.to_f32(s.dot_bytes(s.splat_i32(S::BYTE_OFFSET * sum), codes, x)));
        let mut lanes = [0i8; LANES];
        // Lanes within ±127 are what it is made for.
        let small = s.max(s.min(s.select_nan(a, b, a), s.splat(127.0)), s.splat(-127.0));
        // SAFETY: 16 bytes are there.
        let sum = unsafe { s.store_codes(lanes.as_mut_ptr(), small) };
        let finite = self.a.iter().chain(self.b).all(|v| !v.is_nan());
        if finite {
            out.push(("codes", lanes.iter().map(|v| *v as u32).chain([sum as u32]).collect()));
        }
        let mut part = [0.0; 3];
        s.store_partial(&mut part, a);
        out.push(("store_partial", part.map(canonical_nan).to_vec()));
        let folds = [s.add_lanes(a), s.max_lanes(a), f32::from_bits(s.magnitude_bits_max(a, b))];
        out.push(("folds", folds.map(canonical_nan).to_vec()));
        let (first, last) = (s.splat(self.a[0]), s.splat(self.b[15]));
        let four = s.magnitude_bits_max_4([(a, b), (first, first), (b, b), (a, last)]);
        let each = [(a, b), (first, first), (b, b), (a, last)].map(|(a, b)| s.magnitude_bits_max(a, b));
        assert_eq!(four, each);
        out.push(("folds of four", four.to_vec()));
        out
    }
}

/// The sign and payload of a NaN that an operation makes are not part of the contract.
fn canonical_nan(v: f32) -> u32 {
    if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }
}

/// The exponential alone.
struct Exp<'a>(&'a [f32; LANES]);

impl Kernel for Exp<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        s.store(&mut out, s.exp(s.load(self.0)));
        out
    }
}

/// Any f32, with more weight on ordinary sizes and on the special ones.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -100f32..100.0,
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![0.0, -0.0, 1e-40, -1e-45, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN,
            65504.0, 65520.0, 6e-8, 3e-8, 0.5, 1.5, 2.5, -0.5, math::EXP_MIN, math::EXP_MAX, -87.00001, 88.30001]),
    ]
}

fn lanes() -> impl Strategy<Value = [f32; LANES]> {
    prop::array::uniform16(number())
}

proptest! {
    #[test]
    fn every_instruction_set_gives_the_portable_bits(
        a in lanes(), b in lanes(), codes in prop::collection::vec(any::<u8>(), 64), x in prop::array::uniform4(-127i8..=127),
    ) {
        let codes: &[u8; 64] = codes.as_slice().try_into().unwrap();
        let run = |isa: Isa| isa.run(Everything { a: &a, b: &b, codes, x });
        let want = run(Isa::available()[0]);
        for isa in Isa::available() {
            for (got, want) in run(isa).iter().zip(&want) {
                prop_assert_eq!(got, want, "{}", isa.name());
            }
        }
    }

    #[test]
    fn exp_is_the_contract_s(a in lanes()) {
        for isa in Isa::available() {
            let got = isa.run(Exp(&a));
            for (x, y) in a.iter().zip(got) {
                prop_assert_eq!(canonical_nan(y), canonical_nan(math::exp(*x)), "{} of {}", isa.name(), x);
            }
        }
    }

    #[test]
    fn folds_and_dots_are_the_contract_s(
        a in prop::array::uniform16(-1e3f32..1e3), codes in prop::collection::vec(any::<u8>(), 64),
        x in prop::array::uniform4(-127i8..=127),
    ) {
        let codes: &[u8; 64] = codes.as_slice().try_into().unwrap();
        let dot = |f: &dyn Fn(u8) -> u8, start: i32| -> Vec<u32> {
            codes.as_chunks::<4>().0.iter().map(|w| {
                let sum: i32 = w.iter().zip(x).map(|(w, x)| i32::from(f(*w)) * i32::from(x)).sum();
                ((start + sum) as f32).to_bits()
            }).collect()
        };
        for isa in Isa::available() {
            let got = isa.run(Everything { a: &a, b: &a, codes, x });
            let of = |name: &str| got.iter().find(|g| g.0 == name).unwrap().1.clone();
            prop_assert_eq!(of("folds")[0], numerics::add_lanes(a).to_bits());
            prop_assert_eq!(of("low"), dot(&|w| w & 15, -77));
            prop_assert_eq!(of("high"), dot(&|w| w >> 4, -77));
            prop_assert_eq!(of("left"), dot(&|w| (w & 15) << 3, -77));
            prop_assert_eq!(of("or"), dot(&|w| (w & 15) | (w >> 6) << 4, -77));
            prop_assert_eq!(of("look_up"), dot(&|w| TABLE[usize::from(w & 15)], -77));
            prop_assert_eq!(of("bytes"), dot(&|w| w, 0));
            let bytes = |f: &dyn Fn(u8) -> f32| codes[..LANES].iter().map(|b| f(*b).to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(of("i8"), bytes(&|b| f32::from(b as i8)));
            let words = |f: &dyn Fn(i32) -> i32| -> Vec<u32> {
                let words = codes.as_chunks::<2>().0[..LANES].iter().map(|b| i32::from(u16::from_le_bytes(*b)));
                words.map(|w| (f(w) as f32).to_bits()).collect()
            };
            prop_assert_eq!(of("u16"), words(&|w| w));
            prop_assert_eq!(of("nibbles"), words(&|w| w & 15 | (w >> 4 & 15) << 16));
            prop_assert_eq!(of("high nibbles"), words(&|w| w >> 8 & 15 | (w >> 12) << 16));
            prop_assert_eq!(of("pairs"), words(&|w| (w & 15) * -2032 + (w >> 4 & 15) * 1777));
            let factor = |lane: usize| i32::from(codes[2 * lane] >> 4);
            let times = |lane: usize| (0..4).map(|i| i32::from(codes[4 * lane + i] & 3) * i32::from(TIMES[i])).sum::<i32>() * factor(lane);
            prop_assert_eq!(of("times"), (0..LANES).map(|l| ((5 + times(l)) as f32).to_bits()).collect::<Vec<_>>());
        }
    }
}
