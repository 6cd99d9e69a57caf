//! Rows of activations to records of a panel, bit for bit as [`tessera_ops::numerics::quantize_block`].
//!
//! Four blocks at a time: their maxima are folded in one tree, and their divisions are one instruction. A block that is not
//! of ordinary numbers (zero, subnormal, infinite, NaN) is rare and goes alone.

use tessera_ops::numerics::ACTIVATION_CODE_MAX;

use super::tile::{BLOCK, halves_bytes, record_bytes, unroll};
use crate::simd::{LANES, Simd};

/// Blocks that go together.
const RUN: usize = 4;

/// Where a token's blocks go: its lane in the records of a panel of `tokens` tokens, and in the panel's halves, if any.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    pub(super) panel: *mut u8,
    pub(super) halves: Option<*mut u8>,
    pub(super) tokens: usize,
    pub(super) token: usize,
}

/// Quantizes the blocks of a row from block `first` on.
///
/// # Safety
/// The lane's panel, and its halves where there are any, hold a record for each block, and nobody else touches this
/// lane's part of them.
#[inline(always)]
pub(super) unsafe fn quantize_row<S: Simd>(simd: S, row: &[[f32; BLOCK]], first: usize, lane: Lane) {
    let (runs, rest) = row.as_chunks::<RUN>();
    for (i, run) in runs.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { quantize_run(simd, run, first + i * RUN, lane) };
    }
    for (i, block) in rest.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { quantize_alone(simd, block, first + runs.len() * RUN + i, lane) };
    }
}

/// Four blocks.
///
/// # Safety
/// As [`quantize_row`].
#[inline(always)]
unsafe fn quantize_run<S: Simd>(simd: S, blocks: &[[f32; BLOCK]; RUN], first: usize, lane: Lane) {
    let zero = simd.splat(0.0);
    let mut vectors = [(zero, zero); RUN];
    unroll!(4, i, {
        let (halves, _) = blocks[i].as_chunks::<LANES>();
        vectors[i] = (simd.load(&halves[0]), simd.load(&halves[1]));
    });
    let amax = simd.magnitude_bits_max_4(vectors).map(f32::from_bits);
    let (inverse, scale) = (amax.map(|a| ACTIVATION_CODE_MAX / a), amax.map(|a| a / ACTIVATION_CODE_MAX));
    // Not so for zero (inverse infinite), subnormal (likewise), infinite (inverse zero) and NaN.
    let usual = (0..RUN).all(|i| inverse[i].is_finite() & amax[i].is_finite());
    // SAFETY: the caller's promise.
    unsafe {
        if usual {
            unroll!(4, i, {
                let by = simd.splat(inverse[i]);
                let codes = lane.codes(first + i);
                let low = simd.store_codes(codes, simd.mul(vectors[i].0, by));
                let high = simd.store_codes(codes.add(LANES), simd.mul(vectors[i].1, by));
                lane.put(first + i, scale[i], [low, high]);
            });
        } else {
            for (i, block) in blocks.iter().enumerate() {
                quantize_alone(simd, block, first + i, lane);
            }
        }
    }
}

/// One block, of any numbers.
///
/// # Safety
/// As [`quantize_row`].
#[inline(always)]
unsafe fn quantize_alone<S: Simd>(simd: S, x: &[f32; BLOCK], index: usize, lane: Lane) {
    let (halves, _) = x.as_chunks::<LANES>();
    // SAFETY: the caller's promise; a token has 32 codes in a record.
    unsafe {
        let (scale, sums) = quantize_block(simd, (simd.load(&halves[0]), simd.load(&halves[1])), lane.codes(index));
        lane.put(index, scale, sums);
    }
}

/// Writes the 32 codes of a block, of any numbers, as [`tessera_ops::numerics::quantize_block`]; gives its scale and the sums of
/// the codes of its halves.
///
/// # Safety
/// `codes` is valid for writing 32 bytes.
#[inline(always)]
pub(crate) unsafe fn quantize_block<S: Simd>(
    simd: S,
    (low, high): (S::F32, S::F32),
    codes: *mut i8,
) -> (f32, [i32; 2]) {
    let amax = f32::from_bits(simd.magnitude_bits_max(low, high));
    let inverse = ACTIVATION_CODE_MAX / amax;
    // SAFETY: the caller's promise.
    unsafe {
        if inverse.is_finite() && amax.is_finite() {
            let by = simd.splat(inverse);
            let low = simd.store_codes(codes, simd.mul(low, by));
            let high = simd.store_codes(codes.add(LANES), simd.mul(high, by));
            return (amax / ACTIVATION_CODE_MAX, [low, high]);
        }
        codes.write_bytes(0, BLOCK);
    }
    (if amax.is_finite() { amax / ACTIVATION_CODE_MAX } else { f32::NAN }, [0; 2])
}

impl Lane {
    /// Where the codes of a block go.
    #[inline(always)]
    fn codes(&self, index: usize) -> *mut i8 {
        self.panel.wrapping_add(index * record_bytes(self.tokens) + self.token * BLOCK).cast()
    }

    /// Writes a block's scale and the sums of the codes of its halves.
    ///
    /// # Safety
    /// As [`quantize_row`].
    #[inline(always)]
    unsafe fn put(&self, index: usize, scale: f32, sums: [i32; 2]) {
        let (tokens, sum) = (self.tokens, sums[0] + sums[1]);
        // SAFETY: the record has three numbers a token behind its codes, that of the halves as many.
        unsafe {
            let record = self.panel.add(index * record_bytes(tokens) + tokens * BLOCK);
            let numbers = record.cast::<f32>().add(self.token);
            numbers.write(scale);
            numbers.add(tokens).write(scale * sum as f32);
            numbers.add(2 * tokens).cast::<i32>().write(sum);
            if let Some(halves) = self.halves {
                let numbers = halves.add(index * halves_bytes(tokens)).cast::<i32>().add(self.token);
                numbers.write(sums[0] & 0xffff | sums[1] << 16);
                numbers.add(tokens).write(sums[0]);
                numbers.add(2 * tokens).write(sums[1]);
            }
        }
    }
}
