//! Latent rows on the card: compressed, chosen, and attended to, as `kernels/latent` says. Attention of rows of f16, or of what becomes
//! such, runs on Hopper's matrix units, in one launch; else it has the reference's bits, in three.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use tessera_ops::{
    Batch, CompressedRows, Compressor, KvFormat, LatentAttention, PAGE_TOKENS, Packing, Role, RopeLayout, Rounding,
    kv::RowFormat, latent::complete_rows, rounding::hadamard_factor,
};

use crate::{
    CudaDevice,
    device::Vector,
    driver::{Arg, Args, Gpu, Memory},
    kernels::{HOPPER_ARCH, Module, RowForm},
    kv::KvPages,
    matmul::tile::{Launch, WARP},
    rowwise::ROUNDED_MAX,
    steps::Step,
    tensor::{Tensor, blocks},
};

mod select;

pub(crate) use select::{
    IndexTile, SELECT_RUN, SELECT_THREADS, Selection, highest, highest_of, scores, select, stride_of,
};

/// Threads of most blocks.
pub(crate) const THREADS: usize = 128;

/// Threads of a block of prompt rows on Hopper's matrix units, two warpgroups, and its columns: heads that share keys.
const PROMPT_THREADS: usize = 256;
const PROMPT_COLUMNS: usize = 64;

/// Numbers of a row that lie together in shared memory.
const SLAB_FEATURES: usize = 64;

/// The widest row whose sums fit into registers.
const GROUPS_WIDTH_MAX: usize = 512;

/// Threads of a block of decoded rows, and blocks of a cluster, which share a row's pages.
pub(crate) const DECODE_THREADS: usize = 128;
const DECODE_BLOCKS: usize = 8;

/// How a cluster takes a decoded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeTile {
    /// Heads that share keys.
    pub columns: usize,
    /// Pages of a block that are on their way at once; with one, a processor has two blocks.
    pub stages: usize,
}

/// Tiles, and the rows up to which each is taken, measured with 64 heads: on an H200 fifteen clusters run at once where a processor has one
/// block, and not quite thirty where it has two.
const DECODE_TILES: [(DecodeTile, usize); 5] = [
    (DecodeTile { columns: 8, stages: 2 }, 1),
    (DecodeTile { columns: 16, stages: 2 }, 3),
    (DecodeTile { columns: 16, stages: 1 }, 5),
    (DecodeTile { columns: 24, stages: 1 }, 8),
    (DecodeTile { columns: 32, stages: 1 }, usize::MAX),
];

/// Rows of a launch, at most: a dimension of its grid.
const DECODE_ROWS_MAX: usize = 1 << 15;

/// Heads of a tile of scores, and of a block of values.
const TILE_HEADS: usize = 16;
const VALUES_HEADS: usize = 8;

/// Scores of a chunk of rows take no more memory than this, as long as one row's do.
const SCRATCH_BYTES_MAX: usize = 64 << 20;

/// The widest compressed row: a thread has a number of it.
pub(crate) const COMPRESSED_MAX: usize = ROUNDED_MAX;

/// Threads of a block of what comes before attention, and the numbers that it holds.
pub(crate) const ARRIVE_THREADS: usize = 512;
pub(crate) const ARRIVE_NUMBERS: usize = 2048;

/// All kernels over rows of a form.
pub(crate) fn modules(form: RowForm) -> Vec<Module> {
    let mut all = vec![Module::StoreRows(form)];
    all.extend((form.width <= COMPRESSED_MAX).then_some(Module::Compress(form)));
    all.extend(IndexTile::all(form).map(|tile| Module::IndexScores(form, tile)));
    if fits_groups(form) {
        all.push(Module::LatentPrompt(form));
        all.extend(DECODE_TILES.map(|(tile, _)| Module::LatentDecode(form, tile)));
    }
    all.push(Module::Latent(form));
    all
}

/// Those that a card uses.
pub(crate) fn modules_on(form: RowForm, arch: &str) -> Vec<Module> {
    let mut all = modules(form);
    all.retain(|m| m.runs_on(arch) && (*m != Module::Latent(form) || !in_groups(form, arch)));
    all
}

