//! Keys and values in pages, as attention reads them.
//!
//! A page of one head is `[head_dim][64 tokens]` keys: 16 tokens are 16 lanes, and a score needs no sum across lanes. Its
//! values are `[64 tokens][stride]`, where the stride is `head_dim` rounded up to whole vectors. All pages are mapped when the
//! cache is made and never move.

use std::{marker::PhantomData, ops::Range};

use half::f16;
use tessera_ops::{Batch, Error, KvFormat, KvLayout, PAGE_TOKENS};

use crate::{
    isa::Kernel,
    lanes::{Workers, load},
    memory::Buffer,
    simd::{LANES, Simd},
    tensor::Tensor,
    threads::Threads,
};

/// A number as the cache keeps it.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    /// Widens 16 numbers.
    ///
    /// # Safety
    /// `from` is valid for reading 16 of them.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F32;

    /// Rounds to nearest even.
    fn round<S: Simd>(simd: S, v: S::F32) -> [Self; LANES];
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_at(from) }
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, v: S::F32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd.store(&mut out, v);
        out
    }
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f16) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16_at(from) }
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, v: S::F32) -> [f16; LANES] {
        let mut out = [f16::ZERO; LANES];
        simd.store_f16(&mut out, v);
        out
    }
}

/// Pages of keys and values of all layers.
pub struct KvPages {
    pub(crate) format: KvFormat,
    pub(crate) layers: Vec<Layer>,
}

/// Pages of one layer.
pub(crate) struct Layer {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pages: usize,
    keys: Buffer,
    values: Buffer,
}

impl KvPages {
    /// `pages` pages, their memory taken now.
    ///
    /// # Errors
    /// The system has no room.
    pub(crate) fn new(layout: &KvLayout, pages: usize, pool: &Threads) -> Result<KvPages, Error> {
        let number_bytes = number_bytes(layout.format);
        let what = format!("keys and values of {pages} pages");
        let mut layers = Vec::with_capacity(layout.layers.len());
        for &tessera_ops::kv::KvLayer { heads, head_dim } in &layout.layers {
            // A product that overflows is more than any system has.
            let buffer = |width: usize| {
                let numbers =
                    [heads, width, PAGE_TOKENS, number_bytes].iter().try_fold(pages, |n, f| n.checked_mul(*f));
                Buffer::zeroed(numbers.unwrap_or(usize::MAX / 2), &what)
            };
            let (mut keys, mut values) = (buffer(head_dim)?, buffer(head_dim.next_multiple_of(LANES))?);
            keys.touch(pool);
            values.touch(pool);
            layers.push(Layer { heads, head_dim, pages, keys, values });
        }
        Ok(KvPages { format: layout.format, layers })
    }

    /// Appends the bytes of a page: layer by layer, keys and then values.
    pub(crate) fn read_page(&self, page: u32, out: &mut Vec<u8>) {
        let number_bytes = number_bytes(self.format);
        for layer in &self.layers {
            let (keys, values) = layer.page(page, number_bytes);
            out.extend_from_slice(&layer.keys.as_slice()[keys]);
            out.extend_from_slice(&layer.values.as_slice()[values]);
        }
    }

    /// Writes what [`KvPages::read_page`] gave.
    ///
    /// # Errors
    /// Another number of bytes than a page has.
    pub(crate) fn write_page(&mut self, page: u32, mut bytes: &[u8]) -> Result<(), Error> {
        let number_bytes = number_bytes(self.format);
        let pages = self.layers.iter().map(|l| l.page(page, number_bytes));
        let (expected, found) = (pages.map(|(keys, values)| keys.len() + values.len()).sum(), bytes.len());
        if found != expected {
            return Err(Error::Page { expected, found });
        }
        for layer in &mut self.layers {
            let (keys, values) = layer.page(page, number_bytes);
            let (to_keys, rest) = bytes.split_at(keys.len());
            let (to_values, rest) = rest.split_at(values.len());
            layer.keys.as_mut_slice()[keys].copy_from_slice(to_keys);
            layer.values.as_mut_slice()[values].copy_from_slice(to_values);
            bytes = rest;
        }
        Ok(())
    }
}

fn number_bytes(format: KvFormat) -> usize {
    match format {
        KvFormat::F32 => size_of::<f32>(),
        KvFormat::F16 => size_of::<f16>(),
    }
}

