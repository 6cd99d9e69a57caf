//! Packed rows lose nothing of rows that a model rounds, so every op gives of them the bits that it gives of F16 rows: on a card, or on the
//! emulated one. A machine without either has nothing to show.

use tessera_formats::DType;
use tessera_ops::{
    Batch, CompressedRows, Compressor, Device, KvFormat, KvLayout, LatentAttention, MatrixSource, Packing, RingPart,
    Role, Rope, RopeLayout, Rounding, Selector, kv::KvEntry, reference::ReferenceDevice,
};

/// Tokens of the sequence, at most, and pages that they fill.
const TOKENS: usize = 192;
const TABLE: [u32; 3] = [4, 1, 3];
const PAGES: usize = 6;

/// Tokens of a compressed row, and how many of these an indexer chooses.
const RATIO: usize = 4;
const TOP_K: usize = 20;

/// Entries of the cache.
const RAW: usize = 0;
const INPUTS: usize = 1;
const ROWS: usize = 2;
const INDEX_INPUTS: usize = 3;
const INDEX_ROWS: usize = 4;

/// A model's rows.
#[derive(Clone, Copy, Debug)]
struct Shape {
    head_dim: usize,
    /// How many numbers of a row are codes.
    features: usize,
    heads: usize,
    index_dim: usize,
    /// Whether the indexer's queries are rounded too, so that whole numbers are multiplied.
    rounds_queries: bool,
    /// Prompt rows, and decoded rows of each step behind them.
    prompt: usize,
    decoded: &'static [usize],
}

fn rows_of<D: Device>(device: &D, seed: usize, width: usize, batch: &Batch) -> D::Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..TOKENS * width).flat_map(|i| value(i).to_le_bytes()).collect();
    let source =
        MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows: TOKENS, depth: width, bytes: bytes.into() };
    device.embed(&device.load_embedding(&source).unwrap(), batch, 1.0)
}

impl Shape {
    fn layout(&self, is_packed: bool) -> KvLayout {
        let packed = |entry: KvEntry, packing: Packing| if is_packed { entry.packed(packing) } else { entry };
        let (row, key) = (Packing::Fp8 { features: self.features }, Packing::Fp4);
        let inputs = |dim: usize| KvEntry::Inputs { width: 4 * dim, ring_pages: 4 };
        let entries = vec![
            packed(KvEntry::latent(self.head_dim, Some(4)), row),
            inputs(self.head_dim),
            packed(KvEntry::compressed(self.head_dim, RATIO), row),
            inputs(self.index_dim),
            packed(KvEntry::compressed(self.index_dim, RATIO), key),
        ];
        KvLayout::new(entries, KvFormat::F16)
    }

