//! Which pages of a cache are free.

/// The free pages of a cache. Every page is either here or in the page table of one sequence.
#[derive(Debug)]
pub(super) struct FreePages {
    /// A stack: the page that was given back last is taken first, because it may still be in a processor's cache.
    free: Vec<u32>,
    total: usize,
}

impl FreePages {
    /// All of `total` pages are free.
    pub(super) fn new(total: usize) -> FreePages {
        FreePages { free: (0..total as u32).rev().collect(), total }
    }

    /// How many are free.
    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    /// Makes `table` at least `pages` pages long; takes nothing and gives false if there are too few.
    pub(super) fn extend(&mut self, table: &mut Vec<u32>, pages: usize) -> bool {
        let more = pages.saturating_sub(table.len());
        let Some(left) = self.free.len().checked_sub(more) else { return false };
        table.extend(self.free.drain(left..).rev());
        true
    }

    /// Takes back all pages of `table` after the first `pages`.
    pub(super) fn shrink(&mut self, table: &mut Vec<u32>, pages: usize) {
        self.free.extend(table.drain(pages.min(table.len())..).rev());
        debug_assert!(self.free.len() <= self.total, "a page was given back twice");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever tables grow and shrink, each page has one owner.
        #[test]
        fn a_page_has_one_owner(total in 0usize..20, steps in prop::collection::vec((0usize..4, 0usize..9), 0..60)) {
            let mut free = FreePages::new(total);
            let mut tables: [Vec<u32>; 4] = Default::default();
            for (which, pages) in steps {
                let (before, left) = (tables[which].clone(), free.len());
                if pages <= before.len() {
                    free.shrink(&mut tables[which], pages);
                    prop_assert_eq!(&tables[which][..], &before[..pages]);
                } else {
                    let fits = pages - before.len() <= left;
                    prop_assert_eq!(free.extend(&mut tables[which], pages), fits);
                    prop_assert_eq!(tables[which].len(), if fits { pages } else { before.len() });
                    prop_assert!(tables[which].starts_with(&before));
                }
                let mut all: Vec<u32> = tables.iter().flatten().chain(&free.free).copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..total as u32).collect::<Vec<_>>());
            }
        }
    }
}
