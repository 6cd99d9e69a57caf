//! AVX2 with FMA and F16C: a vector is two registers, the low and the high eight lanes.

use std::arch::x86_64::*;

use half::f16;

use super::{LANES, Simd};
use crate::isa::Kernel;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, where the CPU has the instructions.
    pub fn detect() -> Option<Avx2> {
        let all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }

    /// Runs a kernel compiled for these instructions.
    #[inline(always)]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Eight lanes and eight lanes.
type Pair<T> = (T, T);

/// Intrinsics that work on values alone.
macro_rules! proven {
    ($e:expr) => {{
        // SAFETY: `self`, an `Avx2`, exists only where the CPU has these instructions.
        unsafe { $e }
    }};
}

impl Avx2 {
    /// `acc + (w0 x0 + w1 x1 + w2 x2 + w3 x3)` of unsigned and signed bytes. Exact while two products fit an i16.
    #[inline(always)]
    fn multiply_add(self, acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        proven!({
            let pairs = _mm256_maddubs_epi16(unsigned, signed);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    /// As [`Avx2::multiply_add`] for all codes less 128: |w| times x with w's sign; 2 · 128 · 127 fits an i16.
    #[inline(always)]
    fn multiply_add_centred(self, acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        proven!({
            let w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            self.multiply_add(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
        })
    }

    /// The largest of the magnitudes of each lane's four numbers, as bits: without the sign they are positive i32, so
    /// signed maxima serve.
    #[inline(always)]
    fn magnitudes_max(self, a: Pair<__m256>, b: Pair<__m256>) -> __m256i {
        proven!({
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            let (a0, a1) = (_mm256_castps_si256(a.0), _mm256_castps_si256(a.1));
            let (b0, b1) = (_mm256_castps_si256(b.0), _mm256_castps_si256(b.1));
            let a = _mm256_max_epi32(_mm256_and_si256(a0, mask), _mm256_and_si256(a1, mask));
            let b = _mm256_max_epi32(_mm256_and_si256(b0, mask), _mm256_and_si256(b1, mask));
            _mm256_max_epi32(a, b)
        })
    }

    /// Eight whole numbers of the low bytes of two vectors, in order.
    #[inline(always)]
    fn narrow(self, low: __m256i, high: __m256i) -> __m128i {
        proven!({
            // (l0..3 h0..3 | l4..7 h4..7) as i16, put in order, then to bytes.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words))
        })
    }
}

impl Simd for Avx2 {
    type F32 = Pair<__m256>;
    type I32 = Pair<__m256i>;
    type U8 = Pair<__m256i>;

    const BYTE_OFFSET: i32 = 128;
    const TOKENS_MAX: usize = 4;
    const SUMS_MAX: usize = 6;

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        let v = proven!(_mm256_set1_ps(v));
        (v, v)
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> Self::F32 {
        // SAFETY: the caller vouches for 16 f32; `self` for the instruction.
        unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store_at(self, to: *mut f32, v: Self::F32) {
        // SAFETY: the caller vouches for 16 f32; `self` for the instruction.
        unsafe {
            _mm256_storeu_ps(to, v.0);
            _mm256_storeu_ps(to.add(8), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_f16_at(self, from: *const f16) -> Self::F32 {
        // SAFETY: the caller vouches for 16 f16; `self` for the instructions.
        unsafe { (_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, from: *const u16) -> Self::F32 {
        // SAFETY: the caller vouches for 16 u16.
        let (low, high) = unsafe { (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast())) };
        proven!((
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high)))
        ))
    }

    #[inline(always)]
    unsafe fn load_u8_at(self, from: *const u8) -> Self::F32 {
        // SAFETY: the caller vouches for 16 bytes.
        let v = unsafe { _mm_loadu_si128(from.cast()) };
        proven!((
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v)))
        ))
    }

    #[inline(always)]
    unsafe fn load_i8_at(self, from: *const i8) -> Self::F32 {
        // SAFETY: the caller vouches for 16 bytes.
        let v = unsafe { _mm_loadu_si128(from.cast()) };
        proven!((
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v)))
        ))
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [f16; LANES], v: Self::F32) {
        let to = to.as_mut_ptr();
        // SAFETY: the reference is valid for 16 f16; `self` vouches for the instructions.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        proven!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }

    #[inline(always)]
    fn sqrt(self, v: Self::F32) -> Self::F32 {
        proven!((_mm256_sqrt_ps(v.0), _mm256_sqrt_ps(v.1)))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        proven!((_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn neg(self, v: Self::F32) -> Self::F32 {
        proven!((_mm256_xor_ps(v.0, _mm256_set1_ps(-0.0)), _mm256_xor_ps(v.1, _mm256_set1_ps(-0.0))))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        proven!((
            _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
            _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1))
        ))
    }

    #[inline(always)]
    fn select_nan(self, v: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        proven!((
            _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(v.0, v.0)),
            _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_UNORD_Q>(v.1, v.1))
        ))
    }

