//! Attention: every instruction set, number of threads, chunk and neighbour gives the reference's bits.

use tessera_ops::{Attention, Batch, Device, KvEntry, KvFormat, KvLayout, Role, reference::ReferenceDevice};

use crate::{
    tensors::{devices, read, same, tensor},
    weights::activations,
};

/// One sequence, stored and attended to at once or in chunks.
struct Case {
    spec: Attention,
    sinks: Option<Vec<f32>>,
    tokens: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    format: KvFormat,
}

impl Case {
    fn new(tokens: usize, (heads, kv_heads, head_dim): (usize, usize, usize), format: KvFormat) -> Case {
        let scale = 2.0 / (head_dim as f32).sqrt();
        Case {
            spec: Attention { layer: 1, heads, kv_heads, head_dim, scale, window: None, soft_cap: None },
            sinks: None,
            tokens,
            keys: activations(tokens, kv_heads * head_dim, 1),
            values: activations(tokens, kv_heads * head_dim, 2),
            queries: activations(tokens, heads * head_dim, 3),
            format,
        }
    }

    /// A cache in which the pages this case does not use hold NaN, as do the slots behind its tokens.
    fn cache<D: Device>(&self, device: &D, pages: &[u32]) -> D::KvCache {
        let Attention { kv_heads, head_dim, .. } = self.spec;
        let layer = KvEntry::pairs(kv_heads, head_dim);
        let layout = KvLayout::new(vec![KvEntry::pairs(1, 3), layer], self.format);
        let mut cache = device.kv_cache(&layout, pages.len() + 1, 0).unwrap();
        let mut all = Batch::default();
        let tokens = 64 * (pages.len() + 1);
        all.push(&vec![0; tokens], 0, &(0..=pages.len() as u32).collect::<Vec<_>>(), Role::Prefill, 0);
        let poison = tensor(device, tokens, kv_heads * head_dim, &vec![f32::NAN; tokens * kv_heads * head_dim]);
        device.store_kv(&mut cache, 1, &poison, &poison, &all);
        cache
    }

    fn run<D: Device>(&self, device: &D, chunk: usize) -> Vec<f32> {
        let Attention { heads, kv_heads, head_dim, layer, .. } = self.spec;
        let pages: Vec<u32> = (1..=self.tokens.div_ceil(64) as u32).rev().collect();
        let mut cache = self.cache(device, &pages);
        let sinks = self.sinks.as_ref().map(|s| device.load_vector(s).unwrap());
        let mut out = vec![];
        for start in (0..self.tokens).step_by(chunk) {
            let rows = chunk.min(self.tokens - start);
            let mut batch = Batch::default();
            batch.push(&vec![0; rows], start, &pages, Role::Prefill, 0);
            let part = |all: &[f32], width: usize| tensor(device, rows, width, &all[start * width..][..rows * width]);
            let (keys, values) = (part(&self.keys, kv_heads * head_dim), part(&self.values, kv_heads * head_dim));
            device.store_kv(&mut cache, layer, &keys, &values, &batch);
            let queries = part(&self.queries, heads * head_dim);
            let y = device.attention(&queries, &cache, &self.spec, sinks.as_ref(), &batch);
            out.extend(read(device, &y));
        }
        out
    }

    #[track_caller]
    fn check(&self, chunks: &[usize]) {
        let want = self.run(&ReferenceDevice, self.tokens);
        for device in devices() {
            for chunk in chunks {
                let what = format!("{} tokens by {chunk}, {:?}, {}", self.tokens, self.spec, device.name());
                same(&self.run(&device, *chunk), &want, &what);
            }
        }
    }
}

#[test]
fn every_shape_of_head_gives_the_reference_s_bits() {
    for format in KvFormat::ALL {
        for shape in [(1, 1, 64), (4, 2, 80), (3, 1, 96), (8, 1, 128), (7, 1, 16), (5, 5, 5), (10, 2, 40)] {
            Case::new(70, shape, format).check(&[70]);
        }
        for shape in [(2, 1, 256), (2, 2, 512)] {
            Case::new(67, shape, format).check(&[67]);
        }
    }
}

#[test]
fn every_number_of_rows_gives_the_reference_s_bits() {
    for tokens in (1..=70).chain([127, 128, 129, 200]) {
        Case::new(tokens, (6, 2, 16), KvFormat::ALL[tokens % 3]).check(&[tokens]);
    }
}

