//! Attention over pages, in three launches: scores (`kernels/attention/scores.cu`), weights, values. The cut is where the canonical order
//! leaves room: scores of all pages are independent, a page's weights need only the highest scores before it, and what is left is
//! one chain a feature.

use std::sync::Arc;

use tessera_ops::{Attention, Batch, KvFormat, PAGE_TOKENS, mask::check_ring};

use crate::{
    driver::{Arg, Gpu, Memory},
    kernels::{Module, Pages},
    kv::KvPages,
    matmul::tile::{Launch, WARP},
    steps::{Step, run_of},
    tensor::{Tensor, blocks},
};

/// Threads of a block of weights.
pub(crate) const WEIGHTS_THREADS: usize = 256;

/// Pages of a block of weights: one for each warp.
const WEIGHTS_PAGES: usize = WEIGHTS_THREADS / WARP;

/// Warps of a block of scores: a page each.
const SCORES_WARPS: usize = 4;

/// Shared memory of a block of scores.
const SHARED_BYTES: usize = 48 << 10;

/// Stages of a block of values: enough to be on their way while a few are summed up.
const STAGES_MAX: usize = 6;

/// Shared memory of a block of values.
const VALUES_SHARED_BYTES: usize = 96 << 10;

/// The widest head whose queries fit into shared memory, as many as the narrowest tile has columns.
pub(crate) const HEAD_DIM_MAX: usize = SHARED_BYTES / (AttentionTile::ALL[0].columns * size_of::<f32>());

/// Scores of a chunk of rows take no more memory than this, as long as one row's do.
const SCRATCH_BYTES_MAX: usize = 64 << 20;

/// How many queries share a read of keys and values, and how values are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionTile {
    /// Rows times heads.
    pub columns: usize,
    /// Features of a block of values.
    pub features: usize,
    /// Columns of a thread of it.
    pub columns_each: usize,
}

/// The shared memory of a block of values.
struct Ring {
    /// Pages that are taken at a time.
    stage_pages: usize,
    stages: usize,
    bytes: usize,
}

impl AttentionTile {
    /// From the narrowest to the widest.
    pub const ALL: [AttentionTile; 3] = [
        AttentionTile { columns: 4, features: 8, columns_each: 1 },
        AttentionTile { columns: 8, features: 8, columns_each: 1 },
        AttentionTile { columns: 16, features: 16, columns_each: 2 },
    ];

    /// The tile for so many columns, of those whose queries fit into shared memory. Measured on an H200: a tile that half fills is as fast
    /// as a narrower one, and many columns of short heads go faster by eights.
    fn for_columns(columns: usize, head_dim: usize) -> AttentionTile {
        let [few, eight, many] = AttentionTile::ALL;
        let best = match columns {
            ..=2 => few,
            9.. if head_dim >= 256 => many,
            _ => eight,
        };
        [best, eight].into_iter().find(|t| t.fits(head_dim)).unwrap_or(few)
    }

    /// Whether its queries fit into shared memory.
    pub(crate) fn fits(self, head_dim: usize) -> bool {
        head_dim * self.columns * size_of::<f32>() <= SHARED_BYTES
    }

    /// Rows of a run that a tile takes, and tiles for the heads of a row.
    fn rows_and_parts(self, group: usize) -> (usize, usize) {
        ((self.columns / group).max(1), group.div_ceil(self.columns))
    }

    fn ring(self, pages: Pages) -> Ring {
        let stage_pages = if pages.format == KvFormat::F32 { 1 } else { 2 };
        let (tokens, f32s) = (stage_pages * PAGE_TOKENS, size_of::<f32>());
        let (number, scales) = match pages.format {
            KvFormat::F32 => (4, 0),
            KvFormat::F16 => (2, 0),
            KvFormat::Q8_0 => (1, f32s * tokens),
        };
        let row = (tokens + 4) * f32s;
        let stage = tokens * self.features * number + self.columns * (row + stage_pages * 2 * f32s) + scales;
        // Two stages of values as f32, and the columns' places.
        let rest = 2 * self.features * row + self.columns * 16;
        let stages = ((VALUES_SHARED_BYTES - rest) / stage).min(STAGES_MAX);
        Ring { stage_pages, stages, bytes: stages * stage + rest }
    }