/// Whether rows are operands of Hopper's matrix units: of f16, or packed in whole slabs, which become f16; with as many slabs for each of
/// two warpgroups.
fn fits_groups(form: RowForm) -> bool {
    let becomes_halves = match form.format {
        RowFormat::Plain(format) => format == KvFormat::F16,
        RowFormat::Packed(packing @ Packing::Fp8 { .. }) => packing.coded(form.width).is_multiple_of(SLAB_FEATURES),
        RowFormat::Packed(Packing::Fp4) => false,
    };
    becomes_halves && form.width.is_multiple_of(2 * SLAB_FEATURES) && form.width <= GROUPS_WIDTH_MAX
}

/// Whether a card attends to them so.
fn in_groups(form: RowForm, arch: &str) -> bool {
    fits_groups(form) && arch == HOPPER_ARCH
}

/// Shared memory of a block of prompt rows: queries, weights, two pages of keys, and a few numbers a column.
fn prompt_shared_bytes(form: RowForm) -> usize {
    let (slabs, columns) = (form.width / SLAB_FEATURES, PROMPT_COLUMNS);
    let rest = (PROMPT_THREADS + 3 * columns) * size_of::<f32>() + PROMPT_THREADS * size_of::<f32>();
    1024 + (slabs + 1) * columns * 128 + 2 * slabs * PAGE_TOKENS * 128 + rest
}

/// What the kernel of prompt rows is compiled with.
pub(crate) fn prompt_constants(form: RowForm) -> Vec<(&'static str, usize)> {
    [form.constants(PROMPT_THREADS), vec![("SHARED_BYTES", prompt_shared_bytes(form))]].concat()
}

impl DecodeTile {
    /// Queries, weights, pages of keys, and a few numbers a column.
    fn shared_bytes(self, form: RowForm) -> usize {
        let slabs = form.width / SLAB_FEATURES;
        let rest = (2 * DECODE_THREADS / WARP + 3) * self.columns * size_of::<f32>();
        1024 + (slabs + 1) * self.columns * 128 + self.stages * slabs * PAGE_TOKENS * 128 + rest
    }

    pub(crate) fn constants(self, form: RowForm) -> Vec<(&'static str, usize)> {
        let resident = if self.stages == 1 { 2 } else { 1 };
        let own = [("COLUMNS", self.columns), ("STAGES", self.stages), ("RESIDENT", resident)];
        [&own[..], &[("SHARED_BYTES", self.shared_bytes(form))]].concat()
    }
}

/// Frequencies on the card, sent once: models have a few.
#[derive(Default)]
pub(crate) struct Frequencies(Mutex<Vec<(Vec<f64>, Arc<Memory>)>>);

impl Frequencies {
    fn get(&self, gpu: &Arc<Gpu>, frequencies: &[f64]) -> Arc<Memory> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, memory)) = known.iter().find(|(f, _)| f == frequencies) {
            return memory.clone();
        }
        let memory = Arc::new(gpu.take(size_of_val(frequencies)));
        let halves = frequencies.iter().flat_map(|f| [f.to_bits() as u32, (f.to_bits() >> 32) as u32]);
        gpu.send(&memory, &halves.collect::<Vec<_>>());
        known.push((frequencies.to_vec(), memory.clone()));
        memory
    }
}

