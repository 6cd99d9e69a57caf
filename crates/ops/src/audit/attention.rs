//! Subjects: keys and values into pages, and attention over them, in steps of every kind.
//!
//! Rows are the tokens of several sequences, named one after another. Whatever the steps, a row's result is the same:
//! all sequences whole in one step; one by one; chunk by chunk, token by token. Pages of sequences are mixed, and what
//! lies in slots that nothing was written to is NaN. The ends of some subjects' sequences are drafts that branch. Some keep a
//! ring each, in steps that are narrow enough; in others, and so in the reference's own, they keep all pages.

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{Inputs, Table, numbers, read},
    subject::{Arrangement, Facts, Job, Subject},
};
use crate::{
    Attention, Batch, Device, Error, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, Role,
    mask::{ring_pages_min, ring_rows_max},
};

/// Lengths around the ends of pages.
const LENGTHS: [usize; 6] =
    [PAGE_TOKENS + 1, 1, PAGE_TOKENS, 2 * PAGE_TOKENS + PAGE_TOKENS / 2, PAGE_TOKENS - 1, 2 * PAGE_TOKENS - 1];

/// Fewer of them, for wide heads.
const LENGTHS_FEW: [usize; 3] = [PAGE_TOKENS + 2, 1, PAGE_TOKENS];

/// A sequence alone that is long enough for devices to share a row among threads.
const LENGTH_ALONE: usize = 5 * PAGE_TOKENS + 3;

/// Heads wider than this are audited at few lengths, but in a full audit.
const NARROW_HEAD: usize = 80;

/// (query heads, heads of keys and values, numbers of a head): alone, in groups of every kind, up to the widest.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 32), (6, 2, 64), (3, 1, 80), (3, 3, 96), (8, 1, 128), (2, 1, 256), (2, 2, 512)];

/// The shape that windows and caps are audited on.
const SHAPE_OF_WINDOWS: (usize, usize, usize) = (6, 2, 64);

/// Drafts that branch: the draft that each follows, none where that is the last token before them.
const TREE: [Option<u32>; 7] = [None, Some(0), Some(0), Some(0), Some(2), Some(1), Some(5)];

/// Rows of a sequence in a step that a ring is made for.
const RING_ROWS: usize = PAGE_TOKENS + 2;

/// The layer in use; the one before it has another shape.
const LAYER: usize = 1;

fn name(format: KvFormat) -> (&'static str, Arithmetic) {
    match format {
        KvFormat::F32 => ("F32", Arithmetic::Rounded),
        KvFormat::F16 => ("F16", Arithmetic::KvHalf),
        KvFormat::Q8_0 => ("Q8_0", Arithmetic::KvCodes),
    }
}

/// Adds all subjects.
pub(super) fn jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    if !settings.wants(Op::Attention) {
        return;
    }
    if settings.brief {
        return brief_jobs(jobs);
    }
    let chunks = if settings.full { vec![1, 2, 7, 63, 64, 65, 100] } else { vec![1, 7, 64, 65] };
    let full = settings.full;
    for format in KvFormat::ALL {
        for window in [None, Some(4 * PAGE_TOKENS + 9)] {
            let make = move || Sequences::new(SHAPE_OF_WINDOWS, window, None, format, &[LENGTH_ALONE], vec![1]);
            jobs.push(Job::new(Op::Attention, name(format).0, make));
        }
    }
    for format in KvFormat::ALL {
        for (window, is_ring, has_drafts) in
            [(None, false, true), (Some(70), false, true), (Some(70), true, false), (Some(3), true, true)]
        {
            let chunks = chunks.clone();
            let make = move || {
                let mut sequences = Sequences::new(SHAPE_OF_WINDOWS, window, None, format, &LENGTHS, chunks);
                sequences.ring_pages = window.filter(|_| is_ring).map(|w| ring_pages_min(w, RING_ROWS));
                sequences.drafts = if has_drafts { &TREE } else { &[] };
                sequences.sinks = has_drafts.then(|| numbers("sinks", SHAPE_OF_WINDOWS.0));
                sequences
            };
            jobs.push(Job::new(Op::Attention, name(format).0, make));
        }
    }
    let mut add = |shape: (usize, usize, usize), window, soft_cap, sinks, format| {
        let lengths: &[usize] = if shape.2 > NARROW_HEAD && !full { &LENGTHS_FEW } else { &LENGTHS };
        let chunks = chunks.clone();
        let make = move || {
            let mut sequences = Sequences::new(shape, window, soft_cap, format, lengths, chunks);
            sequences.sinks = if sinks { Some(numbers("sinks", shape.0)) } else { None };
            sequences
        };
        jobs.push(Job::new(Op::Attention, name(format).0, make));
    };
    for format in KvFormat::ALL {
        for shape in SHAPES {
            add(shape, None, None, false, format);
        }
        for (window, soft_cap) in [(None, None), (Some(50), Some(3.0)), (Some(65), None)] {
            add(SHAPE_OF_WINDOWS, window, soft_cap, true, format);
        }
        for (window, soft_cap) in
            [(Some(1), None), (Some(50), Some(3.0)), (Some(64), None), (Some(65), None), (None, Some(3.0))]
        {
            add(SHAPE_OF_WINDOWS, window, soft_cap, false, format);
        }
    }
}

