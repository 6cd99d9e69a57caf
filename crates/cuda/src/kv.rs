//! Keys and values in pages on the card, and the two ops over them. How a head's page lies: `kernels/attention/pages.cuh`.

use std::{ops::Range, sync::Arc};

use tessera_ops::{Batch, Error, KvEntry, KvFormat, KvLayout, RingPart};

use crate::{
    attention::{self, Way},
    driver::{Arg, Args, Gpu, Memory},
    kernels::{Module, Pages, RowForm},
    latent,
    matmul::tile::WARP,
    steps::Step,
    tensor::{Tensor, blocks},
};

/// The widest head that attention takes.
const HEAD_DIM_MAX: usize = attention::HEAD_DIM_MAX;

/// Pages and rings of all entries.
pub struct KvPages {
    entries: Vec<Entry>,
    /// Where blocks of attention count the spans that they take (`kernels/attention/work.cuh`); 0 between launches.
    pub(crate) drawn: Memory,
    /// Attended so whatever the width, to measure it.
    pub(crate) forced: Option<Way>,
}

enum Entry {
    Pairs(Layer),
    Rows(Rows),
}

/// Pages of rows that are no keys and values of heads. How a row lies: `kernels/latent/rows.cuh`.
pub(crate) struct Rows {
    pub(crate) kind: KvEntry,
    pub(crate) form: RowForm,
    pages: usize,
    pub(crate) memory: Memory,
}

pub(crate) struct Layer {
    pub(crate) heads: usize,
    pub(crate) form: Pages,
    pub(crate) ring_pages: Option<usize>,
    pages: usize,
    pub(crate) keys: Memory,
    pub(crate) values: Memory,
}

impl KvPages {
    /// `pages` pages and `rings` rings, and the kernels for them.
    pub(crate) fn new(gpu: &Arc<Gpu>, layout: &KvLayout, pages: usize, rings: usize) -> Result<KvPages, Error> {
        let what = format!("keys and values of {pages} pages and {rings} rings");
        let entry = |entry: &KvEntry| {
            entry.check();
            let pages = entry.pages_of(pages, rings);
            match *entry {
                KvEntry::Pairs { .. } => Layer::new(gpu, *entry, layout.format, pages, &what).map(Entry::Pairs),
                _ => Rows::new(gpu, *entry, layout.format, pages, &what).map(Entry::Rows),
            }
        };
        let entries = layout.entries.iter().map(entry).collect::<Result<_, _>>()?;
        let drawn = gpu.reserve(size_of::<u64>(), &what)?;
        gpu.upload(&drawn, 0, &[0; size_of::<u64>()])?;
        Ok(KvPages { entries, drawn, forced: None })
    }

    /// What an entry keeps.
    pub(crate) fn kind(&self, entry: usize) -> KvEntry {
        self.entries[entry].kind()
    }

    /// An entry of keys and values.
    pub(crate) fn pairs(&self, entry: usize) -> &Layer {
        let Entry::Pairs(layer) = &self.entries[entry] else { panic!("an entry of keys and values") };
        layer
    }

    /// An entry of rows.
    pub(crate) fn rows(&self, entry: usize) -> &Rows {
        let Entry::Rows(rows) = &self.entries[entry] else { panic!("an entry of rows") };
        rows
    }

    /// Appends a page's bytes: entry by entry, but for those that are rings; of pairs keys and then values.
    pub(crate) fn read_page(&self, gpu: &Gpu, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.entries.iter().try_for_each(|entry| entry.read(gpu, entry.page(page), out))
    }

    /// Appends the bytes of a part of a ring: of the entries that are rings.
    pub(crate) fn read_ring(&self, gpu: &Gpu, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        for entry in &self.entries {
            entry.ring(ring, part).into_iter().try_for_each(|run| entry.read(gpu, run, out))?;
        }
        Ok(())
    }

    /// Writes what [`KvPages::read_page`] gave.
    pub(crate) fn write_page(&mut self, gpu: &Gpu, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.write(gpu, bytes, |entry| vec![entry.page(page)])
    }

