//! Subjects: compressed rows, their choice, and attention over latent rows, in steps of every kind.
//!
//! Rows are the tokens of several sequences, as in [`super::attention`], so every position up to a sequence's end is a row: the
//! edges of blocks, of pages and of lists lie among them, and sequences end just before and just behind these. Rings are as
//! small as the steps of an arrangement allow, and what nothing was written to holds NaN, in pages and in rings.

use super::{
    Op, Settings,
    attention::{chunked, first, place},
    compare::Arithmetic,
    inputs::{Inputs, Table, numbers, read},
    subject::{Arrangement, Facts, Job, Subject},
};
use crate::{
    Batch, CompressedRows, Compressor, Device, Error, KvEntry, KvFormat, KvLayout, LatentAttention, PAGE_TOKENS,
    Packing, Role, Rope, RopeLayout, Rounding, Selector, mask::ring_pages_min, rounding::FP8_BLOCK,
};

/// Entries of the cache; the first is of another kind.
const INPUTS: usize = 1;
const ROWS: usize = 2;
const RAW: usize = 3;
const INDEX_INPUTS: usize = 4;
const INDEX_ROWS: usize = 5;

/// What is compressed, chosen and attended to.
#[derive(Clone, Copy)]
struct Shape {
    op: Op,
    heads: usize,
    head_dim: usize,
    window: usize,
    /// Tokens of a compressed row, and whether the block before takes part; none: there are raw rows alone.
    compressed: Option<(usize, bool)>,
    /// Heads of the indexer, and how many rows it selects.
    index: Option<(usize, usize)>,
    /// Numbers of its keys.
    index_dim: usize,
    rounding: Option<Rounding>,
    format: KvFormat,
    /// Whether the indexer's keys and queries are rounded as a model does.
    rounds_index: bool,
    /// Whether rows are rounded as a model does, and kept packed.
    is_packed: bool,
    /// Whether raw rows are in a ring.
    is_ring: bool,
    lengths: &'static [usize],
}

const PLAIN: Shape = Shape {
    op: Op::Latent,
    heads: 3,
    head_dim: 32,
    window: 20,
    compressed: None,
    index: None,
    index_dim: 64,
    rounding: None,
    format: KvFormat::F16,
    rounds_index: false,
    is_packed: false,
    is_ring: true,
    lengths: &LENGTHS,
};

/// Around the ends of pages, and of blocks of 4.
const LENGTHS: [usize; 5] = [PAGE_TOKENS + 1, 3, 2 * PAGE_TOKENS + 11, 4, PAGE_TOKENS];

/// Around the ends of blocks of 128.
const LENGTHS_OF_BLOCKS: [usize; 4] = [127, 128, 3 * 128 + 1, 2 * 128 + 77];

/// So many that compressed rows of two tokens fill a page of keys, and begin another.
const LENGTHS_LONG: [usize; 3] = [2 * PAGE_TOKENS + 1, 4 * PAGE_TOKENS + 7, 2 * PAGE_TOKENS - 2];

/// Fewer, for wide heads and slow machines.
const LENGTHS_FEW: [usize; 3] = [PAGE_TOKENS + 6, 1, 11];

/// Adds all subjects.
pub(super) fn jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    let shapes = if settings.brief { brief_shapes() } else { shapes() };
    for shape in shapes.into_iter().filter(|shape| settings.wants(shape.op)) {
        let chunks = match settings {
            Settings { brief: true, .. } => vec![5],
            Settings { full: true, .. } => vec![1, 2, 3, 4, 5, 7, 63, 64, 65, 100, 127, 128, 129],
            _ => vec![1, 3, 5, 64, 129],
        };
        jobs.push(Job::new(shape.op, shape.format_name(), move || Streams::new(shape, chunks)));
    }
}

impl Shape {
    /// Kept packed: all but the features that turn as E4M3, keys of the indexer as E2M1.
    fn packed(self) -> Shape {
        Shape { is_packed: true, rounds_index: true, rounding: Some(self.row_rounding()), ..self }
    }

    /// As of a model whose blocks are whole; of others some are not.
    fn row_rounding(&self) -> Rounding {
        let rest = if self.head_dim.is_multiple_of(2 * FP8_BLOCK) { FP8_BLOCK } else { 6 };
        Rounding::Fp8 { features: self.head_dim - rest }
    }

