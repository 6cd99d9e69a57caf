//! One work item of attention: some rows of the step, one head of keys and values, and the query heads that share it.
//!
//! The ways differ in three numbers alone ([`super::select::Cut`]): how many rows a block has, how many pages a tile has,
//! and whether keys and values are widened into panels first. What they cost, for `c` columns of head_dim `d` over F16 cells,
//! on a core with 32 KiB of first and 1 MiB of second cache:
//!
//! - *fused*: 24 columns, a tile of one page. Queries and sums are 2 · 4 · 24 d bytes (96 KiB at d = 512), a page's keys and
//!   values 2 · 128 d (128 KiB); each is read from the second cache once a page (keys four times: once for each six
//!   columns). A page is 2 · 64 · 24 d multiply-adds, 98,304 cycles at d = 512, beside 16,384 conversions of 16 lanes.
//! - *unfused*: 96 columns, a tile of four pages. Queries and sums are 384 KiB at d = 512, scores 96 KiB, a panel 16 KiB: half of
//!   the second cache. Keys and values leave memory a quarter as often, and conversions of codes are a quarter as many.
//!   In turn queries and sums go through the first cache once a page: 4 bytes for each 64 multiply-adds.
//!
//! A thread's memory is [`Scratch::len`] numbers: a function of columns and head_dim, whatever the context.

use std::{marker::PhantomData, ops::Range};

use super::{dense::PANEL_LEN, run::Run, sight::Sight};
use crate::{
    isa::{Isa, Kernel},
    kv::{Layer, cells::Cells},
    simd::{LANES, Simd},
    tensor::Tensor,
    threads::SharedSlice,
};

/// What a block computes.
pub(super) struct Block<'a> {
    pub(super) isa: Isa,
    pub(super) queries: &'a Tensor,
    pub(super) sight: Sight<'a>,
    /// (heads) scores of keys without a value, where there are any.
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) kv_head: usize,
    /// Rows of one [`tessera_ops::Batch::run`].
    pub(super) rows: Range<usize>,
    /// Pages of a tile.
    pub(super) tile_pages: usize,
    /// The keys that will probably be read after this block; null: none.
    pub(super) next: *const u8,
    /// (rows, heads · head_dim); the block writes its rows' part of its heads.
    pub(super) out: &'a SharedSlice<'a, f32>,
}

/// A block's memory: for each column its scaled query, the weights of a tile, the sum of values, and `m` and `l`.
pub(super) struct Scratch<'a> {
    /// (columns, stride)
    pub(super) queries: &'a mut [f32],
    /// (columns, tile pages, 64)
    pub(super) weights: &'a mut [f32],
    /// (columns, tile pages) factors on the sums of earlier pages
    pub(super) factors: &'a mut [f32],
    /// (columns, stride)
    pub(super) sums: &'a mut [f32],
    /// (columns)
    pub(super) highest: &'a mut [f32],
    /// (columns)
    pub(super) totals: &'a mut [f32],
    /// A panel of keys or values; empty where they are widened as they are read.
    pub(super) panel: &'a mut [f32],
}

/// The sizes of a block's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) columns: usize,
    pub(super) tile_pages: usize,
    pub(super) panels: bool,
    /// Numbers of a tail: see [`Sight::tail_len`].
    pub(super) tail: usize,
}

impl Room {
    /// Numbers, by part, each in whole vectors: the fields of [`Scratch`] in order, and the tail.
    fn parts(&self, stride: usize) -> [usize; 8] {
        let Room { columns, tile_pages, panels, tail } = *self;
        let weights = columns * tile_pages * tessera_ops::PAGE_TOKENS;
        let panel = if panels { PANEL_LEN } else { 0 };
        let [factors, each, tail] = [columns * tile_pages, columns, tail].map(|n| n.next_multiple_of(LANES));
        [columns * stride, weights, factors, columns * stride, each, each, panel, tail]
    }

    /// Numbers in all, for a layer of this stride.
    pub(super) fn len(&self, stride: usize) -> usize {
        self.parts(stride).iter().sum()
    }

    /// Memory of [`Room::len`] numbers, cut into its parts; of the tail, what it is.
    fn cut<'a>(&self, mut memory: &'a mut [f32], layer: &Layer) -> (Scratch<'a>, &'a mut [f32]) {
        let mut parts = self.parts(layer.stride()).map(|len| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            part
        });
        let [queries, weights, factors, sums, highest, totals, panel, tail] = parts.each_mut().map(std::mem::take);
        (Scratch { queries, weights, factors, sums, highest, totals, panel }, tail)
    }
}

impl<'a> Block<'a> {
    /// The block with its memory, over a cache of `C`.
    pub(super) fn over<C: Cells>(self, room: Room, memory: &'a mut [f32]) -> BlockOver<'a, C> {
        BlockOver { block: self, room, memory, cells: PhantomData }
    }
}

/// A block over a cache of `C`, as a kernel.
pub(super) struct BlockOver<'a, C> {
    block: Block<'a>,
    room: Room,
    memory: &'a mut [f32],
    cells: PhantomData<C>,
}

impl<C: Cells> Kernel for BlockOver<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (block, mut sight) = (&self.block, self.block.sight);
        let (scratch, tail) = self.room.cut(self.memory, sight.layer);
        if sight.batch.is_tree(block.rows.start) {
            sight = sight.of_tree(block.rows.start, block.kv_head..block.kv_head + 1, tail);
            // SAFETY: the tail is this block's memory, and the cache is one of `C`.
            unsafe { sight.gather::<C>(block.rows.start, block.kv_head) };
        }
        Run::<C> { block, sight, rows: block.rows.clone(), scratch, cells: PhantomData }.compute(simd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::select::{COLUMNS, COLUMNS_UNFUSED, TILE_PAGES_UNFUSED};

    /// The bounds that the essay states: they do not know of a context.
    #[test]
    fn memory_is_bounded_whatever_the_context() {
        for (columns, tile_pages, panels, bytes) in
            [(COLUMNS, 1, false, 104 << 10), (COLUMNS_UNFUSED, TILE_PAGES_UNFUSED, true, 500 << 10)]
        {
            let room = Room { columns, tile_pages, panels, tail: 0 };
            assert!(room.len(512) * size_of::<f32>() <= bytes, "{room:?}: {}", room.len(512) * size_of::<f32>());
            assert!(room.parts(512).iter().all(|p| p % LANES == 0), "parts start on cache lines");
        }
    }
}
