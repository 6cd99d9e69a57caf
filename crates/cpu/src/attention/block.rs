//! One block of attention: some rows of the step, one head of keys and values, and the query heads that share it.
//!
//! Rows of one sequence are taken together, page by page. Rows see different slots of a page (the causal edge, the
//! window's edge); scores are computed for every slot that some row sees, and those a row does not see are put out
//! before its maximum is taken. In the sum of values a slot takes part only for the rows that see it, since even a
//! weight of zero times garbage could change a bit.

use std::{marker::PhantomData, ops::Range, ptr::null};

use tessera_ops::PAGE_TOKENS;

use super::{
    chain::Chain,
    sight::Sight,
    softmax::{Softmax, weigh_page},
};
use crate::{
    isa::Kernel,
    kv::{
        Layer,
        cells::{Cells, Operand},
    },
    lanes::{load, map_lanes, store},
    simd::{LANES, Simd},
    tensor::Tensor,
    threads::SharedSlice,
};

/// What a block computes.
pub(super) struct Block<'a> {
    pub(super) queries: &'a Tensor,
    pub(super) sight: Sight<'a>,
    /// (heads) scores of keys without a value, where there are any.
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) kv_head: usize,
    pub(super) rows: Range<usize>,
    /// The keys that will probably be read after this block; null: none.
    pub(super) next: *const u8,
    /// (rows, heads · head_dim); the block writes its rows' part of its heads.
    pub(super) out: &'a SharedSlice<'a, f32>,
}

/// A block's memory: for each column its scaled query, the weights of a page, the sum of values, and `m` and `l`.
pub(super) struct Scratch<'a> {
    /// (columns, stride)
    queries: &'a mut [f32],
    /// (columns, 64)
    weights: &'a mut [f32],
    /// (columns, stride)
    sums: &'a mut [f32],
    highest: &'a mut [f32],
    totals: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    /// Numbers it takes for so many columns, whole vectors.
    pub(super) fn len(columns: usize, layer: &Layer) -> usize {
        columns * (2 * layer.stride() + PAGE_TOKENS) + 2 * columns.next_multiple_of(LANES)
    }

    fn new(memory: &'a mut [f32], columns: usize, layer: &Layer) -> Scratch<'a> {
        let (queries, rest) = memory.split_at_mut(columns * layer.stride());
        let (sums, rest) = rest.split_at_mut(columns * layer.stride());
        let (weights, rest) = rest.split_at_mut(columns * PAGE_TOKENS);
        let (highest, totals) = rest.split_at_mut(columns);
        Scratch { queries, weights, sums, highest, totals: &mut totals[..columns] }
    }
}

impl<'a> Block<'a> {
    /// The block with its memory, over a cache of `C`.
    pub(super) fn over<C: Cells>(self, scratch: &'a mut [f32]) -> BlockOver<'a, C> {
        BlockOver { block: self, scratch, cells: PhantomData }
    }
}

/// A block over a cache of `C`, as a kernel.
pub(super) struct BlockOver<'a, C> {
    block: Block<'a>,
    scratch: &'a mut [f32],
    cells: PhantomData<C>,
}

impl<C: Cells> Kernel for BlockOver<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let sequences = &self.block.sight.batch.sequences;
        let mut start = self.block.rows.start;
        while start < self.block.rows.end {
            let mut end = start + 1;
            while end < self.block.rows.end && sequences[end] == sequences[start] {
                end += 1;
            }
            let columns = (end - start) * self.block.sight.spec.group();
            let scratch = Scratch::new(self.scratch, columns, self.block.sight.layer);
            Run::<C> { block: &self.block, start, end, scratch, cells: PhantomData }.compute(simd);
            start = end;
        }
    }
}

/// Rows of a block that belong to one sequence.
struct Run<'a, C> {
    block: &'a Block<'a>,
    start: usize,
    end: usize,
    scratch: Scratch<'a>,
    cells: PhantomData<C>,
}