#[test]
fn every_chunk_gives_the_reference_s_bits() {
    for (window, soft_cap) in [(None, None), (Some(1), None), (Some(50), Some(3.0)), (Some(64), None), (Some(65), None)]
    {
        for format in [KvFormat::F16, KvFormat::Q8_0] {
            let mut case = Case::new(140, (6, 2, 24), format);
            (case.spec.window, case.spec.soft_cap) = (window, soft_cap);
            case.check(&[1, 7, 63, 64, 65, 140]);
        }
    }
}

#[test]
fn a_page_that_is_not_a_number_shows_where_it_is_seen() {
    for (bad, format) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|b| KvFormat::ALL.map(|format| (b, format))) {
        let mut case = Case::new(130, (2, 1, 16), format);
        case.keys[40 * 16 + 3] = bad;
        case.spec.window = Some(30);
        case.check(&[1, 130]);
        for device in devices() {
            let y = case.run(&device, 130);
            for row in 0..130 {
                let seen = (40..70).contains(&row);
                let lost = y[row * 32..][..32].iter().any(|v| v.is_nan());
                // An infinite key times a negative query is a weight of zero: then nothing is lost.
                if bad.is_nan() {
                    assert_eq!(lost, seen, "row {row}");
                } else {
                    assert!(seen || !lost, "row {row}");
                }
            }
        }
    }
}

#[test]
fn sequences_of_all_lengths_share_a_step() {
    let spec = Case::new(1, (6, 2, 16), KvFormat::F16).spec;
    let lengths = [1usize, 64, 3, 130, 65, 2, 1];
    let (rows, pages) = (lengths.iter().sum::<usize>(), 3 * lengths.len());
    let (keys, values, queries) = (activations(rows, 32, 4), activations(rows, 32, 5), activations(rows, 96, 6));
    let mut batch = Batch::default();
    for (i, length) in lengths.into_iter().enumerate() {
        // Pages of all sequences are mixed.
        let table: Vec<u32> = (0..3).map(|p| (p * lengths.len() + i) as u32).collect();
        batch.push(&vec![0; length], 0, &table, Role::Decode, 0);
    }
    fn run<D: Device>(device: &D, spec: &Attention, batch: &Batch, pages: usize, kvq: [&[f32]; 3]) -> Vec<f32> {
        let layer = KvEntry::pairs(2, 16);
        let layout = KvLayout::new(vec![layer, layer], KvFormat::F16);
        let mut cache = device.kv_cache(&layout, pages, 0).unwrap();
        let [keys, values, queries] = kvq.map(|x| tensor(device, batch.len(), x.len() / batch.len(), x));
        device.store_kv(&mut cache, 1, &keys, &values, batch);
        read(device, &device.attention(&queries, &cache, spec, None, batch))
    }
    let kvq = [&keys[..], &values, &queries];
    let want = run(&ReferenceDevice, &spec, &batch, pages, kvq);
    for device in devices() {
        same(&run(&device, &spec, &batch, pages, kvq), &want, &device.name());
    }
}

/// Sinks below, among and far above the scores, at every way of taking the rows.
#[test]
fn sinks_give_the_reference_s_bits() {
    for (i, sink) in [-100.0f32, -1.0, 0.5, 90.0, f32::NEG_INFINITY].into_iter().enumerate() {
        for (tokens, window, soft_cap) in [(70, None, None), (130, Some(50), Some(3.0)), (330, None, None)] {
            let mut case = Case::new(tokens, (6, 2, 40), KvFormat::ALL[i % 3]);
            (case.spec.window, case.spec.soft_cap) = (window, soft_cap);
            case.sinks = Some((0..6).map(|head| sink + head as f32 * 0.75).collect());
            case.check(&[1, 65, tokens]);
        }
    }
}

/// Token by token, a long sequence alone is shared among threads inside a row; whole, it goes in blocks.
#[test]
fn a_row_that_threads_share_gives_the_reference_s_bits() {
    let shapes = [(3, 1, 80), (6, 2, 32), (1, 1, 16), (2, 1, 24), (4, 1, 256)];
    for (i, shape) in shapes.into_iter().enumerate() {
        for (window, soft_cap) in [(None, None), (Some(290), Some(3.0))] {
            let mut case = Case::new(400, shape, KvFormat::ALL[i % 3]);
            (case.spec.window, case.spec.soft_cap) = (window, soft_cap);
            case.check(&[1, 400]);
        }
    }
}