    fn format_name(&self) -> &'static str {
        if self.is_packed { "packed" } else { self.format.name() }
    }
}

/// Rows that are packed: blocks of codes that are not whole, widths that matrix units take, and as the model has them.
fn packed_shapes() -> Vec<Shape> {
    let four = Shape { compressed: Some((4, true)), ..PLAIN };
    let with = |head_dim: usize, op: Op| Shape { head_dim, op, ..four }.packed();
    let select = |index_dim: usize| Shape { op: Op::Select, index: Some((5, 3)), index_dim, ..four }.packed();
    let mut all = vec![with(32, Op::Compress), with(80, Op::Compress), with(80, Op::Latent), with(134, Op::Latent)];
    all.extend([select(32), select(128)]);
    let few = Shape { head_dim: 384, heads: 7, lengths: &LENGTHS_FEW, ..four };
    let model = Shape { heads: 64, head_dim: 512, index: Some((64, 9)), index_dim: 128, ..few };
    all.extend([Shape { head_dim: 128, heads: 65, ..PLAIN }, few, model].map(Shape::packed));
    all
}

fn shapes() -> Vec<Shape> {
    let mut all = vec![];
    for format in KvFormat::ALL {
        let plain = Shape { format, ..PLAIN };
        // Raw rows alone: windows around the ends of pages, with and without a ring; heads in parts of vectors, and more than one.
        for (window, is_ring, heads) in [(1, true, 1), (63, true, 5), (64, false, 16), (65, true, 17), (128, true, 3)] {
            all.push(Shape { window, is_ring, heads, ..plain });
        }
        // Compressed rows of every kind.
        let four = Shape { compressed: Some((4, true)), ..plain };
        let many = Shape { compressed: Some((128, false)), lengths: &LENGTHS_OF_BLOCKS, ..plain };
        let two = Shape { compressed: Some((2, true)), lengths: &LENGTHS_LONG, ..plain };
        for shape in [four, many, two, Shape { compressed: Some((4, false)), head_dim: 80, ..plain }] {
            all.extend([Shape { op: Op::Compress, window: 1, ..shape }, shape]);
        }
        // Cards may attend to rows of f16 in an arithmetic of their own, but not to such narrow ones.
        let rounded = Shape { op: Op::Compress, window: 1, ..four };
        let hadamard_dim = if format == KvFormat::F16 { 32 } else { 128 };
        for (rounding, head_dim) in [(Rounding::Fp8 { features: 74 }, 80), (Rounding::HadamardFp4, hadamard_dim)] {
            all.push(Shape { head_dim, rounding: Some(rounding), ..rounded });
        }
        let odd = Shape { index: Some((5, 3)), index_dim: 40, ..four };
        all.extend([
            Shape { op: Op::Select, ..odd },
            Shape { op: Op::Select, index: Some((65, 5)), index_dim: 128, ..four },
        ]);
        // Choices: of one, up to a vector, of a page of keys and beyond.
        for (index_heads, top_k) in [(1, 1), (3, 7), (16, 16), (17, 15), (2, 64), (2, 65)] {
            let shape = if top_k > 16 { two } else { four };
            let index = Some((index_heads, top_k));
            all.extend([Shape { op: Op::Select, index, ..shape }, Shape { index, ..shape }]);
        }
    }
    // Widths that matrix units take, heads of more than a tile, and as the model has it.
    let wide = Shape { head_dim: 128, heads: 65, ..PLAIN };
    all.extend([wide, Shape { head_dim: 384, heads: 7, compressed: Some((4, true)), lengths: &LENGTHS_FEW, ..PLAIN }]);
    let index = Some((64, 9));
    all.push(Shape { heads: 64, head_dim: 512, index, lengths: &LENGTHS_FEW, compressed: Some((4, true)), ..PLAIN });
    all.extend(packed_shapes());
    all.extend(rounded_index_shapes());
    all
}