    pub(crate) fn scores_constants(self) -> Vec<(&'static str, usize)> {
        vec![("COLUMNS", self.columns), ("THREADS", SCORES_WARPS * WARP)]
    }

    /// A thread for each feature and its columns, and three warps that serve them.
    fn values_threads(self) -> usize {
        self.features * self.columns / self.columns_each + 3 * WARP
    }

    pub(crate) fn values_constants(self, pages: Pages) -> Vec<(&'static str, usize)> {
        let Ring { stage_pages, stages, bytes } = self.ring(pages);
        vec![
            ("COLUMNS", self.columns),
            ("FEATURES", self.features),
            ("COLUMNS_EACH", self.columns_each),
            ("THREADS", self.values_threads()),
            ("STAGE_PAGES", stage_pages),
            ("STAGES", stages),
            ("SHARED_BYTES", bytes),
        ]
    }
}

/// All kernels over pages of a form.
pub(crate) fn modules(form: Pages) -> Vec<Module> {
    let tiles = AttentionTile::ALL.into_iter().filter(|t| t.fits(form.head_dim));
    let of_tiles = tiles.flat_map(|tile| [Module::Scores(form, tile), Module::Values(form, tile)]);
    [Module::Store(form), Module::Weights].into_iter().chain(of_tiles).collect()
}

/// Attention of the rows' queries.
pub(crate) fn attend(
    gpu: &Arc<Gpu>,
    queries: &Tensor,
    cache: &KvPages,
    spec: &Attention,
    sinks: Option<&Memory>,
    batch: &Batch,
    step: &Step,
) -> Tensor {
    spec.check();
    let layer = &cache.layers[spec.layer];
    check_ring(spec.window, layer.ring_pages, batch);
    let shape = (layer.heads, layer.form.head_dim);
    assert_eq!((spec.kv_heads, spec.head_dim), shape, "the cache entry has the layer's shape");
    assert_eq!((queries.rows, queries.width), (batch.len(), spec.heads * spec.head_dim), "queries fill all heads");
    layer.check(batch);
    let y = Tensor::like(gpu, queries, queries.width);
    let pages = |row: usize| {
        let seen = spec.visible(batch.positions[row] as usize);
        seen.end.div_ceil(PAGE_TOKENS) - seen.start / PAGE_TOKENS
    };
    let most = (0..batch.len()).map(pages).max().unwrap_or(0);
    let rows_max = (SCRATCH_BYTES_MAX / (most * PAGE_TOKENS * spec.heads * size_of::<f32>()).max(1)).max(1);
    for first in (0..batch.len()).step_by(rows_max) {
        let count = rows_max.min(batch.len() - first);
        let run = (first..first + count).map(|row| {
            let run = run_of(batch, row);
            run.end.min(first + count) - run.start.max(first)
        });
        let columns = run.max().unwrap_or(1) * spec.group();
        let tile = cache.forced.unwrap_or_else(|| AttentionTile::for_columns(columns, spec.head_dim));
        let chunk = Chunk { first, count, stride: most, tile };
        attend_chunk(gpu, (queries, &y), (layer, spec, sinks), &chunk, step);
    }
    y
}

/// Rows that are taken at once.
struct Chunk {
    first: usize,
    count: usize,
    /// Pages that a row sees, at most.
    stride: usize,
    tile: AttentionTile,
}

