//! Attention of a few rows over long sequences, shared among threads inside a row.
//!
//! A row alone has no more work items in [`super::block`] than heads of keys and values: one or two, while threads wait. But
//! the canonical order is only an order of sums. So a row goes in three regions: scores, shared by pages, for which each is
//! a chain of its own; weights, shared by query heads, page after page; and sums of values, shared by features, each of
//! which is a chain over all tokens. Every number is made by the same operations in the same order as in a block, so
//! which way is taken moves no bit. A long sequence goes in tiles of [`TILE_PAGES`] pages, so that the scores take bounded
//! memory: heads · 32 KiB.

use std::{marker::PhantomData, ops::Range, ptr::null, sync::Arc};

use tessera_ops::{PAGE_TOKENS, reference::softmax::Softmax};

use super::{
    chain::Chain,
    sight::Sight,
    softmax::{begin, finish, weigh_row},
};
use crate::{
    isa::{Isa, Kernel},
    kv::cells::{Cells, Operand},
    lanes::{Workers, map_lanes},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// Pages that go through the three regions together.
const TILE_PAGES: usize = 128;

/// Vectors of features that a work item of the third region takes at most: what a chain holds in registers at once.
const VECTORS_MAX: usize = 4;

/// One row, and the memory of its regions.
struct Row<'a> {
    isa: Isa,
    sight: Sight<'a>,
    row: usize,
    /// All pages with a visible key, and those that go together now.
    pages: Range<usize>,
    tile: Range<usize>,
    /// (heads, stride) scaled queries
    queries: &'a [f32],
    /// (heads, tile pages · 64) scores, then weights
    weights: SharedSlice<'a, f32>,
    /// (heads, tile pages) factors on sums from earlier pages
    factors: SharedSlice<'a, f32>,
    /// (heads, 2) the highest score so far and the sum of weights relative to it
    states: SharedSlice<'a, f32>,
    /// (heads, stride) sums of values
    sums: SharedSlice<'a, f32>,
    /// (heads · head_dim)
    out: SharedSlice<'a, f32>,
}

/// Computes a row into `out` (heads · head_dim).
pub(super) fn attend<C: Cells>(
    workers: &Workers,
    pool: &Arc<Pool>,
    sight: Sight<'_>,
    sinks: Option<&[f32]>,
    queries: &Tensor,
    row: usize,
    out: &mut [f32],
) {
    let (spec, pages) = (sight.spec, sight.pages(row));
    let (heads, stride) = (spec.heads, sight.layer.stride());
    let numbers = sight.positions(row).len() * heads * stride;
    let is_tree = sight.batch.is_tree(row);
    let mut tail = pool.take(spec.kv_heads, if is_tree { sight.tail_len() } else { 0 });
    let sight = if is_tree { sight.of_tree(row, 0..spec.kv_heads, tail.as_mut_slice()) } else { sight };
    if is_tree {
        workers.items(spec.kv_heads, numbers, |from, to| {
            // SAFETY: each head belongs to one share, the tail lives until the row is done, the cache is one of `C`.
            (from..to).for_each(|kv_head| unsafe { sight.gather::<C>(row, kv_head) });
        });
    }
    let mut scaled = pool.take(heads, stride);
    let all = scaled.as_mut_slice().chunks_exact_mut(stride).zip(queries.row(row).chunks_exact(spec.head_dim));
    for (scaled, query) in all {
        scaled[..spec.head_dim].iter_mut().zip(query).for_each(|(s, q)| *s = q * spec.scale);
        scaled[spec.head_dim..].fill(0.0);
    }
    let tile_pages = pages.len().min(TILE_PAGES);
    let mut weights = pool.take(heads, tile_pages * PAGE_TOKENS);
    let mut factors = pool.take(heads, tile_pages);
    let (mut states, mut sums) = (pool.take(heads, 2), pool.take(heads, stride));
    sums.as_mut_slice().fill(0.0);
    for (head, state) in states.as_mut_slice().as_chunks_mut().0.iter_mut().enumerate() {
        let Softmax { highest, total } = begin(sinks.map(|sinks| sinks[head]));
        *state = [highest, total];
    }
    let mut this = Row {
        isa: workers.isa,
        sight,
        row,
        queries: scaled.as_slice(),
        weights: SharedSlice::new(weights.as_mut_slice()),
        factors: SharedSlice::new(factors.as_mut_slice()),
        states: SharedSlice::new(states.as_mut_slice()),
        sums: SharedSlice::new(sums.as_mut_slice()),
        out: SharedSlice::new(out),
        tile: pages.start..pages.start,
        pages,
    };
    let vectors = vectors_of_item(stride / LANES, spec.kv_heads, workers.pool.count());
    while this.tile.end < this.pages.end {
        this.tile = this.tile.end..this.pages.end.min(this.tile.end + TILE_PAGES);
        let this = &this;
        let run = |phase: Phase, items: usize| {
            workers.items(items, numbers, |from, to| {
                workers.isa.run(Part::<C> { row: this, phase, from, to, cells: PhantomData });
            });
        };
        run(Phase::Scores, spec.kv_heads * this.tile.len());
        run(Phase::Weights, heads);
        run(Phase::Sums(vectors), spec.kv_heads * (stride / LANES).div_ceil(vectors));
    }
}