    /// Writes what [`KvPages::read_ring`] gave.
    pub(crate) fn write_ring(&mut self, gpu: &Gpu, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        self.write(gpu, bytes, |entry| entry.ring(ring, part))
    }

    /// Writes bytes into some runs of pages of each entry.
    fn write(&self, gpu: &Gpu, mut bytes: &[u8], runs: impl Fn(&Entry) -> Vec<Range<usize>>) -> Result<(), Error> {
        let parts = |entry| runs(entry).into_iter().flat_map(|run| entry.parts(run)).collect::<Vec<_>>();
        let parts: Vec<(&Memory, Range<usize>)> = self.entries.iter().flat_map(parts).collect();
        let (expected, found) = (parts.iter().map(|(_, range)| range.len()).sum(), bytes.len());
        if expected != found {
            return Err(Error::Page { expected, found });
        }
        for (memory, range) in parts {
            let (part, rest) = bytes.split_at(range.len());
            bytes = rest;
            gpu.upload(memory, range.start, part)?;
        }
        Ok(())
    }

    /// Writes the rows of a step's tokens.
    pub(crate) fn store_rows(&self, gpu: &Gpu, entry: usize, rows: &Tensor, batch: &Batch, step: &Step) {
        let to = self.rows(entry);
        assert!(!matches!(to.kind, KvEntry::Compressed { .. }), "compressed rows are made, not stored");
        assert_eq!((rows.rows, rows.width), (batch.len(), to.form.width), "each row fills its slot");
        to.check(batch);
        let args = [
            Arg::Memory(&rows.memory),
            Arg::Memory(&to.memory),
            Arg::Memory(&step.rows),
            Arg::Memory(&step.lists),
            Arg::U32(to.kind.ring_pages().unwrap_or(0)),
        ];
        gpu.launch(Module::StoreRows(to.form), "store_rows", blocks([batch.len(), 1, 1], latent::THREADS), &args);
    }

    /// Writes the rows' keys and values.
    pub(crate) fn store(&self, gpu: &Gpu, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch, step: &Step) {
        let l = self.pairs(layer);
        let width = l.heads * l.form.head_dim;
        assert_eq!((keys.width, values.width), (width, width), "keys and values fill all heads");
        assert_eq!((keys.rows, values.rows), (batch.len(), batch.len()), "each row has its key and value");
        l.check(batch);
        let memories = [&keys.memory, &values.memory, &l.keys, &l.values, &step.rows, &step.lists];
        let mut args = Args::of(memories.map(Arg::Memory));
        args.extend([l.heads, l.ring_pages.unwrap_or(0)].map(Arg::U32));
        // What comes before and beside a store, the queue puts in.
        args.extend([Arg::Null, Arg::Null, Arg::F32(0.0), Arg::Null]);
        args.extend([Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::U32(0)]);
        args.extend([Arg::Null, Arg::Null, Arg::Null, Arg::F32(0.0), Arg::U32(0)]);
        gpu.launch(Module::Store(l.form), "store", blocks([l.heads, batch.len(), 1], WARP), &args);
    }
}

impl Entry {
    fn kind(&self) -> KvEntry {
        match self {
            Entry::Pairs(layer) => KvEntry::pairs(layer.heads, layer.form.head_dim).in_ring(layer.ring_pages),
            Entry::Rows(rows) => rows.kind,
        }
    }

    /// Its part of a page; none where it is a ring.
    fn page(&self, page: u32) -> Range<usize> {
        let is_ring = self.kind().ring_pages().is_some();
        page as usize..page as usize + usize::from(!is_ring)
    }

    /// The runs of pages of a part of a ring; none where it keeps all positions.
    fn ring(&self, ring: u32, part: RingPart) -> Vec<Range<usize>> {
        let Some(pages) = self.kind().ring_pages() else { return vec![] };
        let first = ring as usize * pages;
        part.runs(pages).into_iter().map(|run| first + run.start..first + run.end).collect()
    }

