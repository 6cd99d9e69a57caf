//! The choice of compressed rows by an indexer: their scores, and the highest of them.

use std::sync::Arc;

use tessera_ops::{Batch, Error, KvFormat, PAGE_TOKENS, Packing, Role, Selector, kv::RowFormat, latent::complete_rows};

use super::SCRATCH_BYTES_MAX;
use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::{Module, RowForm},
    kv::{KvPages, Rows},
    steps::{Step, Steps},
    tensor::{Tensor, blocks},
};

/// Threads of a block that selects.
pub(crate) const SELECT_THREADS: usize = 512;

/// Scores that lie together in a thread of it, a multiple of which lies between rows of scores.
pub(crate) const SELECT_RUN: usize = 4;

/// The widest key that the registers of matrix units have room for.
const UNITS_WIDTH_MAX: usize = 128;

/// Blocks of few keys that are launched rather than those of many, at most: three for each processor of an H200, where both were measured
/// (288 blocks 24.7 us and 26.6, 504 blocks 28.9 and 27.1).
const FEW_BLOCKS_MAX: usize = 3 * 132;

/// How scores are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexTile {
    /// A block has many keys of a row.
    Many,
    /// It has few, so that a row is on many processors.
    Few,
}

/// Whether keys can be operands of the matrix units: f16, or codes of E2M1 that become such, in whole pieces.
fn fits_units(form: RowForm) -> bool {
    let becomes_halves = matches!(form.format, RowFormat::Plain(KvFormat::F16) | RowFormat::Packed(Packing::Fp4));
    becomes_halves && form.width.is_multiple_of(32) && form.width <= UNITS_WIDTH_MAX
}

impl IndexTile {
    /// Those of a form; chains that are walked gain nothing by few keys.
    pub(crate) fn all(form: RowForm) -> impl Iterator<Item = IndexTile> {
        [Some(IndexTile::Many), fits_units(form).then_some(IndexTile::Few)].into_iter().flatten()
    }

    const fn threads(self) -> usize {
        match self {
            IndexTile::Many => 256,
            IndexTile::Few => 512,
        }
    }

    /// Keys of a block.
    const fn keys(self) -> usize {
        match self {
            IndexTile::Many => IndexTile::Many.threads(),
            IndexTile::Few => 32,
        }
    }

    /// The parts of the source behind those that all rows have.
    pub(crate) fn parts(self) -> [(&'static str, &'static str); 2] {
        let own = match self {
            IndexTile::Many => ("latent/index.cu", include_str!("../../kernels/latent/index.cu")),
            IndexTile::Few => ("latent/index_few.cu", include_str!("../../kernels/latent/index_few.cu")),
        };
        [("latent/index.cuh", include_str!("../../kernels/latent/index.cuh")), own]
    }

    pub(crate) fn constants(self, form: RowForm) -> Vec<(&'static str, usize)> {
        let own = [("KEYS", self.keys()), ("UNITS", fits_units(form).into())];
        [&form.constants(self.threads())[..], &own].concat()
    }

    /// The tile of a launch over so many rows, whose scores lie apart by `stride`. Under audit rows are few, so both are asked.
    fn of(gpu: &Gpu, form: RowForm, rows: usize, stride: usize) -> IndexTile {
        let is_few = if gpu.is_audited() {
            !rows.is_multiple_of(2)
        } else {
            rows * stride / IndexTile::Few.keys() <= FEW_BLOCKS_MAX
        };
        if is_few && fits_units(form) { IndexTile::Few } else { IndexTile::Many }
    }
}

/// For each row of a step the compressed rows that it attends to, ascending.
pub struct Selection {
    /// (rows, top_k)
    pub(super) selected: Memory,
    pub(super) top_k: usize,
    /// (rows) how many there are.
    pub(super) counts: Vec<usize>,
}

impl Selection {
    /// Copies all lists.
    pub(crate) fn read(&self, gpu: &Gpu, rows: &mut Vec<Vec<u32>>) -> Result<(), Error> {
        let mut all = vec![0u32; self.counts.len() * self.top_k];
        gpu.download(&self.selected, 0, &mut all)?;
        rows.clear();
        rows.extend(all.chunks_exact(self.top_k).zip(&self.counts).map(|(row, count)| row[..*count].to_vec()));
        Ok(())
    }
}

