//! Attention over pages. A row's tokens are cut into spans at fixed positions; blocks take a span each, and a second launch merges the
//! spans of rows that have several (`kernels/attention/parts.cuh`), or where they are few the blocks themselves, as clusters. Which kernel
//! takes a row follows from the card, the form of pages and the row's role.

pub mod prompt;
pub(crate) mod spans;
pub mod spans_tile;
pub mod warps;
pub mod warps_prompt;

use std::{ops::Range, sync::Arc};

use tessera_ops::{Attention, Batch, KvFormat, PAGE_TOKENS, Role, mask::check_ring};

use self::{prompt::PromptTile, spans_tile::SpansTile, warps::WarpsTile, warps_prompt::WarpsPromptTile};
use crate::{
    driver::{Arg, Args, Gpu, Memory},
    error::OpenError,
    kernels::{CARDS, HOPPER_ARCH, Module, Pages},
    kv::{KvPages, Layer},
    matmul::tile::{Launch, WARP},
    steps::{Step, run_of},
    tensor::{Tensor, blocks},
};

/// Numbers of a head whose sums a thread of the plain kernel holds, at most.
pub(crate) const HEAD_DIM_MAX: usize = 1024;

/// Parts of a chunk of rows take no more memory than this, as long as one row's do.
const SCRATCH_BYTES_MAX: usize = 256 << 20;

/// Numbers behind all parts that nobody uses.
const PARTS_REST: usize = 1024;

/// Threads, and numbers of a head, of a block that merges.
const MERGE_THREADS: usize = 256;
const MERGE_FEATURES: usize = 64;

/// Numbers of a head, and tokens, of a slab.
const SLAB_FEATURES: usize = 64;

/// Bytes of a slab of f16.
const OPERAND_BYTES: usize = PAGE_TOKENS * SLAB_FEATURES * 2;

/// The widest head of slabs whose sums fit into registers.
const SLAB_HEAD_DIM_MAX: usize = 512;

/// Shared memory of a processor of Hopper's, less what the machine takes for each block.
const PROCESSOR_SHARED_BYTES: usize = 226 << 10;

/// Warps that fill a ring, in turns.
const BRINGERS: usize = 4;

/// Beyond this, more slabs on their way make nothing faster.
const STAGES_MAX: usize = 20;

/// The variable that names a card as whose attention is computed, for measurements: Hopper runs what the others do.
const ATTENTION_VARIABLE: &str = "TESSERA_CUDA_ATTENTION";

/// The card whose kernels attention uses on one of architecture `own`.
pub(crate) fn arch_from_environment(own: &str) -> Result<String, OpenError> {
    let Ok(value) = std::env::var(ATTENTION_VARIABLE) else { return Ok(own.to_owned()) };
    let is_known = value == own || value != HOPPER_ARCH && CARDS.contains(&value.as_str());
    if is_known { Ok(value) } else { Err(OpenError::Attention { value, cards: CARDS.join(", ") }) }
}

impl Pages {
    /// Whether heads lie in slabs that Hopper's matrix units take.
    fn has_slabs(self) -> bool {
        self.format != KvFormat::F32
            && self.head_dim.is_multiple_of(SLAB_FEATURES)
            && self.head_dim <= SLAB_HEAD_DIM_MAX
    }

    fn slabs(self) -> usize {
        self.head_dim / SLAB_FEATURES
    }

    /// Bytes of a slab as it lies in a page.
    fn slab_bytes(self) -> usize {
        self.head_bytes() / self.slabs()
    }

    /// Warpgroups that share a page.
    fn groups(self) -> usize {
        if self.slabs().is_multiple_of(2) { 2 } else { 1 }
    }
}

/// Rows of a run that a tile of so many columns takes, and tiles for the heads of a row.
fn rows_and_parts(columns: usize, group: usize) -> (usize, usize) {
    ((columns / group).max(1), group.div_ceil(columns))
}

/// What all runs have; 0 where they differ.
fn of_all(runs: &[usize]) -> usize {
    runs.first().copied().filter(|first| runs.iter().all(|r| r == first)).unwrap_or(0)
}

/// All kernels over pages of a form, on a card.
pub(crate) fn modules(form: Pages, arch: &str) -> Vec<Module> {
    let own = SpansTile::variants(form).map(|tile| Module::Spans(form, tile));
    let own = own.chain(PromptTile::all(form).into_iter().map(|tile| Module::Prompt(form, tile)));
    let mut all: Vec<Module> = own.filter(|m| m.runs_on(arch)).collect();
    if all.is_empty() {
        all.extend(WarpsTile::all(form, arch).into_iter().map(|tile| Module::Warps(form, tile)));
    }
    if PromptTile::all(form).is_empty() || arch != HOPPER_ARCH {
        all.extend(WarpsPromptTile::all(form, arch).into_iter().map(|tile| Module::WarpsPrompt(form, tile)));
    }
    if all.is_empty() {
        all.push(Module::Plain(form));
    }
    all.extend([Module::Store(form), Module::Merge(form)]);
    all
}

