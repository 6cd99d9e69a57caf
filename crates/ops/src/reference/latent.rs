//! Compressed rows, their selection, and attention over rows that are key and value at once.

use super::{
    KvPages, Tensor,
    attention::fold_page,
    norm::norm_run,
    rope::{angles_at, turn},
};
use crate::{
    Batch, Compressor, LatentAttention, PAGE_TOKENS, Selector,
    kv::KvEntry,
    latent::{complete_rows, select_rows},
    math,
    reference::{ReferenceDevice, softmax::Softmax, softmax::finish},
};

/// For each row of a step the compressed rows that it attends to, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// (rows)
    pub rows: Vec<Vec<u32>>,
}

pub(super) fn compress(cache: &mut KvPages<f32>, compressor: &Compressor<ReferenceDevice>, batch: &Batch) {
    compressor.check(|entry| cache.entry(entry), batch);
    for row in 0..batch.len() {
        let Some(index) = compressor.completed_by(batch.positions[row] as usize) else { continue };
        let mut out = pool(cache, compressor, batch, row, index);
        norm_run(&mut out, &compressor.norm, compressor.epsilon);
        let (cosines, sines) = angles_at(&compressor.rope, (index * compressor.ratio) as u32);
        turn(&mut out[compressor.rotated_from()..], compressor.rope.layout, &cosines, &sines, false);
        if let Some(rounding) = compressor.rounding {
            rounding.apply(&mut out);
        }
        cache.row_format(compressor.output).round(&mut out);
        let (page, slot) = KvEntry::compressed_place(compressor.ratio, index);
        cache.put(compressor.output, batch.page(row, page, None), slot, &[&out]);
    }
}

/// The mean of a row's tokens.
fn pool(
    cache: &KvPages<f32>,
    compressor: &Compressor<ReferenceDevice>,
    batch: &Batch,
    row: usize,
    index: usize,
) -> Vec<f32> {
    let (width, ring_pages) = (compressor.input_width(), cache.ring_pages(compressor.inputs));
    let feature = |feature: usize| {
        let (mut scores, mut values) = (vec![], vec![]);
        for (position, column) in compressor.tokens(index) {
            let (page, slot) = batch.slot(row, position, ring_pages);
            let (value, score) = cache.row(compressor.inputs, page, slot).split_at(width);
            let column = column + feature;
            values.push(value[column]);
            scores.push(score[column] + compressor.ape[position % compressor.ratio * width + column]);
        }
        let highest = scores.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
        let (mut total, mut sum) = (0.0f32, 0.0f32);
        for (score, value) in scores.iter().zip(&values) {
            let weight = math::exp(score - highest);
            total += weight;
            sum = weight.mul_add(*value, sum);
        }
        sum / total
    };
    (0..compressor.head_dim).map(feature).collect()
}

pub(super) fn select(
    queries: &Tensor,
    head_weights: &Tensor,
    cache: &KvPages<f32>,
    selector: &Selector,
    batch: &Batch,
) -> Selection {
    let &Selector { entry, ratio, head_dim, top_k, scale, .. } = selector;
    selector.check(cache.entry(entry), batch, queries.shape(), head_weights.shape());
    let rows = (0..batch.len()).map(|row| {
        let complete = complete_rows(batch.positions[row] as usize, ratio);
        if complete <= top_k {
            return (0..complete as u32).collect();
        }
        let score = |index: usize| {
            let (page, slot) = KvEntry::compressed_place(ratio, index);
            let key = cache.row(entry, batch.page(row, page, None), slot);
            let mut score = 0.0f32;
            for (query, weight) in queries.row(row).chunks_exact(head_dim).zip(head_weights.row(row)) {
                let dot = query.iter().zip(key).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
                let dot = if dot < 0.0 { 0.0 } else { dot };
                score = dot.mul_add(weight * scale, score);
            }
            score
        };
        let mut rows = vec![];
        select_rows(&(0..complete).map(score).collect::<Vec<_>>(), top_k, &mut rows);
        rows
    });
    Selection { rows: rows.collect() }
}

pub(super) fn attend(
    queries: &Tensor,
    cache: &KvPages<f32>,
    spec: &LatentAttention,
    selection: Option<&Selection>,
    sinks: &[f32],
    batch: &Batch,
) -> Tensor {
    spec.check(|entry| cache.entry(entry), batch, queries.shape(), sinks.len());
    let mut y = Tensor::zeros(queries.rows, queries.width);
    for row in 0..queries.rows {
        let pages = pages_of_row(cache, spec, selection, batch, row);
        let heads = queries.row(row).chunks_exact(spec.head_dim).zip(sinks);
        for ((query, sink), out) in heads.zip(y.row_mut(row).chunks_exact_mut(spec.head_dim)) {
            let query: Vec<f32> = query.iter().map(|v| v * spec.scale).collect();
            let mut state = Some(Softmax::of_sink(*sink));
            for (first, rows) in &pages {
                let slots = *first..first + rows.len() / spec.head_dim;
                state = Some(fold_page(&query, (rows, rows), slots, state, None, out));
            }
            let total = state.map_or(0.0, |s| s.total);
            out.iter_mut().for_each(|o| *o = finish(*o, total));
        }
    }
    y
}

/// The pages of keys that a row goes through: of each the slot of its first key, and the keys (count, head_dim).
fn pages_of_row(
    cache: &KvPages<f32>,
    spec: &LatentAttention,
    selection: Option<&Selection>,
    batch: &Batch,
    row: usize,
) -> Vec<(usize, Vec<f32>)> {
    let position = batch.positions[row] as usize;
    let (raw, mut pages) = (spec.raw(position), vec![]);
    for page in raw.start / PAGE_TOKENS..raw.end.div_ceil(PAGE_TOKENS) {
        let first = page * PAGE_TOKENS;
        let seen = raw.start.max(first)..raw.end.min(first + PAGE_TOKENS);
        let keys = seen.clone().flat_map(|position| {
            let (page, slot) = batch.slot(row, position, cache.ring_pages(spec.entry));
            cache.row(spec.entry, page, slot).iter().copied()
        });
        pages.push((seen.start - first, keys.collect()));
    }
    let Some(compressed) = spec.compressed else { return pages };
    let list: Vec<u32> = match selection {
        Some(selection) => selection.rows[row].clone(),
        None => (0..complete_rows(position, compressed.ratio) as u32).collect(),
    };
    for run in list.chunks(PAGE_TOKENS) {
        let keys = run.iter().flat_map(|index| {
            let (page, slot) = KvEntry::compressed_place(compressed.ratio, *index as usize);
            cache.row(compressed.entry, batch.page(row, page, None), slot).iter().copied()
        });
        pages.push((0, keys.collect()));
    }
    pages
}
