//! Latent rows: compressed as a stream of states would, the highest selected, and attended to like any other keys.

use proptest::prelude::*;
use tessera_ops::{
    Attention, Batch, CompressedRows, Compressor, Device, KvEntry, KvFormat, KvLayout, LatentAttention, Role, Rope,
    RopeLayout, Rounding, Selector,
    mask::ring_pages_min,
    reference::{ReferenceDevice, Selection, float64::Float64Device},
};

use crate::support::{Random, bits, close, read, tensor};

const DIM: usize = 32;

fn numbers(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    Random(seed).values(rows * width)
}

/// A step of one sequence, whose pages are its own backwards.
fn step(start: usize, rows: usize, ring: u32) -> Batch {
    let mut batch = Batch::default();
    batch.push(&vec![0; rows], start, &(0..16).rev().collect::<Vec<_>>(), Role::Prefill, 0);
    batch.in_ring(ring);
    batch
}

fn compressor<D: Device>(device: &D, ratio: usize, overlap: bool, rounding: Option<Rounding>) -> Compressor<D> {
    let width = if overlap { 2 * DIM } else { DIM };
    Compressor {
        inputs: 0,
        output: 1,
        ratio,
        overlap,
        head_dim: DIM,
        ape: device.load_vector(&numbers(ratio, width, 1)).unwrap(),
        norm: device.load_vector(&numbers(1, DIM, 2)).unwrap(),
        epsilon: 1e-6,
        rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![1.0, 0.25, 1e-3], magnitude: 1.0 },
        rounding,
    }
}

/// A cache of inputs and of their compressed rows. Rows read back by attending to nothing else.
fn cache<D: Device>(device: &D, ratio: usize, width: usize, rows: usize) -> D::KvCache {
    let ring_pages = ring_pages_min(2 * ratio, rows);
    let entries = vec![KvEntry::Inputs { width: 2 * width, ring_pages }, KvEntry::compressed(DIM, ratio)];
    device.kv_cache(&KvLayout::new(entries, KvFormat::F32), 16, 2).unwrap()
}

/// The compressed rows of `inputs` (tokens, 2 · width), stored in these steps; the bytes of all pages.
fn compressed(ratio: usize, overlap: bool, rounding: Option<Rounding>, tokens: usize, cuts: &[usize]) -> Vec<u8> {
    let device = ReferenceDevice;
    let compressor = compressor(&device, ratio, overlap, rounding);
    let width = compressor.input_width();
    let inputs = numbers(tokens, 2 * width, 3);
    let mut cache = cache(&device, ratio, width, tokens);
    let mut start = 0;
    for end in cuts.iter().copied().chain([tokens]) {
        let batch = step(start, end - start, 1);
        let rows = tensor(&device, end - start, 2 * width, &inputs[start * 2 * width..end * 2 * width]);
        device.store_rows(&mut cache, 0, &rows, &batch);
        device.compress(&mut cache, &compressor, &batch);
        start = end;
    }
    let mut bytes = vec![];
    (0..16).for_each(|page| device.read_page(&cache, page, &mut bytes).unwrap());
    bytes
}