    fn compressor<D: Device>(&self, device: &D, (inputs, output): (usize, usize)) -> Compressor<D> {
        let is_rows = output == ROWS;
        let head_dim = if is_rows { self.head_dim } else { self.index_dim };
        let vector =
            |count: usize| device.load_vector(&(0..count).map(|i| (i % 17) as f32 / 9.0).collect::<Vec<_>>()).unwrap();
        Compressor {
            inputs,
            output,
            ratio: RATIO,
            overlap: true,
            head_dim,
            ape: vector(RATIO * 2 * head_dim),
            norm: vector(head_dim),
            epsilon: 1e-6,
            rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![1.0, 0.11, 2.5e-3], magnitude: 1.0 },
            rounding: Some(if is_rows { Rounding::Fp8 { features: self.features } } else { Rounding::HadamardFp4 }),
        }
    }

    /// What a step of `rows` tokens from `start` on gives: what is chosen, and what attention makes of it.
    fn step<D: Device>(
        &self,
        device: &D,
        cache: &mut D::KvCache,
        (start, rows, role): (usize, usize, Role),
    ) -> [Vec<f32>; 2] {
        let mut batch = Batch::default();
        let tokens: Vec<u32> = (start..start + rows).map(|t| t as u32).collect();
        batch.push(&tokens, start, &TABLE, role, 0);
        batch.in_ring(1);
        let mut raw = rows_of(device, 1, self.head_dim, &batch);
        device.round(&mut raw, self.head_dim, Rounding::Fp8 { features: self.features });
        device.store_rows(cache, RAW, &raw, &batch);
        for (seed, entries) in [(2, (INPUTS, ROWS)), (3, (INDEX_INPUTS, INDEX_ROWS))] {
            let compressor = self.compressor(device, entries);
            device.store_rows(cache, entries.0, &rows_of(device, seed, 4 * compressor.head_dim, &batch), &batch);
            device.compress(cache, &compressor, &batch);
        }
        let selector =
            Selector { entry: INDEX_ROWS, ratio: RATIO, heads: 3, head_dim: self.index_dim, top_k: TOP_K, scale: 0.2 };
        let mut queries = rows_of(device, 4, 3 * self.index_dim, &batch);
        if self.rounds_queries {
            device.round(&mut queries, self.index_dim, Rounding::HadamardFp4);
        }
        let chosen = device.select(&queries, &rows_of(device, 5, 3, &batch), cache, &selector, &batch);
        let spec = LatentAttention {
            entry: RAW,
            window: 70,
            compressed: Some(CompressedRows { entry: ROWS, ratio: RATIO }),
            heads: self.heads,
            head_dim: self.head_dim,
            scale: 0.3,
        };
        let sinks = device.load_vector(&vec![0.5; self.heads]).unwrap();
        let queries = rows_of(device, 6, self.heads * self.head_dim, &batch);
        let y = device.attend_latent(&queries, cache, &spec, Some(&chosen), &sinks, &batch);
        let (mut lists, mut numbers) = (vec![], vec![]);
        device.read_selection(&chosen, &mut lists).unwrap();
        device.read(&y, &mut numbers).unwrap();
        [lists.concat().into_iter().map(|row| row as f32).collect(), numbers]
    }

    /// All steps; what is decoded runs on a copy of what the prompt left.
    fn computed<D: Device>(&self, device: &D, is_packed: bool) -> Vec<Vec<f32>> {
        let layout = self.layout(is_packed);
        let mut cache = device.kv_cache(&layout, PAGES, 2).unwrap();
        let mut out: Vec<Vec<f32>> = self.step(device, &mut cache, (0, self.prompt, Role::Prefill)).into();
        let (mut copy, mut bytes) = (device.kv_cache(&layout, PAGES, 2).unwrap(), vec![]);
        for page in TABLE {
            bytes.clear();
            device.read_page(&cache, page, &mut bytes).unwrap();
            device.write_page(&mut copy, page, &bytes).unwrap();
        }
        bytes.clear();
        device.read_ring(&cache, 1, RingPart::Whole, &mut bytes).unwrap();
        device.write_ring(&mut copy, 1, RingPart::Whole, &bytes).unwrap();
        let mut start = self.prompt;
        for rows in self.decoded {
            out.extend(self.step(device, &mut copy, (start, *rows, Role::Decode)));
            start += rows;
        }
        out
    }
}

#[test]
fn packed_rows_give_the_bits_of_halves() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let groups = Shape {
        head_dim: 128,
        features: 64,
        heads: 9,
        index_dim: 32,
        rounds_queries: true,
        prompt: 90,
        // As many rows as each tile takes, and the last row of a compressed one among them.
        decoded: &[1, 2, 4, 6, 10],
    };
    for shape in [
        groups,
        Shape { head_dim: 256, features: 192, prompt: 131, decoded: &[5], ..groups },
        Shape { head_dim: 384, features: 320, index_dim: 128, heads: 5, decoded: &[3], ..groups },
        Shape { head_dim: 128, features: 128, heads: 17, decoded: &[1], ..groups },
        // Of those that matrix units do not take: blocks that are not whole, and queries that are no whole numbers.
        Shape { head_dim: 80, features: 74, rounds_queries: false, decoded: &[1, 3], ..groups },
    ] {
        let bits = |all: Vec<Vec<f32>>| all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let [packed, halves] = [true, false].map(|is_packed| shape.computed(&card, is_packed));
        assert!(packed.iter().flatten().all(|v| v.is_finite()), "{shape:?}: numbers");
        assert!(packed.iter().step_by(2).any(|chosen| chosen.len() > TOP_K), "{shape:?}: rows are chosen");
        for (i, (a, b)) in packed.iter().zip(&halves).enumerate() {
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{shape:?}: result {i}");
        }
        if !shape.head_dim.is_multiple_of(128) {
            assert!(bits(packed) == bits(shape.computed(&ReferenceDevice, true)), "{shape:?}: the reference");
        }
    }
}