impl Layer {
    /// Numbers from one token's value to the next.
    pub(crate) fn stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Where a page's bytes lie among those of the keys, and among those of the values.
    fn page(&self, page: u32, number_bytes: usize) -> (Range<usize>, Range<usize>) {
        let first = self.block(page, 0);
        let range = |width: usize| {
            let block_bytes = width * PAGE_TOKENS * number_bytes;
            first * block_bytes..(first + self.heads) * block_bytes
        };
        (range(self.head_dim), range(self.stride()))
    }

    /// Index of a page's head among all.
    fn block(&self, page: u32, head: usize) -> usize {
        assert!((page as usize) < self.pages && head < self.heads, "a page table names pages of its cache");
        page as usize * self.heads + head
    }

    /// Keys of a page: `head_dim · 64` numbers.
    pub(crate) fn keys<N: Number>(&self, page: u32, head: usize) -> *const N {
        let at = self.block(page, head) * self.head_dim * PAGE_TOKENS;
        self.keys.as_slice().as_ptr().cast::<N>().wrapping_add(at)
    }

    /// Values of a page: `64 · stride` numbers.
    pub(crate) fn values<N: Number>(&self, page: u32, head: usize) -> *const N {
        let at = self.block(page, head) * self.stride() * PAGE_TOKENS;
        self.values.as_slice().as_ptr().cast::<N>().wrapping_add(at)
    }
}

/// Writes keys and values of the batch's rows into the pages.
pub(crate) fn store(
    workers: &Workers,
    cache: &mut KvPages,
    layer: usize,
    keys: &Tensor,
    values: &Tensor,
    batch: &Batch,
) {
    let format = cache.format;
    let layer = &mut cache.layers[layer];
    let width = layer.heads * layer.head_dim;
    assert_eq!((keys.width(), values.width()), (width, width), "keys and values fill all heads");
    assert_eq!((keys.rows(), values.rows()), (batch.len(), batch.len()), "each row has a key and a value");
    let to =
        Destination { keys: layer.keys.as_mut_slice().as_mut_ptr(), values: layer.values.as_mut_slice().as_mut_ptr() };
    let layer = &*layer;
    let groups = layer.heads * layer.stride() / LANES;
    workers.items(groups, 2 * batch.len() * width, |from, end| {
        let groups = (from, end);
        match format {
            KvFormat::F32 => {
                workers.isa.run(Store::<f32> { layer, to: &to, keys, values, batch, groups, number: PhantomData })
            }
            KvFormat::F16 => {
                workers.isa.run(Store::<f16> { layer, to: &to, keys, values, batch, groups, number: PhantomData })
            }
        }
    });
}

/// Where the threads write, each to features of its own.
struct Destination {
    keys: *mut u8,
    values: *mut u8,
}

// SAFETY: threads write disjoint groups of features, and nothing is read until all are done.
unsafe impl Sync for Destination {}

/// Writes some groups of 16 features of a head: a group's keys and values are nobody else's.
struct Store<'a, N> {
    layer: &'a Layer,
    to: &'a Destination,
    keys: &'a Tensor,
    values: &'a Tensor,
    batch: &'a Batch,
    groups: (usize, usize),
    number: PhantomData<N>,
}

impl<N: Number> Kernel for Store<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (head_dim, stride) = (self.layer.head_dim, self.layer.stride());
        let groups_of_head = stride / LANES;
        for group in self.groups.0..self.groups.1 {
            let (head, feature) = (group / groups_of_head, group % groups_of_head * LANES);
            let count = LANES.min(head_dim - feature);
            for (row, position) in self.batch.positions.iter().enumerate() {
                let (page, slot) = self.batch.slot(row, *position as usize);
                let block = self.layer.block(page, head);
                let part = |x: &Tensor| -> [N; LANES] {
                    N::round(simd, load(simd, &x.row(row)[head * head_dim + feature..][..count]))
                };
                let (key, value) = (part(self.keys), part(self.values));
                // SAFETY: `block` is inside the cache; a block has head_dim · 64 keys and 64 · stride values, feature +
                // count <= head_dim, feature + 16 <= stride and slot < 64. No other thread has these features.
                unsafe {
                    let to = self.to.keys.cast::<N>().add((block * head_dim + feature) * PAGE_TOKENS + slot);
                    for (i, k) in key.iter().enumerate().take(count) {
                        to.add(i * PAGE_TOKENS).write(*k);
                    }
                    let to = self.to.values.cast::<N>().add((block * PAGE_TOKENS + slot) * stride + feature);
                    to.cast::<[N; LANES]>().write_unaligned(value);
                }
            }
        }
    }
}