/// Makes the rows that the batch's tokens complete.
pub(crate) fn compress(
    gpu: &Arc<Gpu>,
    frequencies: &Frequencies,
    cache: &KvPages,
    compressor: &Compressor<CudaDevice>,
    batch: &Batch,
    step: &Step,
) {
    let (inputs, output) = (cache.rows(compressor.inputs), cache.rows(compressor.output));
    compressor.check(|entry| cache.kind(entry), batch);
    let Compressor { ratio, overlap, head_dim, epsilon, ref rope, .. } = *compressor;
    let width = compressor.input_width();
    assert_eq!((compressor.ape.length, compressor.norm.length), (ratio * width, head_dim), "scores and weights fit");
    inputs.check(batch);
    output.check(batch);
    let turned = frequencies.get(gpu, &rope.frequencies);
    let (rounding, rounded) = match compressor.rounding {
        None => (0, 0),
        Some(Rounding::Fp8 { features }) => (1, features),
        Some(Rounding::HadamardFp4) => (2, 0),
    };
    let args = [
        Arg::Memory(&inputs.memory),
        Arg::Memory(&output.memory),
        Arg::Memory(&compressor.ape.memory),
        Arg::Memory(&compressor.norm.memory),
        Arg::Memory(&turned),
        Arg::Memory(&step.rows),
        Arg::Memory(&step.lists),
        Arg::U32(width),
        Arg::U32(inputs.kind.ring_pages().unwrap_or(0)),
        Arg::U32(ratio),
        Arg::U32(overlap.into()),
        Arg::U32(rope.frequencies.len()),
        Arg::U32((rope.layout == RopeLayout::Interleaved).into()),
        Arg::F32(rope.magnitude),
        Arg::F32(epsilon),
        Arg::U32(rounding),
        Arg::U32(rounded),
        Arg::F32(hadamard_factor(head_dim)),
    ];
    // A block a row, also where none is complete, so that every step of a sequence is the same launch.
    let launch = blocks([batch.len(), 1, 1], head_dim.next_multiple_of(WARP));
    gpu.launch(Module::Compress(output.form), "compress", launch, &args);
}

/// Attention of the rows' queries.
pub(crate) fn attend(
    gpu: &Arc<Gpu>,
    queries: &Tensor,
    cache: &KvPages,
    spec: &LatentAttention,
    (selection, sinks): (Option<&Selection>, &Vector),
    batch: &Batch,
    step: &Step,
) -> Tensor {
    spec.check(|entry| cache.kind(entry), batch, (queries.rows, queries.width), sinks.length);
    let raw = cache.rows(spec.entry);
    raw.check(batch);
    assert!(selection.is_none_or(|s| s.counts.len() == batch.len()), "a list for each row");
    let compressed = spec.compressed.map(|CompressedRows { entry, ratio }| (cache.rows(entry), ratio));
    if let Some((rows, _)) = compressed {
        rows.check(batch);
    }
    let y = Tensor::like(gpu, queries, queries.width);
    let pages = |row: usize| {
        let position = batch.positions[row] as usize;
        let complete = compressed.map_or(0, |(_, ratio)| complete_rows(position, ratio));
        spec.page_count(position, selection.map_or(complete, |s| s.counts[row]))
    };
    let sight = Sight {
        raw: &raw.memory,
        compressed: compressed.map_or(Arg::Null, |(rows, _)| Arg::Memory(&rows.memory)),
        selected: selection.map_or(Arg::Null, |s| Arg::Memory(&s.selected)),
        step: [Arg::Memory(&step.rows), Arg::Memory(&step.lists)],
        ring: Arg::U32(raw.kind.ring_pages().unwrap_or(0)),
        seen: [spec.window, compressed.map_or(0, |(_, ratio)| ratio), selection.map_or(0, |s| s.top_k)]
            .map(|n| Arg::U32(n.min(u32::MAX as usize))),
    };
    if in_groups(raw.form, gpu.arch()) {
        for run in queries.roles.runs() {
            attend_in_groups(gpu, (queries, &y), &sinks.memory, (spec, raw.form), &sight, (run.role, run.rows.clone()));
        }
        return y;
    }
    let most = (0..batch.len()).map(pages).max().unwrap_or(0);
    let chunk = (SCRATCH_BYTES_MAX / (most * PAGE_TOKENS * spec.heads * size_of::<f32>()).max(1)).max(1);
    for first in (0..batch.len()).step_by(chunk) {
        let rows = (first, chunk.min(batch.len() - first));
        attend_chunk(gpu, (queries, &y), &sinks.memory, (spec, raw.form), &sight, rows, most);
    }
    y
}