/// Keys and queries that are small whole numbers, but for a factor, so that a device may add up their products in any order; and so many
/// that they fill a block of them.
fn rounded_index_shapes() -> Vec<Shape> {
    let two =
        Shape { op: Op::Select, rounds_index: true, compressed: Some((2, true)), lengths: &LENGTHS_LONG, ..PLAIN };
    let of = |heads: usize, top_k: usize, index_dim: usize| Shape { index: Some((heads, top_k)), index_dim, ..two };
    let many = Shape { lengths: &[9 * PAGE_TOKENS + 3], ..of(3, 20, 32) };
    vec![of(64, 9, 128), of(65, 64, 128), of(5, 1, 32), of(17, 30, 64), many]
}

/// Of each kind of subject one.
fn brief_shapes() -> Vec<Shape> {
    let mut all = vec![];
    for format in KvFormat::ALL {
        let four = Shape { format, compressed: Some((4, true)), lengths: &LENGTHS_FEW, ..PLAIN };
        all.extend([four, Shape { op: Op::Compress, window: 1, ..four }]);
        all.push(Shape { op: Op::Select, index: Some((3, 7)), ..four });
        all.push(Shape { index: Some((17, 5)), heads: 9, window: 65, is_ring: false, ..four });
    }
    let many = Shape { compressed: Some((128, false)), lengths: &[130], window: 3, ..PLAIN };
    let rounding = Some(Rounding::Fp8 { features: 26 });
    let four = Shape { compressed: Some((4, true)), lengths: &LENGTHS_FEW, op: Op::Compress, ..PLAIN };
    // More rows than a block of keys, and more heads than a tile.
    let two = Shape { compressed: Some((2, true)), lengths: &[2 * PAGE_TOKENS + 14], op: Op::Select, ..PLAIN };
    all.extend([Shape { index: Some((66, 64)), ..two }, Shape { index: Some((5, 65)), index_dim: 40, ..two }]);
    all.extend([Shape { index: Some((66, 64)), rounds_index: true, index_dim: 128, ..two }]);
    all.extend([many, Shape { rounding, ..four }, Shape { rounding: Some(Rounding::HadamardFp4), ..four }]);
    let wide = Shape { op: Op::Latent, head_dim: 256, heads: 5, window: 65, ..four };
    let tiled = Shape { head_dim: 128, heads: 66, lengths: &[5, 66], ..wide };
    all.extend([wide, tiled, tiled.packed()]);
    let packed =
        Shape { head_dim: 72, index: Some((3, 7)), lengths: &LENGTHS_FEW, compressed: Some((4, true)), ..PLAIN };
    all.extend([packed.packed(), Shape { index: None, op: Op::Compress, ..packed }.packed()]);
    all.push(Shape { index: Some((66, 64)), index_dim: 128, ..two }.packed());
    all
}

struct Streams {
    shape: Shape,
    chunks: Vec<usize>,
    queries: Inputs,
    raw: Inputs,
    inputs: Inputs,
    index_inputs: Inputs,
    index_queries: Inputs,
    index_weights: Inputs,
    /// Rows that are infinite, above zero and below: their sum is no number. For each entry.
    poisons: Vec<Inputs>,
}

impl Streams {
    fn new(shape: Shape, chunks: Vec<usize>) -> Streams {
        let ids = shape.lengths.iter().sum();
        let inputs = |name: &str, width: usize| Inputs::new(name, ids, 0, width.max(1));
        let index_heads = shape.index.map_or(0, |index| index.0);
        let mut streams = Streams {
            shape,
            chunks,
            queries: inputs("queries", shape.heads * shape.head_dim),
            raw: inputs("raw", shape.head_dim),
            inputs: inputs("inputs", 4 * shape.head_dim),
            index_inputs: inputs("index inputs", 4 * shape.index_dim),
            index_queries: inputs("index queries", index_heads * shape.index_dim),
            index_weights: inputs("index weights", index_heads),
            poisons: vec![],
        };
        let is_overlap = shape.compressed.is_none_or(|c| c.1);
        if !is_overlap {
            streams.inputs = inputs("inputs", 2 * shape.head_dim);
            streams.index_inputs = inputs("index inputs", 2 * shape.index_dim);
        }
        for entry in streams.entries(1) {
            let width = entry.row_numbers();
            let mut infinite = vec![f32::INFINITY; 2 * width];
            infinite[width..].fill(f32::NEG_INFINITY);
            streams.poisons.push(Inputs::of("poison", width, &infinite));
        }
        streams
    }

