//! The plain Rust implementation, which defines the meaning. Without fused multiply-add in hardware it is slow.
//!
//! What the matmul kernels call is not inlined: it needs no instructions that must be switched on, and copies of it in
//! every kernel would take longer to compile than all the others together.

use std::array::from_fn;

use half::f16;
use tessera_ops::numerics;

use super::{CODE_BYTES, LANES, Simd};
use crate::isa::Kernel;

/// Plain Rust, for every CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Portable;

impl Portable {
    /// Runs a kernel.
    #[inline(always)]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

impl Simd for Portable {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type U8 = [u8; CODE_BYTES];

    const BYTE_OFFSET: i32 = 0;
    const TOKENS_MAX: usize = 2;
    const SUMS_MAX: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        [v; LANES]
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> Self::F32 {
        // SAFETY: the caller vouches for 16 f32.
        unsafe { from.cast::<Self::F32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, to: *mut f32, v: Self::F32) {
        // SAFETY: the caller vouches for 16 f32.
        unsafe { to.cast::<Self::F32>().write_unaligned(v) }
    }

    #[inline(never)]
    unsafe fn load_f16_at(self, from: *const f16) -> Self::F32 {
        // SAFETY: the caller vouches for 16 f16.
        unsafe { from.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(never)]
    unsafe fn load_bf16_at(self, from: *const u16) -> Self::F32 {
        // SAFETY: the caller vouches for 16 u16.
        unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(|v| f32::from_bits(u32::from(v) << 16))
    }

    #[inline(never)]
    unsafe fn load_u8_at(self, from: *const u8) -> Self::F32 {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[u8; LANES]>().read() }.map(f32::from)
    }

    #[inline(never)]
    unsafe fn load_i8_at(self, from: *const i8) -> Self::F32 {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [f16; LANES], v: Self::F32) {
        *to = v.map(f16::from_f32);
    }

    #[inline(never)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| a[l] + b[l])
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| a[l] - b[l])
    }

    #[inline(never)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| a[l] / b[l])
    }

    #[inline(never)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        from_fn(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    fn sqrt(self, v: Self::F32) -> Self::F32 {
        v.map(f32::sqrt)
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|l| if a[l] < b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn neg(self, v: Self::F32) -> Self::F32 {
        v.map(|v| -v)
    }

    #[inline(always)]
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        from_fn(|l| if a[l] < b[l] { yes[l] } else { no[l] })
    }

    #[inline(always)]
    fn select_nan(self, v: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        from_fn(|l| if v[l].is_nan() { yes[l] } else { no[l] })
    }

    #[inline(always)]
    fn power_of_two(self, n: Self::F32) -> Self::F32 {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn add_lanes(self, v: Self::F32) -> f32 {
        numerics::add_lanes(v)
    }

    #[inline(always)]
    fn max_lanes(self, v: Self::F32) -> f32 {
        let mut lanes = v;
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                lanes[l] = if lanes[l] > lanes[l + width] { lanes[l] } else { lanes[l + width] };
            }
            width /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    fn magnitude_bits_max(self, a: Self::F32, b: Self::F32) -> u32 {
        a.iter().chain(&b).map(|v| v.abs().to_bits()).fold(0, u32::max)
    }

    #[inline(always)]
    fn magnitude_bits_max_4(self, pairs: [(Self::F32, Self::F32); 4]) -> [u32; 4] {
        pairs.map(|(a, b)| self.magnitude_bits_max(a, b))
    }

    #[inline(always)]
    unsafe fn store_codes(self, to: *mut i8, v: Self::F32) -> i32 {
        let codes = v.map(|v| v.round_ties_even() as i8);
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { to.cast::<[i8; LANES]>().write(codes) };
        codes.iter().map(|c| i32::from(*c)).sum()
    }

    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        [v; LANES]
    }

    #[inline(never)]
    fn to_f32(self, v: Self::I32) -> Self::F32 {
        v.map(|v| v as f32)
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> Self::U8 {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { from.cast::<Self::U8>().read() }
    }

    #[inline(never)]
    fn field(self, v: Self::U8, shift: i32, mask: u8) -> Self::U8 {
        v.map(|v| mask & if shift < 0 { v >> -shift } else { v << shift })
    }

    #[inline(never)]
    fn or(self, a: Self::U8, b: Self::U8) -> Self::U8 {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(never)]
    fn look_up(self, table: &[u8; 16], v: Self::U8) -> Self::U8 {
        v.map(|v| table[usize::from(v & 15)])
    }

    #[inline(always)]
    unsafe fn load_u16_at(self, from: *const u16) -> Self::I32 {
        // SAFETY: the caller vouches for 16 numbers.
        unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(i32::from)
    }

    #[inline(never)]
    fn nibbles(self, v: Self::I32, low: u32, high: u32) -> Self::I32 {
        v.map(|v| v >> low & 15 | (v >> high & 15) << 16)
    }

    #[inline(never)]
    fn times(self, codes: Self::U8, factors: Self::I32) -> Self::U8 {
        from_fn(|i| codes[i].wrapping_mul((factors[i / 4] >> (i % 4 / 2 * 16)) as u8))
    }

    #[inline(never)]
    fn dot_pairs(self, pairs: Self::I32, x: i32) -> Self::I32 {
        let halves = |v: i32| [i32::from(v as i16), v >> 16];
        let [low, high] = halves(x);
        pairs.map(|pair| halves(pair)[0] * low + halves(pair)[1] * high)
    }

    #[inline(always)]
    fn dot_small(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32 {
        self.dot_bytes(acc, codes, x)
    }

    #[inline(never)]
    fn dot_bytes(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32 {
        let x = x.to_le_bytes().map(|v| i32::from(v as i8));
        from_fn(|l| acc[l] + (0..4).map(|i| i32::from(codes[4 * l + i]) * x[i]).sum::<i32>())
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}
