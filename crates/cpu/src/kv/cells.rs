//! How a cache keeps the 64 · `width` numbers of one head in a page, as types: what is written when a token is stored, and
//! what the chains of attention read.
//!
//! - Floats: `[head_dim][64 tokens]` keys, `[64 tokens][stride]` values.
//! - Codes: the same of 8-bit codes, and behind them a scale for each 32 features of a token: `[head_dim / 32][64 tokens]` for
//!   keys, `[64 tokens][stride / 32]` for values. A scale was rounded to F16, as the format says, but is kept as F32:
//!   then a vector of keys' scales is a load, and a value's is a broadcast.

use half::f16;
use tessera_ops::{KvFormat, PAGE_TOKENS};

use crate::{
    lanes::load,
    matmul::quantize::quantize_block,
    simd::{LANES, Simd},
};

/// Features that share a scale.
pub(super) const BLOCK: usize = tessera_ops::kv::CODE_BLOCK;

/// Bytes of 64 tokens of one head, `width` numbers each; none where that overflows.
pub(super) fn head_bytes(format: KvFormat, width: usize) -> Option<usize> {
    let numbers = |each: usize| width.checked_mul(each * PAGE_TOKENS);
    match format {
        KvFormat::F32 => numbers(size_of::<f32>()),
        KvFormat::F16 => numbers(size_of::<f16>()),
        KvFormat::Q8_0 => numbers(1)?.checked_add(width.div_ceil(BLOCK) * PAGE_TOKENS * size_of::<f32>()),
    }
}

/// Where a token's key and value of one head go: some features from `feature` on.
pub(crate) struct Place {
    /// The first byte of the head's keys in the page.
    pub(crate) keys: *mut u8,
    /// The first byte of its values.
    pub(crate) values: *mut u8,
    pub(crate) head_dim: usize,
    pub(crate) stride: usize,
    pub(crate) feature: usize,
    pub(crate) slot: usize,
}

/// A way to keep numbers.
pub(crate) trait Cells: 'static {
    /// Features that are written together.
    const GROUP: usize;
    /// Keys of a page, as the second operand of a product.
    type Keys: Operand;
    /// Values of a page.
    type Values: Operand;

    /// The keys that start at `start`.
    fn keys(start: *const u8, head_dim: usize) -> Self::Keys;

    /// The values that start at `start`.
    fn values(start: *const u8, stride: usize) -> Self::Values;

    /// Writes as many features of a key and a value, at most a group.
    ///
    /// # Safety
    /// The place is inside a page of this format and nobody else touches these features.
    unsafe fn put<S: Simd>(simd: S, place: &Place, key: &[f32], value: &[f32]);

    /// Copies a token's key and value of one head, all features, as they are kept.
    ///
    /// # Safety
    /// Both places, of feature 0 and of the same shape, are inside pages of this format; nobody writes to the first or
    /// touches the second.
    unsafe fn copy(from: &Place, to: &Place);
}

/// Copies `count` numbers, `stride` apart, from place `from` on to place `to` on.
///
/// # Safety
/// All of them are valid for reading, and for writing.
unsafe fn copy_column<N: Copy>(from: *const N, to: *mut N, count: usize, stride: usize) {
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe { to.add(i * stride).write(from.add(i * stride).read()) };
    }
}

/// (depth, vectors · 16) numbers, widened as they are read.
pub(crate) trait Operand: Copy {
    /// Whether reading them costs so much that many columns are better off with a copy in f32. A load or a conversion of
    /// halves hides behind the multiply-adds of six columns; codes and their scales do not.
    const IS_SLOW: bool;

    /// Where vector `vector` of row `k` lies, to ask for it ahead of its use.
    fn address(self, k: usize, vector: usize) -> *const u8;

    /// Vector `vector` of row `k`.
    ///
    /// # Safety
    /// The row and the vector are inside.
    unsafe fn load<S: Simd>(self, simd: S, k: usize, vector: usize) -> S::F32;
}