/// Row `index` of what [`compressed`] gave.
fn row(bytes: &[u8], ratio: usize, index: usize) -> Vec<f32> {
    let (page, slot) = KvEntry::compressed_place(ratio, index);
    let slots = KvEntry::compressed(DIM, ratio).page_rows();
    let at = ((15 - page) * slots + slot) * DIM * 4;
    bytes[at..at + DIM * 4].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// All rows as a stream would make them: two blocks of state, which move on when a row is complete, the earlier one empty
/// (scores of minus infinity) at first.
fn streamed(ratio: usize, overlap: bool, tokens: usize) -> Vec<Vec<f64>> {
    let width = if overlap { 2 * DIM } else { DIM };
    let (inputs, ape, norm) = (numbers(tokens, 2 * width, 3), numbers(ratio, width, 1), numbers(1, DIM, 2));
    let empty = vec![(vec![0.0; width], vec![f64::NEG_INFINITY; width]); ratio];
    let (mut before, mut own, mut rows) = (empty.clone(), empty, vec![]);
    for (position, input) in inputs.chunks_exact(2 * width).enumerate() {
        let (values, scores) = input.split_at(width);
        let scores = scores.iter().zip(&ape[position % ratio * width..]).map(|(s, a)| f64::from(s + a)).collect();
        own[position % ratio] = (values.iter().map(|v| f64::from(*v)).collect(), scores);
        if position % ratio != ratio - 1 {
            continue;
        }
        let mut out: Vec<f64> = (0..DIM)
            .map(|j| {
                let earlier = before.iter().filter(|_| overlap).map(|(v, s)| (v[j], s[j]));
                let later = own.iter().map(|(v, s)| (v[width - DIM + j], s[width - DIM + j]));
                let all: Vec<(f64, f64)> = earlier.chain(later).collect();
                let total: f64 = all.iter().map(|(_, s)| s.exp()).sum();
                all.iter().map(|(v, s)| v * s.exp()).sum::<f64>() / total
            })
            .collect();
        let root = (out.iter().map(|v| v * v).sum::<f64>() / DIM as f64 + 1e-6).sqrt();
        out.iter_mut().zip(&norm).for_each(|(v, w)| *v *= f64::from(*w) / root);
        for (pair, frequency) in [1.0, 0.25, 1e-3].into_iter().enumerate() {
            let (sin, cos) = ((position + 1 - ratio) as f64 * frequency).sin_cos();
            let at = DIM - 6 + 2 * pair;
            (out[at], out[at + 1]) = (out[at] * cos - out[at + 1] * sin, out[at + 1] * cos + out[at] * sin);
        }
        rows.push(out);
        before.clone_from(&own);
    }
    rows
}

const KINDS: [(usize, bool, usize); 4] = [(4, true, 150), (4, false, 70), (128, false, 400), (2, true, 140)];

#[test]
fn rows_are_what_a_stream_of_states_makes() {
    for (ratio, overlap, tokens) in KINDS {
        let bytes = compressed(ratio, overlap, None, tokens, &[]);
        let want = streamed(ratio, overlap, tokens);
        assert_eq!(want.len(), tokens / ratio);
        for (index, want) in want.iter().enumerate() {
            let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
            close(&row(&bytes, ratio, index), &want, 3e-6, &format!("row {index} of ratio {ratio}"));
        }
        // What nothing completed is not written: a cache of the reference is NaN before.
        let beyond = row(&bytes, ratio, tokens / ratio);
        assert!(beyond.iter().all(|v| v.is_nan()), "ratio {ratio}");
    }
}

#[test]
fn every_cut_gives_the_same_rows() {
    for (ratio, overlap, tokens) in KINDS {
        let whole = compressed(ratio, overlap, None, tokens, &[]);
        for cut in 1..tokens.min(3 * ratio + 2) {
            assert!(compressed(ratio, overlap, None, tokens, &[cut]) == whole, "ratio {ratio}, cut at {cut}");
        }
        let each: Vec<usize> = (1..tokens).collect();
        assert!(compressed(ratio, overlap, None, tokens, &each) == whole, "ratio {ratio}, token by token");
    }
}

/// Rounding comes last, and to the whole row.
#[test]
fn rows_are_rounded_after_they_are_turned() {
    for rounding in [Rounding::Fp8 { features: DIM - 6 }, Rounding::HadamardFp4] {
        let plain = compressed(4, true, None, 80, &[]);
        let rounded = compressed(4, true, Some(rounding), 80, &[33]);
        for index in 0..20 {
            let mut want = row(&plain, 4, index);
            rounding.apply(&mut want);
            assert_eq!(bits(&row(&rounded, 4, index)), bits(&want), "{rounding:?}, row {index}");
        }
    }
}

/// Tokens that were computed and forgotten leave nothing.
#[test]
fn a_step_can_be_taken_back_in_part() {
    for (ratio, overlap, tokens) in KINDS {
        let device = ReferenceDevice;
        let compressor = compressor(&device, ratio, overlap, None);
        let width = 2 * compressor.input_width();
        let (inputs, others) = (numbers(tokens, width, 3), numbers(tokens, width, 9));
        let mut cache = cache(&device, ratio, width / 2, tokens);
        let kept = tokens / 2 - 3;
        for (numbers, range) in [(&inputs, 0..kept), (&others, kept..kept + tokens / 3), (&inputs, kept..tokens)] {
            let batch = step(range.start, range.len(), 0);
            let rows = tensor(&device, range.len(), width, &numbers[range.start * width..range.end * width]);
            device.store_rows(&mut cache, 0, &rows, &batch);
            device.compress(&mut cache, &compressor, &batch);
        }
        let mut bytes = vec![];
        (0..16).for_each(|page| device.read_page(&cache, page, &mut bytes).unwrap());
        assert!(bytes == compressed(ratio, overlap, None, tokens, &[]), "ratio {ratio}");
    }
}

/// Compressed rows with these numbers, made by a compressor of one token that leaves them as they are but for its norm.
fn with_rows<D: Device>(device: &D, rows: &[f32], ratio: usize, latent: &[f32], format: KvFormat) -> D::KvCache {
    let (count, tokens) = (rows.len() / DIM, latent.len() / DIM);
    let ring_pages = ring_pages_min(ratio, ratio.max(tokens));
    let entries = vec![
        KvEntry::Inputs { width: 2 * DIM, ring_pages },
        KvEntry::compressed(DIM, ratio),
        KvEntry::latent(DIM, Some(16)),
    ];
    let mut cache = device.kv_cache(&KvLayout::new(entries, format), 16, 1).unwrap();
    let compressor = Compressor {
        ape: device.load_vector(&vec![0.0; ratio * DIM]).unwrap(),
        norm: device.load_vector(&[1.0; DIM]).unwrap(),
        rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![], magnitude: 1.0 },
        // The root of a mean of squares that is small beside it.
        epsilon: 4.0,
        ..compressor(device, ratio, false, None)
    };
    for index in 0..count {
        let batch = step(index * ratio, ratio, 0);
        let row: Vec<f32> = rows[index * DIM..][..DIM].iter().copied().chain([0.0; DIM]).collect();
        device.store_rows(&mut cache, 0, &tensor(device, ratio, 2 * DIM, &row.repeat(ratio)), &batch);
        device.compress(&mut cache, &compressor, &batch);
    }
    if tokens > 0 {
        device.store_rows(&mut cache, 2, &tensor(device, tokens, DIM, latent), &step(0, tokens, 0));
    }
    cache
}

