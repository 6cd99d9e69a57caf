//! The choice of compressed rows by an indexer's scores.
//!
//! An item of work is a row and a few blocks of 64 keys: a block is widened into a panel and multiplied with the row's queries, whose
//! lanes are heads; then 16 keys at a time are lanes of the chain over heads. The highest of a row's scores are chosen when
//! all are there. Scores of a long context are many, so rows are taken in chunks whose scores fit into a fixed room.

use std::{
    ptr::null,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tessera_ops::{
    Batch, PAGE_TOKENS, Selector,
    latent::{complete_rows, select_rows},
};

use super::{chain::Chain, latent::widen_compressed};
use crate::{
    isa::{Isa, Kernel},
    kv::{KvPages, cells},
    lanes::Workers,
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// Keys of a block.
const BLOCK: usize = PAGE_TOKENS;

/// Blocks of an item.
const ITEM_BLOCKS: usize = 4;

/// Scores of a chunk of rows are no more than this, as long as one row's are not.
const SCORES_MAX: usize = 4 << 20;

/// Lists that serve one step after another.
#[derive(Default)]
struct Lists {
    /// All rows' lists, one after another.
    rows: Vec<u32>,
    /// Where each row's list ends.
    ends: Vec<usize>,
    /// The order of a row's scores, for each thread.
    orders: Vec<Mutex<Vec<u32>>>,
}

/// The free lists of a device.
#[derive(Default)]
pub(crate) struct SelectionPool(Mutex<Vec<Lists>>);

/// For each row of a step the compressed rows that it attends to, ascending.
pub struct Selection {
    lists: Lists,
    pool: Arc<SelectionPool>,
}

impl Selection {
    /// A row's list.
    pub(crate) fn row(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.lists.ends[row - 1] };
        &self.lists.rows[start..self.lists.ends[row]]
    }

    /// Copies all lists.
    pub(crate) fn read(&self, rows: &mut Vec<Vec<u32>>) {
        rows.clear();
        rows.extend((0..self.lists.ends.len()).map(|row| self.row(row).to_vec()));
    }
}

impl Drop for Selection {
    fn drop(&mut self) {
        let lists = std::mem::take(&mut self.lists);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(lists);
    }
}

/// Chooses for all rows.
#[allow(clippy::too_many_arguments)] // the op's own, and what a device computes with
pub(crate) fn select(
    workers: &Workers,
    pool: &Arc<Pool>,
    free: &Arc<SelectionPool>,
    queries: &Tensor,
    head_weights: &Tensor,
    cache: &KvPages,
    selector: &Selector,
    batch: &Batch,
) -> Selection {
    let shape = |x: &Tensor| (x.rows(), x.width());
    selector.check(cache.entry(selector.entry), batch, shape(queries), shape(head_weights));
    let Selector { top_k, ratio, .. } = *selector;
    let lists = free.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    let mut selection = Selection { lists, pool: free.clone() };
    let complete = |row: usize| complete_rows(batch.positions[row] as usize, ratio);
    let Lists { rows, ends, orders } = &mut selection.lists;
    rows.clear();
    ends.clear();
    for row in 0..batch.len() {
        rows.extend(0..complete(row).min(top_k) as u32);
        ends.push(rows.len());
    }
    orders.resize_with(workers.pool.count(), Mutex::default);

    let most = (0..batch.len()).map(complete).max().unwrap_or(0);
    if most <= top_k {
        return selection;
    }
    let blocks = most.div_ceil(BLOCK);
    let chunk = (SCORES_MAX / (blocks * BLOCK)).max(1);
    for first in (0..batch.len()).step_by(chunk) {
        let count = chunk.min(batch.len() - first);
        let step = Step { workers, queries, head_weights, cache, selector, batch, first, blocks };
        let mut scores = pool.take(count, blocks * BLOCK);
        step.score(pool, count, &mut scores);
        let next = AtomicUsize::new(0);
        let lists = SharedSlice::new(rows.as_mut_slice());
        let (ends, orders) = (&*ends, &*orders);
        workers.pool.run(&|share, _| {
            let mut order = orders[share].lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                if complete(first + at) > top_k {
                    select_rows(&scores.row(at)[..complete(first + at)], top_k, &mut order);
                    let end = ends[first + at];
                    // SAFETY: each row's list is its own.
                    unsafe { lists.range(end - top_k, end) }.copy_from_slice(&order);
                }
            }
        });
    }
    selection
}

/// A chunk of rows, from `first` on, none of which sees more than so many blocks.
struct Step<'a> {
    workers: &'a Workers,
    queries: &'a Tensor,
    head_weights: &'a Tensor,
    cache: &'a KvPages,
    selector: &'a Selector,
    batch: &'a Batch,
    first: usize,
    blocks: usize,
}

