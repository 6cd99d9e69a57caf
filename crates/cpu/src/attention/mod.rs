//! Causal softmax attention over pages, in the canonical order of [`tessera_ops::numerics`].
//!
//! (row, query head) pairs that share a head of keys and values are *columns*: one read of a page serves them all. Scores of a
//! page are a small matrix product (columns × 64 tokens), and so is the weighted sum of values (columns × head_dim); both run
//! in [`chain`]. There are four ways to cut the work ([`select`]); which is taken, how rows are cut into blocks and which
//! thread takes which changes no bit. Threads simply take the next block, the longest first.

mod block;
mod chain;
mod dense;
mod index;
mod latent;
mod run;
pub mod select;
mod shared;
mod sight;
mod softmax;

use std::{
    cmp::Reverse,
    ops::Range,
    ptr::null,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use half::f16;
use tessera_ops::{Attention, Batch, KvFormat, mask::check_ring};

pub use self::dense::dense;
use self::{
    block::{Block, Room},
    select::{Plan, Request, Way},
    sight::Sight,
};
pub(crate) use self::{
    index::{Selection, SelectionPool, select},
    latent::attend,
};
use crate::{
    kv::{
        KvPages,
        cells::{Cells, Codes},
    },
    lanes::Workers,
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// What attention of a device works with. Room once made is kept, so that a warm step allocates nothing.
#[derive(Default)]
pub(crate) struct Means {
    /// The blocks of a step.
    blocks: Mutex<Vec<Range<usize>>>,
}

/// Attention of all rows, in the way that is `forced` or the best.
#[allow(clippy::too_many_arguments)] // the op's own, and what a device computes with
pub(crate) fn attention(
    workers: &Workers,
    pool: &Arc<Pool>,
    means: &Means,
    forced: Option<Way>,
    queries: &Tensor,
    cache: &KvPages,
    (spec, sinks): (&Attention, Option<&[f32]>),
    batch: &Batch,
) -> Tensor {
    spec.check();
    let layer = cache.pairs(spec.layer);
    check_ring(spec.window, layer.ring_pages, batch);
    assert!(sinks.is_none_or(|sinks| sinks.len() == spec.heads), "each query head has a sink");
    assert_eq!((layer.heads, layer.head_dim), (spec.kv_heads, spec.head_dim), "the cache entry has the layer's shape");
    assert_eq!(queries.width(), spec.heads * spec.head_dim, "queries fill all heads");
    assert_eq!(queries.rows(), batch.len(), "each row has a query");

    let mut blocks = means.blocks.lock().unwrap_or_else(PoisonError::into_inner);
    let sight = Sight { layer, spec, batch, tail: None };
    let mut step = Step { workers, pool, queries, sinks, sight, blocks: &mut blocks };
    let mut y = pool.take(queries.rows(), queries.width());
    let plan = step.plan(cache.format, forced);
    match cache.format {
        KvFormat::F32 => step.attend::<f32>(&plan, &mut y),
        KvFormat::F16 => step.attend::<f16>(&plan, &mut y),
        KvFormat::Q8_0 => step.attend::<Codes>(&plan, &mut y),
    }
    y
}

/// One call.
struct Step<'a> {
    workers: &'a Workers,
    pool: &'a Arc<Pool>,
    queries: &'a Tensor,
    sinks: Option<&'a [f32]>,
    sight: Sight<'a>,
    blocks: &'a mut Vec<Range<usize>>,
}

impl Step<'_> {
    /// What is best for the step.
    fn plan(&self, format: KvFormat, forced: Option<Way>) -> Plan {
        let Attention { head_dim, kv_heads, .. } = *self.sight.spec;
        let (rows, batch) = (self.queries.rows(), self.sight.batch);
        let (mut run, mut next) = (0, 0);
        while next < rows {
            let together = batch.run(next);
            (run, next) = (run.max(together.len()), together.end);
        }
        let seen = (0..rows).map(|row| self.sight.positions(row).len());
        let (visible, longest) = seen.fold((0, 0), |(sum, most), n| (sum + n, n.max(most)));
        let (group, threads) = (self.sight.spec.group(), self.workers.pool.count());
        select::plan(&Request { format, head_dim, kv_heads, group, rows, run, longest, visible, threads }, forced)
    }

    /// Over a cache of `C`, into `y`.
    fn attend<C: Cells>(&mut self, plan: &Plan, y: &mut Tensor) {
        match plan.way {
            Way::TwoPass => {
                for (row, out) in y.as_mut_slice().chunks_exact_mut(self.queries.width()).enumerate() {
                    shared::attend::<C>(self.workers, self.pool, self.sight, self.sinks, self.queries, row, out);
                }
            }
            Way::Single | Way::Fused | Way::Unfused => {
                self.cut(plan.cut.rows);
                self.in_blocks::<C>(plan, y);
            }
        }
    }

    /// Cuts the step into blocks of at most `most` rows that can be taken together, the longest first.
    fn cut(&mut self, most: usize) {
        let (rows, sight) = (self.queries.rows(), self.sight);
        self.blocks.clear();
        let mut next = 0;
        while next < rows {
            let run = sight.batch.run(next);
            self.blocks.extend(run.clone().step_by(most).map(|row| row..run.end.min(row + most)));
            next = run.end;
        }
        let work = |block: &Range<usize>| block.len() * sight.positions(block.end - 1).len();
        self.blocks.sort_unstable_by_key(|block| Reverse((work(block), block.start)));
    }

    /// In blocks of rows, whose threads take the next when they are done.
    fn in_blocks<C: Cells>(&self, plan: &Plan, y: &mut Tensor) {
        let (workers, sight, queries, blocks) = (self.workers, self.sight, self.queries, &*self.blocks);
        let (kv_heads, group, threads, tile_pages) =
            (sight.spec.kv_heads, sight.spec.group(), plan.threads, plan.cut.tile_pages);
        let rows_most = blocks.iter().map(Range::len).max().unwrap_or(0);
        let room = Room { columns: rows_most * group, tile_pages, panels: plan.cut.panels, tail: sight.tail_len() };
        let scratch_len = room.len(sight.layer.stride());
        let mut scratch = self.pool.take(threads, scratch_len);
        let scratch = SharedSlice::new(scratch.as_mut_slice());
        let out = SharedSlice::new(y.as_mut_slice());
        let next = AtomicUsize::new(0);
        let items = blocks.len() * kv_heads;
        let place = |item: usize| (item % kv_heads, blocks[item / kv_heads].clone());
        let first_keys = |item: usize| {
            let (kv_head, rows) = place(item);
            sight.first_key_byte(rows.start, kv_head)
        };
        let work = |share: usize| {
            // SAFETY: each share has scratch of its own.
            let scratch = unsafe { scratch.range(share * scratch_len, (share + 1) * scratch_len) };
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                let (kv_head, rows) = place(item);
                // Which item this thread takes next is not known; if all are as fast, it is the one after all threads'.
                let next = if item + threads < items { first_keys(item + threads) } else { null() };
                let (isa, sinks, out) = (workers.isa, self.sinks, &out);
                let block = Block { isa, queries, sight, sinks, kv_head, rows, tile_pages, next, out };
                isa.run(block.over::<C>(room, scratch));
            }
        };
        if threads == 1 {
            work(0);
        } else {
            workers.pool.run(&|share, _| work(share));
        }
    }
}
