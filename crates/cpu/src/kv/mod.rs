//! Keys and values in pages, as attention reads them.
//!
//! A page of one head is `[head_dim][64 tokens]` keys: 16 tokens are 16 lanes, and a score needs no sum across lanes. Its
//! values are `[64 tokens][stride]`, where the stride is `head_dim` rounded up to whole vectors. [`cells`] says how numbers
//! are kept. All pages are mapped when the cache is made and never move.

pub(crate) mod cells;
mod store;

use std::ops::Range;

use tessera_ops::{Error, KvEntry, KvFormat, KvLayout};

use self::cells::{Cells, head_bytes};
use crate::{memory::Buffer, simd::LANES, threads::Threads};

pub(crate) use store::store;

/// Pages of keys and values of all layers.
pub struct KvPages {
    pub(crate) format: KvFormat,
    pub(crate) layers: Vec<Layer>,
}

/// Pages of one layer.
pub(crate) struct Layer {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// How many pages of a sequence are kept, where the entry is a ring.
    pub(crate) ring_pages: Option<usize>,
    pages: usize,
    /// Bytes of a head's keys in a page, and of its values.
    key_bytes: usize,
    value_bytes: usize,
    keys: Buffer,
    values: Buffer,
}

impl KvPages {
    /// `pages` pages and `rings` rings, their memory taken now.
    ///
    /// # Errors
    /// The system has no room.
    pub(crate) fn new(layout: &KvLayout, pages: usize, rings: usize, pool: &Threads) -> Result<KvPages, Error> {
        let what = format!("keys and values of {pages} pages");
        let mut layers = Vec::with_capacity(layout.entries.len());
        for entry in &layout.entries {
            let &KvEntry::Pairs { heads, head_dim, ring_pages } = entry else {
                return Err(Error::Unsupported {
                    device: "the CPU".to_owned(),
                    what: format!("a cache with {entry:?}"),
                    remedy: "use another model",
                });
            };
            let pages = entry.pages_of(pages, rings);
            let bytes = |width: usize| head_bytes(layout.format, width).unwrap_or(usize::MAX);
            let (key_bytes, value_bytes) = (bytes(head_dim), bytes(head_dim.next_multiple_of(LANES)));
            // A product that overflows is more than any system has.
            let buffer = |bytes: usize| {
                let all = heads.checked_mul(bytes).and_then(|bytes| bytes.checked_mul(pages));
                Buffer::zeroed(all.unwrap_or(usize::MAX / 2), &what)
            };
            let (mut keys, mut values) = (buffer(key_bytes)?, buffer(value_bytes)?);
            keys.touch(pool);
            values.touch(pool);
            layers.push(Layer { heads, head_dim, ring_pages, pages, key_bytes, value_bytes, keys, values });
        }
        Ok(KvPages { format: layout.format, layers })
    }

    /// Appends the bytes of a page: layer by layer, but for those that are rings, keys and then values.
    pub(crate) fn read_page(&self, page: u32, out: &mut Vec<u8>) {
        for layer in self.layers.iter().filter(|l| l.ring_pages.is_none()) {
            layer.read(page as usize..page as usize + 1, out);
        }
    }

    /// Appends the bytes of a ring: of the layers that are rings.
    pub(crate) fn read_ring(&self, ring: u32, out: &mut Vec<u8>) {
        self.layers.iter().for_each(|layer| layer.read(layer.ring(ring), out));
    }

    /// Writes what [`KvPages::read_page`] gave.
    ///
    /// # Errors
    /// Another number of bytes than a page has.
    pub(crate) fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        let one = page as usize..page as usize + 1;
        self.write(bytes, |layer| if layer.ring_pages.is_none() { one.clone() } else { 0..0 })
    }

    /// Writes what [`KvPages::read_ring`] gave.
    ///
    /// # Errors
    /// Another number of bytes than a ring has.
    pub(crate) fn write_ring(&mut self, ring: u32, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes, |layer| layer.ring(ring))
    }

    /// Writes bytes into some pages of each layer.
    fn write(&mut self, mut bytes: &[u8], pages: impl Fn(&Layer) -> Range<usize>) -> Result<(), Error> {
        let size = |layer: &Layer| pages(layer).len() * layer.page_bytes();
        let (expected, found) = (self.layers.iter().map(size).sum(), bytes.len());
        if found != expected {
            return Err(Error::Page { expected, found });
        }
        for layer in &mut self.layers {
            let (keys, values) = layer.bytes(pages(layer));
            let (to_keys, rest) = bytes.split_at(keys.len());
            let (to_values, rest) = rest.split_at(values.len());
            layer.keys.as_mut_slice()[keys].copy_from_slice(to_keys);
            layer.values.as_mut_slice()[values].copy_from_slice(to_values);
            bytes = rest;
        }
        Ok(())
    }
}

impl Layer {
    /// Numbers from one token's value to the next.
    pub(crate) fn stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Bytes of a page.
    fn page_bytes(&self) -> usize {
        self.heads * (self.key_bytes + self.value_bytes)
    }

    /// Bytes of a head's keys in a page, and of its values: multiples of 64.
    pub(crate) fn head_bytes(&self) -> (usize, usize) {
        (self.key_bytes, self.value_bytes)
    }

    /// The pages of a ring; none where the layer keeps all positions.
    fn ring(&self, ring: u32) -> Range<usize> {
        let pages = self.ring_pages.unwrap_or(0);
        ring as usize * pages..(ring as usize + 1) * pages
    }

    /// Where pages lie among the bytes of keys, and among those of values.
    fn bytes(&self, pages: Range<usize>) -> (Range<usize>, Range<usize>) {
        assert!(pages.end <= self.pages, "pages of this cache");
        let range = |bytes: usize| pages.start * self.heads * bytes..pages.end * self.heads * bytes;
        (range(self.key_bytes), range(self.value_bytes))
    }

    /// Appends the bytes of pages: keys and then values.
    fn read(&self, pages: Range<usize>, out: &mut Vec<u8>) {
        let (keys, values) = self.bytes(pages);
        out.extend_from_slice(&self.keys.as_slice()[keys]);
        out.extend_from_slice(&self.values.as_slice()[values]);
    }

    /// Index of a page's head among all.
    fn block(&self, page: u32, head: usize) -> usize {
        assert!((page as usize) < self.pages && head < self.heads, "a page table names pages of its cache");
        page as usize * self.heads + head
    }

    /// Keys of a head in a page: (head_dim, 64). The cache has this format.
    pub(crate) fn keys<C: Cells>(&self, page: u32, head: usize) -> C::Keys {
        C::keys(self.first_key_byte(page, head), self.head_dim)
    }

    /// Where keys and values of a head in a page begin.
    pub(crate) fn first_bytes(&self, page: u32, head: usize) -> (*const u8, *const u8) {
        let values = self.values.as_slice().as_ptr().wrapping_add(self.block(page, head) * self.value_bytes);
        (self.first_key_byte(page, head), values)
    }

    /// Where its keys begin.
    pub(crate) fn first_key_byte(&self, page: u32, head: usize) -> *const u8 {
        self.keys.as_slice().as_ptr().wrapping_add(self.block(page, head) * self.key_bytes)
    }

    /// Values of a head in a page: (64, stride). The cache has this format.
    pub(crate) fn values<C: Cells>(&self, page: u32, head: usize) -> C::Values {
        C::values(self.first_bytes(page, head).1, self.stride())
    }
}