/// Of each kind of subject one, in few steps.
fn brief_jobs<D: Device>(jobs: &mut Vec<Job<D>>) {
    let mut add = |shape: (usize, usize, usize), window, soft_cap, format, drafts: &'static [Option<u32>]| {
        let make = move || {
            let mut sequences = Sequences::new(shape, window, soft_cap, format, &LENGTHS_FEW, vec![7]);
            sequences.sinks = (!drafts.is_empty()).then(|| numbers("sinks", shape.0));
            sequences.drafts = drafts;
            sequences
        };
        jobs.push(Job::new(Op::Attention, name(format).0, make));
    };
    for format in KvFormat::ALL {
        add(SHAPE_OF_WINDOWS, Some(50), Some(3.0), format, &TREE);
        add((3, 1, 80), None, None, format, &[]);
    }
    add((2, 1, 256), None, None, KvFormat::F16, &[]);
    let make = || {
        let mut ring = Sequences::new(SHAPE_OF_WINDOWS, Some(70), None, KvFormat::Q8_0, &LENGTHS_FEW, vec![RING_ROWS]);
        ring.ring_pages = Some(ring_pages_min(70, RING_ROWS));
        ring
    };
    jobs.push(Job::new(Op::Attention, name(KvFormat::Q8_0).0, make));
}

#[derive(Clone)]
struct Sequences {
    spec: Attention,
    /// (heads)
    sinks: Option<Vec<f32>>,
    format: KvFormat,
    lengths: &'static [usize],
    /// How the last rows of each sequence branch, where it is longer than they are.
    drafts: &'static [Option<u32>],
    ring_pages: Option<usize>,
    chunks: Vec<usize>,
    queries: Inputs,
    keys: Inputs,
    values: Inputs,
    /// A row that is infinite, and one that is so below zero: their sum is no number.
    poison: Inputs,
}

impl Sequences {
    fn new(
        (heads, kv_heads, head_dim): (usize, usize, usize),
        window: Option<usize>,
        soft_cap: Option<f32>,
        format: KvFormat,
        lengths: &'static [usize],
        chunks: Vec<usize>,
    ) -> Sequences {
        let (ids, kv_width) = (lengths.iter().sum(), kv_heads * head_dim);
        let mut infinite = vec![f32::INFINITY; 2 * kv_width];
        infinite[kv_width..].fill(f32::NEG_INFINITY);
        let scale = 2.0 / (head_dim as f32).sqrt();
        Sequences {
            spec: Attention { layer: LAYER, heads, kv_heads, head_dim, scale, window, soft_cap },
            sinks: None,
            format,
            lengths,
            drafts: &[],
            ring_pages: None,
            chunks,
            queries: Inputs::new("queries", ids, 0, heads * head_dim),
            keys: Inputs::new("keys", ids, 0, kv_width),
            values: Inputs::new("values", ids, 0, kv_width),
            poison: Inputs::of("poison", kv_width, &infinite),
        }
    }

    /// The pages of each sequence, mixed; page 0 is nobody's.
    fn page_tables(&self) -> Vec<Vec<u32>> {
        let most = self.lengths.iter().map(|l| l.div_ceil(PAGE_TOKENS)).max().unwrap_or(0);
        let page = |sequence: usize, index: usize| (1 + index * self.lengths.len() + sequence) as u32;
        (0..self.lengths.len()).map(|s| (0..most).map(|index| page(s, index)).collect()).collect()
    }

    /// The tokens of a sequence before its drafts.
    fn trunk(&self, sequence: usize) -> usize {
        trunk(self.lengths[sequence], self.drafts)
    }

    /// The ring of a sequence.
    fn ring(&self, sequence: usize) -> u32 {
        (self.lengths.len() - 1 - sequence) as u32
    }