fn attend_chunk(
    gpu: &Arc<Gpu>,
    (queries, y): (&Tensor, &Tensor),
    (layer, spec, sinks): (&crate::kv::Layer, &Attention, Option<&Memory>),
    chunk: &Chunk,
    step: &Step,
) {
    let Chunk { first, count, stride, tile } = *chunk;
    let cells = count * spec.heads * stride;
    let weights = gpu.take(cells * PAGE_TOKENS * size_of::<f32>());
    let (highest, pages) = (gpu.take(cells * size_of::<f32>()), gpu.take(cells * 2 * size_of::<f32>()));
    let (step_rows, lists) = (Arg::Memory(&step.rows), Arg::Memory(&step.lists));
    let window = Arg::U32(spec.window.unwrap_or(0).min(u32::MAX as usize));
    let rows = [Arg::U32(first), Arg::U32(count), Arg::U32(spec.heads), Arg::U32(spec.kv_heads)];
    let (ring, stride) = (Arg::U32(layer.ring_pages.unwrap_or(0)), Arg::U32(stride));
    let parts = tile.rows_and_parts(spec.group()).1;
    // A tile's rows may begin a page apart, and see one more together.
    let page_blocks = (chunk.stride + 1).div_ceil(SCORES_WARPS);

    let mut args = vec![Arg::Memory(&queries.memory), Arg::Memory(&layer.keys), Arg::Memory(&weights)];
    args.extend([Arg::Memory(&highest), step_rows, lists]);
    args.extend(rows);
    args.extend([ring, window, stride, Arg::F32(spec.scale)]);
    args.extend([Arg::U32(spec.soft_cap.is_some().into()), Arg::F32(spec.soft_cap.unwrap_or(1.0))]);
    let launch = blocks([count * parts, page_blocks, spec.kv_heads], SCORES_WARPS * WARP);
    gpu.launch(Module::Scores(layer.form, tile), "scores", launch, &args);

    let args = [Arg::Memory(&weights), Arg::Memory(&highest), Arg::Memory(&pages), sinks.into(), step_rows, lists];
    let args = [&args[..], &[Arg::U32(first), Arg::U32(spec.heads), window, stride]].concat();
    let launch = blocks([count * spec.heads, chunk.stride.div_ceil(WEIGHTS_PAGES), 1], WEIGHTS_THREADS);
    gpu.launch(Module::Weights, "weights", launch, &args);

    let mut args = vec![Arg::Memory(&layer.values), Arg::Memory(&weights), Arg::Memory(&pages), sinks.into()];
    args.extend([Arg::Memory(&y.memory), step_rows, lists]);
    args.extend(rows);
    args.extend([ring, window, stride]);
    let grid = [count * parts, spec.head_dim.div_ceil(tile.features), spec.kv_heads];
    let launch = Launch { shared_bytes: tile.ring(layer.form).bytes, ..blocks(grid, tile.values_threads()) };
    gpu.launch(Module::Values(layer.form, tile), "values", launch, &args);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring holds what it must: a stage that is summed up, one that is turned, and one that is on its way.
    #[test]
    fn rings_fit_into_shared_memory() {
        for (format, tile) in KvFormat::ALL.into_iter().flat_map(|f| AttentionTile::ALL.map(|t| (f, t))) {
            let ring = tile.ring(Pages { head_dim: 128, format });
            assert!(
                ring.stages >= 3 && ring.bytes <= VALUES_SHARED_BYTES && ring.bytes % 16 == 0,
                "{format:?} {tile:?}"
            );
            assert!(tile.values_threads() % WARP == 0 && tile.columns.is_multiple_of(tile.columns_each));
        }
    }

    #[test]
    fn tiles_take_all_heads_of_a_group() {
        for (tile, group) in AttentionTile::ALL.into_iter().flat_map(|t| (1..70).map(move |g| (t, g))) {
            let (rows, parts) = tile.rows_and_parts(group);
            assert!(rows * group <= tile.columns || rows == 1 && parts * tile.columns >= group);
        }
        assert_eq!(AttentionTile::for_columns(3, 128).columns, 8);
        assert_eq!(AttentionTile::for_columns(1, 128).columns, 4);
        assert_eq!(AttentionTile::for_columns(99, 512).columns, 16);
        assert_eq!(AttentionTile::for_columns(99, 2048).columns, 4);
    }
}
