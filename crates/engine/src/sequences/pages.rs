//! The pages of a cache: who holds each, which are free, and which wait with the keys and values of a prefix.
//!
//! A page is *free*, or *held* by one sequence or several, or *cached*: nobody holds it, but it was published and may be wanted
//! again. Free pages are taken first, then the cached one that was given back longest ago. A table gives its pages back
//! from its end, so a cached page never outlives the one before it.

use super::prefixes::{Hash, Link, Prefixes};

/// All pages of a cache.
#[derive(Debug)]
pub(super) struct Pages {
    /// A stack: the page that was given back last is taken first, because it may still be in a processor's cache.
    free: Vec<u32>,
    /// By page: page tables that it stands in.
    holders: Vec<u32>,
    prefixes: Prefixes,
}

impl Pages {
    /// All of `total` pages are free.
    pub(super) fn new(total: usize) -> Pages {
        Pages { free: (0..total as u32).rev().collect(), holders: vec![0; total], prefixes: Prefixes::new(total) }
    }

    /// Finds prefixes by another hash.
    pub(super) fn set_hash(&mut self, hash: Hash) {
        self.prefixes.set_hash(hash);
    }

    pub(super) fn total(&self) -> usize {
        self.holders.len()
    }

    /// How many nobody holds: free and cached.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.prefixes.cached()
    }

    /// How many nobody holds, but may be wanted again.
    pub(super) fn cached(&self) -> usize {
        self.prefixes.cached()
    }

    /// Makes `table` at least `pages` pages long; takes nothing and gives false if there are too few.
    pub(super) fn extend(&mut self, table: &mut Vec<u32>, pages: usize) -> bool {
        let more = pages.saturating_sub(table.len());
        if more > self.available() {
            return false;
        }
        for _ in 0..more {
            let page = self.free.pop().or_else(|| self.prefixes.evict()).expect("the pages were counted");
            self.holders[page as usize] = 1;
            table.push(page);
        }
        true
    }

    /// Takes back all pages of `table` after the first `pages`, from the end.
    pub(super) fn shrink(&mut self, table: &mut Vec<u32>, pages: usize) {
        for page in table.drain(pages.min(table.len())..).rev() {
            self.release(page);
        }
    }

    fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 && !self.prefixes.keep(page) {
            self.free.push(page);
        }
    }

    /// Whether a page may be written to: one table holds it, and nobody else will look for it.
    pub(super) fn is_writable(&self, page: u32) -> bool {
        self.holders[page as usize] == 1 && self.prefixes.link(page).is_none()
    }

    /// The link of a page that is published.
    pub(super) fn link(&self, page: u32) -> Option<Link> {
        self.prefixes.link(page)
    }

    /// The published page that holds `tokens` after the prefix `before`, and whether it is a cached one.
    pub(super) fn find(&self, before: Link, tokens: &[u32]) -> Option<(u32, bool)> {
        let page = self.prefixes.find(before, tokens)?;
        Some((page, self.holders[page as usize] == 0))
    }

    /// Puts a page that was found at the end of `table`.
    pub(super) fn share(&mut self, table: &mut Vec<u32>, page: u32) {
        self.prefixes.use_again(page);
        self.holders[page as usize] += 1;
        table.push(page);
    }

    /// Lets others find a page of a table, which holds `tokens` after the prefix `before` and is not written to again.
    /// If there is such a page already, it takes this one's place.
    pub(super) fn publish(&mut self, page: &mut u32, before: Link, tokens: &[u32]) -> Link {
        if let Some(same) = self.prefixes.find(before, tokens) {
            self.prefixes.use_again(same);
            self.holders[same as usize] += 1;
            self.release(std::mem::replace(page, same));
        } else {
            self.prefixes.insert(*page, before, tokens);
        }
        self.prefixes.link(*page).expect("the page is published")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever tables grow, shrink, publish and share, every page is in one state, and is held as often as tables say.
        #[test]
        fn pages_are_accounted_for(
            total in 0usize..12,
            constant in any::<bool>(),
            steps in prop::collection::vec((0usize..4, 0usize..7, 0u32..2, any::<bool>()), 0..80),
        ) {
            let mut pages = Pages::new(total);
            if constant {
                pages.set_hash(|_, _| 7);
            }
            // What each page of a table holds: one token stands for all.
            let mut tables: [(Vec<u32>, Vec<u32>); 4] = Default::default();
            for (which, length, token, publish) in steps {
                let (table, held) = &mut tables[which];
                if length <= table.len() {
                    pages.shrink(table, length);
                    held.truncate(length);
                } else {
                    let before = table.clone();
                    let fits = length - table.len() <= pages.available();
                    prop_assert_eq!(pages.extend(table, length), fits);
                    prop_assert!(table.starts_with(&before));
                    if fits {
                        held.resize(length, token);
                        prop_assert!(table[before.len()..].iter().all(|p| pages.is_writable(*p)));
                    }
                }
                if publish {
                    let mut link = Link::ROOT;
                    for (page, token) in table.iter_mut().zip(&*held) {
                        link = pages.link(*page).unwrap_or_else(|| pages.publish(page, link, &[*token]));
                    }
                    // Who has the same tokens finds the same pages.
                    let (mut link, mut found) = (Link::ROOT, Vec::new());
                    for token in &*held {
                        let (page, cached) = pages.find(link, &[*token]).unwrap();
                        prop_assert!(!cached);
                        found.push(page);
                        link = pages.link(page).unwrap();
                    }
                    prop_assert_eq!(&found, &*table);
                    let mut other = Vec::new();
                    found.iter().for_each(|page| pages.share(&mut other, *page));
                    pages.shrink(&mut other, 0);
                }
                let mut holders = vec![0; total];
                tables.iter().flat_map(|(table, _)| table).for_each(|page| holders[*page as usize] += 1);
                prop_assert_eq!(&pages.holders, &holders);
                let idle = holders.iter().filter(|h| **h == 0).count();
                prop_assert_eq!(pages.available(), idle);
                let mut free = pages.free.clone();
                free.sort_unstable();
                free.dedup();
                prop_assert_eq!(free.len(), pages.free.len());
                prop_assert!(free.iter().all(|p| holders[*p as usize] == 0 && pages.link(*p).is_none()));
            }
        }
    }

    /// Two tables' pages are given back; the older ones go first, each table's last page before its first.
    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut pages = Pages::new(6);
        let fill = |pages: &mut Pages, tokens: [u32; 2]| {
            let mut table = Vec::new();
            assert!(pages.extend(&mut table, 2));
            let mut link = Link::ROOT;
            for (page, token) in table.iter_mut().zip(tokens) {
                link = pages.publish(page, link, &[token]);
            }
            table
        };
        let (mut a, mut b, mut c) = (fill(&mut pages, [1, 2]), fill(&mut pages, [3, 4]), fill(&mut pages, [5, 6]));
        let order = [b[1], b[0], c[1], c[0], a[1], a[0]];
        let [first, ..] = a[..] else { panic!() };
        pages.shrink(&mut a, 0);
        pages.shrink(&mut b, 0);
        pages.shrink(&mut c, 0);
        // Someone uses the first prompt again.
        let (page, cached) = pages.find(Link::ROOT, &[1]).unwrap();
        assert!(page == first && cached);
        let (next, _) = pages.find(pages.link(page).unwrap(), &[2]).unwrap();
        pages.share(&mut a, page);
        pages.share(&mut a, next);
        assert_eq!((pages.available(), pages.cached()), (4, 4));
        pages.shrink(&mut a, 0);
        let mut table = Vec::new();
        for expected in order {
            let longer = table.len() + 1;
            assert!(pages.extend(&mut table, longer));
            assert_eq!(table.last(), Some(&expected));
        }
        assert!(!pages.extend(&mut table, 7));
        assert_eq!((pages.cached(), pages.find(Link::ROOT, &[1])), (0, None));
    }
}
