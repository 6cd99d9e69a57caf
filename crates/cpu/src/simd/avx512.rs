//! AVX-512 with VNNI: a vector is one register.

use std::arch::x86_64::*;

use half::f16;

use super::{LANES, Simd};
use crate::isa::Kernel;

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI, with what came before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, where the CPU has the instructions.
    pub fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Avx512(()))
    }

    /// Runs a kernel compiled for these instructions.
    #[inline(always)]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Intrinsics that work on values alone.
macro_rules! proven {
    ($e:expr) => {{
        // SAFETY: `self`, an `Avx512`, exists only where the CPU has these instructions.
        unsafe { $e }
    }};
}

impl Avx512 {
    /// The larger of the magnitudes of each lane's two numbers, as bits.
    #[inline(always)]
    fn magnitudes_max(self, a: __m512, b: __m512) -> __m512i {
        proven!({
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let a = _mm512_and_si512(_mm512_castps_si512(a), mask);
            let b = _mm512_and_si512(_mm512_castps_si512(b), mask);
            _mm512_max_epu32(a, b)
        })
    }
}

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type U8 = __m512i;

    const BYTE_OFFSET: i32 = 0;
    const TOKENS_MAX: usize = 12;
    const SUMS_MAX: usize = 24;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        proven!(_mm512_set1_ps(v))
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for 16 f32; `self` for the instruction.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, to: *mut f32, v: __m512) {
        // SAFETY: the caller vouches for 16 f32; `self` for the instruction.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16_at(self, from: *const f16) -> __m512 {
        // SAFETY: the caller vouches for 16 f16; `self` for the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, from: *const u16) -> __m512 {
        // SAFETY: the caller vouches for 16 u16; `self` for the instructions.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_u8_at(self, from: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 16 bytes; `self` for the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8_at(self, from: *const i8) -> __m512 {
        // SAFETY: the caller vouches for 16 bytes; `self` for the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [f16; LANES], v: __m512) {
        // SAFETY: the reference is valid for 16 f16; `self` vouches for the instructions.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn sqrt(self, v: __m512) -> __m512 {
        proven!(_mm512_sqrt_ps(v))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn neg(self, v: __m512) -> __m512 {
        proven!(_mm512_xor_ps(v, _mm512_set1_ps(-0.0)))
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }

    #[inline(always)]
    fn select_nan(self, v: __m512, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), no, yes))
    }

    #[inline(always)]
    fn power_of_two(self, n: __m512) -> __m512 {
        proven!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn add_lanes(self, v: __m512) -> f32 {
        proven!({
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn max_lanes(self, v: __m512) -> f32 {
        proven!({
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }

    #[inline(always)]
    fn magnitude_bits_max(self, a: __m512, b: __m512) -> u32 {
        proven!(_mm512_reduce_max_epu32(self.magnitudes_max(a, b)))
    }

    #[inline(always)]
    fn magnitude_bits_max_4(self, pairs: [(__m512, __m512); 4]) -> [u32; 4] {
        let (m0, m1) = (self.magnitudes_max(pairs[0].0, pairs[0].1), self.magnitudes_max(pairs[1].0, pairs[1].1));
        let (m2, m3) = (self.magnitudes_max(pairs[2].0, pairs[2].1), self.magnitudes_max(pairs[3].0, pairs[3].1));
        proven!({
            // Each 128 bits come to hold (m0 m1 m0 m1), (m2 m3 m2 m3), then (m0 m1 m2 m3).
            let low = _mm512_max_epu32(_mm512_unpacklo_epi32(m0, m1), _mm512_unpackhi_epi32(m0, m1));
            let high = _mm512_max_epu32(_mm512_unpacklo_epi32(m2, m3), _mm512_unpackhi_epi32(m2, m3));
            let all = _mm512_max_epu32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
            let all = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
            let all = _mm_max_epu32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            std::mem::transmute::<__m128i, [u32; 4]>(all)
        })
    }

    #[inline(always)]
    unsafe fn store_codes(self, to: *mut i8, v: __m512) -> i32 {
        let codes = proven!(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
        // SAFETY: the caller vouches for 16 bytes; `self` for the instructions.
        unsafe { _mm_storeu_si128(to.cast(), codes) };
        proven!({
            // Sums of eight bytes each, all 128 too large.
            let sums = _mm_sad_epu8(_mm_xor_si128(codes, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))) - 16 * 128
        })
    }

    #[inline(always)]
    fn splat_i32(self, v: i32) -> __m512i {
        proven!(_mm512_set1_epi32(v))
    }

    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(v))
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> __m512i {
        // SAFETY: the caller vouches for 64 bytes; `self` for the instruction.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn field(self, v: __m512i, shift: i32, mask: u8) -> __m512i {
        proven!({
            // A count that is known when compiling becomes part of the instruction.
            let count = _mm_cvtsi32_si128(shift.abs());
            let moved = match shift {
                0 => v,
                1.. => _mm512_sll_epi16(v, count),
                _ => _mm512_srl_epi16(v, count),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8))
        })
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: __m512i) -> __m512i {
        // SAFETY: the reference is valid for 16 bytes; `self` vouches for the instructions.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v) }
    }

    #[inline(always)]
    unsafe fn load_u16_at(self, from: *const u16) -> __m512i {
        // SAFETY: the caller vouches for 32 bytes; `self` for the instructions.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn nibbles(self, v: __m512i, low: u32, high: u32) -> __m512i {
        proven!({
            let low = _mm512_srl_epi32(v, _mm_cvtsi32_si128(low as i32));
            let high = _mm512_sll_epi32(v, _mm_cvtsi32_si128(16 - high as i32));
            _mm512_and_si512(_mm512_or_si512(low, high), _mm512_set1_epi32(0x000f_000f))
        })
    }

    #[inline(always)]
    fn times(self, codes: __m512i, factors: __m512i) -> __m512i {
        proven!(_mm512_mullo_epi16(codes, factors))
    }

    #[inline(always)]
    fn dot_pairs(self, pairs: __m512i, x: i32) -> __m512i {
        proven!(_mm512_madd_epi16(pairs, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn dot_small(self, acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        proven!(_mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn dot_bytes(self, acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        proven!(_mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }
}
