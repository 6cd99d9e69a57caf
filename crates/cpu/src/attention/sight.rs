//! What a row of a step sees of the cache: which slots of which pages, and where their keys and values lie.

use std::ops::Range;

use tessera_ops::{Attention, Batch, PAGE_TOKENS};

use crate::kv::{Layer, cells::Cells};

/// A layer's cache as the rows of a step see it.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) layer: &'a Layer,
    pub(super) spec: &'a Attention,
    pub(super) batch: &'a Batch,
}

impl Sight<'_> {
    /// The positions that a row sees.
    pub(super) fn positions(&self, row: usize) -> Range<usize> {
        self.spec.visible(self.batch.positions[row] as usize)
    }

    /// The pages with a position that a row sees.
    pub(super) fn pages(&self, row: usize) -> Range<usize> {
        let positions = self.positions(row);
        positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS)
    }

    /// The slots of a page that a row sees.
    pub(super) fn slots(&self, row: usize, page: usize) -> Range<usize> {
        let (positions, first) = (self.positions(row), page * PAGE_TOKENS);
        let slot = |position: usize| position.clamp(first, first + PAGE_TOKENS) - first;
        slot(positions.start)..slot(positions.end)
    }

    /// Keys of a head in a page of a row's sequence: (head_dim, 64).
    pub(super) fn keys<C: Cells>(&self, row: usize, page: usize, kv_head: usize) -> C::Keys {
        self.layer.keys::<C>(self.id(row, page), kv_head)
    }

    /// Values of a head in a page of a row's sequence: (64, stride).
    pub(super) fn values<C: Cells>(&self, row: usize, page: usize, kv_head: usize) -> C::Values {
        self.layer.values::<C>(self.id(row, page), kv_head)
    }

    /// The first key that a row reads.
    pub(super) fn first_key_byte(&self, row: usize, kv_head: usize) -> *const u8 {
        self.layer.first_key_byte(self.id(row, self.pages(row).start), kv_head)
    }

    /// A page's number in the cache.
    fn id(&self, row: usize, page: usize) -> u32 {
        self.batch.slot(row, page * PAGE_TOKENS).0
    }
}
