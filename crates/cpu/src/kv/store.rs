//! Writing keys and values, and rows, into the pages.
//!
//! Threads share out features, not rows: whatever a page table says, no two of them write to one place.

use std::marker::PhantomData;

use half::f16;
use tessera_ops::{Batch, KvFormat};

use super::{
    KvPages, Layer,
    cells::{Cells, Codes, Place},
    rows::{self, Rows},
};
use crate::{
    isa::Kernel,
    lanes::Workers,
    simd::{LANES, Simd},
    tensor::Tensor,
};

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
    let layer = cache.pairs_mut(layer);
    let width = layer.heads * layer.head_dim;
    assert_eq!((keys.width(), values.width()), (width, width), "keys and values fill all heads");
    assert_eq!((keys.rows(), values.rows()), (batch.len(), batch.len()), "each row has a key and a value");
    let to =
        Destination { keys: layer.keys.as_mut_slice().as_mut_ptr(), values: layer.values.as_mut_slice().as_mut_ptr() };
    let store = Store { layer, to: &to, keys, values, batch };
    match format {
        KvFormat::F32 => store.run_as::<f32>(workers),
        KvFormat::F16 => store.run_as::<f16>(workers),
        KvFormat::Q8_0 => store.run_as::<Codes>(workers),
    }
}

/// Where the threads write, each to features of its own.
struct Destination {
    keys: *mut u8,
    values: *mut u8,
}

// SAFETY: threads write disjoint groups of features, and nothing is read until all are done.
unsafe impl Sync for Destination {}

/// What is written.
#[derive(Clone, Copy)]
struct Store<'a> {
    layer: &'a Layer,
    to: &'a Destination,
    keys: &'a Tensor,
    values: &'a Tensor,
    batch: &'a Batch,
}

impl Store<'_> {
    fn run_as<C: Cells>(self, workers: &Workers) {
        let groups = self.layer.heads * self.layer.stride().div_ceil(C::GROUP);
        // Each feature of a key has a cache line of its own.
        let numbers = (LANES + 1) * self.batch.len() * self.keys.width();
        workers.items(groups, numbers, |from, end| {
            workers.isa.run(Groups::<C> { store: self, from, end, cells: PhantomData });
        });
    }
}

/// Groups of features, over all heads: a group's keys and values are nobody else's.
struct Groups<'a, C> {
    store: Store<'a>,
    from: usize,
    end: usize,
    cells: PhantomData<C>,
}

impl<C: Cells> Kernel for Groups<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Store { layer, to, keys, values, batch } = self.store;
        let (head_dim, stride) = (layer.head_dim, layer.stride());
        let groups_of_head = stride.div_ceil(C::GROUP);
        for group in self.from..self.end {
            let (head, feature) = (group / groups_of_head, group % groups_of_head * C::GROUP);
            let count = C::GROUP.min(head_dim - feature);
            for (row, position) in batch.positions.iter().enumerate() {
                let (page, slot) = batch.slot(row, *position as usize, layer.ring_pages);
                let block = layer.block(page, head);
                let place = Place {
                    keys: to.keys.wrapping_add(block * layer.key_bytes),
                    values: to.values.wrapping_add(block * layer.value_bytes),
                    head_dim,
                    stride,
                    feature,
                    slot,
                };
                let part = head * head_dim + feature..head * head_dim + feature + count;
                // SAFETY: `block` is inside the cache, whose format is this one's, the features are below head_dim, and a
                // batch's slots are below 64. No other thread has these features.
                unsafe { C::put(simd, &place, &keys.row(row)[part.clone()], &values.row(row)[part]) };
            }
        }
    }
}

/// Writes rows (count, width) into an entry of rows: row i where `place(i)` says, a page and a slot.
pub(crate) fn store_rows(
    workers: &Workers,
    to: &mut Rows,
    rows: &[f32],
    place: &(dyn Fn(usize) -> (u32, usize) + Sync),
) {
    let destination = to.destination();
    let (groups, to) = (to.width().div_ceil(to.group()), &*to);
    workers.items(groups, rows.len(), |from, end| {
        workers.isa.run(RowGroups { to, destination: &destination, rows, place, from, end });
    });
}

/// Groups of features of all rows.
struct RowGroups<'a> {
    to: &'a Rows,
    destination: &'a rows::Destination,
    rows: &'a [f32],
    place: &'a (dyn Fn(usize) -> (u32, usize) + Sync),
    from: usize,
    end: usize,
}

impl Kernel for RowGroups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (width, size) = (self.to.width(), self.to.group());
        for (index, row) in self.rows.chunks_exact(width).enumerate() {
            let place = (self.place)(index);
            for group in self.from..self.end {
                let features = group * size..width.min((group + 1) * size);
                // SAFETY: the destination is this entry's; nobody reads it until all is written, and no other thread has these
                // groups.
                unsafe { self.to.put(simd, self.destination, place, group, &row[features]) };
            }
        }
    }
}
