//! Keys and values in pages on the card, and the two ops over them. How a head's page lies: `kernels/attention/pages.cuh`.

use std::{ops::Range, sync::Arc};

use tessera_ops::{Batch, Error, KvEntry, KvLayout};

use crate::{
    attention::{self, SpansTile},
    driver::{Arg, Gpu, Memory},
    kernels::{Module, Pages},
    matmul::tile::WARP,
    steps::Step,
    tensor::{Tensor, blocks},
};

/// The widest head that attention takes.
const HEAD_DIM_MAX: usize = attention::HEAD_DIM_MAX;

/// Pages of keys and values of all layers.
pub struct KvPages {
    pub(crate) layers: Vec<Layer>,
    /// Attended in this tile whatever the width, to measure it.
    pub(crate) forced: Option<SpansTile>,
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
        let what = format!("keys and values of {pages} pages");
        let mut layers = Vec::with_capacity(layout.entries.len());
        let unsupported = |what: String| {
            let device = gpu.name().to_owned();
            Err(Error::Unsupported { device, what, remedy: "run the model on the CPU" })
        };
        for entry in &layout.entries {
            let &KvEntry::Pairs { heads, head_dim, ring_pages } = entry else {
                return unsupported(format!("a cache with {entry:?}"));
            };
            let (pages, form) = (entry.pages_of(pages, rings), Pages { head_dim, format: layout.format });
            if head_dim > HEAD_DIM_MAX {
                return unsupported(format!("attention with heads of {head_dim} numbers"));
            }
            gpu.prepare(&attention::modules(form, gpu.arch()))?;
            let bytes = (heads * form.head_bytes()).saturating_mul(pages);
            let (keys, values) = (gpu.reserve(bytes, &what)?, gpu.reserve(bytes, &what)?);
            layers.push(Layer { heads, form, ring_pages, pages, keys, values });
        }
        Ok(KvPages { layers, forced: None })
    }

    /// Appends a page's bytes: layer by layer, but for those that are rings, keys and then values.
    pub(crate) fn read_page(&self, gpu: &Gpu, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        let one = page as usize..page as usize + 1;
        let layers = self.layers.iter().filter(|l| l.ring_pages.is_none());
        layers.into_iter().try_for_each(|layer| layer.read(gpu, one.clone(), out))
    }

    /// Appends a ring's bytes: of the layers that are rings.
    pub(crate) fn read_ring(&self, gpu: &Gpu, ring: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.layers.iter().try_for_each(|layer| layer.read(gpu, layer.ring(ring), out))
    }

    /// Writes what [`KvPages::read_page`] gave.
    pub(crate) fn write_page(&mut self, gpu: &Gpu, page: u32, bytes: &[u8]) -> Result<(), Error> {
        let one = page as usize..page as usize + 1;
        self.write(gpu, bytes, |layer| if layer.ring_pages.is_none() { one.clone() } else { 0..0 })
    }

    /// Writes what [`KvPages::read_ring`] gave.
    pub(crate) fn write_ring(&mut self, gpu: &Gpu, ring: u32, bytes: &[u8]) -> Result<(), Error> {
        self.write(gpu, bytes, |layer| layer.ring(ring))
    }

    /// Writes bytes into some pages of each layer.
    fn write(&self, gpu: &Gpu, mut bytes: &[u8], pages: impl Fn(&Layer) -> Range<usize>) -> Result<(), Error> {
        let size = |layer: &Layer| 2 * pages(layer).len() * layer.page_bytes();
        let (expected, found) = (self.layers.iter().map(size).sum(), bytes.len());
        if expected != found {
            return Err(Error::Page { expected, found });
        }
        for layer in &self.layers {
            for memory in [&layer.keys, &layer.values] {
                let range = layer.bytes(pages(layer));
                let (part, rest) = bytes.split_at(range.len());
                bytes = rest;
                if !part.is_empty() {
                    gpu.upload(memory, range.start, part)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the rows' keys and values.
    pub(crate) fn store(&self, gpu: &Gpu, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch, step: &Step) {
        let l = &self.layers[layer];
        let width = l.heads * l.form.head_dim;
        assert_eq!((keys.width, values.width), (width, width), "keys and values fill all heads");
        assert_eq!((keys.rows, values.rows), (batch.len(), batch.len()), "each row has its key and value");
        l.check(batch);
        let args = [
            Arg::Memory(&keys.memory),
            Arg::Memory(&values.memory),
            Arg::Memory(&l.keys),
            Arg::Memory(&l.values),
            Arg::Memory(&step.rows),
            Arg::Memory(&step.lists),
            Arg::U32(l.heads),
            Arg::U32(l.ring_pages.unwrap_or(0)),
        ];
        gpu.launch(Module::Store(l.form), "store", blocks([l.heads, batch.len(), 1], WARP), &args);
    }
}

impl Layer {
    fn page_bytes(&self) -> usize {
        self.heads * self.form.head_bytes()
    }

    /// The pages of a ring; none where the layer keeps all positions.
    fn ring(&self, ring: u32) -> Range<usize> {
        let pages = self.ring_pages.unwrap_or(0);
        ring as usize * pages..(ring as usize + 1) * pages
    }

    /// Where pages lie among the bytes of keys, and of values.
    fn bytes(&self, pages: Range<usize>) -> Range<usize> {
        assert!(pages.end <= self.pages, "pages of this cache");
        pages.start * self.page_bytes()..pages.end * self.page_bytes()
    }

    /// Appends the bytes of pages: keys and then values.
    fn read(&self, gpu: &Gpu, pages: Range<usize>, out: &mut Vec<u8>) -> Result<(), Error> {
        let range = self.bytes(pages);
        for memory in [&self.keys, &self.values] {
            let at = out.len();
            out.resize(at + range.len(), 0);
            if !range.is_empty() {
                gpu.download(memory, range.start, &mut out[at..])?;
            }
        }
        Ok(())
    }

    /// Holds that page tables and rings name pages of this cache: kernels do not look.
    pub(crate) fn check(&self, batch: &Batch) {
        let is_inside = match self.ring_pages {
            Some(pages) => batch.rings.iter().all(|ring| (*ring as usize + 1) * pages <= self.pages),
            None => batch.page_tables.iter().flatten().all(|page| (*page as usize) < self.pages),
        };
        assert!(is_inside, "a page table names pages of its cache, and a ring is one of its rings");
    }
}