/// A kernel that takes rows, and its tile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Hopper's, a span of tokens a block.
    Spans(SpansTile),
    /// Hopper's, all tokens a block.
    Prompt(PromptTile),
    /// Of single warps.
    Warps(WarpsTile),
    /// The same for prompt rows, all tokens a block.
    WarpsPrompt(WarpsPromptTile),
    /// In f32.
    Plain,
}

/// What attention is asked for.
struct Task<'a> {
    gpu: &'a Arc<Gpu>,
    queries: &'a Tensor,
    y: &'a Tensor,
    cache: &'a KvPages,
    layer: &'a Layer,
    spec: &'a Attention,
    sinks: Option<&'a Memory>,
    batch: &'a Batch,
    step: &'a Step,
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
    let layer = cache.pairs(spec.layer);
    check_ring(spec.window, layer.ring_pages, batch);
    let shape = (layer.heads, layer.form.head_dim);
    assert_eq!((spec.kv_heads, spec.head_dim), shape, "the cache entry has the layer's shape");
    assert_eq!((queries.rows, queries.width), (batch.len(), spec.heads * spec.head_dim), "queries fill all heads");
    layer.check(batch);
    let y = Tensor::like(gpu, queries, queries.width);
    let task = Task { gpu, queries, y: &y, cache, layer, spec, sinks, batch, step };
    for run in queries.roles.runs() {
        task.attend(run.rows.clone(), run.role);
    }
    y
}

