//! Consecutive rows of a sequence, and the query heads that share one head of keys and values, through the pages.
//!
//! A (row, query head) pair is a *column*. The stages are those of any softmax attention: scores are a product of queries and
//! keys; a mask and a softmax turn them into weights; outputs are a product of weights and values; at the end they are
//! scattered to where they belong. Stages take a *tile* of pages at a time. Whether a tile is one page, so that all is fused
//! around it, or several, with a matrix of scores between two matrix products, changes no bit: sums of values are rescaled and
//! go on page by page in both.
//!
//! Rows see different slots of a page (the causal edge, the window's edge); scores are computed for every slot that some
//! row sees, and those a row does not see are put out before its maximum is taken. In the sum of values a slot takes part
//! only for the rows that see it, since even a weight of zero times garbage could change a bit.

use std::{marker::PhantomData, ops::Range, ptr::null};

use tessera_ops::{PAGE_TOKENS, reference::softmax::Softmax};

use super::{
    block::{Block, Scratch},
    chain::Chain,
    sight::Sight,
    softmax::{begin, finish, weigh_row},
};
use crate::{
    kv::cells::{Cells, Operand},
    lanes::map_lanes,
    simd::{LANES, Simd},
};

/// Rows of a block that can be taken together.
pub(super) struct Run<'a, C> {
    pub(super) block: &'a Block<'a>,
    pub(super) sight: Sight<'a>,
    pub(super) rows: Range<usize>,
    pub(super) scratch: Scratch<'a>,
    pub(super) cells: PhantomData<C>,
}