    /// The cache's entries, whose rings serve steps of so many rows of a sequence.
    fn entries(&self, rows: usize) -> Vec<KvEntry> {
        let &Shape { head_dim, window, is_ring, index_dim, .. } = &self.shape;
        let (ratio, overlap) = self.shape.compressed.unwrap_or((4, true));
        let ring_pages = is_ring.then(|| ring_pages_min(window, rows));
        let blocks = if overlap { 2 } else { 1 };
        let inputs_pages = ring_pages_min(blocks * ratio, rows);
        let inputs = |dim: usize| KvEntry::Inputs { width: 2 * blocks * dim, ring_pages: inputs_pages };
        let packed = |entry: KvEntry, rounding: Rounding| match self.shape.is_packed {
            true => entry.packed(Packing::of(rounding)),
            false => entry,
        };
        let rounding = self.shape.row_rounding();
        vec![
            KvEntry::pairs(1, 16),
            inputs(head_dim),
            packed(KvEntry::compressed(head_dim, ratio), rounding),
            packed(KvEntry::latent(head_dim, ring_pages), rounding),
            inputs(index_dim),
            packed(KvEntry::compressed(index_dim, ratio), Rounding::HadamardFp4),
        ]
    }

    /// The pages of each sequence, mixed; page 0 is nobody's, and pages are even in number.
    fn page_tables(&self) -> (Vec<Vec<u32>>, u32) {
        let lengths = self.shape.lengths;
        let most = lengths.iter().map(|l| l.div_ceil(PAGE_TOKENS)).max().unwrap_or(0);
        let page = |sequence: usize, index: usize| (1 + index * lengths.len() + sequence) as u32;
        let tables = (0..lengths.len()).map(|s| (0..most).map(|index| page(s, index)).collect()).collect();
        (tables, (1 + most * lengths.len()).next_multiple_of(2) as u32)
    }

    /// The step of these rows: for each sequence a run of its tokens. Its ring is not its place in the step.
    fn step(&self, ids: &[u32], page_tables: &[Vec<u32>]) -> Batch {
        let (mut step, lengths) = (Batch::default(), self.shape.lengths);
        for (sequence, table) in page_tables.iter().enumerate() {
            let of_it = |id: &&u32| place(lengths, **id).0 as usize == sequence;
            let rows: Vec<u32> = ids.iter().filter(of_it).copied().collect();
            if let Some(first) = rows.first() {
                step.push(&rows, place(lengths, *first).1 as usize, table, Role::Decode, 0);
                step.in_ring((lengths.len() - 1 - sequence) as u32);
            }
        }
        step
    }