/// A floating-point number as the cache keeps it.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    /// Widens 16 numbers.
    ///
    /// # Safety
    /// `from` is valid for reading 16 of them.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F32;

    /// Rounds to nearest even.
    fn round<S: Simd>(simd: S, v: S::F32) -> [Self; LANES];
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_at(from) }
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, v: S::F32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd.store(&mut out, v);
        out
    }
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f16) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16_at(from) }
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, v: S::F32) -> [f16; LANES] {
        let mut out = [f16::ZERO; LANES];
        simd.store_f16(&mut out, v);
        out
    }
}

/// Rows of numbers, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<N> {
    pub(crate) start: *const N,
    pub(crate) stride: usize,
}

impl<N: Number> Operand for Rows<N> {
    const IS_SLOW: bool = false;

    #[inline(always)]
    fn address(self, k: usize, vector: usize) -> *const u8 {
        self.start.wrapping_add(k * self.stride + vector * LANES).cast()
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, vector: usize) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { N::load(simd, self.start.add(k * self.stride + vector * LANES)) }
    }
}

impl<N: Number> Cells for N {
    const GROUP: usize = LANES;
    type Keys = Rows<N>;
    type Values = Rows<N>;

    fn keys(start: *const u8, _head_dim: usize) -> Rows<N> {
        Rows { start: start.cast(), stride: PAGE_TOKENS }
    }

    fn values(start: *const u8, stride: usize) -> Rows<N> {
        Rows { start: start.cast(), stride }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(simd: S, place: &Place, key: &[f32], value: &[f32]) {
        let keys: [N; LANES] = N::round(simd, load(simd, key));
        let values: [N; LANES] = N::round(simd, load(simd, value));
        // SAFETY: a head has head_dim · 64 keys and 64 · stride values; the features are below head_dim, the vector that
        // holds them ends at the stride or before, and the slot is below 64.
        unsafe {
            let to = place.keys.cast::<N>().add(place.feature * PAGE_TOKENS + place.slot);
            for (i, k) in keys.iter().enumerate().take(key.len()) {
                to.add(i * PAGE_TOKENS).write(*k);
            }
            let to = place.values.cast::<N>().add(place.slot * place.stride + place.feature);
            to.cast::<[N; LANES]>().write_unaligned(values);
        }
    }

    unsafe fn copy(from: &Place, to: &Place) {
        let (keys, values) =
            ((from.keys.cast::<N>(), to.keys.cast::<N>()), (from.values.cast::<N>(), to.values.cast::<N>()));
        // SAFETY: keys are (head_dim, 64), values (64, stride).
        unsafe {
            copy_column(keys.0.add(from.slot), keys.1.add(to.slot), from.head_dim, PAGE_TOKENS);
            copy_column(values.0.add(from.slot * from.stride), values.1.add(to.slot * to.stride), from.stride, 1);
        }
    }
}

/// Numbers as codes of 8 bits with scales: Q8_0.
pub(crate) struct Codes;

/// Keys as codes: vectors are tokens.
#[derive(Clone, Copy)]
pub(crate) struct KeyCodes {
    codes: *const i8,
    scales: *const f32,
}

impl Operand for KeyCodes {
    const IS_SLOW: bool = true;

    #[inline(always)]
    fn address(self, k: usize, vector: usize) -> *const u8 {
        self.codes.wrapping_add(k * PAGE_TOKENS + vector * LANES).cast()
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, vector: usize) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = simd.load_i8_at(self.codes.add(k * PAGE_TOKENS + vector * LANES));
            simd.mul(codes, simd.load_at(self.scales.add(k / BLOCK * PAGE_TOKENS + vector * LANES)))
        }
    }
}

/// Values as codes: vectors are features.
#[derive(Clone, Copy)]
pub(crate) struct ValueCodes {
    codes: *const i8,
    scales: *const f32,
    stride: usize,
}

impl Operand for ValueCodes {
    const IS_SLOW: bool = true;