/// Chooses for all rows, scores by a tile or by the one that suits them.
pub(crate) fn select(
    gpu: &Arc<Gpu>,
    (queries, head_weights): (&Tensor, &Tensor),
    cache: &KvPages,
    selector: &Selector,
    batch: &Batch,
    step: &Step,
    tile: Option<IndexTile>,
) -> Selection {
    let &Selector { entry, ratio, top_k, .. } = selector;
    let keys = cache.rows(entry);
    selector.check(keys.kind, batch, (queries.rows, queries.width), (head_weights.rows, head_weights.width));
    keys.check(batch);
    let complete = |row: usize| complete_rows(batch.positions[row] as usize, ratio);
    let counts: Vec<usize> = (0..batch.len()).map(|row| complete(row).min(top_k)).collect();
    let most = (0..batch.len()).map(complete).max().unwrap_or(0);
    let selection = Selection { selected: gpu.take(batch.len() * top_k * size_of::<u32>()), top_k, counts };
    let stride = stride_of(most, top_k);
    let chunk = (SCRATCH_BYTES_MAX / (stride * size_of::<f32>()).max(1)).max(1);
    for first in (0..batch.len()).step_by(chunk) {
        let rows = (first, chunk.min(batch.len() - first));
        let scores = scores(gpu, (queries, head_weights), keys, selector, step, (rows, stride), tile);
        highest(gpu, &scores, &selection.selected, step, rows, (ratio, top_k, stride));
    }
    selection
}

/// Scores from a row's first to the next one's, where a row sees as many compressed rows at most; none that nobody makes. What grows with
/// the sequence grows by blocks, so that a launch comes again.
pub(crate) fn stride_of(complete: usize, top_k: usize) -> usize {
    if complete > top_k { complete.next_multiple_of(IndexTile::Many.keys()) } else { 0 }
}

/// Scores of the compressed rows of `count` rows from `first` on, by a tile or by the one that suits them: (count, stride).
pub(crate) fn scores(
    gpu: &Arc<Gpu>,
    (queries, head_weights): (&Tensor, &Tensor),
    keys: &Rows,
    &Selector { ratio, heads, top_k, scale, .. }: &Selector,
    step: &Step,
    ((first, count), stride): ((usize, usize), usize),
    tile: Option<IndexTile>,
) -> Memory {
    let scores = gpu.take(count * stride * size_of::<f32>());
    if stride > 0 {
        let tables = [&queries.memory, &head_weights.memory, &keys.memory, &scores, &step.rows, &step.lists];
        let mut args = Args::of(tables.map(Arg::Memory));
        args.extend([first, heads, ratio, top_k, stride].map(Arg::U32));
        args.push(Arg::F32(scale));
        let tile = tile.unwrap_or_else(|| IndexTile::of(gpu, keys.form, count, stride));
        let launch = blocks([stride / tile.keys(), count, 1], tile.threads());
        gpu.launch(Module::IndexScores(keys.form, tile), "index_scores", launch, &args);
    }
    scores
}

/// Chooses for `count` rows from `first` on, whose scores lie apart by `stride`.
pub(crate) fn highest(
    gpu: &Arc<Gpu>,
    scores: &Memory,
    selected: &Memory,
    step: &Step,
    (first, count): (usize, usize),
    (ratio, top_k, stride): (usize, usize, usize),
) {
    let tables = [scores, selected, &step.rows, &step.lists].map(Arg::Memory);
    let mut args = Args::of(tables);
    args.extend([first, ratio, top_k, stride].map(Arg::U32));
    gpu.launch(Module::Select, "select", blocks([count, 1, 1], SELECT_THREADS), &args);
}

/// The places of the `top_k` highest of each row's scores, `complete` of them, by the kernel that chooses compressed rows.
pub(crate) fn highest_of(
    gpu: &Arc<Gpu>,
    scores: &[f32],
    (complete, top_k): (usize, usize),
    steps: &Steps,
) -> Result<Vec<u32>, Error> {
    let mut batch = Batch::default();
    let rows = scores.len() / complete;
    let pages = vec![0; complete.div_ceil(PAGE_TOKENS)];
    (0..rows).for_each(|_| batch.push(&[0], complete - 1, &pages, Role::Decode, 0));
    let memory = |count: usize| gpu.take(count * size_of::<u32>());
    let stride = complete.next_multiple_of(SELECT_RUN);
    let mut apart = vec![f32::NAN; rows * stride];
    apart
        .chunks_exact_mut(stride)
        .zip(scores.chunks_exact(complete))
        .for_each(|(to, row)| to[..complete].copy_from_slice(row));
    let (sent, selected) = (memory(apart.len()), memory(rows * top_k));
    gpu.send(&sent, &apart);
    highest(gpu, &sent, &selected, &steps.get(gpu, &batch), (0, rows), (1, top_k, stride));
    let mut places = vec![0; rows * top_k];
    gpu.download(&selected, 0, &mut places)?;
    Ok(places)
}
