//! Entries of rows: latent and compressed rows, which are key and value at once, and inputs of later rows.
//!
//! A page is its rows one after another, each of `stride` numbers (the width rounded up to whole vectors, with zeros behind), so
//! that a row is one run of bytes. Codes have their scales behind them, one for each 32 features, as in [`super::cells`].

use std::ops::Range;

use half::f16;
use tessera_ops::{Error, KvEntry, KvFormat};

use super::cells::{BLOCK, quantize};
use crate::{
    lanes::load,
    memory::Buffer,
    simd::{LANES, Simd},
};

/// Features of a row that are written together: whole blocks of codes.
pub(crate) const GROUP: usize = BLOCK;

/// The pages of one entry.
pub(crate) struct Rows {
    kind: KvEntry,
    format: KvFormat,
    pages: usize,
    width: usize,
    row_bytes: usize,
    memory: Buffer,
}

impl Rows {
    /// So many pages.
    pub(super) fn new(
        kind: KvEntry,
        format: KvFormat,
        pages: usize,
        buffer: impl Fn(Option<usize>) -> Result<Buffer, Error>,
    ) -> Result<Rows, Error> {
        let format = if matches!(kind, KvEntry::Inputs { .. }) { KvFormat::F32 } else { format };
        let width = kind.row_numbers();
        let stride = width.next_multiple_of(LANES);
        let row_bytes = match format {
            KvFormat::F32 => stride * size_of::<f32>(),
            KvFormat::F16 => stride * size_of::<f16>(),
            KvFormat::Q8_0 => stride + stride.div_ceil(BLOCK) * size_of::<f32>(),
        };
        let bytes = (row_bytes * kind.page_rows()).checked_mul(pages);
        Ok(Rows { kind, format, pages, width, row_bytes, memory: buffer(bytes)? })
    }

    /// What is kept.
    pub(crate) fn kind(&self) -> KvEntry {
        self.kind
    }

    /// Numbers of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Numbers from one row to the next, where rows are widened.
    pub(crate) fn stride(&self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.kind.page_rows() * self.row_bytes
    }

    fn range(&self, pages: Range<usize>) -> Range<usize> {
        assert!(pages.end <= self.pages, "pages of this cache");
        pages.start * self.page_bytes()..pages.end * self.page_bytes()
    }

    /// The bytes of pages.
    pub(super) fn bytes(&self, pages: Range<usize>) -> &[u8] {
        &self.memory.as_slice()[self.range(pages)]
    }

    /// Where the bytes of pages go.
    pub(super) fn part_mut(&mut self, pages: Range<usize>) -> (&mut Buffer, Range<usize>) {
        let range = self.range(pages);
        (&mut self.memory, range)
    }

    /// Where a row's bytes lie.
    fn row(&self, page: u32, slot: usize) -> Range<usize> {
        assert!((page as usize) < self.pages && slot < self.kind.page_rows(), "a page table names pages of its cache");
        let at = (page as usize * self.kind.page_rows() + slot) * self.row_bytes;
        at..at + self.row_bytes
    }

    /// Numbers of a row from `from` on, as many as `out` has; only of F32 rows.
    pub(crate) fn numbers(&self, page: u32, slot: usize) -> &[f32] {
        assert_eq!(self.format, KvFormat::F32, "inputs are never rounded");
        let bytes = &self.memory.as_slice()[self.row(page, slot)];
        // SAFETY: a row is `stride` f32, and begins at a multiple of 64 bytes of memory that begins at one.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.stride()) }
    }

    /// Widens a row into `out` (stride).
    #[inline(always)]
    pub(crate) fn widen<S: Simd>(&self, simd: S, page: u32, slot: usize, out: &mut [f32]) {
        let row = &self.memory.as_slice()[self.row(page, slot)];
        let vectors = out.as_chunks_mut::<LANES>().0;
        assert_eq!(vectors.len(), self.stride() / LANES, "room for a row");
        let from = row.as_ptr();
        for (vector, out) in vectors.iter_mut().enumerate() {
            let first = vector * LANES;
            // SAFETY: a row has `stride` numbers in the format, and scales of all its blocks behind codes.
            let v = unsafe {
                match self.format {
                    KvFormat::F32 => simd.load_at(from.cast::<f32>().add(first)),
                    KvFormat::F16 => simd.load_f16_at(from.cast::<f16>().add(first)),
                    KvFormat::Q8_0 => {
                        let scale = from.add(self.stride()).cast::<f32>().add(first / BLOCK).read();
                        simd.mul(simd.load_i8_at(from.cast::<i8>().add(first)), simd.splat(scale))
                    }
                }
            };
            simd.store(out, v);
        }
    }

    /// The start of its memory, for writers that share out features.
    pub(super) fn destination(&mut self) -> Destination {
        Destination { start: self.memory.as_mut_slice().as_mut_ptr() }
    }

    /// Writes the features of `group` of a row, at most [`GROUP`].
    ///
    /// # Safety
    /// The destination is this entry's, whose memory nobody reads, and nobody else writes these features.
    #[inline(always)]
    pub(super) unsafe fn put<S: Simd>(
        &self,
        simd: S,
        to: &Destination,
        (page, slot): (u32, usize),
        group: usize,
        row: &[f32],
    ) {
        let (first, start) = (group * GROUP, self.row(page, slot).start);
        let (low, high) = row.split_at(row.len().min(LANES));
        // SAFETY: the row is inside; a group's second vector is written where the stride has it.
        unsafe {
            let to = to.start.add(start);
            let vectors = [(first, low), (first + LANES, high)];
            let vectors = vectors.into_iter().filter(|(at, _)| *at < self.stride());
            match self.format {
                KvFormat::F32 => {
                    for (at, part) in vectors {
                        simd.store_at(to.cast::<f32>().add(at), load(simd, part));
                    }
                }
                KvFormat::F16 => {
                    for (at, part) in vectors {
                        let mut halves = [f16::ZERO; LANES];
                        simd.store_f16(&mut halves, load(simd, part));
                        to.cast::<f16>().add(at).cast::<[f16; LANES]>().write_unaligned(halves);
                    }
                }
                KvFormat::Q8_0 => {
                    let (codes, scale) = quantize(simd, row);
                    to.add(first)
                        .cast::<i8>()
                        .copy_from_nonoverlapping(codes.as_ptr(), GROUP.min(self.stride() - first));
                    to.add(self.stride()).cast::<f32>().add(group).write(scale);
                }
            }
        }
    }
}

/// Where the threads write, each to features of its own.
pub(super) struct Destination {
    start: *mut u8,
}

// SAFETY: threads write disjoint groups of features, and nothing is read until all are done.
unsafe impl Sync for Destination {}