    /// Where the bytes of pages lie, in the order in which they are read.
    fn parts(&self, pages: Range<usize>) -> Vec<(&Memory, Range<usize>)> {
        let (memories, bytes, count) = match self {
            Entry::Pairs(layer) => (vec![&layer.keys, &layer.values], layer.page_bytes(), layer.pages),
            Entry::Rows(rows) => (vec![&rows.memory], rows.kind.page_rows() * rows.form.bytes(), rows.pages),
        };
        if pages.is_empty() {
            return vec![];
        }
        assert!(pages.end <= count, "pages of this cache");
        memories.into_iter().map(|memory| (memory, pages.start * bytes..pages.end * bytes)).collect()
    }

    /// Appends the bytes of pages.
    fn read(&self, gpu: &Gpu, pages: Range<usize>, out: &mut Vec<u8>) -> Result<(), Error> {
        for (memory, range) in self.parts(pages) {
            let at = out.len();
            out.resize(at + range.len(), 0);
            gpu.download(memory, range.start, &mut out[at..])?;
        }
        Ok(())
    }
}

/// Holds that page tables and rings name pages of an entry: kernels do not look.
fn check(batch: &Batch, ring_pages: Option<usize>, pages: usize) {
    let is_inside = match ring_pages {
        Some(ring) => batch.rings.iter().all(|r| (*r as usize + 1) * ring <= pages),
        None => batch.page_tables.iter().flatten().all(|page| (*page as usize) < pages),
    };
    assert!(is_inside, "a page table names pages of its cache, and a ring is one of its rings");
}

/// What a card has no kernel for.
fn unsupported<T>(gpu: &Gpu, what: String) -> Result<T, Error> {
    Err(Error::Unsupported { device: gpu.name().to_owned(), what, remedy: "run the model on the CPU" })
}

impl Rows {
    fn new(gpu: &Arc<Gpu>, kind: KvEntry, format: KvFormat, pages: usize, what: &str) -> Result<Rows, Error> {
        let form = RowForm { width: kind.row_numbers(), format: kind.row_format(format) };
        let is_compressed = matches!(kind, KvEntry::Compressed { .. });
        if form.width == 0 || is_compressed && form.width > latent::COMPRESSED_MAX {
            return unsupported(gpu, format!("compressed rows of {} numbers", form.width));
        }
        gpu.prepare(&match kind {
            KvEntry::Inputs { .. } => vec![Module::StoreRows(form)],
            _ => [latent::modules_on(form, gpu.arch()), vec![Module::Select]].concat(),
        })?;
        let memory = gpu.reserve((kind.page_rows() * form.bytes()).saturating_mul(pages), what)?;
        Ok(Rows { kind, form, pages, memory })
    }

    /// Holds that a step names pages of this entry.
    pub(crate) fn check(&self, batch: &Batch) {
        check(batch, self.kind.ring_pages(), self.pages);
    }
}

impl Layer {
    fn new(gpu: &Arc<Gpu>, kind: KvEntry, format: KvFormat, pages: usize, what: &str) -> Result<Layer, Error> {
        let KvEntry::Pairs { heads, head_dim, ring_pages } = kind else { panic!("an entry of keys and values") };
        let form = Pages { head_dim, format };
        if head_dim > HEAD_DIM_MAX {
            return unsupported(gpu, format!("attention with heads of {head_dim} numbers"));
        }
        gpu.prepare(&attention::modules(form, gpu.attention_arch()))?;
        let bytes = (heads * form.head_bytes()).saturating_mul(pages);
        let (keys, values) = (gpu.reserve(bytes, what)?, gpu.reserve(bytes, what)?);
        Ok(Layer { heads, form, ring_pages, pages, keys, values })
    }

    fn page_bytes(&self) -> usize {
        self.heads * self.form.head_bytes()
    }

    /// Holds that a step names pages of this layer.
    pub(crate) fn check(&self, batch: &Batch) {
        check(batch, self.ring_pages, self.pages);
    }
}
