//! Attention of the reference: against f64, at page edges, and each row against itself alone.

use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Attention, Batch, Device, Error, KvEntry, KvFormat, KvLayout, Role};

use crate::support::{Random, bits, close, read, tensor};

/// One sequence of random keys, values and queries.
struct Case {
    spec: Attention,
    sinks: Option<Vec<f32>>,
    tokens: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Case {
    fn new(seed: u64, tokens: usize, (heads, kv_heads, head_dim): (usize, usize, usize)) -> Case {
        let mut random = Random(seed);
        let scale = 3.0 / (head_dim as f32).sqrt();
        let spec = Attention { layer: 1, heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
        let mut values = |width| random.values(tokens * width);
        let (keys, queries) = (values(kv_heads * head_dim), values(heads * head_dim));
        Case { spec, sinks: None, tokens, keys, values: values(kv_heads * head_dim), queries }
    }

    /// Stores and attends `chunk` rows at a time, in pages handed out backwards; the outputs of all rows.
    fn run<D: Device>(&self, device: &D, format: KvFormat, chunk: usize) -> Vec<f32> {
        let Attention { heads, kv_heads, head_dim, layer, .. } = self.spec;
        let kv_layer = KvEntry::pairs(kv_heads, head_dim);
        let pages: Vec<u32> = (0..self.tokens.div_ceil(64) as u32).rev().collect();
        let layout = KvLayout::new(vec![KvEntry::pairs(1, 1), kv_layer], format);
        let mut cache = device.kv_cache(&layout, pages.len(), 0).unwrap();
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
}

const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 8), (4, 2, 16), (3, 1, 5), (8, 8, 4)];

#[test]
fn attention_is_close_to_the_truth() {
    for (seed, tokens) in [1usize, 2, 63, 64, 65, 127, 128, 129].into_iter().enumerate() {
        for shape in SHAPES {
            for (window, soft_cap) in [(None, None), (Some(1), None), (Some(64), Some(2.0)), (Some(70), None)] {
                let mut case = Case::new(seed as u64, tokens, shape);
                (case.spec.window, case.spec.soft_cap) = (window, soft_cap);
                let what = format!("{tokens} tokens, {:?}", case.spec);
                let want = case.run(&Float64Device, KvFormat::F32, tokens);
                // Scores below 10 are good to about 1e-6; the outputs are means of values below 1.
                close(&case.run(&ReferenceDevice, KvFormat::F32, tokens), &want, 5e-6, &what);
                // F16 moves a key by 2^-12 at most: a score by 2^-12 · sum|q| < 3 sqrt(16) / 4096, a value by 2^-12.
                close(&case.run(&ReferenceDevice, KvFormat::F16, tokens), &want, 6e-3, &what);
                close(&case.run(&ReferenceDevice, KvFormat::Q8_0, tokens), &want, 3e-1, &what);
            }
        }
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    for format in KvFormat::ALL {
        for window in [None, Some(50)] {
            let mut case = Case::new(7, 140, (4, 2, 16));
            case.spec.window = window;
            let whole = bits(&case.run(&ReferenceDevice, format, 140));
            for chunk in [1, 3, 63, 64, 65] {
                assert_eq!(whole, bits(&case.run(&ReferenceDevice, format, chunk)), "chunks of {chunk}");
            }
        }
    }
}

#[test]
fn neighbours_do_not_change_a_bit() {
    let device = ReferenceDevice;
    let (a, b) = (Case::new(8, 70, (2, 1, 8)), Case::new(9, 30, (2, 1, 8)));
    let layer = KvEntry::pairs(1, 8);
    let layout = KvLayout::new(vec![layer, layer], KvFormat::F16);
    let mut cache = device.kv_cache(&layout, 3, 0).unwrap();
    let mut batch = Batch::default();
    batch.push(&[0; 30], 0, &[1], Role::Decode, 0);
    batch.push(&[0; 70], 0, &[2, 0], Role::Prefill, 0);
    let both = |x: &[f32], y: &[f32], width| tensor(&device, 100, width, &[x, y].concat());
    device.store_kv(&mut cache, 1, &both(&b.keys, &a.keys, 8), &both(&b.values, &a.values, 8), &batch);
    let y = read(&device, &device.attention(&both(&b.queries, &a.queries, 16), &cache, &a.spec, None, &batch));
    let alone = [b.run(&device, KvFormat::F16, 30), a.run(&device, KvFormat::F16, 70)].concat();
    assert_eq!(bits(&y), bits(&alone));
}

#[test]
fn a_sink_is_a_key_without_a_value() {
    for (seed, tokens) in [1usize, 64, 65, 130].into_iter().enumerate() {
        for (window, soft_cap, sink) in [
            (None, None, 0.0),
            (Some(1), None, 1.5),
            (Some(70), Some(2.0), -1.0),
            (None, None, 20.0),
            (None, None, -20.0),
        ] {
            let mut case = Case::new(20 + seed as u64, tokens, (4, 2, 16));
            (case.spec.window, case.spec.soft_cap) = (window, soft_cap);
            case.sinks = Some((0..4).map(|head| sink + head as f32 * 0.5).collect());
            let what = format!("{tokens} tokens, sink {sink}, {:?}", case.spec);
            let want = case.run(&Float64Device, KvFormat::F32, tokens);
            let got = case.run(&ReferenceDevice, KvFormat::F32, tokens);
            close(&got, &want, 5e-6, &what);
            assert_eq!(bits(&got), bits(&case.run(&ReferenceDevice, KvFormat::F32, 3)), "{what}");
            // By hand for the first row, whose key is alone: a score s and a sink z leave e^s / (e^s + e^z) of its value.
            let score: f32 = (0..16).map(|d| case.queries[d] * case.spec.scale * case.keys[d]).sum();
            let score = soft_cap.map_or(score, |cap| cap * (score / cap).tanh());
            let share = 1.0 / (1.0 + (sink - score).exp());
            assert!((got[3] - share * case.values[3]).abs() < 1e-5, "{what}");
        }
    }
}

#[test]
fn a_sink_of_no_weight_changes_nothing_and_a_sink_of_nan_shows() {
    let mut case = Case::new(30, 70, (2, 1, 8));
    let without = case.run(&ReferenceDevice, KvFormat::F32, 70);
    case.sinks = Some(vec![f32::NEG_INFINITY, f32::NAN]);
    let with = case.run(&ReferenceDevice, KvFormat::F32, 70);
    for row in 0..70 {
        assert_eq!(bits(&with[row * 16..][..8]), bits(&without[row * 16..][..8]), "row {row}");
        assert!(with[row * 16 + 8..][..8].iter().all(|v| v.is_nan()), "row {row}");
    }
}

#[test]
fn one_visible_key_gives_its_value() {
    let mut case = Case::new(10, 130, (2, 2, 4));
    case.spec.window = Some(1);
    assert_eq!(case.run(&ReferenceDevice, KvFormat::F32, 130), case.values);
}

#[test]
fn keys_outside_the_window_are_never_read() {
    // The cache starts as NaN, and here the keys before the window are NaN as well.
    let mut case = Case::new(11, 129, (1, 1, 4));
    case.spec.window = Some(65);
    case.keys[..64 * 4].fill(f32::NAN);
    case.values[..64 * 4].fill(f32::NAN);
    let y = case.run(&ReferenceDevice, KvFormat::F32, 129);
    assert!(y[128 * 4..].iter().all(|v| v.is_finite()), "row 128 sees 64..=128 only");
    assert!(y[..128 * 4].iter().all(|v| v.is_nan()), "the rows before it see a NaN");
}

#[test]
fn not_a_number_does_not_vanish() {
    for (at, bad) in [(0, f32::NAN), (5, f32::NAN), (69, f32::NAN), (5, f32::INFINITY)] {
        let mut case = Case::new(12, 70, (1, 1, 1));
        case.keys[at] = bad;
        case.queries.fill(1.0);
        let y = case.run(&ReferenceDevice, KvFormat::F32, 70);
        assert!(y[..at].iter().all(|v| v.is_finite()) && y[at..].iter().all(|v| v.is_nan()), "{bad} at {at}");
    }
}

#[test]
fn a_cache_that_cannot_be_is_a_typed_error() {
    let layout = KvLayout::new(vec![KvEntry::pairs(8, 128)], KvFormat::F16);
    let error = ReferenceDevice.kv_cache(&layout, usize::MAX / (1 << 18), 0).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}
