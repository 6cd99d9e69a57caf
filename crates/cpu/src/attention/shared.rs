//! Attention of a few rows over long sequences, shared among threads inside a row.
//!
//! A row alone has no more work items in [`super::block`] than heads of keys and values: one or two, while threads wait. But
//! the canonical order is only an order of sums. So a row goes in three regions: scores, shared by pages, for which each is
//! a chain of its own; weights, shared by query heads, page after page; and sums of values, shared by features, each of
//! which is a chain over all tokens. Every number is made by the same operations in the same order as in a block, so
//! which way is taken moves no bit.

use std::{marker::PhantomData, ops::Range, ptr::null, sync::Arc};

use tessera_ops::PAGE_TOKENS;

use super::{
    chain::Chain,
    sight::Sight,
    softmax::{Softmax, weigh_page},
};
use crate::{
    isa::Kernel,
    kv::cells::{Cells, Operand},
    lanes::{Workers, load, map_lanes, store},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// Vectors of features that a work item of the third region takes at most: what a chain holds in registers at once.
const VECTORS_MAX: usize = 4;

/// One row, and the memory of its regions.
pub(super) struct Row<'a> {
    sight: Sight<'a>,
    sinks: Option<&'a [f32]>,
    row: usize,
    /// The pages with a visible key.
    pages: Range<usize>,
    /// (heads, stride) scaled queries
    queries: &'a [f32],
    /// (heads, pages · 64) scores, then weights
    weights: SharedSlice<'a, f32>,
    /// (heads, pages) factors on sums from earlier pages
    factors: SharedSlice<'a, f32>,
    /// (heads) sums of weights
    totals: SharedSlice<'a, f32>,
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
    let mut scaled = pool.take(heads, stride);
    for (scaled, query) in
        scaled.as_mut_slice().chunks_exact_mut(stride).zip(queries.row(row).chunks_exact(spec.head_dim))
    {
        scaled[..spec.head_dim].iter_mut().zip(query).for_each(|(s, q)| *s = q * spec.scale);
        scaled[spec.head_dim..].fill(0.0);
    }
    let mut weights = pool.take(heads, pages.len() * PAGE_TOKENS);
    let mut factors = pool.take(heads, pages.len());
    let (mut totals, mut sums) = (pool.take(1, heads), pool.take(heads, stride));
    sums.as_mut_slice().fill(0.0);
    let this = Row {
        sight,
        sinks,
        row,
        queries: scaled.as_slice(),
        weights: SharedSlice::new(weights.as_mut_slice()),
        factors: SharedSlice::new(factors.as_mut_slice()),
        totals: SharedSlice::new(totals.as_mut_slice()),
        sums: SharedSlice::new(sums.as_mut_slice()),
        out: SharedSlice::new(out),
        pages,
    };
    let numbers = sight.positions(row).len() * heads * stride;
    let run = |phase: Phase, items: usize| {
        workers.items(items, numbers, |from, to| {
            workers.isa.run(Part::<C> { row: &this, phase, from, to, cells: PhantomData });
        });
    };
    run(Phase::Scores, spec.kv_heads * this.pages.len());
    run(Phase::Weights, heads);
    let vectors = vectors_of_item(stride / LANES, spec.kv_heads, workers.pool.count());
    run(Phase::Sums(vectors), spec.kv_heads * (stride / LANES).div_ceil(vectors));
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
                Phase::Scores => self.row.score::<S, C>(simd, item, item + 1 < self.to),
                Phase::Weights => self.row.weigh(simd, item),
                Phase::Sums(vectors) => self.row.sum::<S, C>(simd, item, vectors),
            }
        }
    }
}

impl Row<'_> {
    /// Numbers from a query head's weights to the next's.
    fn weights_stride(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }

    #[inline(always)]
    fn score<S: Simd, C: Cells>(&self, simd: S, item: usize, has_next: bool) {
        let place = |item: usize| (item / self.pages.len(), self.pages.start + item % self.pages.len());
        let keys = |(kv_head, page): (usize, usize)| self.sight.keys::<C>(self.row, page, kv_head);
        let (kv_head, page) = place(item);
        let (slots, group) = (self.sight.slots(self.row, page), self.sight.spec.group());
        let first = slots.start / LANES;
        let at = kv_head * group * self.weights_stride() + (page - self.pages.start) * PAGE_TOKENS + first * LANES;
        // SAFETY: queries are (heads, stride), a page's keys (head_dim, 64), weights (heads, pages · 64); items write pages of
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
            .run(simd);
        }
    }

    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, head: usize) {
        let mut state = self.sinks.map(|sinks| Softmax::of_sink(sinks[head]));
        for page in self.pages.clone() {
            let index = page - self.pages.start;
            let at = head * self.weights_stride() + index * PAGE_TOKENS;
            // SAFETY: a query head belongs to one item.
            let (scores, factor) = unsafe {
                let factor = head * self.pages.len() + index;
                (self.weights.range(at, at + PAGE_TOKENS), self.factors.range(factor, factor + 1))
            };
            let (now, keep) =
                weigh_page(simd, scores, self.sight.slots(self.row, page), state, self.sight.spec.soft_cap);
            (state, factor[0]) = (Some(now), keep);
        }
        // SAFETY: as above.
        unsafe { self.totals.range(head, head + 1)[0] = state.map_or(0.0, |s| s.total) };
    }

    #[inline(always)]
    fn sum<S: Simd, C: Cells>(&self, simd: S, item: usize, vectors: usize) {
        let (stride, group) = (self.sight.layer.stride(), self.sight.spec.group());
        let items = (stride / LANES).div_ceil(vectors);
        let (kv_head, vector) = (item / items, item % items * vectors);
        let vectors = vectors.min(stride / LANES - vector);
        for page in self.pages.clone() {
            let index = page - self.pages.start;
            if page + 1 < self.pages.end {
                let next = self.sight.values::<C>(self.row, page + 1, kv_head);
                for slot in 0..PAGE_TOKENS {
                    (0..vectors).step_by(2).for_each(|v| simd.prefetch(next.address(slot, vector + v)));
                }
            }
            let slots = self.sight.slots(self.row, page);
            let values = self.sight.values::<C>(self.row, page, kv_head);
            let head = kv_head * group;
            // SAFETY: weights are (heads, pages · 64) and factors (heads, pages), which nobody writes in this region; sums are
            // (heads, stride), of which these vectors are this item's; a page's values are (64, stride).
            unsafe {
                for head in head..head + group {
                    let keep = self.factors.as_ptr().add(head * self.pages.len() + index).read();
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
                .run(simd);
            }
        }
        self.finish(simd, kv_head, vector..vector + vectors);
    }

    /// Divides by the sums of weights and writes the outputs of some vectors.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, kv_head: usize, vectors: Range<usize>) {
        let (stride, head_dim, group) = (self.sight.layer.stride(), self.sight.spec.head_dim, self.sight.spec.group());
        for head in kv_head * group..(kv_head + 1) * group {
            for first in vectors.clone().map(|v| v * LANES) {
                let end = head_dim.min(first + LANES);
                // SAFETY: these features of these heads are this item's, and totals are not written in this region.
                unsafe {
                    let total = simd.splat(self.totals.as_ptr().add(head).read());
                    let sums = self.sums.range(head * stride + first, head * stride + end);
                    let out = self.out.range(head * head_dim + first, head * head_dim + end);
                    store(simd, out, simd.div(load(simd, sums), total));
                }
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