impl<C: Cells> Run<'_, C> {
    #[inline(always)]
    pub(super) fn compute<S: Simd>(mut self, simd: S) {
        self.gather(simd);
        let last_row = self.rows.end - 1;
        let pages = self.sight.pages(self.rows.start).start..self.sight.pages(last_row).end;
        let mut tile = pages.start..pages.start;
        while tile.end < pages.end {
            tile = tile.end..pages.end.min(tile.end + self.block.tile_pages);
            for page in tile.clone() {
                self.score(simd, &tile, page);
            }
            for row in self.rows.clone() {
                for column in self.columns(row, row + 1) {
                    self.weigh(simd, &tile, row, column);
                }
            }
            for page in tile.clone() {
                self.add_values(simd, &tile, page, pages.end);
            }
        }
        self.scatter(simd);
    }

    /// The columns of rows `from..to`.
    fn columns(&self, from: usize, to: usize) -> Range<usize> {
        let group = self.sight.spec.group();
        (from - self.rows.start) * group..(to - self.rows.start) * group
    }

    /// A column's query head.
    fn head(&self, column: usize) -> usize {
        let group = self.sight.spec.group();
        self.block.kv_head * group + column % group
    }

    /// Where a column's query and output lie among all.
    fn place(&self, column: usize) -> Range<usize> {
        let spec = self.sight.spec;
        let row = self.rows.start + column / spec.group();
        let at = (row * spec.heads + self.head(column)) * spec.head_dim;
        at..at + spec.head_dim
    }

    /// Where a column's scores or weights of a page of a tile begin.
    fn at(&self, tile: &Range<usize>, page: usize, column: usize) -> usize {
        (column * self.block.tile_pages + page - tile.start) * PAGE_TOKENS
    }

    /// The rows that see something of a page. Positions ascend, so they stand together.
    fn seeing(&self, page: usize) -> Option<(usize, usize)> {
        let sees = |row: &usize| !self.sight.slots(*row, page).is_empty();
        let from = self.rows.clone().find(sees)?;
        Some((from, (from..self.rows.end).find(|r| !sees(r)).unwrap_or(self.rows.end)))
    }

    /// Takes and scales the queries, and clears the sums.
    #[inline(always)]
    fn gather<S: Simd>(&mut self, simd: S) {
        let (stride, scale) = (self.sight.layer.stride(), simd.splat(self.sight.spec.scale));
        for column in self.columns(self.rows.start, self.rows.end) {
            let from = &self.block.queries.as_slice()[self.place(column)];
            let query = &mut self.scratch.queries[column * stride..][..from.len()];
            query.copy_from_slice(from);
            map_lanes!(simd, query, |q| simd.mul(q, scale));
            let state = begin(self.block.sinks.map(|sinks| sinks[self.head(column)]));
            (self.scratch.highest[column], self.scratch.totals[column]) = (state.highest, state.total);
        }
        self.scratch.sums.fill(0.0);
    }

    /// Scores of all slots of a page that some row sees.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, tile: &Range<usize>, page: usize) {
        let Some((from, to)) = self.seeing(page) else { return };
        let (sight, kv_head, columns) = (self.sight, self.block.kv_head, self.columns(from, to));
        let stride = sight.layer.stride();
        let first = sight.slots(from, page).start / LANES;
        let end = sight.slots(to - 1, page).end.div_ceil(LANES);
        let at = self.at(tile, page, columns.start) + first * LANES;
        let chain = Chain {
            a: self.scratch.queries[columns.start * stride..].as_ptr(),
            a_stride: stride,
            b: sight.keys::<C>(from, page, kv_head),
            b_from: (0, first),
            ahead: sight.values::<C>(from, page, kv_head).address(0, 0),
            c: self.scratch.weights[at..].as_mut_ptr(),
            c_stride: self.block.tile_pages * PAGE_TOKENS,
            columns: columns.len(),
            vectors: end - first,
            depth: sight.layer.head_dim,
            from_zero: true,
        };
        // SAFETY: queries are (columns, stride), a page's keys (head_dim, 64), weights (columns, tile pages, 64).
        unsafe { self.multiply(simd, &chain) };
    }

    /// A product, over a widened copy of the second operand where the block has room for one.
    ///
    /// # Safety
    /// As [`Chain::run`].
    #[inline(always)]
    unsafe fn multiply<S: Simd, B: Operand>(&mut self, simd: S, chain: &Chain<B>) {
        // SAFETY: the caller's promise; a panel is memory of its own.
        unsafe {
            if !self.scratch.panel.is_empty() && chain.is_for_panels() {
                chain.run_in_panels(simd, self.block.isa, self.scratch.panel);
            } else {
                chain.run(self.block.isa);
            }
        }
    }

    /// Turns a column's scores of a tile into weights.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, tile: &Range<usize>, row: usize, column: usize) {
        let (seen, first) = (self.sight.positions(row), tile.start * PAGE_TOKENS);
        let visible = seen.start.saturating_sub(first)..seen.end.saturating_sub(first);
        let before = Softmax { highest: self.scratch.highest[column], total: self.scratch.totals[column] };
        let (at, pages) = (self.at(tile, tile.start, column), self.block.tile_pages);
        let scores = &mut self.scratch.weights[at..][..tile.len() * PAGE_TOKENS];
        let factors = &mut self.scratch.factors[column * pages..][..tile.len()];
        let state = weigh_row(simd, scores, factors, &visible, before, self.sight.spec.soft_cap);
        (self.scratch.highest[column], self.scratch.totals[column]) = (state.highest, state.total);
    }

    /// Rescales the sums to the maximum after a page, and adds the page's weighted values, in runs of slots that the same rows
    /// see.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, tile: &Range<usize>, page: usize, pages_end: usize) {
        let Some((from, to)) = self.seeing(page) else { return };
        let (sight, kv_head, stride) = (self.sight, self.block.kv_head, self.sight.layer.stride());
        for column in self.columns(from, to) {
            let factor = self.scratch.factors[column * self.block.tile_pages + page - tile.start];
            // A factor of one changes no bit.
            if factor != 1.0 {
                let by = simd.splat(factor);
                map_lanes!(simd, &mut self.scratch.sums[column * stride..][..stride], |o| simd.mul(o, by));
            }
        }
        let (mut slot, end) = (sight.slots(from, page).start, sight.slots(to - 1, page).end);
        let mut ahead = match page + 1 == pages_end {
            true => self.block.next,
            false => sight.keys::<C>(from, page + 1, kv_head).address(0, 0),
        };
        while slot < end {
            // Both ends of what a row sees move with its position: the rows that see a slot stand together.
            let sees = |row: &usize| sight.slots(*row, page).contains(&slot);
            let first = (from..to).find(sees).unwrap_or(to);
            let last = (first..to).find(|r| !sees(r)).unwrap_or(to);
            let edges = (from..to).flat_map(|r| [sight.slots(r, page).start, sight.slots(r, page).end]);
            let next = edges.filter(|e| *e > slot).min().unwrap_or(end);
            let columns = self.columns(first, last);
            let chain = Chain {
                a: self.scratch.weights[self.at(tile, page, columns.start) + slot..].as_ptr(),
                a_stride: self.block.tile_pages * PAGE_TOKENS,
                b: sight.values::<C>(from, page, kv_head),
                b_from: (slot, 0),
                ahead,
                c: self.scratch.sums[columns.start * stride..].as_mut_ptr(),
                c_stride: stride,
                columns: columns.len(),
                vectors: stride / LANES,
                depth: next - slot,
                from_zero: false,
            };
            // SAFETY: weights are (columns, tile pages, 64), a page's values (64, stride), sums (columns, stride).
            unsafe { self.multiply(simd, &chain) };
            (slot, ahead) = (next, null());
        }
    }

    /// Divides by the sums of weights and writes the outputs.
    #[inline(always)]
    fn scatter<S: Simd>(&mut self, simd: S) {
        let stride = self.sight.layer.stride();
        for column in self.columns(self.rows.start, self.rows.end) {
            let place = self.place(column);
            // SAFETY: a (row, query head) pair belongs to one block.
            let out = unsafe { self.block.out.range(place.start, place.end) };
            finish(simd, &self.scratch.sums[column * stride..][..out.len()], self.scratch.totals[column], out);
        }
    }
}
