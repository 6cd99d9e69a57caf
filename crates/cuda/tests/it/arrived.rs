//! What comes of a block's input before attention over latent rows becomes one launch, and not a bit of it changes: on a card, or on the
//! emulated one (`tools/emulate cargo test -p tessera-cuda`). A machine without either has nothing to show.

use tessera_formats::DType;
use tessera_ops::{
    Batch, Compressor, Device, KvFormat, KvLayout, Linear, MatrixSource, Packing, RingPart, Role, Rope, RopeLayout,
    Rotation, Rounding, kv::KvEntry, reference::ReferenceDevice,
};

/// Numbers of a row, and of narrow queries.
const WIDTH: usize = 64;
const QUERY: usize = 96;
/// Tokens of a sequence, at most.
const TOKENS: usize = 192;

/// A kind of layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// Tokens of a compressed row, whether rows overlap, its numbers, and its rounding: of rows, and of an indexer's.
    compressed: &'static [(usize, bool, usize, Option<Rounding>)],
    rounding: Option<Rounding>,
    format: KvFormat,
    /// Where the first sequence goes on, behind tokens that are zeros.
    start: usize,
    /// How many rows of it come in each step; the second has one in each.
    steps: &'static [usize],
    /// Whether rows are packed as they are rounded.
    is_packed: bool,
}

fn source(seed: usize, rows: usize, depth: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * depth).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth, bytes: bytes.into() }
}

/// Codes of queries are seen by what is multiplied.
fn probe() -> MatrixSource {
    let block = |b: usize| [0x00, 0x24].into_iter().chain((0..32).map(move |i| (b * 31 + i * 7) as u8));
    let bytes: Vec<u8> = (0..16 * QUERY / 32).flat_map(block).collect();
    MatrixSource { name: "probe".to_owned(), dtype: DType::Q8_0, rows: 16, depth: QUERY, bytes: bytes.into() }
}

/// The steps of both sequences; tokens are places in tables.
fn batches(layer: Layer) -> Vec<Batch> {
    let mut first = layer.start;
    let batch = |(i, rows): (usize, &usize)| {
        let mut batch = Batch::default();
        let tokens: Vec<u32> = (first..first + rows).map(|t| t as u32).collect();
        batch.push(&tokens, first, &[1, 3, 5], Role::Decode, 0);
        batch.push(&[(TOKENS + i) as u32], i, &[0, 2, 4], Role::Decode, 0);
        batch.in_ring(1);
        first += rows;
        batch
    };
    layer.steps.iter().enumerate().map(batch).collect()
}

fn rows_of<D: Device>(device: &D, seed: usize, width: usize, batch: &Batch) -> D::Tensor {
    device.embed(&device.load_embedding(&source(seed, TOKENS + 16, width)).unwrap(), batch, 1.0)
}

fn compressors<D: Device>(device: &D, layer: Layer) -> Vec<Compressor<D>> {
    let vector =
        |count: usize| device.load_vector(&(0..count).map(|i| (i % 17) as f32 / 9.0).collect::<Vec<_>>()).unwrap();
    let compressor =
        |(i, (ratio, overlap, head_dim, rounding)): (usize, &(usize, bool, usize, Option<Rounding>))| Compressor {
            inputs: 2 + 2 * i,
            output: 3 + 2 * i,
            ratio: *ratio,
            overlap: *overlap,
            head_dim: *head_dim,
            ape: vector(ratio * head_dim * if *overlap { 2 } else { 1 }),
            norm: vector(*head_dim),
            epsilon: 1e-6,
            rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![1.0, 0.11, 2.5e-3], magnitude: 1.0 },
            rounding: *rounding,
        };
    layer.compressed.iter().enumerate().map(compressor).collect()
}

