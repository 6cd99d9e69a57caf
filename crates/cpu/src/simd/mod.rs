//! Sixteen lanes of f32, sixteen sums of small integer products: the instructions that kernels are written in.
//!
//! One trait, three implementations. [`Portable`] is plain Rust and defines the meaning; AVX2 and AVX-512 give the same
//! bits. Methods take the instruction set's value as `self`: holding it proves that the CPU has the instructions, so
//! they are safe to call, except for those that read or write through pointers.
//!
//! Every method is `#[inline(always)]` and meant to be called from a [`crate::isa::Kernel`], in its own body or in
//! `#[inline(always)]` functions: what a closure does is compiled for the plain CPU, call by call, unless it happens to be
//! inlined.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
use half::f16;
pub use portable::Portable;
use tessera_ops::{math, numerics};

/// f32 lanes of a vector.
pub const LANES: usize = numerics::LANES;

/// Bytes of a vector of codes: four for each of 16 rows.
pub const CODE_BYTES: usize = 4 * LANES;

/// What [`Simd::prefetch`] brings: a cache line.
pub const LINE_BYTES: usize = 64;

/// An instruction set.
pub trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// 16 f32 lanes.
    type F32: Copy;
    /// 16 i32 lanes.
    type I32: Copy;
    /// 64 bytes: byte `4 l + i` belongs to lane `l`.
    type U8: Copy;

    /// What [`Simd::dot_bytes`] takes off each code: 0 or 128, whichever the instructions give for nothing.
    const BYTE_OFFSET: i32;

    /// The most token columns that a matmul tile holds in registers without loss.
    const TOKENS_MAX: usize;

    /// The most [`Simd::F32`] that stay in registers as sums beside what is multiplied, where weights are plain.
    const SUMS_MAX: usize;

    // ---- f32 lanes ----

    /// `v` in all lanes.
    fn splat(self, v: f32) -> Self::F32;
    /// Loads 16 numbers.
    ///
    /// # Safety
    /// `from` is valid for reading 16 f32 (of any alignment).
    unsafe fn load_at(self, from: *const f32) -> Self::F32;
    /// Stores 16 numbers.
    ///
    /// # Safety
    /// `to` is valid for writing 16 f32 (of any alignment).
    unsafe fn store_at(self, to: *mut f32, v: Self::F32);
    /// Loads 16 f16 and widens them, exactly.
    ///
    /// # Safety
    /// `from` is valid for reading 16 f16 (of any alignment).
    unsafe fn load_f16_at(self, from: *const f16) -> Self::F32;
    /// Loads 16 bf16 (the high halves of f32) and widens them, exactly.
    ///
    /// # Safety
    /// `from` is valid for reading 16 u16 (of any alignment).
    unsafe fn load_bf16_at(self, from: *const u16) -> Self::F32;
    /// Loads 16 bytes and converts them to f32.
    ///
    /// # Safety
    /// `from` is valid for reading 16 bytes.
    unsafe fn load_u8_at(self, from: *const u8) -> Self::F32;
    /// Loads 16 signed bytes and converts them to f32.
    ///
    /// # Safety
    /// `from` is valid for reading 16 bytes.
    unsafe fn load_i8_at(self, from: *const i8) -> Self::F32;
    /// Rounds to f16 (to nearest, ties to even) and stores.
    fn store_f16(self, to: &mut [f16; LANES], v: Self::F32);
    /// a + b
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a - b
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a * b
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a / b
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// Square roots.
    fn sqrt(self, v: Self::F32) -> Self::F32;
    /// `a > b ? a : b`, so `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b ? a : b`, so `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// -v, also of zeros and NaN.
    fn neg(self, v: Self::F32) -> Self::F32;
    /// `a < b ? yes : no`.
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// `v is NaN ? yes : no`.
    fn select_nan(self, v: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// 2^n for whole n in -126..=127; any other n gives something without a meaning.
    fn power_of_two(self, n: Self::F32) -> Self::F32;
    /// [`numerics::add_lanes`].
    fn add_lanes(self, v: Self::F32) -> f32;
    /// Folds by halves with [`Simd::max`].
    fn max_lanes(self, v: Self::F32) -> f32;
    /// The largest bit pattern of |a| and |b|, as an integer: NaN wins over infinity, infinity over numbers.
    fn magnitude_bits_max(self, a: Self::F32, b: Self::F32) -> u32;
    /// [`Simd::magnitude_bits_max`] of four pairs, folded together.
    fn magnitude_bits_max_4(self, pairs: [(Self::F32, Self::F32); 4]) -> [u32; 4];

    // ---- codes ----

    /// Rounds lanes within ±127 to whole numbers (ties to even), stores them as 16 i8, and gives their sum.
    ///
    /// # Safety
    /// `to` is valid for writing 16 bytes.
    unsafe fn store_codes(self, to: *mut i8, v: Self::F32) -> i32;
    /// `v` in all lanes.
    fn splat_i32(self, v: i32) -> Self::I32;
    /// Lanes to f32; exact below 2^24.
    fn to_f32(self, v: Self::I32) -> Self::F32;
    /// Loads 64 bytes.
    ///
    /// # Safety
    /// `from` is valid for reading 64 bytes.
    unsafe fn load_codes(self, from: *const u8) -> Self::U8;
    /// Each byte shifted left by `shift` bits (right where negative; -7..=7), then masked. The mask must hold no bit that
    /// only a neighbouring byte could bring in.
    fn field(self, v: Self::U8, shift: i32, mask: u8) -> Self::U8;
    /// a | b
    fn or(self, a: Self::U8, b: Self::U8) -> Self::U8;
    /// `table[byte]` for each byte, which must be below 16.
    fn look_up(self, table: &[u8; 16], v: Self::U8) -> Self::U8;
    /// Loads 16 u16, as whole numbers.
    ///
    /// # Safety
    /// `from` is valid for reading 16 u16 (of any alignment).
    unsafe fn load_u16_at(self, from: *const u16) -> Self::I32;
    /// Of lanes below 2^16, four bits from bit `low` and four from bit `high` on, as pairs of 16-bit numbers.
    fn nibbles(self, v: Self::I32, low: u32, high: u32) -> Self::I32;
    /// 16 bits of codes times 16 bits of factors: each code of a lane times its factor, where no product is above 255.
    fn times(self, codes: Self::U8, factors: Self::I32) -> Self::U8;
    /// The sum of both products of pairs of 16-bit numbers.
    fn dot_pairs(self, pairs: Self::I32, x: i32) -> Self::I32;
    /// `acc[l] += sum over i in 0..4 of codes[4 l + i] * x[i]`, for codes up to 127; `x` is four i8, lowest byte first.
    fn dot_small(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32;
    /// `acc[l] += sum over i in 0..4 of (codes[4 l + i] - BYTE_OFFSET) * x[i]`, for all codes and x within ±127.
    fn dot_bytes(self, acc: Self::I32, codes: Self::U8, x: i32) -> Self::I32;

    /// Asks for the cache line at an address, which may be anywhere.
    fn prefetch(self, address: *const u8);

    // ---- what follows from the above ----

    /// Loads 16 numbers.
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        // SAFETY: the reference is valid for 16 f32.
        unsafe { self.load_at(from.as_ptr()) }
    }

    /// Stores 16 numbers.
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: Self::F32) {
        // SAFETY: the reference is valid for 16 f32.
        unsafe { self.store_at(to.as_mut_ptr(), v) }
    }

    /// Loads at most 16 numbers; the lanes beyond are `fill`.
    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> Self::F32 {
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Stores the first lanes, as many as fit (at most 16).
    #[inline(always)]
    fn store_partial(self, to: &mut [f32], v: Self::F32) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// Loads 16 f16 and widens them, exactly.
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        // SAFETY: the reference is valid for 16 f16.
        unsafe { self.load_f16_at(from.as_ptr()) }
    }

    /// [`math::exp`] in each lane, operation for operation.
    #[inline(always)]
    fn exp(self, v: Self::F32) -> Self::F32 {
        let (low, high) = (self.splat(math::EXP_MIN), self.splat(math::EXP_MAX));
        let x = self.max(self.min(v, high), low);
        let magic = self.splat(math::ROUND_MAGIC);
        let n = self.sub(self.fma(x, self.splat(std::f32::consts::LOG2_E), magic), magic);
        let r = self.fma(n, self.splat(-math::LN2_HIGH), x);
        let r = self.fma(n, self.splat(-math::LN2_LOW), r);
        let c = math::EXP_COEFFICIENTS;
        let mut p = self.splat(c[0]);
        p = self.fma(p, r, self.splat(c[1]));
        p = self.fma(p, r, self.splat(c[2]));
        p = self.fma(p, r, self.splat(c[3]));
        p = self.fma(p, r, self.splat(c[4]));
        p = self.fma(p, r, self.splat(c[5]));
        p = self.fma(p, r, self.splat(c[6]));
        p = self.fma(p, r, self.splat(c[7]));
        let y = self.mul(p, self.power_of_two(n));
        let y = self.select_less(v, low, self.splat(0.0), y);
        self.select_nan(v, v, y)
    }
}

#[cfg(test)]
mod tests;
