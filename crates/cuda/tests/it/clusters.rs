//! Attention of few spans, merged by the blocks of a cluster, and of the same rows in two launches: the same bits, and the same codes. On
//! a card, or on the emulated one: `EMULATED_CARD=capability=9.0 tools/emulate cargo test -p tessera-cuda clusters`.

use tessera_cuda::CudaDevice;
use tessera_formats::DType;
use tessera_ops::{Attention, Batch, Device, KvFormat, KvLayout, Linear, MatrixSource, PAGE_TOKENS, Role, kv::KvEntry};

/// Tokens that are kept: nine spans.
const TOKENS: usize = 18 * PAGE_TOKENS;

/// So many rows have no room on any card as clusters.
const CROWD: usize = 120;

/// Heads over one of keys and values.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    head_dim: usize,
    format: KvFormat,
    window: Option<usize>,
    has_sinks: bool,
}

type Cache = <CudaDevice as Device>::KvCache;

/// Runs of rows: the first position, and how many.
type Runs = [(usize, usize)];

fn step(runs: &Runs) -> Batch {
    let table: Vec<u32> = (0..(TOKENS / PAGE_TOKENS) as u32).collect();
    let mut batch = Batch::default();
    for &(from, count) in runs {
        let ids: Vec<u32> = (from..from + count).map(|id| id as u32).collect();
        batch.push(&ids, from, &table, Role::Decode, 0);
    }
    batch
}

fn rows(card: &CudaDevice, seed: usize, width: usize, batch: &Batch) -> <CudaDevice as Device>::Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..TOKENS * width).flat_map(|i| value(i).to_le_bytes()).collect();
    let table =
        MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows: TOKENS, depth: width, bytes: bytes.into() };
    card.embed(&card.load_embedding(&table).unwrap(), batch, 1.0)
}

fn cache(card: &CudaDevice, shape: Shape) -> Cache {
    let layout = KvLayout::new(vec![KvEntry::pairs(1, shape.head_dim)], shape.format);
    let mut cache = card.kv_cache(&layout, TOKENS / PAGE_TOKENS, 0).unwrap();
    let all = step(&[(0, TOKENS)]);
    let [keys, values] = [2, 3].map(|seed| rows(card, seed, shape.head_dim, &all));
    card.store_kv(&mut cache, 0, &keys, &values, &all);
    cache
}

/// Codes are seen by what is multiplied.
fn probe(card: &CudaDevice, depth: usize) -> Linear<CudaDevice> {
    let block = |b: usize| [0x00, 0x24].into_iter().chain((0..32).map(move |i| (b * 31 + i * 7) as u8));
    let bytes: Vec<u8> = (0..16 * depth / 32).flat_map(block).collect();
    let source = MatrixSource { name: "probe".to_owned(), dtype: DType::Q8_0, rows: 16, depth, bytes: bytes.into() };
    Linear { matrix: card.load_matrix(&source).unwrap(), bias: None }
}

/// What attention gives each row, with a product of it; and launches.
fn attend(card: &CudaDevice, cache: &Cache, shape: Shape, runs: &Runs) -> (Vec<Vec<u32>>, u64) {
    let Shape { heads, head_dim, window, has_sinks, .. } = shape;
    let (batch, width) = (step(runs), heads * head_dim);
    let spec = Attention { layer: 0, heads, kv_heads: 1, head_dim, scale: 0.2, window, soft_cap: None };
    let sinks = has_sinks.then(|| card.load_vector(&(0..heads).map(|h| 3.0 - h as f32).collect::<Vec<_>>()).unwrap());
    let (queries, probe) = (rows(card, 1, width, &batch), probe(card, width));
    card.read(&queries, &mut vec![]).unwrap();
    let before = card.counts().launches;
    let y = card.attention(&queries, cache, &spec, sinks.as_ref(), &batch);
    let [product] = card.project(&y, [&probe]);
    let [y, product] = [&y, &product].map(|tensor| {
        let mut out = vec![];
        card.read(tensor, &mut out).unwrap();
        out
    });
    let bits = |(row, coded): (&[f32], &[f32])| row.iter().chain(coded).map(|v| v.to_bits()).collect();
    (y.chunks_exact(width).zip(product.chunks_exact(16)).map(bits).collect(), card.counts().launches - before)
}

#[test]
fn clusters_give_the_bits_and_codes_of_two_launches() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let is_hopper = card.name().contains("sm_90a");
    let shape = |heads, head_dim, format, window, has_sinks| Shape { heads, head_dim, format, window, has_sinks };
    // Up to eight spans, and nine; rows of a run a span apart; sequences of different depth.
    let edges: &[&Runs] = &[&[(5, 1)], &[(127, 1)], &[(128, 1)], &[(1023, 1)], &[(126, 4)], &[(100, 1), (350, 1)]];
    let few: &[&Runs] = &[&[(900, 1)], &[(130, 1)]];
    let windowed: &[&Runs] = &[&[(800, 1)], &[(90, 1)], &[(383, 1)]];
    for (shape, all) in [
        (shape(4, 128, KvFormat::F16, None, false), edges),
        (shape(3, 64, KvFormat::F16, None, true), few),
        (shape(12, 64, KvFormat::Q8_0, None, false), few),
        (shape(8, 256, KvFormat::Q8_0, None, true), few),
        (shape(2, 512, KvFormat::F16, None, false), few),
        (shape(4, 128, KvFormat::F16, Some(300), true), windowed),
    ] {
        let cache = cache(&card, shape);
        for runs in all {
            let (together, launches) = attend(&card, &cache, shape, runs);
            let beside = if shape.window.is_some() { runs[0] } else { (1100, 1) };
            let crowd: Vec<_> = runs
                .iter()
                .copied()
                .chain([beside; CROWD].into_iter().take(if shape.window.is_some() { CROWD } else { 1 }))
                .collect();
            let (apart, more) = attend(&card, &cache, shape, &crowd);
            assert!(together[..] == apart[..together.len()], "{shape:?} {runs:?}");
            // Attention and a product, and else a launch more.
            assert!(
                !is_hopper || (launches, more) == (2, 3),
                "{shape:?} {runs:?}: {launches} launches, {more} in a crowd"
            );
        }
        let (_, launches) = attend(&card, &cache, shape, &[(1030, 1)]);
        assert!(!is_hopper || shape.window.is_some() || launches == 3, "{shape:?}: nine spans are merged by a launch");
    }
}