fn select<D: Device>(
    device: &D,
    cache: &D::KvCache,
    heads: usize,
    top_k: usize,
    positions: std::ops::Range<usize>,
    weights: &[f32],
) -> Vec<Vec<u32>> {
    let selector = Selector { entry: 1, ratio: 4, heads, head_dim: DIM, top_k, scale: 0.125 };
    let rows = positions.len();
    let queries = tensor(device, rows, heads * DIM, &numbers(1, heads * DIM, 5).repeat(rows));
    let weights = tensor(device, rows, heads, &weights.repeat(rows));
    let selection = device.select(&queries, &weights, cache, &selector, &step(positions.start, rows, 0));
    let mut rows = vec![];
    device.read_selection(&selection, &mut rows).unwrap();
    rows
}

#[test]
fn the_highest_scores_are_selected() {
    let (count, heads) = (60, 3);
    let rows = numbers(count, DIM, 4);
    let weights = [0.9, -0.4, 0.3];
    let (near, far) = (ReferenceDevice, Float64Device);
    let (near_cache, far_cache) =
        (with_rows(&near, &rows, 4, &[], KvFormat::F32), with_rows(&far, &rows, 4, &[], KvFormat::F32));
    for top_k in [1, 7, 16, 59, 60, 61] {
        let got = select(&near, &near_cache, heads, top_k, 0..4 * count, &weights);
        assert_eq!(got, select(&far, &far_cache, heads, top_k, 0..4 * count, &weights), "{top_k}");
        for (position, selected) in got.iter().enumerate() {
            let complete = (position + 1) / 4;
            assert_eq!(selected.len(), complete.min(top_k));
            assert!(selected.windows(2).all(|w| w[0] < w[1]) && selected.iter().all(|c| (*c as usize) < complete));
        }
    }
}

/// Equal scores go by the lowest row; a weight that is no number makes all scores so, and they are equal again.
#[test]
fn ties_go_by_the_lowest_row() {
    let device = ReferenceDevice;
    let cache = with_rows(&device, &numbers(1, DIM, 4).repeat(20), 4, &[], KvFormat::F32);
    for weights in [[1.0, 1.0], [0.0, 0.0], [f32::NAN, 1.0]] {
        let rows = select(&device, &cache, 2, 5, 79..80, &weights);
        assert_eq!(rows, [[0, 1, 2, 3, 4]]);
    }
}

fn spec(heads: usize, window: usize, ratio: Option<usize>) -> LatentAttention {
    let compressed = ratio.map(|ratio| CompressedRows { entry: 1, ratio });
    LatentAttention { entry: 2, window, compressed, heads, head_dim: DIM, scale: 0.3 }
}