/// The most vectors for an item that give every thread as many items.
fn vectors_of_item(vectors: usize, kv_heads: usize, threads: usize) -> usize {
    let fair = |each: &usize| (kv_heads * vectors.div_ceil(*each)).is_multiple_of(threads);
    [VECTORS_MAX, VECTORS_MAX / 2].into_iter().find(fair).unwrap_or(1)
}

#[derive(Clone, Copy)]
enum Phase {
    /// Items are pages of a head of keys.
    Scores,
    /// Items are query heads.
    Weights,
    /// Items are so many vectors of features of a head of values.
    Sums(usize),
}

/// Some items of a region.
struct Part<'a, C> {
    row: &'a Row<'a>,
    phase: Phase,
    from: usize,
    to: usize,
    cells: PhantomData<C>,
}

impl<C: Cells> Kernel for Part<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for item in self.from..self.to {
            match self.phase {
                Phase::Scores => self.row.score::<C>(item, item + 1 < self.to),
                Phase::Weights => self.row.weigh(simd, item),
                Phase::Sums(vectors) => self.row.sum::<S, C>(simd, item, vectors),
            }
        }
    }
}

impl Row<'_> {
    /// Numbers from a query head's weights to the next's.
    fn weights_stride(&self) -> usize {
        self.pages.len().min(TILE_PAGES) * PAGE_TOKENS
    }

    /// Numbers from a query head's factors to the next's.
    fn factors_stride(&self) -> usize {
        self.pages.len().min(TILE_PAGES)
    }

    #[inline(always)]
    fn score<C: Cells>(&self, item: usize, has_next: bool) {
        let place = |item: usize| (item / self.tile.len(), self.tile.start + item % self.tile.len());
        let keys = |(kv_head, page): (usize, usize)| self.sight.keys::<C>(self.row, page, kv_head);
        let (kv_head, page) = place(item);
        let (slots, group) = (self.sight.slots(self.row, page), self.sight.spec.group());
        let first = slots.start / LANES;
        let at = kv_head * group * self.weights_stride() + (page - self.tile.start) * PAGE_TOKENS + first * LANES;
        // SAFETY: queries are (heads, stride), a page's keys (head_dim, 64), weights (heads, tile pages · 64); items write pages of
        // their own.
        unsafe {
            Chain {
                a: self.queries[kv_head * group * self.sight.layer.stride()..].as_ptr(),
                a_stride: self.sight.layer.stride(),
                b: keys((kv_head, page)),
                b_from: (0, first),
                ahead: if has_next { keys(place(item + 1)).address(0, 0) } else { null() },
                c: self.weights.as_ptr().add(at),
                c_stride: self.weights_stride(),
                columns: group,
                vectors: slots.end.div_ceil(LANES) - first,
                depth: self.sight.layer.head_dim,
                from_zero: true,
            }
            .run(self.isa);
        }
    }

    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, head: usize) {
        let (seen, first) = (self.sight.positions(self.row), self.tile.start * PAGE_TOKENS);
        let visible = seen.start.saturating_sub(first)..seen.end.saturating_sub(first);
        let (at, factor) = (head * self.weights_stride(), head * self.factors_stride());
        // SAFETY: a query head belongs to one item.
        let (scores, factors, state) = unsafe {
            (
                self.weights.range(at, at + self.tile.len() * PAGE_TOKENS),
                self.factors.range(factor, factor + self.tile.len()),
                self.states.range(2 * head, 2 * head + 2),
            )
        };
        let before = Softmax { highest: state[0], total: state[1] };
        let now = weigh_row(simd, scores, factors, &visible, before, self.sight.spec.soft_cap);
        state.copy_from_slice(&[now.highest, now.total]);
    }

    #[inline(always)]
    fn sum<S: Simd, C: Cells>(&self, simd: S, item: usize, vectors: usize) {
        let (stride, group) = (self.sight.layer.stride(), self.sight.spec.group());
        let items = (stride / LANES).div_ceil(vectors);
        let (kv_head, vector) = (item / items, item % items * vectors);
        let vectors = vectors.min(stride / LANES - vector);
        for page in self.tile.clone() {
            let index = page - self.tile.start;
            if page + 1 < self.tile.end {
                let next = self.sight.values::<C>(self.row, page + 1, kv_head);
                for slot in 0..PAGE_TOKENS {
                    (0..vectors).step_by(2).for_each(|v| simd.prefetch(next.address(slot, vector + v)));
                }
            }
            let slots = self.sight.slots(self.row, page);
            let values = self.sight.values::<C>(self.row, page, kv_head);
            let head = kv_head * group;
            // SAFETY: weights are (heads, tile pages · 64) and factors (heads, tile pages), which nobody writes in this region; sums are
            // (heads, stride), of which these vectors are this item's; a page's values are (64, stride).
            unsafe {
                for head in head..head + group {
                    let keep = self.factors.as_ptr().add(head * self.factors_stride() + index).read();
                    // A factor of one changes no bit.
                    if keep != 1.0 {
                        let (factor, at) = (simd.splat(keep), head * stride + vector * LANES);
                        map_lanes!(simd, self.sums.range(at, at + vectors * LANES), |o| simd.mul(o, factor));
                    }
                }
                Chain {
                    a: self.weights.as_ptr().add(head * self.weights_stride() + index * PAGE_TOKENS + slots.start),
                    a_stride: self.weights_stride(),
                    b: values,
                    b_from: (slots.start, vector),
                    ahead: null(),
                    c: self.sums.as_ptr().add(head * stride + vector * LANES),
                    c_stride: stride,
                    columns: group,
                    vectors,
                    depth: slots.len(),
                    from_zero: false,
                }
                .run(self.isa);
            }
        }
        if self.tile.end == self.pages.end {
            self.scatter(simd, kv_head, vector..vector + vectors);
        }
    }

    /// Divides by the sums of weights and writes the outputs of some vectors.
    #[inline(always)]
    fn scatter<S: Simd>(&self, simd: S, kv_head: usize, vectors: Range<usize>) {
        let (stride, head_dim, group) = (self.sight.layer.stride(), self.sight.spec.head_dim, self.sight.spec.group());
        let (first, end) = (vectors.start * LANES, head_dim.min(vectors.end * LANES));
        for head in kv_head * group..(kv_head + 1) * group {
            // SAFETY: these features of these heads are this item's, and states are not written in this region.
            unsafe {
                let total = self.states.as_ptr().add(2 * head + 1).read();
                let sums = self.sums.range(head * stride + first, head * stride + end);
                finish(simd, sums, total, self.out.range(head * head_dim + first, head * head_dim + end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_shared_evenly_where_they_can_be() {
        for (vectors, kv_heads, threads, expect) in
            [(4, 3, 2, 2), (16, 1, 2, 4), (4, 1, 2, 2), (1, 1, 2, 1), (5, 1, 2, 4), (8, 2, 4, 4), (3, 1, 4, 1)]
        {
            assert_eq!(vectors_of_item(vectors, kv_heads, threads), expect, "{vectors} {kv_heads} {threads}");
        }
    }
}
