//! Rows of sequences whose tokens are in several spans, in wide tiles and alone: the same bits.

use tessera_cuda::CudaDevice;
use tessera_formats::DType;
use tessera_ops::{Attention, Batch, Device, KvFormat, KvLayout, MatrixSource, PAGE_TOKENS, Role, kv::KvEntry};

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

/// Tokens of a sequence, and its first page.
#[derive(Clone, Copy)]
struct Sequence {
    tokens: usize,
    page: usize,
}

/// Its last rows see four spans.
const SHORT: Sequence = Sequence { tokens: 400, page: 0 };

/// Spans become longer before it ends.
const LONG: Sequence = Sequence { tokens: 4700, page: SHORT.pages() };

const ALL: [Sequence; 2] = [SHORT, LONG];

/// Of all sequences, one after another.
const TOKENS: usize = (LONG.page + LONG.pages()) * PAGE_TOKENS;

impl Sequence {
    const fn pages(self) -> usize {
        self.tokens.div_ceil(PAGE_TOKENS)
    }
}

/// Rows `from .. from + count` of sequences.
fn step(rows: &[(Sequence, usize, usize)]) -> Batch {
    let mut batch = Batch::default();
    for &(sequence, from, count) in rows {
        let table: Vec<u32> = (0..sequence.pages()).map(|page| (sequence.page + page) as u32).collect();
        let first = (sequence.page * PAGE_TOKENS + from) as u32;
        let ids: Vec<u32> = (first..first + count as u32).collect();
        batch.push(&ids, from, &table, Role::Decode, 0);
    }
    batch
}

fn rows(card: &CudaDevice, seed: usize, width: usize, batch: &Batch) -> <CudaDevice as Device>::Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..TOKENS * width).flat_map(|i| value(i).to_le_bytes()).collect();
    let (name, bytes) = ("rows".to_owned(), bytes.into());
    let table = MatrixSource { name, dtype: DType::F32, rows: TOKENS, depth: width, bytes };
    card.embed(&card.load_embedding(&table).unwrap(), batch, 1.0)
}

/// All keys and values.
fn cache(card: &CudaDevice, format: KvFormat) -> <CudaDevice as Device>::KvCache {
    let layout = KvLayout::new(vec![KvEntry::pairs(KV_HEADS, HEAD_DIM)], format);
    let mut cache = card.kv_cache(&layout, TOKENS / PAGE_TOKENS, 0).unwrap();
    let all = step(&ALL.map(|sequence| (sequence, 0, sequence.tokens)));
    let [keys, values] = [2, 3].map(|seed| rows(card, seed, KV_HEADS * HEAD_DIM, &all));
    card.store_kv(&mut cache, 0, &keys, &values, &all);
    cache
}

fn attend(card: &CudaDevice, cache: &<CudaDevice as Device>::KvCache, batch: &Batch) -> Vec<Vec<u32>> {
    let (heads, kv_heads, head_dim) = (HEADS, KV_HEADS, HEAD_DIM);
    let spec = Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.2, window: None, soft_cap: None };
    let y = card.attention(&rows(card, 1, HEADS * HEAD_DIM, batch), cache, &spec, None, batch);
    let mut out = vec![];
    card.read(&y, &mut out).unwrap();
    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect();
    out.chunks_exact(HEADS * HEAD_DIM).map(bits).collect()
}

#[test]
fn rows_of_wide_tiles_have_the_bits_that_they_have_alone() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    for format in [KvFormat::F16, KvFormat::Q8_0] {
        let cache = cache(&card, format);
        // Tiles of 32 and of 64 columns; some rows are a span ahead of others.
        for (from, count) in [(380, 8), (375, 16)] {
            let together = attend(&card, &cache, &step(&[(SHORT, from, count)]));
            for (row, bits) in together.iter().enumerate() {
                assert!(
                    attend(&card, &cache, &step(&[(SHORT, from + row, 1)]))[0] == *bits,
                    "{format:?}: row {row} of {count}"
                );
            }
        }
    }
}

/// There are more spans than blocks, of tiles of one sequence and of several, and some of them are none.
#[test]
fn blocks_that_go_from_span_to_span_give_each_row_its_bits() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    for format in [KvFormat::F16, KvFormat::Q8_0] {
        let cache = cache(&card, format);
        let mut alone = std::collections::HashMap::new();
        // The second time, tickets are counted from 0 again.
        for counts in [[1, 12], [20, 20], [7, 17], [20, 20]] {
            let runs = [0, 1].map(|i| (ALL[i], ALL[i].tokens - 20, counts[i]));
            let together = attend(&card, &cache, &step(&runs));
            let places = runs.iter().flat_map(|run| (run.1..run.1 + run.2).map(|row| (run.0, row)));
            for ((sequence, row), bits) in places.zip(together) {
                // A few of each, the first and the last among them.
                if [0, 1, 6, 15, 16, 19].contains(&(row + 20 - sequence.tokens)) {
                    let own = || attend(&card, &cache, &step(&[(sequence, row, 1)]))[0].clone();
                    let own = alone.entry((sequence.page, row)).or_insert_with(own);
                    assert!(*own == bits, "{format:?}: row {row} of {counts:?}");
                }
            }
        }
    }
}