/// What kernels are told of what rows see.
struct Sight<'a> {
    raw: &'a Memory,
    compressed: Arg<'a>,
    selected: Arg<'a>,
    step: [Arg<'a>; 2],
    ring: Arg<'a>,
    /// Window, tokens of a compressed row, selected rows.
    seen: [Arg<'a>; 3],
}

/// Rows of one role, on Hopper's matrix units.
fn attend_in_groups(
    gpu: &Arc<Gpu>,
    (queries, y): (&Tensor, &Tensor),
    sinks: &Memory,
    (spec, form): (&LatentAttention, RowForm),
    sight: &Sight<'_>,
    (role, rows): (Role, Range<usize>),
) {
    let args = |first: usize| {
        let mut args =
            Args::of([Arg::Memory(&queries.memory), Arg::Memory(sight.raw), sight.compressed, sight.selected]);
        args.extend([Arg::Memory(sinks), Arg::Memory(&y.memory)].into_iter().chain(sight.step));
        args.extend([Arg::U32(first), Arg::U32(spec.heads), sight.ring].into_iter().chain(sight.seen));
        args.push(Arg::F32(spec.scale));
        args
    };
    if role == Role::Prefill {
        let grid = blocks([rows.len(), spec.heads.div_ceil(PROMPT_COLUMNS), 1], PROMPT_THREADS);
        let launch = Launch { shared_bytes: prompt_shared_bytes(form), ..grid };
        return gpu.launch(Module::LatentPrompt(form), "latent_prompt", launch, &args(rows.start));
    }
    for first in rows.clone().step_by(DECODE_ROWS_MAX) {
        let count = DECODE_ROWS_MAX.min(rows.end - first);
        let (tile, _) = DECODE_TILES.into_iter().find(|(_, most)| count <= *most).expect("a tile for any number");
        let grid = blocks([DECODE_BLOCKS, spec.heads.div_ceil(tile.columns), count], DECODE_THREADS);
        let launch = Launch { shared_bytes: tile.shared_bytes(form), ..grid };
        let mut args = args(first);
        // Places for what the queue joins with it: a rotation, and codes.
        args.extend([Arg::Null, Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::Null, Arg::Null, Arg::Null]);
        gpu.launch(Module::LatentDecode(form, tile), "latent_decode", launch, &args);
    }
}

fn attend_chunk(
    gpu: &Arc<Gpu>,
    (queries, y): (&Tensor, &Tensor),
    sinks: &Memory,
    (spec, form): (&LatentAttention, RowForm),
    sight: &Sight<'_>,
    (first, count): (usize, usize),
    most: usize,
) {
    let numbers = |count: usize| gpu.take(count * size_of::<f32>());
    let heads = spec.heads;
    let scores = numbers(count * heads * most * PAGE_TOKENS);
    let (factors, totals) = (numbers(count * heads * most), numbers(count * heads));
    let (module, raw, chunk) = (Module::Latent(form), Arg::Memory(sight.raw), [Arg::U32(first), Arg::U32(heads)]);

    let mut args =
        Args::of([Arg::Memory(&queries.memory), raw, sight.compressed, sight.selected, Arg::Memory(&scores)]);
    args.extend(sight.step.into_iter().chain(chunk).chain([sight.ring]).chain(sight.seen));
    args.extend([Arg::U32(most), Arg::F32(spec.scale)]);
    gpu.launch(module, "latent_scores", blocks([count, most, heads.div_ceil(TILE_HEADS)], THREADS), &args);

    let mut args = Args::of([Arg::Memory(&scores), Arg::Memory(&factors), Arg::Memory(&totals), Arg::Memory(sinks)]);
    args.push(sight.selected);
    args.extend(sight.step.into_iter().chain([Arg::U32(first), Arg::U32(count), Arg::U32(heads)]).chain(sight.seen));
    args.push(Arg::U32(most));
    let launch = blocks([(count * heads).div_ceil(THREADS / WARP), 1, 1], THREADS);
    gpu.launch(module, "latent_weights", launch, &args);

    let mut args = Args::of([raw, sight.compressed, sight.selected, Arg::Memory(&scores), Arg::Memory(&factors)]);
    args.extend([Arg::Memory(&totals), Arg::Memory(&y.memory)]);
    args.extend(sight.step.into_iter().chain(chunk).chain([sight.ring]).chain(sight.seen));
    args.push(Arg::U32(most));
    let grid = [count, heads.div_ceil(VALUES_HEADS), form.width.div_ceil(THREADS)];
    gpu.launch(module, "latent_values", blocks(grid, THREADS), &args);
}
