//! Attention over latent rows: keys that are values, one head of them for all query heads.
//!
//! An item of work is a row and some of its heads. It goes through the row's pages: what the row sees of one is widened into a
//! panel (keys, head_dim) once, and serves as the first operand of scores, whose lanes are heads, and as the second of
//! sums, whose lanes are features. So a panel never has to be turned, and is read for all of the item's heads.

use std::{
    ops::Range,
    ptr::null,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tessera_ops::{Batch, KvEntry, LatentAttention, PAGE_TOKENS, latent::complete_rows, reference::softmax::Softmax};

use super::{
    chain::Chain,
    index::Selection,
    softmax::{begin, finish, weigh_row},
};
use crate::{
    isa::{Isa, Kernel},
    kv::{KvPages, cells, rows::Rows},
    lanes::{Workers, map_lanes},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// Attention of all rows.
#[allow(clippy::too_many_arguments)] // the op's own, and what a device computes with
pub(crate) fn attend(
    workers: &Workers,
    pool: &Arc<Pool>,
    queries: &Tensor,
    cache: &KvPages,
    spec: &LatentAttention,
    selection: Option<&Selection>,
    sinks: &[f32],
    batch: &Batch,
) -> Tensor {
    spec.check(|entry| cache.entry(entry), batch, (queries.rows(), queries.width()), sinks.len());
    let (rows, threads) = (queries.rows(), workers.pool.count());
    let mut y = pool.take(rows, queries.width());
    // Where there are fewer rows than threads, a row's heads are shared out.
    let vectors = spec.heads.div_ceil(LANES).max(1);
    let part = vectors.div_ceil(threads.div_ceil(rows.max(1)).min(vectors)) * LANES;
    let parts = spec.heads.div_ceil(part);
    let room = Room { heads: part, stride: cache.rows(spec.entry).stride(), head_dim: spec.head_dim };
    let mut scratch = pool.take(threads, room.len());
    let (scratch, out) = (SharedSlice::new(scratch.as_mut_slice()), SharedSlice::new(y.as_mut_slice()));
    let next = AtomicUsize::new(0);
    workers.pool.run(&|share, _| {
        // SAFETY: each share has scratch of its own.
        let scratch = unsafe { scratch.range(share * room.len(), (share + 1) * room.len()) };
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= rows * parts {
                return;
            }
            // The last rows see the most: first come, first served.
            let (row, first) = (rows - 1 - item / parts, item % parts * part);
            let heads = first..spec.heads.min(first + part);
            let at = row * queries.width();
            // SAFETY: no other item has these heads of this row.
            let out = unsafe { out.range(at + heads.start * spec.head_dim, at + heads.end * spec.head_dim) };
            let query = &queries.row(row)[heads.start * spec.head_dim..heads.end * spec.head_dim];
            let list = selection.map(|s| s.row(row));
            let sinks = &sinks[heads];
            workers.isa.run(Item { isa: workers.isa, cache, spec, batch, row, list, query, sinks, room, scratch, out });
        }
    });
    y
}

/// The shape of an item's scratch.
#[derive(Clone, Copy)]
struct Room {
    /// Heads of an item, whole vectors.
    heads: usize,
    stride: usize,
    head_dim: usize,
}

impl Room {
    fn len(self) -> usize {
        let Room { heads, stride, head_dim } = self;
        heads * head_dim + PAGE_TOKENS * stride + 2 * PAGE_TOKENS * heads + heads * (stride + 2)
    }

    fn split(self, scratch: &mut [f32]) -> Parts<'_> {
        let Room { heads, stride, head_dim } = self;
        let (queries, rest) = scratch.split_at_mut(heads * head_dim);
        let (panel, rest) = rest.split_at_mut(PAGE_TOKENS * stride);
        let (scores, rest) = rest.split_at_mut(PAGE_TOKENS * heads);
        let (weights, rest) = rest.split_at_mut(PAGE_TOKENS * heads);
        let (sums, states) = rest.split_at_mut(heads * stride);
        Parts { queries, panel, scores, weights, sums, states }
    }
}

struct Parts<'a> {
    /// (head_dim, heads) queries, scaled
    queries: &'a mut [f32],
    /// (keys, stride)
    panel: &'a mut [f32],
    /// (keys, heads)
    scores: &'a mut [f32],
    /// (heads, 64)
    weights: &'a mut [f32],
    /// (heads, stride)
    sums: &'a mut [f32],
    /// (heads, 2) what is known of the softmax
    states: &'a mut [f32],
}

/// Some heads of a row.
struct Item<'a> {
    isa: Isa,
    cache: &'a KvPages,
    spec: &'a LatentAttention,
    batch: &'a Batch,
    row: usize,
    /// The compressed rows that are seen, where not all are.
    list: Option<&'a [u32]>,
    /// (heads, head_dim)
    query: &'a [f32],
    /// (heads)
    sinks: &'a [f32],
    room: Room,
    scratch: &'a mut [f32],
    /// (heads, head_dim)
    out: &'a mut [f32],
}