    fn compressor<D: Device>(&self, device: &D, is_index: bool) -> Result<Compressor<D>, Error> {
        let (ratio, overlap) = self.shape.compressed.unwrap_or((4, true));
        let (inputs, output) = if is_index { (INDEX_INPUTS, INDEX_ROWS) } else { (INPUTS, ROWS) };
        let head_dim = if is_index { self.shape.index_dim } else { self.shape.head_dim };
        let width = if overlap { 2 * head_dim } else { head_dim };
        Ok(Compressor {
            inputs,
            output,
            ratio,
            overlap,
            head_dim,
            ape: device.load_vector(&numbers("ape", ratio * width))?,
            norm: device.load_vector(&numbers("norm", head_dim))?,
            epsilon: 1e-6,
            rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![1.0, 0.11, 2.5e-3], magnitude: 1.0 },
            rounding: match is_index {
                true => self.shape.rounds_index.then_some(Rounding::HadamardFp4),
                false => self.shape.rounding,
            },
        })
    }

    /// A cache in which every slot of every entry holds NaN, but for the first entry's.
    fn cache<D: Device>(&self, device: &D, on: &Loaded<D>, rows: usize) -> Result<D::KvCache, Error> {
        let (_, pages) = self.page_tables();
        let (entries, rings) = (self.entries(rows), self.shape.lengths.len());
        let mut cache = device.kv_cache(&KvLayout::new(entries.clone(), self.shape.format), pages as usize, rings)?;
        let store = |cache: &mut D::KvCache, entry: usize, batch: &Batch| {
            let mut batch = batch.clone();
            batch.tokens.fill(0);
            let mut nothing = on.poisons[entry].rows(device, &batch);
            batch.tokens.fill(1);
            device.add(&mut nothing, &on.poisons[entry].rows(device, &batch));
            device.store_rows(cache, entry, &nothing, &batch);
        };
        // Compressed rows are made of inputs alone. A page has a place for the end of a long block, wherever it stands in a table.
        let forward: Vec<u32> = (0..pages).collect();
        let ratio = self.shape.compressed.map_or(4, |c| c.0);
        for table in [forward.clone(), forward.iter().rev().copied().collect()] {
            for start in (0..pages as usize * PAGE_TOKENS).step_by(ratio) {
                let mut batch = Batch::default();
                batch.push(&vec![0; ratio], start, &table, Role::Decode, 0);
                for (inputs, compressor) in [(INPUTS, &on.compressor), (INDEX_INPUTS, &on.index_compressor)] {
                    store(&mut cache, inputs, &batch);
                    device.compress(&mut cache, compressor, &batch);
                }
            }
        }
        for entry in [INPUTS, RAW, INDEX_INPUTS] {
            let Some(ring_pages) = entries[entry].ring_pages() else {
                let mut all = Batch::default();
                all.push(&vec![0; pages as usize * PAGE_TOKENS], 0, &forward, Role::Decode, 0);
                store(&mut cache, entry, &all);
                continue;
            };
            let mut all = Batch::default();
            (0..rings)
                .for_each(|_| all.push(&vec![0; ring_pages * PAGE_TOKENS], 0, &vec![0; ring_pages], Role::Decode, 0));
            store(&mut cache, entry, &all);
        }
        Ok(cache)
    }

    /// The most rows of a sequence in a step.
    fn rows_most(&self, steps: &[Vec<u32>]) -> usize {
        let rows_of = |step: &Vec<u32>, sequence: u32| {
            step.iter().filter(|i| place(self.shape.lengths, **i).0 == sequence).count()
        };
        let sequences = 0..self.shape.lengths.len() as u32;
        // Blocks of poison are steps too.
        let poison = self.shape.compressed.map_or(4, |c| c.0);
        let most = steps.iter().flat_map(|step| sequences.clone().map(|s| rows_of(step, s))).max();
        most.unwrap_or(0).max(poison)
    }

    /// A step on a device: what it gives for its rows.
    fn compute<D: Device>(
        &self,
        device: &D,
        on: &Loaded<D>,
        cache: &mut D::KvCache,
        step: &Batch,
    ) -> Result<Vec<f32>, Error> {
        let &Shape { op, heads, head_dim, window, compressed, index, index_dim, .. } = &self.shape;
        let mut raw = on.raw.rows(device, step);
        if self.shape.is_packed {
            device.round(&mut raw, head_dim, self.shape.row_rounding());
        }
        device.store_rows(cache, RAW, &raw, step);
        if compressed.is_some() {
            device.store_rows(cache, INPUTS, &on.inputs.rows(device, step), step);
            device.compress(cache, &on.compressor, step);
        }
        let selection = index.zip(compressed).map(|((heads, top_k), (ratio, _))| {
            device.store_rows(cache, INDEX_INPUTS, &on.index_inputs.rows(device, step), step);
            device.compress(cache, &on.index_compressor, step);
            let selector = Selector { entry: INDEX_ROWS, ratio, heads, head_dim: index_dim, top_k, scale: 0.177 };
            let (mut queries, weights) = (on.index_queries.rows(device, step), on.index_weights.rows(device, step));
            if self.shape.rounds_index {
                device.round(&mut queries, index_dim, Rounding::HadamardFp4);
            }
            (device.select(&queries, &weights, cache, &selector, step), top_k)
        });
        if let (Op::Select, Some((selection, top_k))) = (op, &selection) {
            let mut lists = vec![];
            device.read_selection(selection, &mut lists)?;
            // Each row as wide as the longest.
            let wide = |list: &Vec<u32>| {
                let numbers = list.iter().map(|row| *row as f32).chain(std::iter::repeat(-1.0));
                numbers.take(list.len().max(*top_k)).collect::<Vec<_>>()
            };
            return Ok(lists.iter().flat_map(wide).collect());
        }
        let compressed = compressed.map(|(ratio, _)| CompressedRows { entry: ROWS, ratio });
        let scale = 2.0 / (head_dim as f32).sqrt();
        let spec = LatentAttention { entry: RAW, window, compressed, heads, head_dim, scale };
        let (queries, selection) = (on.queries.rows(device, step), selection.as_ref().map(|s| &s.0));
        read(device, &device.attend_latent(&queries, cache, &spec, selection, &on.sinks, step))
    }
}