/// Without compressed rows it is attention whose values are its keys.
#[test]
fn raw_rows_are_attended_as_keys_and_values_are() {
    let (device, heads, tokens) = (ReferenceDevice, 3, 200);
    let (latent, sinks) = (numbers(tokens, DIM, 6), device.load_vector(&numbers(1, heads, 7)).unwrap());
    for (format, window) in KvFormat::ALL.into_iter().zip([1, 64, 130]) {
        let cache = with_rows(&device, &[], 4, &latent, format);
        let mut pairs = device.kv_cache(&KvLayout::new(vec![KvEntry::pairs(1, DIM)], format), 16, 0).unwrap();
        let (rows, batch) = (tensor(&device, tokens, DIM, &latent), step(0, tokens, 0));
        device.store_kv(&mut pairs, 0, &rows, &rows, &batch);
        let queries = tensor(&device, tokens, heads * DIM, &numbers(tokens, heads * DIM, 8));
        let attention =
            Attention { layer: 0, heads, kv_heads: 1, head_dim: DIM, scale: 0.3, window: Some(window), soft_cap: None };
        let want = read(&device, &device.attention(&queries, &pairs, &attention, Some(&sinks), &batch));
        let got = device.attend_latent(&queries, &cache, &spec(heads, window, None), None, &sinks, &batch);
        assert_eq!(bits(&read(&device, &got)), bits(&want), "{format:?}");
    }
}

fn attended<D: Device>(
    device: &D,
    ratio: usize,
    tokens: usize,
    window: usize,
    selection: Option<&D::Selection>,
) -> Vec<f32> {
    let heads = 3;
    let (rows, latent) = (numbers(tokens / ratio, DIM, 4), numbers(tokens, DIM, 6));
    let cache = with_rows(device, &rows, ratio, &latent, KvFormat::F32);
    let queries = tensor(device, tokens, heads * DIM, &numbers(tokens, heads * DIM, 8));
    let sinks = device.load_vector(&numbers(1, heads, 7)).unwrap();
    let spec = spec(heads, window, Some(ratio));
    read(device, &device.attend_latent(&queries, &cache, &spec, selection, &sinks, &step(0, tokens, 0)))
}

#[test]
fn compressed_rows_are_attended_behind_the_window() {
    for (ratio, tokens, window) in [(4, 300, 20), (4, 263, 64), (128, 390, 100)] {
        let got = attended(&ReferenceDevice, ratio, tokens, window, None);
        close(&got, &attended(&Float64Device, ratio, tokens, window, None), 5e-6, &format!("ratio {ratio}"));
        // A selection of all is no selection.
        let all = (0..tokens).map(|p| (0..((p + 1) / ratio) as u32).collect()).collect();
        assert_eq!(
            bits(&attended(&ReferenceDevice, ratio, tokens, window, Some(&Selection { rows: all }))),
            bits(&got)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Rows that are not selected are nothing to attention.
    #[test]
    fn a_selection_is_attended_alone(seed in any::<u64>(), window in 1usize..90) {
        let (ratio, tokens) = (4, 280);
        let mut random = Random(seed);
        let mut pick = |complete: usize| (0..complete as u32).filter(|_| random.bits().is_multiple_of(3)).collect();
        let rows: Vec<Vec<u32>> = (0..tokens).map(|p| pick((p + 1) / ratio)).collect();
        let selection = Selection { rows };
        let got = attended(&ReferenceDevice, ratio, tokens, window, Some(&selection));
        close(&got, &attended(&Float64Device, ratio, tokens, window, Some(&selection)), 5e-6, "a selection");
    }
}

#[test]
fn steps_that_overwrite_their_own_inputs_are_refused() {
    let device = ReferenceDevice;
    let compressor = compressor(&device, 4, true, None);
    let entries = vec![KvEntry::Inputs { width: 4 * DIM, ring_pages: 1 }, KvEntry::compressed(DIM, 4)];
    for rows in [56, 57] {
        let mut cache = device.kv_cache(&KvLayout::new(entries.clone(), KvFormat::F16), 16, 1).unwrap();
        let batch = step(0, rows, 0);
        device.store_rows(&mut cache, 0, &tensor(&device, rows, 4 * DIM, &numbers(rows, 4 * DIM, 1)), &batch);
        let run = std::panic::AssertUnwindSafe(|| device.compress(&mut cache, &compressor, &batch));
        assert_eq!(std::panic::catch_unwind(run).is_ok(), rows == 56, "{rows} rows beside a window of 8");
    }
}