impl Kernel for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Item { isa, cache, spec, batch, row, list, query, sinks, room, scratch, out } = self;
        let parts = room.split(scratch);
        parts.queries.fill(0.0);
        for (head, query) in query.chunks_exact(spec.head_dim).enumerate() {
            for (feature, v) in query.iter().enumerate() {
                parts.queries[feature * room.heads + head] = v * spec.scale;
            }
        }
        parts.sums.fill(0.0);
        for (state, sink) in parts.states.chunks_exact_mut(2).zip(sinks) {
            let Softmax { highest, total } = begin(Some(*sink));
            state.copy_from_slice(&[highest, total]);
        }
        let mut fold = Fold { isa, room, heads: sinks.len(), parts };

        let (raw, position) = (cache.rows(spec.entry), batch.positions[row] as usize);
        let seen = spec.raw(position);
        for page in seen.start / PAGE_TOKENS..seen.end.div_ceil(PAGE_TOKENS) {
            let first = page * PAGE_TOKENS;
            let slots = seen.start.max(first) - first..seen.end.min(first + PAGE_TOKENS) - first;
            let id = batch.page(row, page, raw.kind().ring_pages());
            for (to, slot) in fold.parts.panel.chunks_exact_mut(room.stride).zip(slots.clone()) {
                raw.widen(simd, id, slot, to);
            }
            fold.page(simd, slots);
        }
        if let Some(compressed) = spec.compressed {
            let (rows, all) = (cache.rows(compressed.entry), complete_rows(position, compressed.ratio));
            let count = list.map_or(all, <[u32]>::len);
            for first in (0..count).step_by(PAGE_TOKENS) {
                let places = first..count.min(first + PAGE_TOKENS);
                for (to, place) in fold.parts.panel.chunks_exact_mut(room.stride).zip(places.clone()) {
                    let index = list.map_or(place, |list| list[place] as usize);
                    widen_compressed(simd, rows, batch, row, compressed.ratio, index, to);
                }
                fold.page(simd, 0..places.len());
            }
        }
        fold.finish(simd, spec.head_dim, out);
    }
}

/// Widens row `index` of compressed rows into `to`.
#[inline(always)]
pub(super) fn widen_compressed<S: Simd>(
    simd: S,
    rows: &Rows,
    batch: &Batch,
    row: usize,
    ratio: usize,
    index: usize,
    to: &mut [f32],
) {
    let (page, slot) = KvEntry::compressed_place(ratio, index);
    rows.widen(simd, batch.page(row, page, None), slot, to);
}

/// What pages are folded into.
struct Fold<'a> {
    isa: Isa,
    room: Room,
    /// Heads that there are.
    heads: usize,
    parts: Parts<'a>,
}

impl Fold<'_> {
    /// Folds the keys in the panel, which stand in these slots of their page.
    #[inline(always)]
    fn page<S: Simd>(&mut self, simd: S, slots: Range<usize>) {
        let (Room { heads: padded, stride, head_dim }, parts) = (self.room, &mut self.parts);
        let scores = Chain {
            a: parts.panel.as_ptr(),
            a_stride: stride,
            b: cells::Rows { start: parts.queries.as_ptr(), stride: padded },
            b_from: (0, 0),
            c: parts.scores.as_mut_ptr(),
            c_stride: padded,
            columns: slots.len(),
            vectors: padded / LANES,
            depth: head_dim,
            ahead: null(),
            from_zero: true,
        };
        // SAFETY: the panel has 64 rows of `stride`, at least head_dim; queries are (head_dim, padded) and scores (64, padded).
        unsafe { scores.run(self.isa) };
        let states = parts.states.chunks_exact_mut(2).zip(parts.sums.chunks_exact_mut(stride));
        for (head, (state, sums)) in states.take(self.heads).enumerate() {
            let weights = &mut parts.weights[head * PAGE_TOKENS..][..PAGE_TOKENS];
            for (key, slot) in slots.clone().enumerate() {
                weights[slot] = parts.scores[key * padded + head];
            }
            let mut factor = [0.0];
            let before = Softmax { highest: state[0], total: state[1] };
            let now = weigh_row(simd, weights, &mut factor, &slots, before, None);
            state.copy_from_slice(&[now.highest, now.total]);
            let factor = simd.splat(factor[0]);
            map_lanes!(simd, sums, |v| simd.mul(v, factor));
        }
        let sums = Chain {
            a: parts.weights[slots.start..].as_ptr(),
            a_stride: PAGE_TOKENS,
            b: cells::Rows { start: parts.panel.as_ptr(), stride },
            b_from: (0, 0),
            c: parts.sums.as_mut_ptr(),
            c_stride: stride,
            columns: self.heads,
            vectors: stride / LANES,
            depth: slots.len(),
            ahead: null(),
            from_zero: false,
        };
        // SAFETY: weights are (heads, 64), of which the slots begin at `slots.start`; sums are (heads, stride).
        unsafe { sums.run(self.isa) };
    }

    /// The outputs, (heads, head_dim).
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, head_dim: usize, out: &mut [f32]) {
        let parts = &self.parts;
        let sums = parts.sums.chunks_exact(self.room.stride).zip(parts.states.chunks_exact(2));
        for (out, (sums, state)) in out.chunks_exact_mut(head_dim).zip(sums) {
            finish(simd, &sums[..head_dim], state[1], out);
        }
    }
}
