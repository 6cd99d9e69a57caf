//! Masks: which positions a row sees, and where their keys and values are kept.
//!
//! A mask is data, never a matrix. A row at position p sees a run of positions that ends with its own:
//!
//! - *causal*: `0..=p`;
//! - *window*: the last `window` of these.
//!
//! Where a position is kept follows from the sequence's page table and two more kinds:
//!
//! - *ring*: an entry of the cache whose rows see a window may keep `n` pages for each sequence, whatever its page table: with ring
//!   `r` ([`Batch::rings`]), positions from `64 i` on lie in page `r · n + i mod n` of the entry. A step stores its rows before
//!   any of them reads, so the newest row must not take the place of what the oldest still sees: `window + rows <= 64 n`, for
//!   the rows of one sequence in a step. Whoever builds steps keeps to [`ring_rows_max`]; a device refuses others
//!   ([`check_ring`]). For the same reason a sequence can forget some of the rows of its last step and go on, but no more.
//! - *tree*: the rows of a sequence may be drafts that branch ([`Batch::parents`]). All of them follow the same `L` committed
//!   tokens, and the i-th row of the sequence in the step is kept where position `L + i` would be. A row sees the committed
//!   positions and its ancestors, the ancestor at each position in that position's turn. So sums run in the order of
//!   positions, and the row has, bit for bit, what it has when its path is computed without its siblings.
//!
//! A row always sees itself, so no mask of a step hides all keys. The softmax alone may be asked for that; it gives zeros.

use std::ops::Range;

use crate::{Attention, Batch, KvEntry, PAGE_TOKENS};

/// The most rows of a sequence that a step may have, where a ring of `ring_pages` serves a window; 0 where even one would
/// overwrite what it sees.
pub const fn ring_rows_max(window: usize, ring_pages: usize) -> usize {
    (ring_pages * PAGE_TOKENS).saturating_sub(window)
}

/// The pages of the smallest ring that serves a window with so many rows of a sequence in a step.
pub const fn ring_pages_min(window: usize, rows: usize) -> usize {
    window.saturating_add(rows).div_ceil(PAGE_TOKENS)
}

/// Holds that a step does not overwrite what its own rows see.
///
/// # Panics
/// Where it does, or where a ring serves rows that see everything.
pub fn check_ring(window: Option<usize>, ring_pages: Option<usize>, batch: &Batch) {
    let Some(ring_pages) = ring_pages else { return };
    let window = window.expect("a ring serves rows with a window");
    let (most, mut rows) = (ring_rows_max(window, ring_pages), 0);
    for row in 0..batch.len() {
        rows = if row > 0 && batch.sequences[row] == batch.sequences[row - 1] { rows + 1 } else { 1 };
        assert!(rows <= most, "a window of {window} in a ring of {ring_pages} pages allows {most} rows of a sequence");
    }
}

/// Holds that an entry of the cache keeps a layer's keys and values.
///
/// # Panics
/// Where it has another shape.
pub fn check_entry(spec: &Attention, entry: KvEntry) {
    let KvEntry::Pairs { heads, head_dim, .. } = entry else { panic!("attention over keys and values, not {entry:?}") };
    assert_eq!((heads, head_dim), (spec.kv_heads, spec.head_dim), "the cache entry has the layer's shape");
}

/// Holds that no sequence of a step branches, for ops that have no trees.
///
/// # Panics
/// Where one does.
pub fn check_line(batch: &Batch) {
    assert!(
        batch.parents.is_empty() || (0..batch.len()).all(|r| !batch.is_tree(r)),
        "no sequence of the step branches"
    );
}

impl Attention {
    /// The positions that a row at `position` sees.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let seen = self.window.unwrap_or(usize::MAX).min(position + 1);
        position + 1 - seen..position + 1
    }
}

impl Batch {
    /// All rows of a row's sequence in this step.
    pub fn rows_of_sequence(&self, row: usize) -> Range<usize> {
        let same = |r: &usize| self.sequences[*r] == self.sequences[row];
        let before = (0..row).rev().take_while(same).count();
        let after = (row + 1..self.len()).take_while(same).count();
        row - before..row + after + 1
    }

    /// Whether a row's sequence branches in this step.
    pub fn is_tree(&self, row: usize) -> bool {
        let branches = |rows: Range<usize>| {
            let first = rows.start;
            rows.skip(1).any(|r| r > first && self.parents[r] != Some(r as u32 - 1))
        };
        !self.parents.is_empty() && branches(self.rows_of_sequence(row))
    }

    /// The rows from `row` on that can be taken together, since each sees all that the one before it sees: those of its
    /// sequence, or in a tree the row alone.
    pub fn run(&self, row: usize) -> Range<usize> {
        if self.is_tree(row) { row..row + 1 } else { row..self.rows_of_sequence(row).end }
    }

    /// Tokens of a row's sequence that were there before this step.
    pub fn committed(&self, row: usize) -> usize {
        self.positions[self.rows_of_sequence(row).start] as usize
    }

    /// The place in its sequence where what a row sees at `position` is kept: the position, but in a tree the place of the
    /// row's ancestor there.
    pub fn place(&self, row: usize, position: usize) -> usize {
        if self.parents.is_empty() {
            return position;
        }
        let first = self.rows_of_sequence(row).start;
        let committed = self.positions[first] as usize;
        if position < committed {
            return position;
        }
        let mut ancestor = row;
        while self.positions[ancestor] as usize > position {
            ancestor = self.parents[ancestor].expect("a row behind the first position of a tree has a parent") as usize;
        }
        committed + (ancestor - first)
    }