    #[inline(always)]
    fn power_of_two(self, n: Self::F32) -> Self::F32 {
        proven!({
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
            (_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
        })
    }

    #[inline(always)]
    fn add_lanes(self, v: Self::F32) -> f32 {
        proven!({
            let v = _mm256_add_ps(v.0, v.1);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn max_lanes(self, v: Self::F32) -> f32 {
        proven!({
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn magnitude_bits_max(self, a: Self::F32, b: Self::F32) -> u32 {
        let v = self.magnitudes_max(a, b);
        proven!({
            let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
            _mm_cvtsi128_si32(v) as u32
        })
    }

    #[inline(always)]
    fn magnitude_bits_max_4(self, pairs: [(Self::F32, Self::F32); 4]) -> [u32; 4] {
        let (m0, m1) = (self.magnitudes_max(pairs[0].0, pairs[0].1), self.magnitudes_max(pairs[1].0, pairs[1].1));
        let (m2, m3) = (self.magnitudes_max(pairs[2].0, pairs[2].1), self.magnitudes_max(pairs[3].0, pairs[3].1));
        proven!({
            // Each 128 bits come to hold (m0 m1 m0 m1), (m2 m3 m2 m3), then (m0 m1 m2 m3).
            let low = _mm256_max_epi32(_mm256_unpacklo_epi32(m0, m1), _mm256_unpackhi_epi32(m0, m1));
            let high = _mm256_max_epi32(_mm256_unpacklo_epi32(m2, m3), _mm256_unpackhi_epi32(m2, m3));
            let all = _mm256_max_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
            let all = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            std::mem::transmute::<__m128i, [u32; 4]>(all)
        })
    }

    #[inline(always)]
    unsafe fn store_codes(self, to: *mut i8, v: Self::F32) -> i32 {
        let (low, high) = proven!((_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1)));
        let codes = self.narrow(low, high);
        // SAFETY: the caller vouches for 16 bytes; `self` for the instruction.
        unsafe { _mm_storeu_si128(to.cast(), codes) };
        proven!({
            // Sums of eight bytes each, all 128 too large.
            let sums = _mm_sad_epu8(_mm_xor_si128(codes, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))) - 16 * 128
        })
    }

    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        let v = proven!(_mm256_set1_epi32(v));
        (v, v)
    }

    #[inline(always)]
    fn to_f32(self, v: Self::I32) -> Self::F32 {
        proven!((_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)))
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> Self::U8 {
        // SAFETY: the caller vouches for 64 bytes; `self` for the instruction.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }

    #[inline(always)]
    fn field(self, v: Self::U8, shift: i32, mask: u8) -> Self::U8 {
        proven!({
            let (count, mask) = (_mm_cvtsi32_si128(shift.abs()), _mm256_set1_epi8(mask as i8));
            // A count that is known when compiling becomes part of the instruction.
            let moved = match shift {
                0 => v,
                1.. => (_mm256_sll_epi16(v.0, count), _mm256_sll_epi16(v.1, count)),
                _ => (_mm256_srl_epi16(v.0, count), _mm256_srl_epi16(v.1, count)),
            };
            (_mm256_and_si256(moved.0, mask), _mm256_and_si256(moved.1, mask))
        })
    }

    #[inline(always)]
    fn or(self, a: Self::U8, b: Self::U8) -> Self::U8 {
        proven!((_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)))
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: Self::U8) -> Self::U8 {
        // SAFETY: the reference is valid for 16 bytes; `self` vouches for the instructions.
        let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
        proven!((_mm256_shuffle_epi8(table, v.0), _mm256_shuffle_epi8(table, v.1)))
    }

    #[inline(always)]
    unsafe fn load_u16_at(self, from: *const u16) -> Self::I32 {
        // SAFETY: the caller vouches for 32 bytes; `self` for the instructions.
        unsafe {
            (
                _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast())),
            )
        }
    }

    #[inline(always)]
    fn nibbles(self, v: Self::I32, low: u32, high: u32) -> Self::I32 {
        proven!({
            let (down, up) = (_mm_cvtsi32_si128(low as i32), _mm_cvtsi32_si128(16 - high as i32));
            let mask = _mm256_set1_epi32(0x000f_000f);
            let first = _mm256_or_si256(_mm256_srl_epi32(v.0, down), _mm256_sll_epi32(v.0, up));
            let second = _mm256_or_si256(_mm256_srl_epi32(v.1, down), _mm256_sll_epi32(v.1, up));
            (_mm256_and_si256(first, mask), _mm256_and_si256(second, mask))
        })
    }

    #[inline(always)]
    fn times(self, codes: Self::U8, factors: Self::I32) -> Self::U8 {
        proven!((_mm256_mullo_epi16(codes.0, factors.0), _mm256_mullo_epi16(codes.1, factors.1)))
    }

    #[inline(always)]
    fn dot_pairs(self, pairs: Self::I32, x: i32) -> Self::I32 {
        proven!({
            let x = _mm256_set1_epi32(x);
            (_mm256_madd_epi16(pairs.0, x), _mm256_madd_epi16(pairs.1, x))
        })
    }

    #[inline(always)]
    fn dot_small(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32 {
        let x = proven!(_mm256_set1_epi32(x));
        (self.multiply_add(acc.0, codes.0, x), self.multiply_add(acc.1, codes.1, x))
    }

    #[inline(always)]
    fn dot_bytes(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32 {
        let x = proven!(_mm256_set1_epi32(x));
        (self.multiply_add_centred(acc.0, codes.0, x), self.multiply_add_centred(acc.1, codes.1, x))
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }
}