impl Task<'_> {
    /// Spans that a row's tokens are in.
    fn spans(&self, row: usize) -> usize {
        let (seen, span) = (self.spec.visible(self.batch.positions[row] as usize), spans::of(self.window()));
        span(seen.end - 1) - span(seen.start) + 1
    }

    fn attend(&self, rows: Range<usize>, role: Role) {
        let way = self.way(&rows, role);
        match way {
            // Each row from its first token to its last.
            Way::Prompt(_) | Way::WarpsPrompt(_) => self.attend_whole(&rows, way),
            Way::Warps(_) if role == Role::Prefill => self.attend_chunk(&rows, way, None),
            _ => {
                let most = rows.clone().map(|row| self.spans(row)).max().unwrap_or(1);
                let bytes = self.spec.heads * most * (self.spec.head_dim + 2) * size_of::<f32>();
                let rows_max = if most > 1 { (SCRATCH_BYTES_MAX / bytes).max(1) } else { rows.len() };
                for first in rows.clone().step_by(rows_max) {
                    let chunk = first..(first + rows_max).min(rows.end);
                    self.attend_chunk(&chunk, self.way(&chunk, role), Some(most));
                }
            }
        }
    }

    /// What takes these rows: it depends on the card, the form of pages and the role; its tile on their number too.
    fn way(&self, rows: &Range<usize>, role: Role) -> Way {
        let (form, arch, runs) = (self.layer.form, self.gpu.attention_arch(), self.runs(rows));
        let (is_hopper, is_prompt) = (arch == HOPPER_ARCH, role == Role::Prefill);
        let columns = runs.iter().max().unwrap_or(&1) * self.spec.group();
        let is_capped = self.spec.soft_cap.is_some();
        if let Some(way) = self.cache.forced {
            return way;
        }
        if is_hopper && is_prompt && self.spec.scale > 0.0 {
            let tiles = PromptTile::all(form);
            // Blocks of a cluster copy the same: what one run sees, where places are plain.
            let can_share = runs.len() == 1 && !self.batch.is_tree(rows.start);
            let is_shared = |tile: &&PromptTile| {
                tile.cluster == 1 || can_share && self.tiles(tile.columns, rows.len(), of_all(&runs)) >= tile.cluster
            };
            if let Some(tile) = tiles.iter().rev().find(is_shared) {
                return Way::Prompt(PromptTile { is_capped, ..*tile });
            }
        }
        if let Some(tile) =
            WarpsPromptTile::for_columns(form, arch, columns).filter(|_| is_prompt && self.spec.scale > 0.0)
        {
            return Way::WarpsPrompt(WarpsPromptTile { is_capped, ..tile });
        }
        // Narrower tiles read more, and are done sooner where there is a processor for each block.
        let most = rows.clone().map(|row| self.spans(row)).max().unwrap_or(1) * self.spec.kv_heads;
        let blocks = |t: &SpansTile| self.tiles(t.columns, rows.len(), of_all(&runs)) * most;
        let is_enough = |t: &SpansTile| t.columns >= columns || blocks(t) <= self.gpu.processors();
        let spans = SpansTile::narrowest(form, is_enough).filter(|_| is_hopper);
        let warps = || WarpsTile::for_columns(form, arch, columns);
        match spans.map(|tile| Way::Spans(SpansTile { is_capped, ..tile })) {
            Some(way) => way,
            None => warps().map_or(Way::Plain, |tile| Way::Warps(WarpsTile { is_capped, ..tile })),
        }
    }

    /// Prompt rows, each of them from its first token to its last.
    fn attend_whole(&self, rows: &Range<usize>, way: Way) {
        let Task { gpu, layer, spec, .. } = *self;
        let (form, run) = (layer.form, of_all(&self.runs(rows)));
        let mut args =
            Args::of([Arg::Memory(&self.queries.memory), Arg::Memory(&layer.keys), Arg::Memory(&layer.values)]);
        args.extend([self.sinks.into(), Arg::Memory(&self.y.memory)]);
        args.extend([Arg::Memory(&self.step.rows), Arg::Memory(&self.step.lists)]);
        args.extend([rows.start, rows.len(), spec.heads, spec.kv_heads].map(Arg::U32));
        args.extend([layer.ring_pages.unwrap_or(0), self.window(), run].map(Arg::U32));
        args.extend([Arg::F32(spec.scale), Arg::F32(spec.soft_cap.unwrap_or(1.0))]);
        let grid =
            |columns, cluster| [self.tiles(columns, rows.len(), run).next_multiple_of(cluster), 1, spec.kv_heads];
        match way {
            Way::Prompt(tile) => {
                let shared_bytes = tile.shared_bytes(form);
                let launch = Launch { shared_bytes, ..blocks(grid(tile.columns, tile.cluster), prompt::THREADS) };
                gpu.launch(Module::Prompt(form, tile), "prompt", launch, &args);
            }
            Way::WarpsPrompt(tile) => {
                let shared_bytes = tile.shared_bytes(form);
                let launch = Launch { shared_bytes, ..blocks(grid(tile.columns(), 1), tile.threads()) };
                gpu.launch(Module::WarpsPrompt(form, tile), "warps_prompt", launch, &args);
            }
            _ => unreachable!("a way that takes rows whole"),
        }
    }

    /// Rows of each run, of those among these.
    fn runs(&self, rows: &Range<usize>) -> Vec<usize> {
        let (mut runs, mut row) = (vec![], rows.start);
        while row < rows.end {
            let end = run_of(self.batch, row).end.min(rows.end);
            runs.push(end - row);
            row = end;
        }
        runs
    }

    /// Blocks along rows: tiles of each run and parts of a group's heads.
    fn tiles(&self, columns: usize, rows: usize, run: usize) -> usize {
        let (tile_rows, parts) = rows_and_parts(columns, self.spec.group());
        let tiles = rows.checked_div(run).map_or(rows, |runs| runs * run.div_ceil(tile_rows));
        parts * tiles
    }

    /// Of these, those that read the same keys and values: of one run, where all are alike.
    fn mates(&self, columns: usize, run: usize) -> usize {
        let (tile_rows, parts) = rows_and_parts(columns, self.spec.group());
        parts * run.div_ceil(tile_rows).max(1)
    }

    /// Rows that are taken at once, each cut into at most so many spans, or not at all.
    fn attend_chunk(&self, rows: &Range<usize>, way: Way, spans: Option<usize>) {
        let Task { gpu, layer, spec, .. } = *self;
        let (form, stride) = (layer.form, spans.unwrap_or(1));
        // A tile's rows may begin a span apart, and see one more together.
        let across = if spans.is_some() && spec.window.is_some() { stride + 1 } else { stride };
        let run = of_all(&self.runs(rows));
        let way = self.clustered(way, (rows.len(), run), across);
        let is_merged = stride == 1 || matches!(way, Way::Spans(tile) if tile.is_clustered);
        let cells = rows.len() * spec.heads * if is_merged { 0 } else { stride };
        // Not as long as the codes of what comes of them, which shall lie elsewhere (`queue/heads.rs`).
        let parts = gpu.take((cells * spec.head_dim + PARTS_REST) * size_of::<f32>());
        let stats = gpu.take(cells * 2 * size_of::<f32>());
        let (step_rows, lists) = (Arg::Memory(&self.step.rows), Arg::Memory(&self.step.lists));
        let (ring, window) = (Arg::U32(layer.ring_pages.unwrap_or(0)), Arg::U32(self.window()));
        let (first, heads, strides) = (Arg::U32(rows.start), Arg::U32(spec.heads), Arg::U32(stride));
        let mut args =
            Args::of([Arg::Memory(&self.queries.memory), Arg::Memory(&layer.keys), Arg::Memory(&layer.values)]);
        args.extend([Arg::Memory(&parts), Arg::Memory(&stats), self.sinks.into(), Arg::Memory(&self.y.memory)]);
        args.extend([step_rows, lists, first]);
        if !matches!(way, Way::Plain) {
            args.push(Arg::U32(rows.len()));
        }
        args.extend([heads, Arg::U32(spec.kv_heads), ring, window, strides]);
        let (scale, cap) = (Arg::F32(spec.scale), Arg::F32(spec.soft_cap.unwrap_or(1.0)));
        let grid = |columns| [self.tiles(columns, rows.len(), run), across, spec.kv_heads];
        match way {
            Way::Spans(tile) => {
                let (shared_bytes, grid) = (tile.shared_bytes(form), grid(tile.columns));
                let ([tiles, across, _], all) = (grid, grid.iter().product::<usize>());
                // Where processors have one block each, and there are more spans than these, blocks go on from span to span.
                let goes_on = tile.resident == 1 && all > gpu.processors();
                let drawn = if goes_on { Arg::Memory(&self.cache.drawn) } else { Arg::Null };
                args.extend([Arg::U32(run), scale, cap, drawn]);
                args.extend([tiles, self.mates(tile.columns, run), across].map(Arg::U32));
                // And places for codes, which the queue joins with it.
                args.extend([Arg::Null; 3]);
                let (grid, cluster) = match tile {
                    SpansTile { is_clustered: true, .. } => ([across, tiles, spec.kv_heads], across),
                    SpansTile { resident: 1, .. } => ([all.min(gpu.processors()), 1, 1], 1),
                    _ => (grid, 1),
                };
                let launch = Launch { shared_bytes, ..blocks(grid, SpansTile::threads(form)) };
                gpu.launch_clusters(Module::Spans(form, tile), "spans", (launch, cluster), &args);
            }
            Way::Warps(tile) => {
                args.extend([Arg::U32(run), scale, cap, Arg::U32(spans.is_some().into())]);
                let launch =
                    Launch { shared_bytes: tile.shared_bytes(form), ..blocks(grid(tile.columns), tile.threads()) };
                gpu.launch(Module::Warps(form, tile), "warps", launch, &args);
            }
            Way::Plain | Way::Prompt(_) | Way::WarpsPrompt(_) => {
                args.extend([scale, Arg::U32(spec.soft_cap.is_some().into()), cap]);
                let launch = blocks([rows.len() * spec.heads, stride, 1], WARP);
                gpu.launch(Module::Plain(form), "plain", launch, &args);
            }
        }
        if !is_merged {
            let mut args =
                Args::of([Arg::Memory(&parts), Arg::Memory(&stats), self.sinks.into(), Arg::Memory(&self.y.memory)]);
            args.extend([step_rows, lists, first, heads, window, strides]);
            // And places for codes, which the queue joins with it.
            args.extend([Arg::Null; 3]);
            let grid = [rows.len() * spec.heads, spec.head_dim.div_ceil(MERGE_FEATURES), 1];
            gpu.launch(Module::Merge(form), "merge", blocks(grid, MERGE_THREADS), &args);
        }
    }

    /// The same way in clusters, a tile each, where all of them are on the card at once: they merge its spans themselves.
    fn clustered(&self, way: Way, (rows, run): (usize, usize), across: usize) -> Way {
        let clusters = |columns| self.tiles(columns, rows, run) * self.spec.kv_heads;
        match way {
            Way::Spans(tile)
                if self.cache.forced.is_none()
                    && clusters(tile.columns) <= tile.clusters(self.gpu.processors(), across) =>
            {
                Way::Spans(tile.clustered())
            }
            _ => way,
        }
    }

    fn window(&self) -> usize {
        self.spec.window.unwrap_or(0).min(u32::MAX as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::{spans_tile::tests::forms, *};

    #[test]
    fn tiles_take_all_heads_of_a_group() {
        for form in forms() {
            for (tile, group) in SpansTile::all(form).flat_map(|t| (1..70).map(move |g| (t, g))) {
                let (rows, parts) = rows_and_parts(tile.columns, group);
                assert!(rows * group <= tile.columns || rows == 1 && parts * tile.columns >= group);
            }
        }
        let columns = |head_dim, columns| {
            let form = Pages { head_dim, format: KvFormat::F16 };
            SpansTile::narrowest(form, |tile| tile.columns >= columns).map(|tile| tile.columns)
        };
        assert_eq!((columns(128, 3), columns(128, 9), columns(512, 99)), (Some(8), Some(16), Some(64)));
        assert_eq!((columns(80, 3), columns(320, 64)), (None, Some(32)));
    }
}
