//! Keys and values in pages on the card, and the two ops over them. How a head's page lies: `kernels/attention/pages.cuh`.

use std::sync::Arc;

use tessera_ops::{Batch, Error, KvLayout};

use crate::{
    attention::{self, AttentionTile},
    driver::{Arg, Gpu, Memory},
    kernels::{Module, Pages},
    matmul::tile::WARP,
    steps::Step,
    tensor::{Tensor, blocks},
};

/// The widest head whose queries fit into a block's shared memory: as many columns as the narrowest tile has.
const HEAD_DIM_MAX: usize = attention::HEAD_DIM_MAX;

/// Pages of keys and values of all layers.
pub struct KvPages {
    pub(crate) layers: Vec<Layer>,
    /// Attended in this tile whatever the width, to measure it.
    pub(crate) forced: Option<AttentionTile>,
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
    /// `pages` pages, and the kernels for them.
    pub(crate) fn new(gpu: &Arc<Gpu>, layout: &KvLayout, pages: usize) -> Result<KvPages, Error> {
        let what = format!("keys and values of {pages} pages");
        let mut layers = Vec::with_capacity(layout.layers.len());
        for layer in &layout.layers {
            let (pages, format) = (layout.pages_of(layer, pages), layout.format);
            let form = Pages { head_dim: layer.head_dim, format };
            if layer.head_dim > HEAD_DIM_MAX {
                return Err(Error::Unsupported {
                    device: gpu.name().to_owned(),
                    what: format!("attention with heads of {} numbers", layer.head_dim),
                    remedy: "run the model on the CPU",
                });
            }
            gpu.prepare(&attention::modules(form))?;
            let bytes = (layer.heads * form.head_bytes()).saturating_mul(pages);
            let (keys, values) = (gpu.reserve(bytes, &what)?, gpu.reserve(bytes, &what)?);
            layers.push(Layer { heads: layer.heads, form, ring_pages: layer.ring_pages, pages, keys, values });
        }
        Ok(KvPages { layers, forced: None })
    }

    /// Appends a page's bytes: layer by layer, keys and then values; zeros where a ring has no such page.
    pub(crate) fn read_page(&self, gpu: &Gpu, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        for layer in &self.layers {
            let bytes = layer.page_bytes();
            for memory in [&layer.keys, &layer.values] {
                let at = out.len();
                out.resize(at + bytes, 0);
                if (page as usize) < layer.pages {
                    gpu.download(memory, page as usize * bytes, &mut out[at..])?;
                }
            }
        }
        Ok(())
    }

    /// Writes what [`KvPages::read_page`] gave.
    pub(crate) fn write_page(&mut self, gpu: &Gpu, page: u32, mut bytes: &[u8]) -> Result<(), Error> {
        let (expected, found) = (self.layers.iter().map(|l| 2 * l.page_bytes()).sum(), bytes.len());
        if expected != found {
            return Err(Error::Page { expected, found });
        }
        for layer in &self.layers {
            for memory in [&layer.keys, &layer.values] {
                let (part, rest) = bytes.split_at(layer.page_bytes());
                bytes = rest;
                if (page as usize) < layer.pages {
                    gpu.upload(memory, page as usize * part.len(), part)?;
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

    /// Holds that page tables name pages of this cache: kernels do not look.
    pub(crate) fn check(&self, batch: &Batch) {
        let in_use = |table: &Vec<u32>| {
            let used = self.ring_pages.map_or(table.len(), |ring| ring.min(table.len()));
            table[..used].iter().all(|p| (*p as usize) < self.pages)
        };
        assert!(batch.page_tables.iter().all(in_use), "a page table names pages of its cache");
    }
}