    /// The rows, where they are a draft behind those that it follows, and no others.
    fn path(&self, sequence: usize, rows: &[u32]) -> Option<Vec<u32>> {
        let before = (first(self.lengths, sequence) + self.trunk(sequence)) as u32;
        let last = rows.last()?.checked_sub(before)?;
        (self.path_to(last).iter().map(|draft| before + draft).eq(rows.iter().copied())).then(|| rows.to_vec())
    }

    /// The drafts that one follows, and itself.
    fn path_to(&self, draft: u32) -> Vec<u32> {
        let mut path: Vec<u32> = std::iter::successors(Some(draft), |d| self.drafts[*d as usize]).collect();
        path.reverse();
        path
    }

    /// Whether a ring keeps what rows of these steps see.
    fn fits_ring(&self, steps: &[Vec<u32>], ring_pages: usize) -> bool {
        let rows_of =
            |step: &Vec<u32>, sequence: u32| step.iter().filter(|i| place(self.lengths, **i).0 == sequence).count();
        let most = ring_rows_max(self.spec.window.unwrap_or(usize::MAX), ring_pages);
        steps.iter().all(|step| (0..self.lengths.len() as u32).all(|sequence| rows_of(step, sequence) <= most))
    }

    /// A cache in which every slot of the layer holds NaN.
    fn cache<D: Device>(&self, device: &D, poison: &Table<D>, ring_pages: Option<usize>) -> Result<D::KvCache, Error> {
        let Attention { kv_heads, head_dim, .. } = self.spec;
        let pages = 1 + self.page_tables().concat().len();
        let layers = vec![KvEntry::pairs(1, 32), KvEntry::pairs(kv_heads, head_dim).in_ring(ring_pages)];
        let rings = if ring_pages.is_some() { self.lengths.len() } else { 0 };
        let mut cache = device.kv_cache(&KvLayout::new(layers, self.format), pages, rings)?;
        let mut all = Batch::default();
        for ring in 0..rings as u32 {
            let pages = vec![0; ring_pages.unwrap_or(0)];
            all.push(&vec![0; pages.len() * PAGE_TOKENS], 0, &pages, Role::Prefill, 0);
            all.in_ring(ring);
        }
        if rings == 0 {
            (0..pages as u32).for_each(|page| all.push(&[0; PAGE_TOKENS], 0, &[page], Role::Prefill, 0));
        }
        let mut nothing = poison.rows(device, &all);
        all.tokens.fill(1);
        device.add(&mut nothing, &poison.rows(device, &all));
        device.store_kv(&mut cache, LAYER, &nothing, &nothing, &all);
        Ok(cache)
    }

    /// The step of these rows: for each sequence a run of its tokens, and with the last of them its drafts.
    fn step(&self, ids: &[u32], page_tables: &[Vec<u32>]) -> Batch {
        let mut step = Batch::default();
        for (sequence, table) in page_tables.iter().enumerate() {
            let of_it = |id: &&u32| place(self.lengths, **id).0 as usize == sequence;
            let rows: Vec<u32> = ids.iter().filter(of_it).copied().collect();
            let (Some(first), trunk) =
                (rows.first().map(|id| place(self.lengths, *id).1 as usize), self.trunk(sequence))
            else {
                continue;
            };
            if first + rows.len() <= trunk || trunk == self.lengths[sequence] {
                step.push(&rows, first, table, Role::Decode, 0);
                step.in_ring(self.ring(sequence));
                continue;
            }
            if let Some(path) = self.path(sequence, &rows) {
                step.push(&path, trunk, table, Role::Decode, 0);
                step.in_ring(self.ring(sequence));
                continue;
            }
            // The drafts' parents, counted from the first row of the step; those of the trunk follow one another.
            let before = (trunk - first) as u32;
            let trunk = (0..before).map(|row| row.checked_sub(1));
            let drafts = self.drafts.iter().map(|parent| parent.map_or(before.checked_sub(1), |p| Some(before + p)));
            step.push_tree(&rows, &trunk.chain(drafts).collect::<Vec<_>>(), first, table, Role::Decode, 0);
            step.in_ring(self.ring(sequence));
        }
        step
    }
}

/// The tokens of a sequence of `length` before its drafts.
fn trunk(length: usize, drafts: &[Option<u32>]) -> usize {
    if length > drafts.len() { length - drafts.len() } else { length }
}

/// The sequence and the position of a row.
pub(super) fn place(lengths: &[usize], id: u32) -> (u32, u32) {
    let (mut sequence, mut position) = (0, id as usize);
    while position >= lengths[sequence] {
        position -= lengths[sequence];
        sequence += 1;
    }
    (sequence as u32, position as u32)
}

