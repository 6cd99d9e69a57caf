//! Keys and values in pages, as plain as can be: [layer][page][token in page][head][feature].

use std::ops::Range;

use super::Tensor;
use crate::{Batch, Error, KvFormat, KvLayout, PAGE_TOKENS, kv::KvLayer};

/// A number as a cache keeps it.
pub(super) trait Number: Copy {
    const BYTES: usize;

    /// Appends its bytes.
    fn write(self, out: &mut Vec<u8>);

    /// From its bytes.
    fn read(bytes: &[u8]) -> Self;
}

impl Number for f32 {
    const BYTES: usize = 4;

    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> f32 {
        f32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }
}

impl Number for f64 {
    const BYTES: usize = 8;

    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> f64 {
        f64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
struct Layer<T> {
    heads: usize,
    head_dim: usize,
    ring_pages: Option<usize>,
    /// Pages that there are.
    pages: usize,
    keys: Vec<T>,
    values: Vec<T>,
}

/// The cache; numbers are kept as `T`, rounded as the format says.
#[derive(Clone, Debug)]
pub struct KvPages<T> {
    format: KvFormat,
    layers: Vec<Layer<T>>,
}

impl<T: Copy> KvPages<T> {
    /// `pages` pages, each number `fill`.
    pub(super) fn new(device: &str, layout: &KvLayout, pages: usize, fill: T) -> Result<KvPages<T>, Error> {
        let bytes = layout.cache_bytes(pages);
        let filled = |numbers: Option<usize>| {
            let mut v = Vec::new();
            let full = Error::OutOfMemory { device: device.to_owned(), what: "keys and values".to_owned(), bytes };
            match numbers {
                Some(n) if v.try_reserve_exact(n).is_ok() => v.resize(n, fill),
                _ => return Err(full),
            }
            Ok(v)
        };
        let mut layers = Vec::new();
        for layer in &layout.layers {
            let &KvLayer { heads, head_dim, ring_pages } = layer;
            let pages = layout.pages_of(layer, pages);
            let numbers = (heads * head_dim * PAGE_TOKENS).checked_mul(pages);
            let (keys, values) = (filled(numbers)?, filled(numbers)?);
            layers.push(Layer { heads, head_dim, ring_pages, pages, keys, values });
        }
        Ok(KvPages { format: layout.format, layers })
    }

    /// (heads, head_dim) of a layer.
    pub(super) fn shape(&self, layer: usize) -> (usize, usize) {
        (self.layers[layer].heads, self.layers[layer].head_dim)
    }

    /// How many pages of a sequence a layer keeps, where that is a ring.
    pub(super) fn ring_pages(&self, layer: usize) -> Option<usize> {
        self.layers[layer].ring_pages
    }

    /// The key and the value (head_dim each) of slot `slot` of page `page`.
    pub(super) fn get(&self, layer: usize, page: u32, slot: usize, head: usize) -> (&[T], &[T]) {
        let l = &self.layers[layer];
        let at = ((page as usize * PAGE_TOKENS + slot) * l.heads + head) * l.head_dim;
        (&l.keys[at..][..l.head_dim], &l.values[at..][..l.head_dim])
    }

    /// Writes keys and values (heads · head_dim each) of one token.
    pub(super) fn put(&mut self, layer: usize, page: u32, slot: usize, key: &[T], value: &[T]) {
        let l = &mut self.layers[layer];
        let width = l.heads * l.head_dim;
        let at = (page as usize * PAGE_TOKENS + slot) * width;
        l.keys[at..][..width].copy_from_slice(key);
        l.values[at..][..width].copy_from_slice(value);
    }

    /// Appends the numbers of a page: layer by layer, keys and then values.
    pub(super) fn read_page(&self, page: u32, out: &mut Vec<u8>)
    where
        T: Number,
    {
        for layer in &self.layers {
            let range = layer.page(page);
            if page as usize >= layer.pages {
                out.resize(out.len() + 2 * range.len() * T::BYTES, 0);
                continue;
            }
            let numbers = layer.keys[range.clone()].iter().chain(&layer.values[range]);
            numbers.for_each(|n| n.write(out));
        }
    }

    /// Writes what `read_page` gave.
    pub(super) fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error>
    where
        T: Number,
    {
        let expected = self.layers.iter().map(|l| 2 * l.page(0).len() * T::BYTES).sum();
        if bytes.len() != expected {
            return Err(Error::Page { expected, found: bytes.len() });
        }
        let mut numbers = bytes.chunks_exact(T::BYTES).map(T::read);
        for layer in &mut self.layers {
            let range = layer.page(page);
            if page as usize >= layer.pages {
                numbers.by_ref().take(2 * range.len()).for_each(drop);
                continue;
            }
            let slots = layer.keys[range.clone()].iter_mut().chain(&mut layer.values[range]);
            slots.zip(numbers.by_ref()).for_each(|(slot, n)| *slot = n);
        }
        Ok(())
    }
}

impl<T> Layer<T> {
    /// Where a page lies among the keys, and among the values.
    fn page(&self, page: u32) -> Range<usize> {
        let numbers = PAGE_TOKENS * self.heads * self.head_dim;
        page as usize * numbers..(page as usize + 1) * numbers
    }
}

pub(super) fn store(cache: &mut KvPages<f32>, layer: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
    let (heads, head_dim) = cache.shape(layer);
    assert_eq!((keys.width, values.width), (heads * head_dim, heads * head_dim), "keys and values fill all heads");
    let round = |row: &[f32]| -> Vec<f32> {
        let mut row = row.to_vec();
        row.chunks_mut(head_dim.max(1)).for_each(|head| cache.format.round(head));
        row
    };
    let rows: Vec<_> = (0..batch.len()).map(|r| (round(keys.row(r)), round(values.row(r)))).collect();
    for (row, (key, value)) in rows.iter().enumerate() {
        let (page, slot) = batch.slot(row, batch.positions[row] as usize, cache.ring_pages(layer));
        cache.put(layer, page, slot, key, value);
    }
}
