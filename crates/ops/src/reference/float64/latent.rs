//! Compressed rows, their selection, and attention over latent rows, in f64. Rows are kept unrounded, whatever the format of the
//! cache, but for what the model itself rounds.

use super::{Float64Device, Tensor64, dot};
use crate::{
    Batch, Compressor, LatentAttention, Selector,
    kv::KvEntry,
    latent::{complete_rows, select_rows},
    reference::{KvPages, Selection},
};

pub(super) fn store_rows(cache: &mut KvPages<f64>, entry: usize, rows: &Tensor64, batch: &Batch) {
    for (row, position) in batch.positions.iter().enumerate() {
        let (page, slot) = batch.slot(row, *position as usize, cache.ring_pages(entry));
        cache.put(entry, page, slot, &[rows.row(row)]);
    }
}

pub(super) fn compress(cache: &mut KvPages<f64>, compressor: &Compressor<Float64Device>, batch: &Batch) {
    compressor.check(|entry| cache.entry(entry), batch);
    let rope = &compressor.rope;
    for row in 0..batch.len() {
        let Some(index) = compressor.completed_by(batch.positions[row] as usize) else { continue };
        let mut out: Vec<f64> =
            (0..compressor.head_dim).map(|feature| pool(cache, compressor, batch, (row, index), feature)).collect();
        let mean = dot(&out, &out) / out.len() as f64;
        let root = (mean + f64::from(compressor.epsilon)).sqrt();
        out.iter_mut().zip(&compressor.norm).for_each(|(v, w)| *v = *v / root * w);
        for (pair, frequency) in rope.frequencies.iter().enumerate() {
            let (first, second) = rope.layout.pair(pair, rope.frequencies.len());
            let (sin, cos) = ((index * compressor.ratio) as f64 * frequency).sin_cos();
            let (a, b) = (out[compressor.rotated_from() + first], out[compressor.rotated_from() + second]);
            let magnitude = f64::from(rope.magnitude);
            out[compressor.rotated_from() + first] = (a * cos - b * sin) * magnitude;
            out[compressor.rotated_from() + second] = (b * cos + a * sin) * magnitude;
        }
        if let Some(rounding) = compressor.rounding {
            let mut rounded: Vec<f32> = out.iter().map(|v| *v as f32).collect();
            rounding.apply(&mut rounded);
            out = rounded.into_iter().map(f64::from).collect();
        }
        let (page, slot) = KvEntry::compressed_place(compressor.ratio, index);
        cache.put(compressor.output, batch.page(row, page, None), slot, &[&out]);
    }
}

/// One feature of the mean of a row's tokens.
fn pool(
    cache: &KvPages<f64>,
    compressor: &Compressor<Float64Device>,
    batch: &Batch,
    (row, index): (usize, usize),
    feature: usize,
) -> f64 {
    let width = compressor.input_width();
    let tokens = compressor.tokens(index).map(|(position, column)| {
        let (page, slot) = batch.slot(row, position, cache.ring_pages(compressor.inputs));
        let (input, column) = (cache.row(compressor.inputs, page, slot), column + feature);
        (input[width + column] + compressor.ape[position % compressor.ratio * width + column], input[column])
    });
    let tokens: Vec<(f64, f64)> = tokens.collect();
    let highest = tokens.iter().fold(f64::NEG_INFINITY, |m, t| m.max(t.0));
    let weights: Vec<f64> = tokens.iter().map(|t| (t.0 - highest).exp()).collect();
    let sum: f64 = weights.iter().zip(&tokens).map(|(w, t)| w * t.1).sum();
    sum / weights.iter().sum::<f64>()
}

pub(super) fn select(
    queries: &Tensor64,
    head_weights: &Tensor64,
    cache: &KvPages<f64>,
    selector: &Selector,
    batch: &Batch,
) -> Selection {
    let &Selector { entry, ratio, head_dim, top_k, scale, .. } = selector;
    selector.check(cache.entry(entry), batch, queries.shape(), head_weights.shape());
    let rows = (0..batch.len()).map(|row| {
        let score = |index: usize| -> f64 {
            let (page, slot) = KvEntry::compressed_place(ratio, index);
            let key = cache.row(entry, batch.page(row, page, None), slot);
            let heads = queries.row(row).chunks_exact(head_dim).zip(head_weights.row(row));
            heads.map(|(query, weight)| dot(query, key).max(0.0) * weight * f64::from(scale)).sum()
        };
        let complete = complete_rows(batch.positions[row] as usize, ratio);
        let mut rows = vec![];
        select_rows(&(0..complete).map(score).collect::<Vec<_>>(), top_k, &mut rows);
        rows
    });
    Selection { rows: rows.collect() }
}

pub(super) fn attend(
    queries: &Tensor64,
    cache: &KvPages<f64>,
    spec: &LatentAttention,
    selection: Option<&Selection>,
    sinks: &[f64],
    batch: &Batch,
) -> Tensor64 {
    spec.check(|entry| cache.entry(entry), batch, queries.shape(), sinks.len());
    let mut y = Tensor64::zeros(queries.rows, queries.width);
    for row in 0..queries.rows {
        let position = batch.positions[row] as usize;
        let raw = spec.raw(position).map(|position| {
            let (page, slot) = batch.slot(row, position, cache.ring_pages(spec.entry));
            cache.row(spec.entry, page, slot)
        });
        let mut keys: Vec<&[f64]> = raw.collect();
        if let Some(compressed) = spec.compressed {
            let all = || (0..complete_rows(position, compressed.ratio) as u32).collect();
            let list: Vec<u32> = selection.map_or_else(all, |s| s.rows[row].clone());
            keys.extend(list.iter().map(|index| {
                let (page, slot) = KvEntry::compressed_place(compressed.ratio, *index as usize);
                cache.row(compressed.entry, batch.page(row, page, None), slot)
            }));
        }
        let heads = queries.row(row).chunks_exact(spec.head_dim).zip(sinks);
        for ((query, sink), out) in heads.zip(y.row_mut(row).chunks_exact_mut(spec.head_dim)) {
            let mut weights: Vec<f64> = keys.iter().map(|key| f64::from(spec.scale) * dot(query, key)).collect();
            let highest = weights.iter().fold(*sink, |m, s| m.max(*s));
            weights.iter_mut().for_each(|w| *w = (*w - highest).exp());
            let total = weights.iter().sum::<f64>() + (sink - highest).exp();
            for (weight, key) in weights.iter().zip(&keys) {
                out.iter_mut().zip(*key).for_each(|(o, v)| *o += weight / total * v);
            }
        }
    }
    y
}