/// The first row of a sequence.
pub(super) fn first(lengths: &[usize], sequence: usize) -> usize {
    lengths[..sequence].iter().sum()
}

/// Steps of at most `chunk` rows of each sequence, and its drafts with the last of them or, where they go `apart`, after all.
pub(super) fn chunked(lengths: &[usize], drafts: &[Option<u32>], chunk: usize, apart: bool) -> Vec<Vec<u32>> {
    let trunk = |sequence: usize| trunk(lengths[sequence], drafts);
    let longest = (0..lengths.len()).map(trunk).max().unwrap_or(0);
    let part = |sequence: usize, from: usize| {
        let (first, end) = (first(lengths, sequence), (from + chunk).min(trunk(sequence)));
        let is_last = from < trunk(sequence) && end == trunk(sequence) && !apart;
        (first + from.min(end)..first + if is_last { lengths[sequence] } else { end }).map(|id| id as u32)
    };
    let step = |from: usize| (0..lengths.len()).flat_map(|sequence| part(sequence, from)).collect();
    let drafts = |sequence: usize| first(lengths, sequence) + trunk(sequence)..first(lengths, sequence + 1);
    let mut steps: Vec<Vec<u32>> = (0..longest).step_by(chunk).map(step).collect();
    if apart {
        steps.push((0..lengths.len()).flat_map(drafts).map(|id| id as u32).collect());
    }
    steps
}

/// Queries, keys, values, poison.
pub(super) struct Loaded<D: Device> {
    sinks: Option<D::Vector>,
    queries: Table<D>,
    keys: Table<D>,
    values: Table<D>,
    poison: Table<D>,
}

impl Subject for Sequences {
    type Loaded<D: Device> = Loaded<D>;

    fn facts(&self) -> Facts {
        let Attention { heads, kv_heads, head_dim, window, soft_cap, .. } = self.spec;
        let window = window.map_or(String::new(), |w| format!(", window {w}"));
        let cap = soft_cap.map_or(String::new(), |c| format!(", cap {c}"));
        let sinks = if self.sinks.is_some() { ", sinks" } else { "" };
        let drafts = if self.drafts.is_empty() { "" } else { ", drafts" };
        let ring = self.ring_pages.map_or(String::new(), |n| format!(", ring of {n}"));
        let (format, arithmetic) = name(self.format);
        Facts {
            op: Op::Attention,
            format,
            shape: format!("{heads} heads over {kv_heads} of {head_dim}{window}{cap}{sinks}{drafts}{ring}"),
            ids: first(self.lengths, self.lengths.len()) as u32,
            has_bad: false,
            arithmetic,
        }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        let (lengths, drafts) = (self.lengths, self.drafts);
        let ids = |sequence| (first(lengths, sequence) as u32..first(lengths, sequence + 1) as u32).collect();
        let steps = (0..lengths.len()).map(ids).collect();
        let mut all = vec![
            Arrangement { name: "all at once".to_owned(), steps: chunked(lengths, drafts, usize::MAX >> 1, false) },
            Arrangement { name: "one sequence after another".to_owned(), steps },
            Arrangement { name: "no rows".to_owned(), steps: vec![vec![]] },
        ];
        let chunks = self.chunks.iter();
        let chunked = |chunk: &usize, apart| chunked(lengths, drafts, *chunk, apart);
        all.extend(chunks.map(|c| Arrangement { name: format!("chunks of {c}"), steps: chunked(c, false) }));
        if !drafts.is_empty() {
            let apart = self.chunks.iter().max().map(|c| chunked(c, true));
            all.extend(apart.map(|steps| Arrangement { name: "drafts in a step of their own".to_owned(), steps }));
        }
        all
    }

    /// Token by token; then of each draft its path, as if there were no other.
    fn alone(&self) -> Vec<Vec<u32>> {
        let mut steps = vec![];
        for sequence in 0..self.lengths.len() {
            let (start, trunk) = (first(self.lengths, sequence) as u32, self.trunk(sequence) as u32);
            steps.extend((start..start + trunk).map(|id| vec![id]));
            let drafts = self.lengths[sequence] as u32 - trunk;
            let path = |draft| self.path_to(draft).iter().map(|d| start + trunk + d).collect();
            steps.extend((0..drafts).map(path));
        }
        steps
    }