    #[inline(always)]
    fn address(self, k: usize, vector: usize) -> *const u8 {
        self.codes.wrapping_add(k * self.stride + vector * LANES).cast()
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, vector: usize) -> S::F32 {
        let scale = k * self.stride.div_ceil(BLOCK) + vector * LANES / BLOCK;
        // SAFETY: the caller's promise.
        unsafe {
            let codes = simd.load_i8_at(self.codes.add(k * self.stride + vector * LANES));
            simd.mul(codes, simd.splat(self.scales.add(scale).read()))
        }
    }
}

impl Cells for Codes {
    const GROUP: usize = BLOCK;
    type Keys = KeyCodes;
    type Values = ValueCodes;

    fn keys(start: *const u8, head_dim: usize) -> KeyCodes {
        KeyCodes { codes: start.cast(), scales: start.wrapping_add(head_dim * PAGE_TOKENS).cast() }
    }

    fn values(start: *const u8, stride: usize) -> ValueCodes {
        ValueCodes { codes: start.cast(), scales: start.wrapping_add(stride * PAGE_TOKENS).cast(), stride }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(simd: S, place: &Place, key: &[f32], value: &[f32]) {
        let Place { keys, values, head_dim, stride, feature, slot } = *place;
        let block = feature / BLOCK;
        // SAFETY: as for floats; behind 64 codes of each feature lie 64 scales of each block. Page sizes are multiples of 64
        // bytes, so scales are aligned.
        unsafe {
            let (codes, scale) = quantize(simd, key);
            let to = keys.add(feature * PAGE_TOKENS + slot).cast::<i8>();
            for (i, code) in codes.iter().enumerate().take(key.len()) {
                to.add(i * PAGE_TOKENS).write(*code);
            }
            keys.add(head_dim * PAGE_TOKENS).cast::<f32>().add(block * PAGE_TOKENS + slot).write(scale);

            let (codes, scale) = quantize(simd, value);
            let to = values.add(slot * stride + feature).cast::<i8>();
            // The last block may end with the first of its two vectors.
            to.copy_from_nonoverlapping(codes.as_ptr(), BLOCK.min(stride - feature));
            values.add(stride * PAGE_TOKENS).cast::<f32>().add(slot * stride.div_ceil(BLOCK) + block).write(scale);
        }
    }

    unsafe fn copy(from: &Place, to: &Place) {
        let Place { head_dim, stride, .. } = *from;
        let (key_blocks, value_blocks) = (head_dim.div_ceil(BLOCK), stride.div_ceil(BLOCK));
        // SAFETY: codes as for floats, behind them a scale for each block: keys' as (blocks, 64), values' as (64, blocks).
        unsafe {
            copy_column(from.keys.add(from.slot), to.keys.add(to.slot), head_dim, PAGE_TOKENS);
            copy_column(from.values.add(from.slot * stride), to.values.add(to.slot * stride), stride, 1);
            let scales = |place: &Place| {
                let keys = place.keys.add(head_dim * PAGE_TOKENS).cast::<f32>().add(place.slot);
                let values = place.values.add(stride * PAGE_TOKENS).cast::<f32>().add(place.slot * value_blocks);
                (keys, values)
            };
            let (from, to) = (scales(from), scales(to));
            copy_column(from.0, to.0, key_blocks, PAGE_TOKENS);
            copy_column(from.1, to.1, value_blocks, 1);
        }
    }
}

/// Codes and scale of at most 32 numbers, as [`KvFormat::round`] defines them.
#[inline(always)]
pub(super) fn quantize<S: Simd>(simd: S, x: &[f32]) -> ([i8; BLOCK], f32) {
    let (low, high) = x.split_at(x.len().min(LANES));
    let mut codes = [0; BLOCK];
    // SAFETY: there is room for 32 codes.
    let (scale, _) = unsafe { quantize_block(simd, (load(simd, low), load(simd, high)), codes.as_mut_ptr()) };
    (codes, f16::from_f32(scale).to_f32())
}