/// All that is written in all steps; `after` is called behind each op.
fn computed<D: Device>(device: &D, layer: Layer, after: &dyn Fn()) -> Vec<Vec<f32>> {
    let compressors = compressors(device, layer);
    let packed = |entry: KvEntry, rounding: Option<Rounding>| match rounding {
        Some(rounding) if layer.is_packed => entry.packed(Packing::of(rounding)),
        _ => entry,
    };
    let mut entries = vec![KvEntry::pairs(1, 16), packed(KvEntry::latent(WIDTH, Some(3)), layer.rounding)];
    for c in &compressors {
        let width = 2 * c.head_dim * if c.overlap { 2 } else { 1 };
        entries.push(KvEntry::Inputs { width, ring_pages: 4 });
        entries.push(packed(KvEntry::compressed(c.head_dim, c.ratio), c.rounding));
    }
    let mut cache = device.kv_cache(&KvLayout::new(entries, layer.format), 6, 2).unwrap();
    let weight =
        |count: usize| device.load_vector(&(0..count).map(|i| 0.5 + i as f32 / 64.0).collect::<Vec<_>>()).unwrap();
    let (row_norm, query_norm) = (weight(WIDTH), weight(QUERY));
    let probe = Linear { matrix: device.load_matrix(&probe()).unwrap(), bias: None };
    let rope = Rope { layout: RopeLayout::Interleaved, frequencies: vec![0.7, 0.2, 0.01, 1e-3], magnitude: 1.0 };
    let rotation = Rotation::new(WIDTH, RopeLayout::Interleaved).from(WIDTH - 8);
    let mut out = vec![];
    for batch in batches(layer) {
        let inputs: Vec<D::Tensor> = (compressors.iter().enumerate())
            .map(|(i, c)| rows_of(device, 3 + i, 2 * c.head_dim * if c.overlap { 2 } else { 1 }, &batch))
            .collect();
        let [raw, query] = [(1, WIDTH), (2, QUERY)].map(|(seed, width)| rows_of(device, seed, width, &batch));
        let angles = device.rope_angles(&rope, &batch);
        // What a step sends is sent, and nothing is held back.
        device.read(&raw, &mut vec![]).unwrap();
        for (c, input) in compressors.iter().zip(&inputs) {
            device.store_rows(&mut cache, c.inputs, input, &batch);
            after();
        }
        let mut row = device.rms_norm(&raw, &row_norm, 1e-5);
        after();
        device.rotate(&mut row, &rotation, &angles);
        after();
        if let Some(rounding) = layer.rounding {
            device.round(&mut row, WIDTH, rounding);
            after();
        }
        device.store_rows(&mut cache, 1, &row, &batch);
        after();
        for c in &compressors {
            device.compress(&mut cache, c, &batch);
            after();
        }
        let normed = device.rms_norm(&query, &query_norm, 1e-6);
        let [product] = device.project(&normed, [&probe]);
        for tensor in [&row, &normed, &product] {
            let mut numbers = vec![];
            device.read(tensor, &mut numbers).unwrap();
            out.push(numbers);
        }
    }
    let mut bytes = vec![];
    (0..6).for_each(|page| device.read_page(&cache, page, &mut bytes).unwrap());
    (0..2).for_each(|ring| device.read_ring(&cache, ring, RingPart::Whole, &mut bytes).unwrap());
    out.push(bytes.into_iter().map(f32::from).collect());
    out
}

#[test]
fn what_comes_before_attention_is_made_at_once() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let (fp8, fp4) = (Some(Rounding::Fp8 { features: 48 }), Some(Rounding::HadamardFp4));
    let four = Layer {
        compressed: &[
            (4, true, WIDTH, Some(Rounding::Fp8 { features: 26 })),
            (4, true, 32, Some(Rounding::HadamardFp4)),
        ],
        rounding: fp8,
        format: KvFormat::F16,
        // Rows that complete none, one and several, from this step and from those before.
        start: 0,
        steps: &[6, 1, 1, 9],
        is_packed: false,
    };
    assert_eq!(four.compressed[1].3, fp4);
    for (layer, is_one) in [
        (four, true),
        (Layer { is_packed: true, ..four }, true),
        (
            Layer { compressed: &[(128, false, WIDTH, None)], rounding: None, start: 126, steps: &[1, 1, 1], ..four },
            true,
        ),
        (Layer { compressed: &[], steps: &[2], ..four }, true),
        // Other formats have kernels of their own.
        (Layer { format: KvFormat::Q8_0, steps: &[5], ..four }, false),
    ] {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = computed(&card, layer, after);
            (results, card.counts().launches - before)
        };
        // The first time frequencies are sent in between.
        let (single, many) = launches(&|| card.wait().unwrap());
        let (joined, few) = launches(&|| {});
        let reference = computed(&ReferenceDevice, layer, &|| {});
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(joined.iter().zip(&single).all(|(a, b)| bits(a) == bits(b)), "{layer:?}");
        // How pages lie is a device's own.
        let tensors = joined.len() - 1;
        for (i, (a, b)) in joined.iter().zip(&reference).take(tensors).enumerate() {
            assert!(bits(a) == bits(b), "{layer:?}: tensor {i} of the reference");
        }
        // The norm of a row and its rotation are one in any case.
        let calls = 3 + u64::from(layer.rounding.is_some()) + 2 * layer.compressed.len() as u64;
        let saved = layer.steps.len() as u64 * if is_one { calls } else { 1 };
        assert_eq!(many - few, saved, "{layer:?}: launches");
    }
}