    /// Where in an entry of the cache that is kept: the page and the slot in it.
    pub fn slot(&self, row: usize, position: usize, ring_pages: Option<usize>) -> (u32, usize) {
        let place = self.place(row, position);
        (self.page(row, place / PAGE_TOKENS, ring_pages), place % PAGE_TOKENS)
    }

    /// The page of an entry of the cache that holds places from `64 · index` on of a row's sequence.
    pub fn page(&self, row: usize, index: usize, ring_pages: Option<usize>) -> u32 {
        let sequence = self.sequences[row] as usize;
        match ring_pages {
            Some(ring) => (self.rings[sequence] as usize * ring + index % ring) as u32,
            None => self.page_tables[sequence][index],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Role;

    fn spec(window: Option<usize>) -> Attention {
        Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 4, scale: 1.0, window, soft_cap: None }
    }

    #[test]
    fn a_tree_keeps_rows_in_their_order_and_shows_each_its_path() {
        let mut batch = Batch::default();
        batch.push(&[1, 2], 5, &[7], Role::Decode, 0);
        // 62 committed tokens, then a root, two children of it, and a child of each.
        let parents = [None, Some(0), Some(0), Some(2), Some(1)];
        batch.push_tree(&[0; 5], &parents, 62, &[3, 9], Role::Decode, 5);
        assert_eq!(batch.positions, [5, 6, 62, 63, 63, 64, 64]);
        assert!(!batch.is_tree(1) && (2..7).all(|r| batch.is_tree(r)));
        assert_eq!((batch.run(0), batch.run(1), batch.run(4)), (0..2, 1..2, 4..5));
        assert_eq!((batch.committed(1), batch.committed(6)), (5, 62));
        let path = |row| (61..=batch.positions[row] as usize).map(|p| batch.place(row, p)).collect::<Vec<_>>();
        assert_eq!(path(2), [61, 62]);
        assert_eq!(path(5), [61, 62, 64, 65], "row 5 follows row 4, the second child");
        assert_eq!(path(6), [61, 62, 63, 66]);
        assert_eq!(batch.slot(6, 64, None), (9, 2));
        assert_eq!(batch.slot(1, 6, None), (7, 6));
    }

    #[test]
    fn a_tree_that_does_not_branch_is_no_tree() {
        let (mut tree, mut line) = (Batch::default(), Batch::default());
        line.push(&[4, 5, 6], 63, &[0, 1], Role::Decode, 1);
        tree.push_tree(&[4, 5, 6], &[None, Some(0), Some(1)], 63, &[0, 1], Role::Decode, 1);
        assert!(!tree.is_tree(0));
        assert_eq!(tree.run(0), line.run(0));
        for (row, position) in (0..3).flat_map(|row| (0..=63 + row).map(move |p| (row, p))) {
            assert_eq!(tree.slot(row, position, None), line.slot(row, position, None));
        }
    }

    #[test]
    fn bad_trees_are_refused() {
        for (parents, start) in
            [(&[None, Some(1)][..], 0), (&[Some(0), None], 0), (&[None, Some(5)], 0), (&[None, None, Some(1)], 127)]
        {
            let push = || Batch::default().push_tree(&vec![0; parents.len()], parents, start, &[0, 1], Role::Decode, 0);
            assert!(std::panic::catch_unwind(push).is_err(), "{parents:?} at {start}");
        }
    }

    #[test]
    fn a_ring_is_refused_where_a_row_would_be_overwritten() {
        for (window, ring) in [(1, 1), (64, 2), (65, 2), (100, 2), (512, 9)] {
            let most = ring_rows_max(window, ring);
            assert_eq!(ring_pages_min(window, most), ring);
            assert_eq!(ring_pages_min(window, most + 1), ring + 1);
            for rows in [1, most, most + 1] {
                let mut batch = Batch::default();
                batch.push(&vec![0; rows], 0, &vec![0; rows.div_ceil(64)], Role::Prefill, 0);
                let check = || check_ring(Some(window), Some(ring), &batch);
                assert_eq!(std::panic::catch_unwind(check).is_ok(), rows <= most, "{window} {ring} {rows}");
            }
        }
        assert_eq!(ring_rows_max(64, 1), 0);
    }

    proptest! {
        /// All that the rows of a step see lies in places of its own, and none of them is where the step stores another row.
        #[test]
        fn a_ring_keeps_what_is_seen(window in 1usize..300, rows in 1usize..300, start in 0usize..1000) {
            let ring = ring_pages_min(window, rows);
            let mut batch = Batch::default();
            let table: Vec<u32> = (0..(start + rows).div_ceil(64) as u32).collect();
            batch.push(&vec![0; rows], start, &table, Role::Prefill, 0);
            batch.in_ring(3);
            let first = spec(Some(window)).visible(start).start;
            let mut places: Vec<_> = (first..start + rows).map(|p| batch.slot(0, p, Some(ring))).collect();
            let count = places.len();
            places.sort_unstable();
            places.dedup();
            prop_assert_eq!(places.len(), count);
            prop_assert!(places.iter().all(|(page, _)| (3 * ring..4 * ring).contains(&(*page as usize))));
        }
    }
}
