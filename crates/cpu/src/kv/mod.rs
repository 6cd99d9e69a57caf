//! Keys and values in pages, as attention reads them.
//!
//! A page of one head is `[head_dim][64 tokens]` keys: 16 tokens are 16 lanes, and a score needs no sum across lanes. Its
//! values are `[64 tokens][stride]`, where the stride is `head_dim` rounded up to whole vectors. [`cells`] says how numbers
//! are kept; [`rows`] holds what is no key and value of heads. All pages are mapped when the cache is made and never move.

pub(crate) mod cells;
pub(crate) mod rows;
mod store;

use std::ops::Range;

use tessera_ops::{Error, KvEntry, KvFormat, KvLayout, RingPart};

use self::{
    cells::{Cells, head_bytes},
    rows::Rows,
};
use crate::{memory::Buffer, simd::LANES, threads::Threads};

pub(crate) use store::{store, store_rows};

/// Pages and rings of all entries.
pub struct KvPages {
    pub(crate) format: KvFormat,
    entries: Vec<Entry>,
}

enum Entry {
    Pairs(Layer),
    Rows(Rows),
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
        let what = format!("keys and values of {pages} pages and {rings} rings");
        // A product that overflows is more than any system has.
        let buffer = |bytes: Option<usize>| {
            let mut buffer = Buffer::zeroed(bytes.unwrap_or(usize::MAX / 2), &what)?;
            buffer.touch(pool);
            Ok(buffer)
        };
        let entry = |entry: &KvEntry| {
            entry.check();
            let pages = entry.pages_of(pages, rings);
            match *entry {
                KvEntry::Pairs { .. } => Layer::new(*entry, layout.format, pages, buffer).map(Entry::Pairs),
                _ => Rows::new(*entry, layout.format, pages, buffer).map(Entry::Rows),
            }
        };
        Ok(KvPages { format: layout.format, entries: layout.entries.iter().map(entry).collect::<Result<_, _>>()? })
    }

    /// What an entry keeps.
    pub(crate) fn entry(&self, entry: usize) -> KvEntry {
        self.entries[entry].kind()
    }

    /// An entry of keys and values.
    pub(crate) fn pairs(&self, entry: usize) -> &Layer {
        let Entry::Pairs(layer) = &self.entries[entry] else { panic!("an entry of keys and values") };
        layer
    }

    /// An entry of keys and values, to be written.
    fn pairs_mut(&mut self, entry: usize) -> &mut Layer {
        let Entry::Pairs(layer) = &mut self.entries[entry] else { panic!("an entry of keys and values") };
        layer
    }

    /// An entry of rows.
    pub(crate) fn rows(&self, entry: usize) -> &Rows {
        let Entry::Rows(rows) = &self.entries[entry] else { panic!("an entry of rows") };
        rows
    }

    /// An entry of rows, to be written.
    pub(crate) fn rows_mut(&mut self, entry: usize) -> &mut Rows {
        let Entry::Rows(rows) = &mut self.entries[entry] else { panic!("an entry of rows") };
        rows
    }

    /// Appends the bytes of a page: entry by entry, but for those that are rings; of pairs keys and then values.
    pub(crate) fn read_page(&self, page: u32, out: &mut Vec<u8>) {
        self.entries.iter().for_each(|entry| entry.read(entry.page(page), out));
    }

    /// Appends the bytes of a part of a ring: of the entries that are rings.
    pub(crate) fn read_ring(&self, ring: u32, part: RingPart, out: &mut Vec<u8>) {
        for entry in &self.entries {
            entry.ring(ring, part).into_iter().for_each(|run| entry.read(run, out));
        }
    }

    /// Writes what [`KvPages::read_page`] gave.
    ///
    /// # Errors
    /// Another number of bytes than a page has.
    pub(crate) fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes, |entry| vec![entry.page(page)])
    }

    /// Writes what [`KvPages::read_ring`] gave.
    ///
    /// # Errors
    /// Another number of bytes than the part has.
    pub(crate) fn write_ring(&mut self, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes, |entry| entry.ring(ring, part))
    }

    /// Writes bytes into some runs of pages of each entry.
    fn write(&mut self, mut bytes: &[u8], runs: impl Fn(&Entry) -> Vec<Range<usize>>) -> Result<(), Error> {
        let size = |entry: &Entry| runs(entry).iter().map(Range::len).sum::<usize>() * entry.page_bytes();
        let (expected, found) = (self.entries.iter().map(size).sum(), bytes.len());
        if found != expected {
            return Err(Error::Page { expected, found });
        }
        for entry in &mut self.entries {
            for run in runs(entry) {
                for (buffer, range) in entry.parts_mut(run) {
                    let (part, rest) = bytes.split_at(range.len());
                    buffer.as_mut_slice()[range].copy_from_slice(part);
                    bytes = rest;
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn kind(&self) -> KvEntry {
        match self {
            Entry::Pairs(layer) => KvEntry::pairs(layer.heads, layer.head_dim).in_ring(layer.ring_pages),
            Entry::Rows(rows) => rows.kind(),
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

    fn page_bytes(&self) -> usize {
        match self {
            Entry::Pairs(layer) => layer.heads * (layer.key_bytes + layer.value_bytes),
            Entry::Rows(rows) => rows.page_bytes(),
        }
    }

    /// Appends the bytes of pages.
    fn read(&self, pages: Range<usize>, out: &mut Vec<u8>) {
        if pages.is_empty() {
            return;
        }
        match self {
            Entry::Pairs(layer) => {
                let (keys, values) = layer.bytes(pages);
                out.extend_from_slice(&layer.keys.as_slice()[keys]);
                out.extend_from_slice(&layer.values.as_slice()[values]);
            }
            Entry::Rows(rows) => out.extend_from_slice(rows.bytes(pages)),
        }
    }

    /// Where the bytes of pages go, in the order in which they are read.
    fn parts_mut(&mut self, pages: Range<usize>) -> Vec<(&mut Buffer, Range<usize>)> {
        match self {
            _ if pages.is_empty() => vec![],
            Entry::Pairs(layer) => {
                let (keys, values) = layer.bytes(pages);
                vec![(&mut layer.keys, keys), (&mut layer.values, values)]
            }
            Entry::Rows(rows) => vec![rows.part_mut(pages)],
        }
    }
}

impl Layer {
    fn new(
        entry: KvEntry,
        format: KvFormat,
        pages: usize,
        buffer: impl Fn(Option<usize>) -> Result<Buffer, Error>,
    ) -> Result<Layer, Error> {
        let KvEntry::Pairs { heads, head_dim, ring_pages } = entry else { panic!("an entry of keys and values") };
        let bytes = |width: usize| head_bytes(format, width).unwrap_or(usize::MAX);
        let (key_bytes, value_bytes) = (bytes(head_dim), bytes(head_dim.next_multiple_of(LANES)));
        let all = |bytes: usize| heads.checked_mul(bytes).and_then(|bytes| bytes.checked_mul(pages));
        let (keys, values) = (buffer(all(key_bytes))?, buffer(all(value_bytes))?);
        Ok(Layer { heads, head_dim, ring_pages, pages, key_bytes, value_bytes, keys, values })
    }

    /// Numbers from one token's value to the next.
    pub(crate) fn stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Bytes of a head's keys in a page, and of its values: multiples of 64.
    pub(crate) fn head_bytes(&self) -> (usize, usize) {
        (self.key_bytes, self.value_bytes)
    }

    /// Where pages lie among the bytes of keys, and among those of values.
    fn bytes(&self, pages: Range<usize>) -> (Range<usize>, Range<usize>) {
        assert!(pages.end <= self.pages, "pages of this cache");
        let range = |bytes: usize| pages.start * self.heads * bytes..pages.end * self.heads * bytes;
        (range(self.key_bytes), range(self.value_bytes))
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
