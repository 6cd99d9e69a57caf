//! Causal softmax attention over the pages of a row's own sequence.
//!
//! The softmax runs along the pages (Milakov and Gimelshein 2018): a running maximum `m`, the sum `l` of weights and
//! the weighted sum `o` of values are rescaled at each page. Pages lie at absolute positions, so the order of all sums
//! is a function of the row's position alone. What a row sees of a page is gathered first, from wherever [`crate::mask`] says
//! that it is kept; then it is two dense products and a softmax. A score of NaN never becomes the maximum, but its weight is NaN, and so
//! is the output: it cannot vanish.

use std::ops::Range;

use super::{
    KvPages, Tensor,
    dense::dense,
    softmax::{Softmax, finish, weigh_page},
};
use crate::{
    Attention, Batch, MatrixView, Numbers, PAGE_TOKENS,
    mask::{check_entry, check_ring},
};

pub(super) fn attention(
    queries: &Tensor,
    cache: &KvPages<f32>,
    spec: &Attention,
    sinks: Option<&[f32]>,
    batch: &Batch,
) -> Tensor {
    spec.check();
    assert!(sinks.is_none_or(|sinks| sinks.len() == spec.heads), "each query head has a sink");
    check_ring(spec.window, cache.ring_pages(spec.layer), batch);
    check_entry(spec, cache.entry(spec.layer));
    assert_eq!(queries.width, spec.heads * spec.head_dim, "queries fill all heads");
    let mut y = Tensor::zeros(queries.rows, queries.width);
    for row in 0..queries.rows {
        for head in 0..spec.heads {
            let query = &queries.row(row)[head * spec.head_dim..][..spec.head_dim];
            let out = &mut y.row_mut(row)[head * spec.head_dim..][..spec.head_dim];
            let keys = Keys { cache, spec, batch, row, kv_head: head / spec.group() };
            one_head(query, &keys, sinks.map(|sinks| sinks[head]), out);
        }
    }
    y
}

/// What a row and a query head see.
struct Keys<'a> {
    cache: &'a KvPages<f32>,
    spec: &'a Attention,
    batch: &'a Batch,
    row: usize,
    kv_head: usize,
}

fn one_head(query: &[f32], keys: &Keys<'_>, sink: Option<f32>, out: &mut [f32]) {
    let Keys { cache, spec, batch, row, kv_head } = *keys;
    let query: Vec<f32> = query.iter().map(|v| v * spec.scale).collect();
    let visible = spec.visible(batch.positions[row] as usize);
    let mut state = sink.map(Softmax::of_sink);
    for page in visible.start / PAGE_TOKENS..visible.end.div_ceil(PAGE_TOKENS) {
        let first = page * PAGE_TOKENS;
        let slots = visible.start.max(first) - first..visible.end.min(first + PAGE_TOKENS) - first;
        let (mut keys, mut values) = (vec![], vec![]);
        for position in slots.clone().map(|slot| first + slot) {
            let (page, slot) = batch.slot(row, position, cache.ring_pages(spec.layer));
            let (key, value) = cache.pair(spec.layer, page, slot, kv_head);
            keys.extend_from_slice(key);
            values.extend_from_slice(value);
        }
        state = Some(fold_page(&query, (&keys, &values), slots, state, spec.soft_cap, out));
    }
    let total = state.map_or(0.0, |s| s.total);
    out.iter_mut().for_each(|o| *o = finish(*o, total));
}

/// Folds what is seen of a page, keys and values (slots, head_dim), into a head's softmax and sum. The query is scaled already.
pub(super) fn fold_page(
    query: &[f32],
    (keys, values): (&[f32], &[f32]),
    slots: Range<usize>,
    state: Option<Softmax>,
    soft_cap: Option<f32>,
    out: &mut [f32],
) -> Softmax {
    let head_dim = query.len();
    let view = |numbers, shape, turned| {
        MatrixView::new(Numbers::F32(numbers), shape, 0, head_dim, turned).expect("as many as were gathered")
    };
    let (keys, values) = (view(keys, (head_dim, slots.len()), true), view(values, (slots.len(), head_dim), false));
    let mut weights = [0.0f32; PAGE_TOKENS];
    dense(1, (query, head_dim), &keys, (&mut weights[slots.clone()], PAGE_TOKENS), false);
    let (now, keep) = weigh_page(&mut weights, slots.clone(), state, soft_cap);
    out.iter_mut().for_each(|o| *o *= keep);
    dense(1, (&weights[slots], PAGE_TOKENS), &values, (&mut *out, head_dim), true);
    now
}
