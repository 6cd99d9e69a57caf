//! Which pages hold which tokens, so that a prompt finds the pages of a prefix that somebody computed.
//!
//! Keys and values depend on all tokens before them, so a page is known by its own tokens and the page before it: a chain.
//! Every published page has a [`Link`], a number that is never given out again. A page is looked for by a hash of the
//! link before it and its tokens, and found only if both *are* the same: hashes may collide, links cannot.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher},
};

/// A published page's place in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link(u64);

impl Link {
    /// What stands before the first page of every sequence.
    pub(super) const ROOT: Link = Link(0);
}

/// A hash of the link before a page and the page's tokens. Any function is right; a good one is fast.
pub type Hash = fn(u64, &[u32]) -> u64;

/// The published pages.
#[derive(Debug)]
pub(super) struct Prefixes {
    hash: Hash,
    by_hash: HashMap<u64, Vec<u32>>,
    /// By page; none where it is not published.
    published: Vec<Option<Published>>,
    /// Pages that nobody holds, by the time they were given back.
    cached: BTreeMap<u64, u32>,
    /// Counts links and times.
    next: u64,
}

#[derive(Debug)]
struct Published {
    link: Link,
    before: Link,
    tokens: Box<[u32]>,
    /// When it was given back, while nobody holds it.
    since: Option<u64>,
}

impl Prefixes {
    pub(super) fn new(pages: usize) -> Prefixes {
        let published = (0..pages).map(|_| None).collect();
        Prefixes { hash: sip, by_hash: HashMap::new(), published, cached: BTreeMap::new(), next: 1 }
    }

    /// Looks by another hash. What was published is forgotten by no one: it must be nothing.
    pub(super) fn set_hash(&mut self, hash: Hash) {
        assert!(self.by_hash.is_empty(), "pages are published under the old hash");
        self.hash = hash;
    }

    /// Published pages that nobody holds.
    pub(super) fn cached(&self) -> usize {
        self.cached.len()
    }

    pub(super) fn link(&self, page: u32) -> Option<Link> {
        self.published[page as usize].as_ref().map(|p| p.link)
    }

    /// The page that holds `tokens` after `before`.
    pub(super) fn find(&self, before: Link, tokens: &[u32]) -> Option<u32> {
        let same = |page: &&u32| {
            self.published[**page as usize].as_ref().is_some_and(|p| p.before == before && *p.tokens == *tokens)
        };
        self.by_hash.get(&(self.hash)(before.0, tokens))?.iter().find(same).copied()
    }

    /// Publishes a page that somebody holds.
    pub(super) fn insert(&mut self, page: u32, before: Link, tokens: &[u32]) {
        assert!(self.link(page).is_none(), "a page is published twice");
        let link = Link(self.tick());
        self.by_hash.entry((self.hash)(before.0, tokens)).or_default().push(page);
        self.published[page as usize] = Some(Published { link, before, tokens: tokens.into(), since: None });
    }

    /// Keeps a page that nobody holds any more, if it is published.
    pub(super) fn keep(&mut self, page: u32) -> bool {
        let now = self.tick();
        let Some(published) = &mut self.published[page as usize] else { return false };
        published.since = Some(now);
        self.cached.insert(now, page);
        true
    }

    /// A page is held again.
    pub(super) fn use_again(&mut self, page: u32) {
        let since = self.published[page as usize].as_mut().and_then(|p| p.since.take());
        since.and_then(|since| self.cached.remove(&since));
    }

    /// Forgets the page that was given back longest ago.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.cached.pop_first()?;
        let published = self.published[page as usize].take().expect("a cached page is published");
        let hash = (self.hash)(published.before.0, &published.tokens);
        let bucket = self.by_hash.get_mut(&hash).expect("a published page is in its bucket");
        bucket.retain(|p| *p != page);
        if bucket.is_empty() {
            self.by_hash.remove(&hash);
        }
        Some(page)
    }

    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// SipHash with fixed keys: the same in every process.
fn sip(before: u64, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (before, tokens).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hashes_are_not_equal_prefixes() {
        let mut prefixes = Prefixes::new(4);
        prefixes.set_hash(|_, _| 0);
        prefixes.insert(0, Link::ROOT, &[1, 2]);
        let one = prefixes.link(0).unwrap();
        prefixes.insert(1, one, &[3, 4]);
        prefixes.insert(2, Link::ROOT, &[3, 4]);
        assert_eq!(prefixes.find(Link::ROOT, &[1, 2]), Some(0));
        assert_eq!(prefixes.find(one, &[3, 4]), Some(1));
        assert_eq!(prefixes.find(Link::ROOT, &[3, 4]), Some(2));
        assert_eq!(prefixes.find(one, &[1, 2]), None);
        assert_eq!(prefixes.find(Link::ROOT, &[1, 3]), None);
    }

    /// A page that comes back under another number is another page: its old children are not its children.
    #[test]
    fn a_chain_does_not_continue_after_a_page_that_was_replaced() {
        let mut prefixes = Prefixes::new(2);
        prefixes.insert(0, Link::ROOT, &[1]);
        let old = prefixes.link(0).unwrap();
        prefixes.insert(1, old, &[2]);
        assert!(prefixes.keep(0));
        assert_eq!(prefixes.evict(), Some(0));
        assert_eq!(prefixes.find(Link::ROOT, &[1]), None);
        prefixes.insert(0, Link::ROOT, &[9]);
        let new = prefixes.link(0).unwrap();
        assert_ne!(old, new);
        assert_eq!(prefixes.find(new, &[2]), None);
    }
}
