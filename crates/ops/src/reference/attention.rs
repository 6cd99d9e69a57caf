//! Causal softmax attention over the pages of a row's own sequence.
//!
//! The softmax runs along the pages (Milakov and Gimelshein 2018): a running maximum `m`, the sum `l` of weights and
//! the weighted sum `o` of values are rescaled at each page. Pages lie at absolute positions, so the order of all sums
//! is a function of the row's position alone. A score of NaN never becomes the maximum, but its weight is NaN, and so
//! is the output: it cannot vanish.

use super::{KvPages, Tensor};
use crate::numerics::sum;
use crate::{Attention, Batch, PAGE_TOKENS, math};

pub(super) fn attention(
    queries: &Tensor,
    cache: &KvPages<f32>,
    spec: &Attention,
    sinks: Option<&[f32]>,
    batch: &Batch,
) -> Tensor {
    spec.check();
    assert!(sinks.is_none_or(|sinks| sinks.len() == spec.heads), "each query head has a sink");
    assert_eq!(cache.shape(spec.layer), (spec.kv_heads, spec.head_dim), "the cache entry has the layer's shape");
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
    let (mut m, mut l) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0f32));
    for page in visible.start / PAGE_TOKENS..visible.end.div_ceil(PAGE_TOKENS) {
        let first = page * PAGE_TOKENS;
        let slots = visible.start.max(first) - first..visible.end.min(first + PAGE_TOKENS) - first;
        let (id, _) = batch.slot(row, first);

        let mut weights = [0.0f32; PAGE_TOKENS];
        let mut highest = m;
        for slot in slots.clone() {
            let (key, _) = cache.get(spec.layer, id, slot, kv_head);
            let mut score = query.iter().zip(key).fold(0.0f32, |acc, (q, k)| q.mul_add(*k, acc));
            if let Some(cap) = spec.soft_cap {
                score = math::soft_cap(score, cap);
            }
            if score > highest {
                highest = score;
            }
            weights[slot] = score;
        }
        for slot in slots.clone() {
            weights[slot] = math::exp(weights[slot] - highest);
        }

        let is_first = page == visible.start / PAGE_TOKENS && sink.is_none();
        let keep = if is_first { 0.0 } else { math::exp(m - highest) };
        l = l.mul_add(keep, sum(&weights));
        out.iter_mut().for_each(|o| *o *= keep);
        for slot in slots {
            let (_, value) = cache.get(spec.layer, id, slot, kv_head);
            for (o, v) in out.iter_mut().zip(value) {
                *o = weights[slot].mul_add(*v, *o);
            }
        }
        m = highest;
    }
    out.iter_mut().for_each(|o| *o /= l);
}
