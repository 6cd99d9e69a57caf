//! Rows of a sequence whose tokens are in several spans, in wide tiles and alone: the same bits.

use tessera_cuda::CudaDevice;
use tessera_formats::DType;
use tessera_ops::{Attention, Batch, Device, KvFormat, KvLayout, MatrixSource, PAGE_TOKENS, Role, kv::KvEntry};

/// Of the sequence; the last rows see four spans.
const TOKENS: usize = 400;

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

/// Rows `from ..` of the sequence.
fn step(from: usize, count: usize) -> Batch {
    let table: Vec<u32> = (0..TOKENS.div_ceil(PAGE_TOKENS) as u32).collect();
    let ids: Vec<u32> = (from as u32..(from + count) as u32).collect();
    let mut batch = Batch::default();
    batch.push(&ids, from, &table, Role::Decode, 0);
    batch
}

fn rows(card: &CudaDevice, seed: usize, width: usize, batch: &Batch) -> <CudaDevice as Device>::Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..TOKENS * width).flat_map(|i| value(i).to_le_bytes()).collect();
    let (name, bytes) = ("rows".to_owned(), bytes.into());
    let table = MatrixSource { name, dtype: DType::F32, rows: TOKENS, depth: width, bytes };
    card.embed(&card.load_embedding(&table).unwrap(), batch, 1.0)
}

#[test]
fn rows_of_wide_tiles_have_the_bits_that_they_have_alone() {
    let Some((card, _alone)) = crate::opened_card() else { return };
    for format in [KvFormat::F16, KvFormat::Q8_0] {
        let layout = KvLayout::new(vec![KvEntry::pairs(KV_HEADS, HEAD_DIM)], format);
        let mut cache = card.kv_cache(&layout, TOKENS.div_ceil(PAGE_TOKENS), 0).unwrap();
        let all = step(0, TOKENS);
        let [keys, values] = [2, 3].map(|seed| rows(&card, seed, KV_HEADS * HEAD_DIM, &all));
        card.store_kv(&mut cache, 0, &keys, &values, &all);
        let (heads, kv_heads, head_dim) = (HEADS, KV_HEADS, HEAD_DIM);
        let spec = Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.2, window: None, soft_cap: None };
        let attend = |from: usize, count: usize| {
            let batch = step(from, count);
            let y = card.attention(&rows(&card, 1, HEADS * HEAD_DIM, &batch), &cache, &spec, None, &batch);
            let mut out = vec![];
            card.read(&y, &mut out).unwrap();
            out.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        };
        // Tiles of 32 and of 64 columns; some rows are a span ahead of others.
        for (from, count) in [(380, 8), (375, 16)] {
            let together = attend(from, count);
            for (row, bits) in together.chunks_exact(HEADS * HEAD_DIM).enumerate() {
                assert!(attend(from + row, 1) == bits, "{format:?}: row {row} of {count}");
            }
        }
    }
}