    fn load<D: Device>(&self, device: &D) -> Result<Loaded<D>, Error> {
        Ok(Loaded {
            sinks: self.sinks.as_ref().map(|sinks| device.load_vector(sinks)).transpose()?,
            queries: self.queries.load(device)?,
            keys: self.keys.load(device)?,
            values: self.values.load(device)?,
            poison: self.poison.load(device)?,
        })
    }

    fn of_halves(&self) -> Option<Sequences> {
        (self.format == KvFormat::F16).then(|| {
            let [queries, keys, values] = [&self.queries, &self.keys, &self.values].map(Inputs::to_f16);
            Sequences { queries, keys, values, ..self.clone() }
        })
    }

    fn run<D: Device>(&self, device: &D, on: &Loaded<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let ring_pages = self.ring_pages.filter(|ring| self.fits_ring(steps, *ring));
        let mut cache = self.cache(device, &on.poison, ring_pages)?;
        let page_tables = self.page_tables();
        let mut out = vec![];
        for ids in steps {
            let step = self.step(ids, &page_tables);
            let (keys, values) = (on.keys.rows(device, &step), on.values.rows(device, &step));
            device.store_kv(&mut cache, LAYER, &keys, &values, &step);
            let queries = on.queries.rows(device, &step);
            out.extend(read(device, &device.attention(&queries, &cache, &self.spec, on.sinks.as_ref(), &step))?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_step_after_those_before_it() {
        for (chunk, drafts) in [1, 7, 64, 65, 1000].into_iter().flat_map(|c| [(c, &[][..]), (c, &TREE)]) {
            for apart in [false, true] {
                let steps = chunked(&LENGTHS, drafts, chunk, apart);
                let mut next = LENGTHS.map(|_| 0);
                for step in steps.iter().filter(|s| !s.is_empty()) {
                    let mut last = 0;
                    for id in step {
                        let (sequence, position) = place(&LENGTHS, *id);
                        assert!(sequence >= last, "rows of a sequence stand together");
                        last = sequence;
                        assert_eq!(position as usize, next[sequence as usize]);
                        next[sequence as usize] += 1;
                    }
                }
                assert_eq!(next, LENGTHS);
            }
        }
        assert_eq!(chunked(&LENGTHS, &TREE, 1000, false).len(), 1);
    }

    #[test]
    fn drafts_branch_where_they_should() {
        let mut subject = Sequences::new((2, 1, 32), None, None, KvFormat::F16, &LENGTHS, vec![]);
        subject.drafts = &TREE;
        let tables = subject.page_tables();
        let whole = subject.step(&chunked(&LENGTHS, &TREE, 1000, false)[0], &tables);
        let apart = subject.step(chunked(&LENGTHS, &TREE, 1000, true).last().unwrap(), &tables);
        for step in [whole, apart] {
            // A sequence of one token has no drafts; of the others, each draft stands behind its parent.
            for (row, id) in step.tokens.iter().enumerate() {
                let (sequence, index) = place(&LENGTHS, *id);
                let (trunk, index) = (subject.trunk(sequence as usize), index as usize);
                let depth = |draft: usize| std::iter::successors(Some(draft as u32), |d| TREE[*d as usize]).count() - 1;
                let want = if index < trunk { index } else { trunk + depth(index - trunk) };
                assert_eq!(step.positions[row] as usize, want, "row {row}");
                assert_eq!(step.place(row, want), index, "row {row}");
            }
        }
    }

    #[test]
    fn drafts_are_alone_on_their_path() {
        let mut subject = Sequences::new((2, 1, 32), None, None, KvFormat::F16, &LENGTHS, vec![]);
        subject.drafts = &TREE;
        let tables = subject.page_tables();
        let whole = subject.step(&chunked(&LENGTHS, &TREE, 1000, false)[0], &tables);
        let mut last = vec![None; whole.len()];
        for ids in subject.alone() {
            let step = subject.step(&ids, &tables);
            assert!((0..step.len()).all(|row| !step.is_tree(row)), "{ids:?}");
            last[*ids.last().unwrap() as usize] = Some(step.positions[step.len() - 1]);
        }
        let positions = whole.tokens.iter().map(|id| last[*id as usize]);
        assert!(positions.eq(whole.positions.iter().map(|p| Some(*p))));
    }

    #[test]
    fn pages_are_nobody_else_s() {
        for lengths in [&LENGTHS[..], &LENGTHS_FEW] {
            let subject = Sequences::new((2, 1, 32), None, None, KvFormat::F16, lengths, vec![]);
            let mut pages = subject.page_tables().concat();
            pages.sort_unstable();
            let count = pages.len() as u32;
            assert_eq!(pages, (1..=count).collect::<Vec<_>>());
        }
    }
}
