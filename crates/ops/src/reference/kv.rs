//! The cache as plain as can be: [entry][page][row in page], a pair's row being keys [head][feature] and then values.

use std::ops::Range;

use super::Tensor;
use crate::{Batch, Error, KvEntry, KvFormat, KvLayout, RingPart, kv::RowFormat};

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

/// Pages of one entry.
#[derive(Clone, Debug)]
struct Pages<T> {
    entry: KvEntry,
    /// Pages that there are.
    count: usize,
    numbers: Vec<T>,
}

/// The cache; numbers are kept as `T`, rounded as the format says.
#[derive(Clone, Debug)]
pub struct KvPages<T> {
    format: KvFormat,
    entries: Vec<Pages<T>>,
    rings: usize,
}

impl<T: Copy> KvPages<T> {
    /// `pages` pages and `rings` rings, each number `fill`.
    pub(super) fn new(
        device: &str,
        layout: &KvLayout,
        (pages, rings): (usize, usize),
        fill: T,
    ) -> Result<KvPages<T>, Error> {
        let bytes = layout.cache_bytes(pages, rings);
        let filled = |numbers: Option<usize>| {
            let mut v = Vec::new();
            let full = Error::OutOfMemory { device: device.to_owned(), what: "keys and values".to_owned(), bytes };
            match numbers {
                Some(n) if v.try_reserve_exact(n).is_ok() => v.resize(n, fill),
                _ => return Err(full),
            }
            Ok(v)
        };
        let mut entries = Vec::new();
        for &entry in &layout.entries {
            entry.check();
            let count = entry.pages_of(pages, rings);
            let numbers = filled((entry.page_rows() * entry.row_numbers()).checked_mul(count))?;
            entries.push(Pages { entry, count, numbers });
        }
        Ok(KvPages { format: layout.format, entries, rings })
    }

    /// What an entry keeps.
    pub(super) fn entry(&self, entry: usize) -> KvEntry {
        self.entries[entry].entry
    }

    /// How an entry's rows are stored.
    pub(super) fn row_format(&self, entry: usize) -> RowFormat {
        self.entry(entry).row_format(self.format)
    }

    /// How many pages of a sequence an entry keeps, where that is a ring.
    pub(super) fn ring_pages(&self, entry: usize) -> Option<usize> {
        self.entries[entry].entry.ring_pages()
    }

    /// The numbers of slot `slot` of page `page`.
    pub(super) fn row(&self, entry: usize, page: u32, slot: usize) -> &[T] {
        let pages = &self.entries[entry];
        &pages.numbers[pages.row(page, slot)]
    }

    /// The key and the value (head_dim each) of one head there, of pairs.
    pub(super) fn pair(&self, entry: usize, page: u32, slot: usize, head: usize) -> (&[T], &[T]) {
        let KvEntry::Pairs { heads, head_dim, .. } = self.entry(entry) else { panic!("an entry of keys and values") };
        let (keys, values) = self.row(entry, page, slot).split_at(heads * head_dim);
        (&keys[head * head_dim..][..head_dim], &values[head * head_dim..][..head_dim])
    }

    /// Writes a slot: the parts of its row, one after another.
    pub(super) fn put(&mut self, entry: usize, page: u32, slot: usize, parts: &[&[T]]) {
        let pages = &mut self.entries[entry];
        let mut range = pages.row(page, slot);
        for part in parts {
            pages.numbers[range.start..][..part.len()].copy_from_slice(part);
            range.start += part.len();
        }
        assert!(range.is_empty(), "a row is filled");
    }

    /// Appends the numbers of a page: entry by entry, but for those that are rings.
    pub(super) fn read_page(&self, page: u32, out: &mut Vec<u8>)
    where
        T: Number,
    {
        for pages in self.entries.iter().filter(|p| p.entry.ring_pages().is_none()) {
            pages.numbers[pages.pages(page as usize..page as usize + 1)].iter().for_each(|n| n.write(out));
        }
    }

    /// Writes what `read_page` gave.
    pub(super) fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error>
    where
        T: Number,
    {
        self.write(bytes, |entry| match entry.ring_pages() {
            Some(_) => vec![],
            None => vec![page as usize],
        })
    }

