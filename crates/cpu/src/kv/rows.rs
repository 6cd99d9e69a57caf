//! Entries of rows: latent and compressed rows, which are key and value at once, and inputs of later rows.
//!
//! A page is its rows one after another, each of `stride` numbers (the width rounded up to whole vectors, with zeros behind), so
//! that a row is one run of bytes. Codes have their scales behind them, one for each 32 features, as in [`super::cells`]. Packed rows
//! are as [`Packing`] says.

use std::ops::Range;

use half::f16;
use tessera_ops::{
    Error, KvEntry, KvFormat, Packing,
    kv::RowFormat,
    packing::{fp4_value, fp8_value, scale_factor},
    rounding::FP8_BLOCK,
};

use super::cells::{BLOCK, quantize};
use crate::{
    lanes::load,
    memory::Buffer,
    simd::{LANES, Simd},
};

/// Features of a packed row that are written together: whole blocks of either packing.
const PACKED_GROUP: usize = FP8_BLOCK;

/// The pages of one entry.
pub(crate) struct Rows {
    kind: KvEntry,
    format: RowFormat,
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
        let (format, width) = (kind.row_format(format), kind.row_numbers());
        let stride = width.next_multiple_of(LANES);
        let row_bytes = match format {
            RowFormat::Plain(KvFormat::F32) => stride * size_of::<f32>(),
            RowFormat::Plain(KvFormat::F16) => stride * size_of::<f16>(),
            RowFormat::Plain(KvFormat::Q8_0) => stride + stride.div_ceil(BLOCK) * size_of::<f32>(),
            RowFormat::Packed(packing) => packing.row(width).bytes,
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
        assert_eq!(self.format, RowFormat::Plain(KvFormat::F32), "inputs are never rounded");
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
        let format = match self.format {
            RowFormat::Plain(format) => format,
            RowFormat::Packed(packing) => return unpack(packing, self.width, row, out),
        };
        for (vector, out) in vectors.iter_mut().enumerate() {
            let first = vector * LANES;
            // SAFETY: a row has `stride` numbers in the format, and scales of all its blocks behind codes.
            let v = unsafe {
                match format {
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

    /// Features of a row that are written together: whole blocks.
    pub(super) fn group(&self) -> usize {
        if matches!(self.format, RowFormat::Packed(_)) { PACKED_GROUP } else { BLOCK }
    }

    /// Writes the features of `group` of a row, at most [`Rows::group`].
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
        let (first, start) = (group * self.group(), self.row(page, slot).start);
        let (low, high) = row.split_at(row.len().min(LANES));
        // SAFETY: the row is inside; a group's second vector is written where the stride has it.
        unsafe {
            let to = to.start.add(start);
            let vectors = [(first, low), (first + LANES, high)];
            let vectors = vectors.into_iter().filter(|(at, _)| *at < self.stride());
            match self.format {
                RowFormat::Packed(packing) => pack(packing, self.width, to, first, row),
                RowFormat::Plain(KvFormat::F32) => {
                    for (at, part) in vectors {
                        simd.store_at(to.cast::<f32>().add(at), load(simd, part));
                    }
                }
                RowFormat::Plain(KvFormat::F16) => {
                    for (at, part) in vectors {
                        let mut halves = [f16::ZERO; LANES];
                        simd.store_f16(&mut halves, load(simd, part));
                        to.cast::<f16>().add(at).cast::<[f16; LANES]>().write_unaligned(halves);
                    }
                }
                RowFormat::Plain(KvFormat::Q8_0) => {
                    let (codes, scale) = quantize(simd, row);
                    to.add(first)
                        .cast::<i8>()
                        .copy_from_nonoverlapping(codes.as_ptr(), BLOCK.min(self.stride() - first));
                    to.add(self.stride()).cast::<f32>().add(group).write(scale);
                }
            }
        }
    }
}

/// Widens a packed row of `width` numbers into `out`, which may be longer.
#[inline(always)]
fn unpack(packing: Packing, width: usize, row: &[u8], out: &mut [f32]) {
    let (parts, coded) = (packing.row(width), packing.coded(width));
    let (numbers, rest) = out.split_at_mut(coded);
    let (codes, scales) = (&row[parts.codes..parts.scales], &row[parts.scales..]);
    match packing {
        Packing::Fp8 { .. } => {
            let blocks = numbers.chunks_mut(packing.block()).zip(codes.chunks(packing.block()));
            for ((numbers, codes), scale) in blocks.zip(scales) {
                let factor = scale_factor(*scale);
                numbers.iter_mut().zip(codes).for_each(|(v, code)| *v = fp8_value(*code) * factor);
            }
        }
        Packing::Fp4 => {
            let blocks = numbers.chunks_mut(packing.block()).zip(codes.chunks(packing.block() / 2));
            for ((numbers, codes), scale) in blocks.zip(scales) {
                let factor = scale_factor(*scale);
                for (pair, code) in numbers.chunks_mut(2).zip(codes) {
                    pair[0] = fp4_value(*code) * factor;
                    if let Some(second) = pair.get_mut(1) {
                        *second = fp4_value(*code >> 4) * factor;
                    }
                }
            }
        }
    }
    let (halves, behind) = rest.split_at_mut(width - coded);
    let bytes = row[..parts.codes].as_chunks::<2>().0;
    halves.iter_mut().zip(bytes).for_each(|(v, half)| *v = f16::from_le_bytes(*half).to_f32());
    behind.fill(0.0);
}

/// Packs the features of a row from `first` on, a multiple of [`PACKED_GROUP`], into its bytes.
///
/// # Safety
/// `to` is the first byte of a row of `width` numbers packed so, and nobody else touches these features.
#[inline(always)]
unsafe fn pack(packing: Packing, width: usize, to: *mut u8, first: usize, features: &[f32]) {
    let (parts, coded, block) = (packing.row(width), packing.coded(width), packing.block());
    let (numbers, halves) = features.split_at(coded.saturating_sub(first).min(features.len()));
    // SAFETY: codes, scales and halves of these features lie inside the row, in bytes of their own: a group is whole blocks.
    unsafe {
        for (index, numbers) in numbers.chunks(block).enumerate() {
            let (at, mut codes) = (first + index * block, [0; FP8_BLOCK]);
            to.add(parts.scales + at / block).write(packing.encode(numbers, &mut codes));
            match packing {
                Packing::Fp8 { .. } => {
                    to.add(parts.codes + at).copy_from_nonoverlapping(codes.as_ptr(), numbers.len());
                }
                Packing::Fp4 => {
                    for (i, pair) in codes.as_chunks::<2>().0.iter().enumerate().take(numbers.len().div_ceil(2)) {
                        to.add(parts.codes + at / 2 + i).write(pair[0] | pair[1] << 4);
                    }
                }
            }
        }
        let behind = first + numbers.len() - coded.min(first + numbers.len());
        for (index, v) in halves.iter().enumerate() {
            let at = 2 * (behind + index);
            to.add(at).cast::<[u8; 2]>().write_unaligned(f16::from_f32(*v).to_le_bytes());
        }
    }
}

/// Where the threads write, each to features of its own.
pub(super) struct Destination {
    start: *mut u8,
}

// SAFETY: threads write disjoint groups of features, and nothing is read until all are done.
unsafe impl Sync for Destination {}