impl Step<'_> {
    /// The scores of `count` rows, for those that see more than are selected.
    fn score(&self, pool: &Arc<Pool>, count: usize, scores: &mut Tensor) {
        let Selector { entry, heads, head_dim, .. } = *self.selector;
        let (threads, padded) = (self.workers.pool.count(), heads.next_multiple_of(LANES));
        let mut turned = pool.take(count, head_dim * padded);
        self.workers.runs(turned.as_mut_slice(), head_dim * padded, |first, turned| {
            for (row, turned) in turned.chunks_exact_mut(head_dim * padded).enumerate() {
                turned.fill(0.0);
                for (head, query) in self.queries.row(self.first + first + row).chunks_exact(head_dim).enumerate() {
                    for (feature, v) in query.iter().enumerate() {
                        turned[feature * padded + head] = *v;
                    }
                }
            }
        });
        let stride = self.cache.rows(entry).stride();
        let room = BLOCK * (stride + padded) + padded;
        let mut scratch = pool.take(threads, room);
        let (width, runs) = (scores.width(), self.blocks.div_ceil(ITEM_BLOCKS));
        let (scratch, out) = (SharedSlice::new(scratch.as_mut_slice()), SharedSlice::new(scores.as_mut_slice()));
        let next = AtomicUsize::new(0);
        self.workers.pool.run(&|share, _| {
            // SAFETY: each share has scratch of its own.
            let scratch = unsafe { scratch.range(share * room, (share + 1) * room) };
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= count * runs {
                    return;
                }
                let (row, from) = (item / runs, item % runs * ITEM_BLOCKS * BLOCK);
                let row_at = self.first + row;
                let complete = complete_rows(self.batch.positions[row_at] as usize, self.selector.ratio);
                let end = complete.min(from + ITEM_BLOCKS * BLOCK);
                if complete <= self.selector.top_k || from >= end {
                    continue;
                }
                // SAFETY: no other item has these scores of this row.
                let out = unsafe { out.range(row * width + from, row * width + end) };
                let isa = self.workers.isa;
                isa.run(Item { isa, step: self, row: row_at, from, queries: turned.row(row), scratch, out });
            }
        });
    }
}

/// The scores of a row and some keys.
struct Item<'a> {
    isa: Isa,
    step: &'a Step<'a>,
    row: usize,
    /// The first key.
    from: usize,
    /// (head_dim, padded heads)
    queries: &'a [f32],
    scratch: &'a mut [f32],
    /// (keys)
    out: &'a mut [f32],
}

impl Kernel for Item<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Item { isa, step, row, from, queries, scratch, out } = self;
        let Selector { entry, ratio, heads, head_dim, scale, .. } = *step.selector;
        let (keys, padded) = (step.cache.rows(entry), heads.next_multiple_of(LANES));
        let stride = keys.stride();
        let (panel, rest) = scratch.split_at_mut(BLOCK * stride);
        let (dots, weights) = rest.split_at_mut(BLOCK * padded);
        for (to, weight) in weights.iter_mut().zip(step.head_weights.row(row)) {
            *to = weight * scale;
        }
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            for (key, to) in panel.chunks_exact_mut(stride).take(out.len()).enumerate() {
                widen_compressed(simd, keys, step.batch, row, ratio, from + block * BLOCK + key, to);
            }
            let chain = Chain {
                a: panel.as_ptr(),
                a_stride: stride,
                b: cells::Rows { start: queries.as_ptr(), stride: padded },
                b_from: (0, 0),
                c: dots.as_mut_ptr(),
                c_stride: padded,
                columns: out.len(),
                vectors: padded / LANES,
                depth: head_dim,
                ahead: null(),
                from_zero: true,
            };
            // SAFETY: the panel has 64 rows of `stride`, at least head_dim; queries are (head_dim, padded), dots (64, padded).
            unsafe { chain.run(isa) };
            for (lanes, out) in dots.chunks_exact(LANES * padded).zip(out.chunks_mut(LANES)) {
                let (zero, mut sum) = (simd.splat(0.0), simd.splat(0.0));
                for (head, weight) in weights[..heads].iter().enumerate() {
                    let mut keys = [0.0; LANES];
                    for (lane, key) in keys.iter_mut().enumerate() {
                        *key = lanes[lane * padded + head];
                    }
                    let dot = simd.load(&keys);
                    // NaN is not less than zero, and stays.
                    sum = simd.fma(simd.select_less(dot, zero, zero, dot), simd.splat(*weight), sum);
                }
                let mut keys = [0.0; LANES];
                simd.store(&mut keys, sum);
                out.copy_from_slice(&keys[..out.len()]);
            }
        }
    }
}
