//! What ops have to do, by the shapes of what they are given: bytes and operations.

use super::{
    F32,
    held::{Cache, Weights},
    log::Work,
};
use crate::{Attention, Batch, LatentAttention, Selector, latent::complete_rows};

/// A projection of `tokens` rows with `count` matrices' worth of `weights`.
pub(super) fn projection<T>(weights: &Weights<T>, count: usize, tokens: usize) -> Work {
    let bytes = weights.bytes / weights.count.max(1) * count + tokens * weights.rows * F32;
    Work { bytes, operations: 2 * tokens * weights.rows * weights.depth }
}

pub(super) fn sum(input: usize, works: impl IntoIterator<Item = Work>) -> Work {
    works.into_iter().fold(Work { bytes: input, operations: 0 }, |sum, work| Work {
        bytes: sum.bytes + work.bytes,
        operations: sum.operations + work.operations,
    })
}

/// An op that touches activations only.
pub(super) fn moves(bytes: usize) -> Work {
    Work { bytes, operations: 0 }
}

/// Keys and values are read once for each sequence, as far as its rows see.
pub(super) fn attention_work<T>(cache: &Cache<T>, spec: &Attention, batch: &Batch, queries: usize) -> Work {
    let (pairs, keys) = pairs_and_keys(batch, |position| {
        let seen = spec.visible(position);
        (seen.len(), position + 1 - seen.len(), position + 1)
    });
    let bytes = cache.bytes(spec.layer, keys) + 2 * queries;
    Work { bytes, operations: 4 * pairs * spec.heads * spec.head_dim }
}

/// Keys of the indexer are read once for each sequence.
pub(super) fn selection_work<T>(cache: &Cache<T>, selector: &Selector, batch: &Batch, inputs: usize) -> Work {
    let (pairs, keys) = pairs_and_keys(batch, |position| {
        let complete = complete_rows(position, selector.ratio);
        (complete, 0, complete)
    });
    let bytes = cache.bytes(selector.entry, keys) + inputs;
    Work { bytes, operations: 2 * pairs * selector.heads * selector.head_dim }
}

/// Raw rows are read once for each sequence, as are compressed ones where all are seen; selected ones once for each row.
pub(super) fn latent_work<T>(
    cache: &Cache<T>,
    spec: &LatentAttention,
    top_k: Option<usize>,
    batch: &Batch,
    queries: usize,
) -> Work {
    let (mut pairs, keys) = pairs_and_keys(batch, |position| {
        let seen = spec.raw(position);
        (seen.len(), seen.start, seen.end)
    });
    let mut bytes = cache.bytes(spec.entry, keys) + 2 * queries;
    if let Some(compressed) = spec.compressed {
        let (compressed_pairs, compressed_keys) = pairs_and_keys(batch, |position| {
            let seen = complete_rows(position, compressed.ratio).min(top_k.unwrap_or(usize::MAX));
            (seen, 0, seen)
        });
        pairs += compressed_pairs;
        bytes += cache.bytes(compressed.entry, if top_k.is_some() { compressed_pairs } else { compressed_keys });
    }
    Work { bytes, operations: 4 * pairs * spec.heads * spec.head_dim }
}

/// Of what rows see (how many, from, to): all of it, and what the rows of each sequence see together.
fn pairs_and_keys(batch: &Batch, seen: impl Fn(usize) -> (usize, usize, usize)) -> (usize, usize) {
    let (mut pairs, mut keys) = (0, 0);
    let mut span = 0..0;
    for row in 0..batch.len() {
        let (count, from, to) = seen(batch.positions[row] as usize);
        pairs += count;
        let goes_on = row > 0 && batch.sequences[row] == batch.sequences[row - 1];
        span = if goes_on { span.start.min(from)..to } else { from..to };
        let ends = batch.sequences.get(row + 1) != Some(&batch.sequences[row]);
        keys += if ends { span.len() } else { 0 };
    }
    (pairs, keys)
}