impl<C: Cells> Run<'_, C> {
    #[inline(always)]
    fn compute<S: Simd>(mut self, simd: S) {
        self.begin(simd);
        let sight = self.block.sight;
        let (first, last) = (sight.pages(self.start).start, sight.pages(self.end - 1).end);
        for page in first..last {
            // Positions ascend, so the rows that see something of a page stand together.
            let sees = |row: &usize| !sight.slots(*row, page).is_empty();
            let Some(from) = (self.start..self.end).find(sees) else { continue };
            let to = (from..self.end).find(|r| !sees(r)).unwrap_or(self.end);
            self.score(simd, page, from, to);
            for row in from..to {
                for column in self.columns(row, row + 1) {
                    self.weigh(simd, row, page, column);
                }
            }
            self.add_values(simd, page, from, to, page + 1 == last);
        }
        self.finish(simd);
    }

    /// The columns of rows `from..to`.
    fn columns(&self, from: usize, to: usize) -> Range<usize> {
        let group = self.block.sight.spec.group();
        (from - self.start) * group..(to - self.start) * group
    }

    /// A column's query head.
    fn head(&self, column: usize) -> usize {
        let group = self.block.sight.spec.group();
        self.block.kv_head * group + column % group
    }

    /// Where a column's query and output lie among all.
    fn place(&self, column: usize) -> Range<usize> {
        let spec = self.block.sight.spec;
        let row = self.start + column / spec.group();
        let at = (row * spec.heads + self.head(column)) * spec.head_dim;
        at..at + spec.head_dim
    }

    /// Scales the queries and clears the sums.
    #[inline(always)]
    fn begin<S: Simd>(&mut self, simd: S) {
        let (stride, scale) = (self.block.sight.layer.stride(), simd.splat(self.block.sight.spec.scale));
        for column in self.columns(self.start, self.end) {
            let from = &self.block.queries.as_slice()[self.place(column)];
            let query = &mut self.scratch.queries[column * stride..][..from.len()];
            query.copy_from_slice(from);
            map_lanes!(simd, query, |q| simd.mul(q, scale));
        }
        self.scratch.sums.fill(0.0);
        for column in self.columns(self.start, self.end) {
            let nothing = Softmax { highest: f32::NEG_INFINITY, total: 0.0 };
            let state = self.block.sinks.map_or(nothing, |sinks| Softmax::of_sink(sinks[self.head(column)]));
            (self.scratch.highest[column], self.scratch.totals[column]) = (state.highest, state.total);
        }
    }

    /// Scores of all slots that some of the rows `from..to` sees.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, page: usize, from: usize, to: usize) {
        let (sight, columns) = (self.block.sight, self.columns(from, to));
        let (layer, kv_head) = (sight.layer, self.block.kv_head);
        let first = sight.slots(from, page).start / LANES;
        let end = sight.slots(to - 1, page).end.div_ceil(LANES);
        // SAFETY: queries are (columns, stride), a page's keys (head_dim, 64), weights (columns, 64).
        unsafe {
            Chain {
                a: self.scratch.queries[columns.start * layer.stride()..].as_ptr(),
                a_stride: layer.stride(),
                b: sight.keys::<C>(from, page, kv_head),
                b_from: (0, first),
                ahead: sight.values::<C>(from, page, kv_head).address(0, 0),
                c: self.scratch.weights[columns.start * PAGE_TOKENS..].as_mut_ptr().add(first * LANES),
                c_stride: PAGE_TOKENS,
                columns: columns.len(),
                vectors: end - first,
                depth: layer.head_dim,
                from_zero: true,
            }
            .run(simd);
        }
    }

    /// Turns a column's scores into weights, and rescales its sums to the new maximum.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, row: usize, page: usize, column: usize) {
        let (sight, stride) = (self.block.sight, self.block.sight.layer.stride());
        let state = Softmax { highest: self.scratch.highest[column], total: self.scratch.totals[column] };
        let is_first = page == sight.pages(row).start && self.block.sinks.is_none();
        let before = (!is_first).then_some(state);
        let scores = &mut self.scratch.weights[column * PAGE_TOKENS..][..PAGE_TOKENS];
        let (state, keep) = weigh_page(simd, scores, sight.slots(row, page), before, sight.spec.soft_cap);
        (self.scratch.highest[column], self.scratch.totals[column]) = (state.highest, state.total);
        // A factor of one changes no bit.
        if keep != 1.0 {
            let factor = simd.splat(keep);
            map_lanes!(simd, &mut self.scratch.sums[column * stride..][..stride], |o| simd.mul(o, factor));
        }
    }

    /// Adds the page's weighted values, in runs of slots that the same rows see.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, page: usize, from: usize, to: usize, is_last: bool) {
        let (sight, layer, kv_head) = (self.block.sight, self.block.sight.layer, self.block.kv_head);
        let values = sight.values::<C>(from, page, kv_head);
        let (mut slot, end) = (sight.slots(from, page).start, sight.slots(to - 1, page).end);
        let mut ahead = match is_last {
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
            // SAFETY: weights are (columns, 64), a page's values (64, stride), sums (columns, stride).
            unsafe {
                Chain {
                    a: self.scratch.weights.as_ptr().add(columns.start * PAGE_TOKENS + slot),
                    a_stride: PAGE_TOKENS,
                    b: values,
                    b_from: (slot, 0),
                    ahead,
                    c: self.scratch.sums.as_mut_ptr().add(columns.start * layer.stride()),
                    c_stride: layer.stride(),
                    columns: columns.len(),
                    vectors: layer.stride() / LANES,
                    depth: next - slot,
                    from_zero: false,
                }
                .run(simd);
            }
            (slot, ahead) = (next, null());
        }
    }

    /// Divides by the sums of weights and writes the outputs.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S) {
        let (stride, head_dim) = (self.block.sight.layer.stride(), self.block.sight.spec.head_dim);
        for column in self.columns(self.start, self.end) {
            let total = simd.splat(self.scratch.totals[column]);
            let place = self.place(column);
            // SAFETY: a (row, query head) pair belongs to one block.
            let out = unsafe { self.block.out.range(place.start, place.end) };
            let sums = &self.scratch.sums[column * stride..][..head_dim];
            for (o, sum) in out.chunks_mut(LANES).zip(sums.chunks(LANES)) {
                store(simd, o, simd.div(load(simd, sum), total));
            }
        }
    }
}
