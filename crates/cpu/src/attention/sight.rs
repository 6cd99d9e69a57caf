//! What a row of a step sees of the cache: which slots of which pages, and where their keys and values lie.
//!
//! The rows of a tree of drafts see the committed positions and their own ancestors, which are kept elsewhere than their
//! positions say. So the pages that a row's path reaches into are gathered for it into a *tail*: pages of the same layout,
//! with each ancestor in the slot of its position. From there on a row of a tree is a row like any other. A tail has a page
//! for each 64 positions of the path, and one or two more, whatever the context.

use std::ops::Range;

use tessera_ops::{Attention, Batch, PAGE_TOKENS};

use crate::kv::{
    Layer,
    cells::{Cells, Place},
};

/// A layer's cache as the rows of a step see it.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) layer: &'a Layer,
    pub(super) spec: &'a Attention,
    pub(super) batch: &'a Batch,
    /// The end of what the row sees, where the row is one of a tree.
    pub(super) tail: Option<Tail>,
}

/// Gathered pages of some heads.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    /// The first page that stands here instead of in the cache.
    first: usize,
    pages: usize,
    first_head: usize,
    /// (heads, pages) of keys
    keys: *mut u8,
    /// (heads, pages) of values
    values: *mut u8,
}

// SAFETY: it is written by one thread for each head, before all others read it.
unsafe impl Send for Tail {}
// SAFETY: as above.
unsafe impl Sync for Tail {}

impl<'a> Sight<'a> {
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
        match &self.tail {
            Some(tail) if page >= tail.first => {
                C::keys(tail.place(self.layer, page, kv_head, 0).keys, self.layer.head_dim)
            }
            _ => self.layer.keys::<C>(self.id(row, page), kv_head),
        }
    }

    /// Values of a head in a page of a row's sequence: (64, stride).
    pub(super) fn values<C: Cells>(&self, row: usize, page: usize, kv_head: usize) -> C::Values {
        match &self.tail {
            Some(tail) if page >= tail.first => {
                C::values(tail.place(self.layer, page, kv_head, 0).values, self.layer.stride())
            }
            _ => self.layer.values::<C>(self.id(row, page), kv_head),
        }
    }

    /// The first key that a row reads from the cache, to ask for it ahead of its use.
    pub(super) fn first_key_byte(&self, row: usize, kv_head: usize) -> *const u8 {
        self.layer.first_key_byte(self.id(row, self.pages(row).start), kv_head)
    }

    /// A page's number in the cache.
    fn id(&self, row: usize, page: usize) -> u32 {
        self.batch.page(row, page, self.layer.ring_pages)
    }

    /// Numbers of memory for each head's tail of any row of the step; 0 where no row is one of a tree.
    pub(super) fn tail_len(&self) -> usize {
        let (keys, values) = self.layer.head_bytes();
        let pages = (0..self.batch.len()).filter(|r| self.batch.is_tree(*r)).map(|r| self.tail_pages(r).len());
        pages.max().unwrap_or(0) * (keys + values) / size_of::<f32>()
    }

    /// The pages of a row that its path reaches into.
    fn tail_pages(&self, row: usize) -> Range<usize> {
        let pages = self.pages(row);
        pages.start.max(self.batch.committed(row) / PAGE_TOKENS)..pages.end
    }

    /// The same as a row of a tree sees it. `memory` has [`Sight::tail_len`] numbers for each of `heads`, and
    /// [`Tail::gather`] has still to fill it.
    pub(super) fn of_tree(self, row: usize, heads: Range<usize>, memory: &mut [f32]) -> Sight<'a> {
        let (tail, (key_bytes, value_bytes)) = (self.tail_pages(row), self.layer.head_bytes());
        let pages = heads.len() * tail.len();
        assert!(size_of_val(memory) >= pages * (key_bytes + value_bytes), "a tail has its memory");
        let keys: *mut u8 = memory.as_mut_ptr().cast();
        let values = keys.wrapping_add(pages * key_bytes);
        let tail = Tail { first: tail.start, pages: tail.len(), first_head: heads.start, keys, values };
        Sight { tail: Some(tail), ..self }
    }

    /// Fills the tail of one head with what the row sees.
    ///
    /// # Safety
    /// The memory that [`Sight::of_tree`] was given is still there, nobody touches this head's part of it, and the cache is
    /// one of `C`.
    pub(super) unsafe fn gather<C: Cells>(&self, row: usize, kv_head: usize) {
        let Some(tail) = &self.tail else { return };
        let seen = self.positions(row);
        for position in seen.start.max(tail.first * PAGE_TOKENS)..seen.end {
            let (page, slot) = self.batch.slot(row, position, self.layer.ring_pages);
            let (keys, values) = self.layer.first_bytes(page, kv_head);
            let to = tail.place(self.layer, position / PAGE_TOKENS, kv_head, position % PAGE_TOKENS);
            let from = Place { keys: keys.cast_mut(), values: values.cast_mut(), slot, ..to };
            // SAFETY: a page of the cache, which nobody writes to meanwhile, and a page of the tail.
            unsafe { C::copy(&from, &to) };
        }
    }
}

impl Tail {
    /// A slot of a page that stands here.
    fn place(&self, layer: &Layer, page: usize, kv_head: usize, slot: usize) -> Place {
        let (keys, values) = layer.head_bytes();
        let at = (kv_head - self.first_head) * self.pages + page - self.first;
        Place {
            keys: self.keys.wrapping_add(at * keys),
            values: self.values.wrapping_add(at * values),
            head_dim: layer.head_dim,
            stride: layer.stride(),
            feature: 0,
            slot,
        }
    }
}
