//! Packed layouts: how the weights of 16 rows (a *group*) lie in memory. One file a family.
//!
//! Packing re-orders and loses nothing. A vector of 64 code bytes holds four consecutive features of 16 rows, so that
//! one dot instruction advances 16 outputs by four features with no work across lanes. Groups are contiguous and
//! start on a cache line.

pub(in crate::matmul) mod blocks;
pub(in crate::matmul) mod floats;
pub(in crate::matmul) mod folded;
pub(in crate::matmul) mod forms;
pub(in crate::matmul) mod supers;

use super::tile::BLOCK;
use crate::simd::Simd;

/// Where a block of 32 features of a group lies.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct BlockAt {
    /// What several blocks share, in layouts that have such a thing.
    pub(in crate::matmul) head: *const u8,
    /// Its scales, and minima behind them.
    pub(in crate::matmul) scales: *const u8,
    /// Its codes.
    pub(in crate::matmul) codes: *const u8,
}

/// One block of a row as its file holds it, seen as integers.
pub(in crate::matmul) struct RowBlock<'a> {
    /// The format's own bytes.
    pub(in crate::matmul) raw: &'a [u8],
    /// Codes, offset by [`Layout::CODE_OFFSET`], in blocks of 32.
    pub(in crate::matmul) codes: &'a [[u8; BLOCK]],
    /// One scale a sub-block.
    pub(in crate::matmul) scales: &'a [f32],
    /// One minimum a sub-block.
    pub(in crate::matmul) mins: &'a [f32],
}

/// A packed layout of codes.
pub(in crate::matmul) trait Layout: Copy + Send + Sync + 'static {
    /// Weights that share a scale: 16 or 32.
    const SUB_BLOCK: usize;
    /// Whether sub-blocks have minima.
    const HAS_MIN: bool;
    /// What is to be taken off each code.
    const CODE_OFFSET: u8;
    /// Whether codes stay below 128, which some instruction sets multiply faster.
    const SMALL_CODES: bool;

    /// Whether scales and minima are whole numbers of units, which are folded into the codes and sums: [`Layout::scales`] and
    /// [`Layout::mins`] are the units then.
    const FOLDED: bool = false;

    /// Bytes of a block of 16 rows, its scales and its part of what blocks share included.
    const BLOCK_BYTES: usize;

    /// Bytes of a group of `blocks` blocks; whole cache lines.
    fn group_bytes(blocks: usize) -> usize;

    /// Where block `index` lies. Plain address arithmetic: to read there, `group` must be a group of `blocks` blocks.
    fn block(group: *const u8, blocks: usize, index: usize) -> BlockAt;

    /// The vector of codes of features `4 quad..4 quad + 4`.
    ///
    /// # Safety
    /// `at` is a block of a packed group that is alive.
    unsafe fn codes<S: Simd>(simd: S, at: BlockAt, quad: usize) -> S::U8;

    /// The scales of 16 rows for sub-block `half`.
    ///
    /// # Safety
    /// As [`Layout::codes`].
    unsafe fn scales<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32;

    /// The minima of 16 rows for sub-block `half`; only with [`Layout::HAS_MIN`].
    ///
    /// # Safety
    /// As [`Layout::codes`].
    unsafe fn mins<S: Simd>(simd: S, at: BlockAt, half: usize) -> S::F32;

    /// The whole numbers of 16 rows: those of both scales from bits 0 and 4 on, of both minima from bits 8 and 12 on; only with
    /// [`Layout::FOLDED`].
    ///
    /// # Safety
    /// As [`Layout::codes`].
    unsafe fn factors<S: Simd>(_simd: S, _at: BlockAt) -> S::I32 {
        unreachable!("a layout whose scales are no whole numbers has no factors")
    }

    /// Writes one row's block of the file, of `weights.codes.len()` blocks of 32, into lane `row` of a group. `first` is
    /// the index of its first block of 32.
    fn put(group: &mut [u8], blocks: usize, row: usize, first: usize, weights: &RowBlock<'_>);
}