    /// Appends the numbers of a part of a ring: entry by entry, of those that are rings.
    pub(super) fn read_ring(&self, ring: u32, part: RingPart, out: &mut Vec<u8>)
    where
        T: Number,
    {
        for pages in &self.entries {
            for page in ring_pages(&pages.entry, ring, part) {
                pages.numbers[pages.pages(page..page + 1)].iter().for_each(|n| n.write(out));
            }
        }
    }

    /// Writes what `read_ring` gave.
    pub(super) fn write_ring(&mut self, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error>
    where
        T: Number,
    {
        assert!((ring as usize) < self.rings, "a ring of this cache");
        self.write(bytes, |entry| ring_pages(entry, ring, part))
    }

    /// Writes numbers into some pages of each entry.
    fn write(&mut self, bytes: &[u8], which: impl Fn(&KvEntry) -> Vec<usize>) -> Result<(), Error>
    where
        T: Number,
    {
        let numbers = |p: &Pages<T>| p.entry.page_rows() * p.entry.row_numbers() * which(&p.entry).len();
        let expected = self.entries.iter().map(|p| numbers(p) * T::BYTES).sum();
        if bytes.len() != expected {
            return Err(Error::Page { expected, found: bytes.len() });
        }
        let mut numbers = bytes.chunks_exact(T::BYTES).map(T::read);
        for pages in &mut self.entries {
            for page in which(&pages.entry) {
                let range = pages.pages(page..page + 1);
                pages.numbers[range].iter_mut().zip(numbers.by_ref()).for_each(|(slot, n)| *slot = n);
            }
        }
        Ok(())
    }
}

/// The pages of a part of a ring in an entry; none where it is no ring.
fn ring_pages(entry: &KvEntry, ring: u32, part: RingPart) -> Vec<usize> {
    let Some(pages) = entry.ring_pages() else { return vec![] };
    part.runs(pages).into_iter().flatten().map(|page| ring as usize * pages + page).collect()
}

impl<T> Pages<T> {
    /// Where pages lie.
    fn pages(&self, pages: Range<usize>) -> Range<usize> {
        let numbers = self.entry.page_rows() * self.entry.row_numbers();
        pages.start * numbers..pages.end * numbers
    }

    /// Where a slot of a page lies.
    fn row(&self, page: u32, slot: usize) -> Range<usize> {
        assert!((page as usize) < self.count && slot < self.entry.page_rows(), "a page of this entry");
        let at = (page as usize * self.entry.page_rows() + slot) * self.entry.row_numbers();
        at..at + self.entry.row_numbers()
    }
}

pub(super) fn store_kv(cache: &mut KvPages<f32>, entry: usize, keys: &Tensor, values: &Tensor, batch: &Batch) {
    let KvEntry::Pairs { heads, head_dim, .. } = cache.entry(entry) else { panic!("an entry of keys and values") };
    assert_eq!((keys.width, values.width), (heads * head_dim, heads * head_dim), "keys and values fill all heads");
    let round = |row: &[f32]| -> Vec<f32> {
        let mut row = row.to_vec();
        row.chunks_mut(head_dim.max(1)).for_each(|head| cache.format.round(head));
        row
    };
    let rows: Vec<_> = (0..batch.len()).map(|r| (round(keys.row(r)), round(values.row(r)))).collect();
    for (row, (key, value)) in rows.iter().enumerate() {
        let (page, slot) = batch.slot(row, batch.positions[row] as usize, cache.ring_pages(entry));
        cache.put(entry, page, slot, &[key, value]);
    }
}

pub(super) fn store_rows(cache: &mut KvPages<f32>, entry: usize, rows: &Tensor, batch: &Batch) {
    let kind = cache.entry(entry);
    assert!(matches!(kind, KvEntry::Latent { .. } | KvEntry::Inputs { .. }), "rows of tokens are no {kind:?}");
    let format = cache.row_format(entry);
    assert_eq!(rows.width, cache.entry(entry).row_numbers(), "a row fills its slot");
    for row in 0..batch.len() {
        let mut numbers = rows.row(row).to_vec();
        format.round(&mut numbers);
        let (page, slot) = batch.slot(row, batch.positions[row] as usize, cache.ring_pages(entry));
        cache.put(entry, page, slot, &[&numbers]);
    }
}