/// Weights and inputs on a device.
pub(super) struct Loaded<D: Device> {
    compressor: Compressor<D>,
    index_compressor: Compressor<D>,
    sinks: D::Vector,
    queries: Table<D>,
    raw: Table<D>,
    inputs: Table<D>,
    index_inputs: Table<D>,
    index_queries: Table<D>,
    index_weights: Table<D>,
    /// For each entry.
    poisons: Vec<Table<D>>,
}

impl Subject for Streams {
    type Loaded<D: Device> = Loaded<D>;

    fn facts(&self) -> Facts {
        let &Shape { op, heads, head_dim, window, compressed, index, index_dim, format, lengths, .. } = &self.shape;
        let compressed = compressed.map_or(String::new(), |(ratio, overlap)| {
            format!(", a row for {ratio} tokens{}", if overlap { " and those before" } else { "" })
        });
        let index =
            index.map_or(String::new(), |(heads, top_k)| format!(", {top_k} selected by {heads} heads of {index_dim}"));
        let rounded = self.shape.rounding.map_or(String::new(), |r| format!(", {r:?}"));
        let rounded = if self.shape.rounds_index { format!("{rounded}, keys rounded") } else { rounded };
        let ring = if self.shape.is_ring { ", rings" } else { "" };
        let arithmetic = match format {
            _ if self.shape.index.is_some() && format != KvFormat::F32 => Arithmetic::Choice,
            _ if self.shape.rounding.is_some() => Arithmetic::KvCodes,
            KvFormat::F32 => Arithmetic::Rounded,
            KvFormat::F16 => Arithmetic::KvHalf,
            KvFormat::Q8_0 => Arithmetic::KvCodes,
        };
        Facts {
            op,
            format: match format {
                _ if self.shape.is_packed => "packed",
                KvFormat::F32 => "F32",
                KvFormat::F16 => "F16",
                KvFormat::Q8_0 => "Q8_0",
            },
            shape: format!("{heads} heads of {head_dim}, window {window}{compressed}{index}{rounded}{ring}"),
            ids: first(lengths, lengths.len()) as u32,
            has_bad: false,
            arithmetic,
        }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        let lengths = self.shape.lengths;
        let ids = |sequence| (first(lengths, sequence) as u32..first(lengths, sequence + 1) as u32).collect();
        let steps = (0..lengths.len()).map(ids).collect();
        let mut all = vec![
            Arrangement { name: "all at once".to_owned(), steps: chunked(lengths, &[], usize::MAX >> 1, false) },
            Arrangement { name: "one sequence after another".to_owned(), steps },
            Arrangement { name: "no rows".to_owned(), steps: vec![vec![]] },
        ];
        let chunked = |c: &usize| chunked(lengths, &[], *c, false);
        all.extend(self.chunks.iter().map(|c| Arrangement { name: format!("chunks of {c}"), steps: chunked(c) }));
        all
    }

    fn load<D: Device>(&self, device: &D) -> Result<Loaded<D>, Error> {
        Ok(Loaded {
            compressor: self.compressor(device, false)?,
            index_compressor: self.compressor(device, true)?,
            sinks: device.load_vector(&numbers("sinks", self.shape.heads))?,
            queries: self.queries.load(device)?,
            raw: self.raw.load(device)?,
            inputs: self.inputs.load(device)?,
            index_inputs: self.index_inputs.load(device)?,
            index_queries: self.index_queries.load(device)?,
            index_weights: self.index_weights.load(device)?,
            poisons: self.poisons.iter().map(|inputs| inputs.load(device)).collect::<Result<_, _>>()?,
        })
    }

    fn run<D: Device>(&self, device: &D, on: &Loaded<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let mut cache = self.cache(device, on, self.rows_most(steps))?;
        let (page_tables, _) = self.page_tables();
        let mut out = vec![];
        for ids in steps {
            let step = self.step(ids, &page_tables);
            out.extend(self.compute(device, on, &mut cache, &step)?);
        }
        Ok(out)
    }
}
