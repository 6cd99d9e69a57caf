//! What a layer does between its projections and attention becomes one launch, and not a bit of it changes: on a card, or on the
//! emulated one (`tools/emulate cargo test -p tessera-cuda`). A machine without either has nothing to show.

use tessera_formats::DType;
use tessera_ops::{
    Attention, Batch, Device, KvFormat, KvLayout, LatentAttention, Linear, MatrixSource, Role, Rope, RopeLayout,
    Rotation, kv::KvEntry, reference::ReferenceDevice,
};

/// Heads of queries and of keys, their numbers, and how many pairs of them turn.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    layout: RopeLayout,
    is_normed: bool,
}

/// The three tables that queries, keys and values come from.
fn table(seed: usize, rows: usize, width: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() }
}

/// Rows of two sequences.
fn step() -> Batch {
    let mut batch = Batch::default();
    batch.push(&[0, 1, 2], 0, &[1], Role::Decode, 0);
    batch.push(&[3], 0, &[0], Role::Decode, 0);
    batch
}

/// Keys, queries and what attention makes of them; `after` is called behind each op.
fn layer<D: Device>(device: &D, shape: Shape, format: KvFormat, after: &dyn Fn()) -> Vec<Vec<f32>> {
    let Shape { heads, kv_heads, head_dim, pairs, layout, is_normed } = shape;
    let batch = step();
    let [mut query, mut key, value] = [(1, heads), (2, kv_heads), (3, kv_heads)].map(|(seed, heads)| {
        device.embed(&device.load_embedding(&table(seed, 4, heads * head_dim)).unwrap(), &batch, 1.0)
    });
    let frequencies = (0..pairs).map(|i| 0.7 / (i + 1) as f64).collect();
    let angles = device.rope_angles(&Rope { layout, frequencies, magnitude: 1.5 }, &batch);
    let weight: Vec<f32> = (0..head_dim).map(|i| 0.5 + i as f32 / 64.0).collect();
    let weight = device.load_vector(&weight).unwrap();
    let entries = vec![KvEntry::pairs(kv_heads, head_dim)];
    let mut cache = device.kv_cache(&KvLayout::new(entries, format), 2, 0).unwrap();
    let rotation = Rotation::new(head_dim, layout);
    // What a step sends is sent, and nothing is held back.
    device.store_kv(&mut cache, 0, &value, &value, &batch);
    device.read(&value, &mut vec![]).unwrap();
    if is_normed {
        key = device.rms_norm(&key, &weight, 1e-5);
        after();
    }
    device.rotate(&mut key, &rotation, &angles);
    after();
    device.store_kv(&mut cache, 0, &key, &value, &batch);
    after();
    if is_normed {
        query = device.rms_norm(&query, &weight, 1e-5);
        after();
    }
    device.rotate(&mut query, &rotation, &angles);
    after();
    let spec = Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.3, window: None, soft_cap: None };
    let mixed = device.attention(&query, &cache, &spec, None, &batch);
    let mut page = vec![];
    device.read_page(&cache, 1, &mut page).unwrap();
    let read = |x: &D::Tensor| {
        let mut out = vec![];
        device.read(x, &mut out).unwrap();
        out
    };
    vec![read(&key), read(&query), read(&mixed), page.into_iter().map(f32::from).collect()]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn heads_are_normed_turned_and_stored_at_once() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let shape = |heads, kv_heads, head_dim, pairs, layout, is_normed| Shape {
        heads,
        kv_heads,
        head_dim,
        pairs,
        layout,
        is_normed,
    };
    let (halves, neighbours) = (RopeLayout::Halves, RopeLayout::Interleaved);
    for (shape, format) in [
        (shape(4, 2, 64, 32, halves, false), KvFormat::F16),
        (shape(4, 2, 64, 32, neighbours, true), KvFormat::Q8_0),
        // One head of keys; a part of each head turns.
        (shape(3, 1, 32, 10, halves, true), KvFormat::F32),
        // As many heads of keys as of queries.
        (shape(2, 2, 80, 40, neighbours, true), KvFormat::F16),
    ] {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = layer(&card, shape, format, after);
            (results, card.counts().launches - before)
        };
        let (joined, few) = launches(&|| {});
        let (single, many) = launches(&|| card.wait().unwrap());
        let reference = layer(&ReferenceDevice, shape, format, &|| {});
        for (i, name) in ["keys", "queries", "attention", "a page"].into_iter().enumerate() {
            assert!(bits(&joined[i]) == bits(&single[i]), "{shape:?} {format:?}: {name}");
        }
        for (i, name) in ["keys", "queries"].into_iter().enumerate() {
            assert!(bits(&joined[i]) == bits(&reference[i]), "{shape:?} {format:?}: {name} of the reference");
        }
        // Where queries are as many as keys, and memory is given out again at once, their norm's result lies where the keys came from, which
        // the store still reads.
        let saved = match shape {
            Shape { is_normed: false, .. } => 2,
            Shape { heads, kv_heads, .. } => 4 - u64::from(heads == kv_heads && !crate::starts_early(&card)),
        };
        assert_eq!(many - few, saved, "{shape:?} {format:?}: launches");
    }
}

