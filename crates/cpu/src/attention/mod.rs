//! Causal softmax attention over pages, in the canonical order of [`tessera_ops::numerics`].
//!
//! A *block* is some consecutive rows of the step and one head of keys and values, with all the query heads that share
//! it: (row, query head) pairs are the *columns* of a block, and one read of a page serves them all. Scores of a page
//! are a small matrix product (columns × 64 tokens), and so is the weighted sum of values (columns × head_dim); both run in
//! [`chain`]. How rows are cut into blocks and which thread takes which changes no bit, so threads simply take the next
//! block, the longest first.

mod block;
mod chain;
mod shared;
mod sight;
mod softmax;

use std::{
    ptr::null,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use half::f16;
use tessera_ops::{Attention, Batch, KvFormat, PAGE_TOKENS};

use self::{
    block::{Block, Scratch},
    sight::Sight,
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

/// Columns of a block in a long prefill: enough to serve several register tiles from one page in the first cache.
const COLUMNS: usize = 24;

/// Blocks for each thread, so that the last ones even out the work.
const BLOCKS_PER_THREAD: usize = 6;

/// From this many pages on, rows that are fewer than the threads' work items are shared inside.
const SHARED_PAGES_MIN: usize = 4;

/// Below this many multiplications a step is not worth a second thread.
const ALONE_MAX: usize = 64 << 10;

/// Attention of all rows.
pub(crate) fn attention(
    workers: &Workers,
    pool: &Arc<Pool>,
    queries: &Tensor,
    cache: &KvPages,
    spec: &Attention,
    sinks: Option<&[f32]>,
    batch: &Batch,
) -> Tensor {
    spec.check();
    let layer = &cache.layers[spec.layer];
    assert!(sinks.is_none_or(|sinks| sinks.len() == spec.heads), "each query head has a sink");
    assert_eq!((layer.heads, layer.head_dim), (spec.kv_heads, spec.head_dim), "the cache entry has the layer's shape");
    assert_eq!(queries.width(), spec.heads * spec.head_dim, "queries fill all heads");
    assert_eq!(queries.rows(), batch.len(), "each row has a query");

    let step = Step { workers, pool, queries, sinks, sight: Sight { layer, spec, batch } };
    let mut y = pool.take(queries.rows(), queries.width());
    match cache.format {
        KvFormat::F32 => step.attend::<f32>(&mut y),
        KvFormat::F16 => step.attend::<f16>(&mut y),
        KvFormat::Q8_0 => step.attend::<Codes>(&mut y),
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
}

impl Step<'_> {
    /// Over a cache of `C`, into `y`.
    fn attend<C: Cells>(&self, y: &mut Tensor) {
        let (workers, sight, queries) = (self.workers, self.sight, self.queries);
        let (rows, kv_heads) = (queries.rows(), sight.spec.kv_heads);
        let seen = (0..rows).map(|row| sight.positions(row).len());
        let (visible, longest) = seen.fold((0, 0), |(sum, most), n| (sum + n, n.max(most)));
        let alone = workers.pool.count() == 1 || 2 * visible * queries.width() <= ALONE_MAX;
        let threads = if alone { 1 } else { workers.pool.count() };
        // The longest row decides: a page is hundreds of times what a region costs.
        if threads > 1 && rows * kv_heads < 2 * threads && longest >= SHARED_PAGES_MIN * PAGE_TOKENS {
            for (row, out) in y.as_mut_slice().chunks_exact_mut(queries.width()).enumerate() {
                shared::attend::<C>(workers, self.pool, sight, self.sinks, queries, row, out);
            }
        } else {
            self.in_blocks::<C>(threads, y);
        }
    }

    /// In blocks of rows, whose threads take the next when they are done.
    fn in_blocks<C: Cells>(&self, threads: usize, y: &mut Tensor) {
        let (workers, sight, queries) = (self.workers, self.sight, self.queries);
        let (rows, kv_heads, group) = (queries.rows(), sight.spec.kv_heads, sight.spec.group());
        let block_rows = (rows * kv_heads / (threads * BLOCKS_PER_THREAD)).clamp(1, (COLUMNS / group).max(1));
        let blocks = rows.div_ceil(block_rows);

        let scratch_len = Scratch::len(block_rows * group, sight.layer);
        let mut scratch = self.pool.take(threads, scratch_len);
        let scratch = SharedSlice::new(scratch.as_mut_slice());
        let out = SharedSlice::new(y.as_mut_slice());
        let next = AtomicUsize::new(0);
        let items = blocks * kv_heads;
        // The longest blocks first: positions ascend.
        let place = |item: usize| {
            let first = (blocks - 1 - item / kv_heads) * block_rows;
            (item % kv_heads, first..rows.min(first + block_rows))
        };
        let first_keys = |item: usize| {
            let (kv_head, range) = place(item);
            sight.first_key_byte(range.start, kv_head)
        };
        let work = |share: usize| {
            // SAFETY: each share has scratch of its own.
            let scratch = unsafe { scratch.range(share * scratch_len, (share + 1) * scratch_len) };
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                let (kv_head, range) = place(item);
                // Which item this thread takes next is not known; if all are as fast, it is the one after all threads'.
                let next = if item + threads < items { first_keys(item + threads) } else { null() };
                let block = Block { queries, sight, sinks: self.sinks, kv_head, rows: range, next, out: &out };
                workers.isa.run(block.over::<C>(scratch));
            }
        };
        if threads == 1 {
            work(0);
        } else {
            workers.pool.run(&|share, _| work(share));
        }
    }
}