/// Codes are seen by what is multiplied.
fn probe(depth: usize) -> MatrixSource {
    let block = |b: usize| [0x00, 0x24].into_iter().chain((0..32).map(move |i| (b * 31 + i * 7) as u8));
    let bytes: Vec<u8> = (0..16 * depth / 32).flat_map(block).collect();
    MatrixSource { name: "probe".to_owned(), dtype: DType::Q8_0, rows: 16, depth, bytes: bytes.into() }
}

/// A row that sees so much that its tokens are in several spans, and one whose are in one.
fn far_step() -> Batch {
    let mut batch = Batch::default();
    batch.push(&[0], 500, &[1, 2, 3, 4, 5, 6, 7, 8], Role::Decode, 0);
    batch.push(&[1], 5, &[0], Role::Decode, 0);
    batch
}

/// What attention gives and a product of it, over keys and values, or over latent rows, whose result turns back.
fn mixed<D: Device>(device: &D, is_latent: bool, after: &dyn Fn()) -> Vec<Vec<f32>> {
    let (batch, heads, head_dim) = (far_step(), 4, 128);
    let rows =
        |seed: usize, width: usize| device.embed(&device.load_embedding(&table(seed, 2, width)).unwrap(), &batch, 1.0);
    let (query, kept) = (rows(1, heads * head_dim), rows(2, head_dim));
    let entries = vec![KvEntry::pairs(1, head_dim), KvEntry::latent(head_dim, None)];
    let mut cache = device.kv_cache(&KvLayout::new(entries, KvFormat::F16), 9, 0).unwrap();
    let angles = device.rope_angles(
        &Rope { layout: RopeLayout::Interleaved, frequencies: vec![0.3, 0.02, 1e-3], magnitude: 1.0 },
        &batch,
    );
    let sinks = device.load_vector(&[0.5; 4]).unwrap();
    let probe = Linear { matrix: device.load_matrix(&probe(heads * head_dim)).unwrap(), bias: None };
    device.store_kv(&mut cache, 0, &kept, &kept, &batch);
    device.store_rows(&mut cache, 1, &kept, &batch);
    device.read(&query, &mut vec![]).unwrap();
    let y = if is_latent {
        let spec = LatentAttention { entry: 1, window: 450, compressed: None, heads, head_dim, scale: 0.1 };
        let mut y = device.attend_latent(&query, &cache, &spec, None, &sinks, &batch);
        after();
        device.rotate(&mut y, &Rotation::new(head_dim, RopeLayout::Interleaved).from(head_dim - 6).inverted(), &angles);
        y
    } else {
        let spec = Attention { layer: 0, heads, kv_heads: 1, head_dim, scale: 0.1, window: None, soft_cap: None };
        device.attention(&query, &cache, &spec, None, &batch)
    };
    after();
    let [product] = device.project(&y, [&probe]);
    [&y, &product]
        .map(|tensor| {
            let mut out = vec![];
            device.read(tensor, &mut out).unwrap();
            out
        })
        .into()
}

#[test]
fn spans_are_merged_turned_and_coded_at_once() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let is_hopper = card.name().contains("sm_90a");
    for is_latent in [false, true] {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = mixed(&card, is_latent, after);
            (results, card.counts().launches - before)
        };
        let (single, many) = launches(&|| card.wait().unwrap());
        let (joined, few) = launches(&|| {});
        for (i, name) in ["what attention gives", "its product"].into_iter().enumerate() {
            assert!(bits(&joined[i]) == bits(&single[i]), "latent {is_latent}: {name}");
        }
        // Elsewhere the rotation and codes are one.
        let saved = if is_latent && is_hopper { 2 } else { 1 };
        assert_eq!(many - few, saved, "latent {is_latent}: launches");
    }
}
