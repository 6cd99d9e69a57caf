//! Many sequences on one model: they come and go, and share the pages of its cache.
//!
//! A sequence takes pages as it grows and gives them back when it is closed or rewound. A step computes some tokens of
//! some sequences; who else is in the step changes no bit of a sequence's logits. A sequence can be copied out of the cache
//! ([`Sequences::snapshot`]) and back in, into whichever pages are free then.
//!
//! Full pages can be published ([`Sequences::publish`]): another sequence that begins with the same tokens takes them as its
//! own ([`Sequences::reuse`]), also after the first one is closed, until their memory is needed. A published page is never
//! written to: a sequence that was rewound into one continues in a copy.

//!
//! A model may keep the last positions of a sequence in a ring ([`rings`]). Then a sequence that is rewound too far is empty, and pages
//! are of use to another only up to where somebody left a checkpoint ([`Sequences::checkpoint`]).

mod one;
mod pages;
mod prediction;
mod prefixes;
pub(crate) mod rings;

use std::path::Path;

use tessera_ops::{Batch, Candidate, PAGE_TOKENS, RingPart, Role};

use crate::{
    Config, Error, Snapshot,
    models::{LanguageModel, Rings},
    state::{self, Identity},
};
use pages::Pages;
pub use prediction::Ahead;
use prediction::Left;
pub use prefixes::Hash;
use prefixes::Link;
use rings::{Checkpoints, Reach};

/// A model whose cache is shared by sequences.
pub struct Sequences {
    model: Box<dyn LanguageModel>,
    pages: Pages,
    rings: Option<Rings>,
    checkpoints: Checkpoints,
    left: Left,
    /// By id; none where a sequence was closed.
    open: Vec<Option<Sequence>>,
    batch: Batch,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    best: Vec<Candidate>,
}

/// An open sequence. Ids of closed ones are given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    /// Of its ring, whose number is the sequence's own.
    reach: Reach,
}

/// What a step computes of one sequence: tokens after those that are there.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The sequence; each at most once in a step.
    pub sequence: SequenceId,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// Why they are computed.
    pub role: Role,
    /// Logits are wanted of the last so many of them.
    pub logits: usize,
}

impl Sequences {
    /// A model with all of its cache free.
    pub fn new(model: Box<dyn LanguageModel>) -> Sequences {
        let pages = Pages::new(model.cache_tokens() / PAGE_TOKENS);
        let (rings, checkpoints) = (model.rings(), Checkpoints::default());
        let (left, open, batch, logits, hidden, best) = Default::default();
        Sequences { model, pages, rings, checkpoints, left, open, batch, logits, hidden, best }
    }

    /// Finds published pages by another hash; no hash changes a result.
    ///
    /// # Panics
    /// If a page is published already.
    pub fn with_hash(mut self, hash: Hash) -> Sequences {
        self.pages.set_hash(hash);
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// Whether rows of prompts and of replies are computed alike.
    pub fn roles_agree(&self) -> bool {
        self.model.roles_agree()
    }

    /// The most rows of a sequence in a step.
    pub fn rows_max(&self) -> usize {
        self.rings.map_or(usize::MAX, |rings| rings.rows_max)
    }

    /// The most sequences that can be open at once.
    pub fn count_max(&self) -> usize {
        self.rings.map_or(usize::MAX, |rings| rings.count)
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> usize {
        self.model.cache_bytes()
    }

    /// Pages of [`PAGE_TOKENS`] tokens in all.
    pub fn total_pages(&self) -> usize {
        self.pages.total()
    }

    /// Pages that no sequence has.
    pub fn free_pages(&self) -> usize {
        self.pages.available()
    }

    /// Those of them that are published and can be used again.
    pub fn cached_pages(&self) -> usize {
        self.pages.cached()
    }

    /// A new, empty sequence.
    pub fn open(&mut self) -> SequenceId {
        let id = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        if id == self.open.len() {
            self.open.push(None);
        }
        self.open[id] = Some(Sequence::default());
        SequenceId(id)
    }

    /// Ends a sequence and takes its pages back.
    ///
    /// # Panics
    /// If it is not open; so do all methods that are given an id.
    pub fn close(&mut self, id: SequenceId) {
        self.rewind(id, 0);
        self.left.forget(id);
        self.open[id.0] = None;
    }

    /// The tokens of a sequence that are computed.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.open[id.0].as_ref().expect(OPEN).tokens
    }

    /// Forgets all tokens of a sequence from position `len` on, and takes back the pages that held only these. Where its ring has
    /// not kept what goes on from there sees, it forgets all.
    pub fn rewind(&mut self, id: SequenceId, len: usize) {
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        let len = len.min(sequence.tokens.len());
        let len = if sequence.reach.can_go_on_at(len, self.rings) { len } else { 0 };
        sequence.tokens.truncate(len);
        if len == 0 {
            sequence.reach = Reach::default();
        }
        self.pages.shrink(&mut sequence.pages, sequence.tokens.len().div_ceil(PAGE_TOKENS));
    }

    /// Lets other sequences find the full pages among the first `len` tokens. If somebody published the same tokens before,
    /// their pages are used from here on, and the sequence's own are free.
    pub fn publish(&mut self, id: SequenceId, len: usize) {
        let Sequence { tokens, pages, .. } = self.open[id.0].as_mut().expect(OPEN);
        let whole = len.min(tokens.len()) / PAGE_TOKENS;
        let mut link = Link::ROOT;
        for (page, tokens) in pages.iter_mut().zip(tokens.chunks_exact(PAGE_TOKENS)).take(whole) {
            link = self.pages.link(*page).unwrap_or_else(|| self.pages.publish(page, link, tokens));
        }
    }

    /// Keeps what is seen of a sequence's ring from there on, so that its published pages among the first `len` tokens are of use to
    /// others. Nothing is to be done where the model keeps no rings.
    ///
    /// # Errors
    /// If the device fails.
    pub fn checkpoint(&mut self, id: SequenceId, len: usize) -> Result<(), Error> {
        let Sequence { tokens, pages, reach } = self.open[id.0].as_ref().expect(OPEN);
        let whole = len.min(tokens.len()) / PAGE_TOKENS;
        let Some(last) = whole.checked_sub(1).filter(|_| self.rings.is_some()) else { return Ok(()) };
        let Some(link) = self.pages.link(pages[last]).filter(|link| !self.checkpoints.has(*link)) else {
            return Ok(());
        };
        if reach.can_go_on_at(whole * PAGE_TOKENS, self.rings) {
            let mut ring = Vec::new();
            self.model.read_ring(id.0 as u32, self.seen_from(whole * PAGE_TOKENS), &mut ring)?;
            self.checkpoints.insert(link, ring);
        }
        Ok(())
    }

    /// Continues a sequence with published pages of `tokens`, which begin with those that it has. Gives how many tokens it
    /// gained. At least the last of `tokens` is left to be computed, for its logits.
    pub fn reuse(&mut self, id: SequenceId, tokens: &[u32]) -> usize {
        if self.rings.is_some() {
            return self.reuse_checkpoint(id, tokens).unwrap_or(0);
        }
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        let before = sequence.tokens.len();
        if !before.is_multiple_of(PAGE_TOKENS) || tokens.len() <= before {
            return 0;
        }
        debug_assert!(tokens.starts_with(&sequence.tokens), "a sequence continues otherwise");
        let mut link = Link::ROOT;
        if let Some(last) = sequence.pages.last() {
            let Some(found) = self.pages.link(*last) else { return 0 };
            link = found;
        }
        for page_tokens in reusable(tokens).skip(before / PAGE_TOKENS) {
            let Some((page, _)) = self.pages.find(link, page_tokens) else { break };
            self.pages.share(&mut sequence.pages, page);
            sequence.tokens.extend_from_slice(page_tokens);
            link = self.pages.link(page).expect("it was found");
        }
        sequence.tokens.len() - before
    }

    /// The part of a ring that rows from position `end` on see.
    fn seen_from(&self, end: usize) -> RingPart {
        RingPart::Before { end, step_rows: self.rows_max() }
    }

    /// [`Sequences::reuse`] of a model with rings: an empty sequence begins at the last checkpoint. None if it cannot.
    fn reuse_checkpoint(&mut self, id: SequenceId, tokens: &[u32]) -> Option<usize> {
        let sequence = self.open[id.0].as_ref().expect(OPEN);
        let found = self.published(tokens);
        let (last, _) = found.last().filter(|_| sequence.tokens.is_empty() && id.0 < self.count_max())?;
        let link = self.pages.link(*last).expect("it was found");
        let end = found.len() * PAGE_TOKENS;
        let part = self.seen_from(end);
        let ring = self.checkpoints.find(link)?;
        // A device that fails here fails in the next step too, and says so there.
        self.model.write_ring(id.0 as u32, part, ring).ok()?;
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        found.iter().for_each(|(page, _)| self.pages.share(&mut sequence.pages, *page));
        sequence.tokens.extend_from_slice(&tokens[..end]);
        sequence.reach = Reach { end, from: end };
        Some(sequence.tokens.len())
    }

    /// The published pages that a new sequence can begin with, and whether nobody holds them.
    fn published(&self, tokens: &[u32]) -> Vec<(u32, bool)> {
        let (mut link, mut found, mut usable) = (Link::ROOT, Vec::new(), 0);
        for tokens in reusable(tokens) {
            let Some((page, cached)) = self.pages.find(link, tokens) else { break };
            found.push((page, cached));
            link = self.pages.link(page).expect("it was found");
            if self.rings.is_none() || self.checkpoints.has(link) {
                usable = found.len();
            }
        }
        found.truncate(usable);
        found
    }

    /// How many pages [`Sequences::reuse`] would give a new sequence: in all, and those that other sequences hold anyway.
    pub fn reusable_pages(&self, tokens: &[u32]) -> (usize, usize) {
        let found = self.published(tokens);
        (found.len(), found.iter().filter(|(_, cached)| !cached).count())
    }

    /// Computes one step and gives the logits of the wanted rows, (rows, vocabulary), part by part.
    ///
    /// # Errors
    /// If a token does not exist, the cache has too few free pages or rings (then the step changed nothing), or the device fails.
    ///
    /// # Panics
    /// If a sequence is twice in the step, has no tokens there, or more than [`Sequences::rows_max`].
    pub fn step(&mut self, parts: &[Part<'_>]) -> Result<&[f32], Error> {
        self.run(parts, |model, batch, logits, _| model.forward(batch, logits))?;
        Ok(&self.logits)
    }

    /// Whether [`Sequences::step_best`] costs less than [`Sequences::step`].
    pub fn ranks(&self) -> bool {
        self.model.ranks()
    }

    /// As [`Sequences::step`], and gives the `count` likeliest tokens of each wanted row (or all there are) instead, part by part.
    ///
    /// # Errors
    /// As [`Sequences::step`].
    ///
    /// # Panics
    /// As [`Sequences::step`].
    pub fn step_best(&mut self, parts: &[Part<'_>], count: usize) -> Result<&[Candidate], Error> {
        let mut best = std::mem::take(&mut self.best);
        let done = self.run(parts, |model, batch, _, _| model.forward_best(batch, count, &mut best));
        self.best = best;
        done?;
        Ok(&self.best)
    }

    /// What the last [`Sequences::step_best`] gave.
    pub fn best(&self) -> &[Candidate] {
        &self.best
    }

    /// As [`Sequences::step`], and gives what the model's head is given of every row instead: (rows, hidden), part by part.
    ///
    /// # Errors
    /// As [`Sequences::step`].
    ///
    /// # Panics
    /// As [`Sequences::step`].
    pub fn step_hidden(&mut self, parts: &[Part<'_>]) -> Result<&[f32], Error> {
        self.run(parts, |model, batch, logits, hidden| model.forward_hidden(batch, logits, hidden))?;
        Ok(&self.hidden)
    }

    /// Takes pages, runs the model, which leaves logits and hidden rows, and counts the tokens.
    fn run(
        &mut self,
        parts: &[Part<'_>],
        forward: impl FnOnce(&mut dyn LanguageModel, &Batch, &mut Vec<f32>, &mut Vec<f32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.take_pages(parts)?;
        self.batch.clear();
        self.left.clear();
        for part in parts {
            let Sequence { tokens, pages, .. } = self.open[part.sequence.0].as_ref().expect(OPEN);
            self.batch.push(part.tokens, tokens.len(), pages, part.role, part.logits);
            // Ids of closed sequences are given out again, so there are as many rings as sequences were ever open at a time.
            self.batch.in_ring(part.sequence.0 as u32);
            self.left.add(part.sequence, part.tokens.len(), tokens.len());
        }
        forward(&mut *self.model, &self.batch, &mut self.logits, &mut self.hidden)?;
        for part in parts {
            let sequence = self.open[part.sequence.0].as_mut().expect(OPEN);
            sequence.tokens.extend_from_slice(part.tokens);
            sequence.reach.wrote(sequence.tokens.len());
        }
        Ok(())
    }

    /// What the last [`Sequences::step_hidden`] gave.
    pub fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// The logits that the last step gave, to be changed at will until the next.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    /// Copies a sequence out of the cache.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(&self, id: SequenceId) -> Result<Snapshot, Error> {
        let Sequence { tokens, pages, reach } = self.open[id.0].as_ref().expect(OPEN);
        let ring = (id.0 < self.count_max()).then_some(id.0 as u32);
        Snapshot::take(&*self.model, (tokens, tokens.len()), pages, (ring, *reach))
    }

    /// Makes a sequence what it was when the snapshot was taken; what it holds now is forgotten.
    ///
    /// # Errors
    /// If the cache has too few free pages, the snapshot is of another model's cache, or the device fails. The sequence is
    /// empty then.
    pub fn restore(&mut self, id: SequenceId, snapshot: &Snapshot) -> Result<(), Error> {
        self.rewind(id, 0);
        let count = snapshot.page_count();
        if count > 0 {
            self.check_rings(id)?;
        }
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        if !self.pages.extend(&mut sequence.pages, count) {
            return Err(Error::CacheFull { pages: count, free: self.pages.available() });
        }
        match snapshot.put(&mut *self.model, &sequence.pages, id.0 as u32) {
            Ok(reach) => {
                sequence.tokens.clone_from(&snapshot.tokens);
                sequence.reach = reach;
                Ok(())
            }
            Err(error) => {
                self.rewind(id, 0);
                Err(error)
            }
        }
    }

    /// Holds that a sequence has a ring, where it needs one.
    fn check_rings(&self, id: SequenceId) -> Result<(), Error> {
        match self.rings {
            Some(Rings { count, .. }) if id.0 >= count => Err(Error::RingsFull { rings: count }),
            _ => Ok(()),
        }
    }

    /// Writes a sequence to a file, as of the model of this identity. What was there is replaced once the new one is whole.
    ///
    /// # Errors
    /// If the device fails, or the file cannot be written.
    pub fn save(&self, id: SequenceId, file: &Path, identity: &Identity) -> Result<(), Error> {
        Ok(state::write(file, &self.model.owner(identity)?, &self.snapshot(id)?)?)
    }

    /// Makes a sequence what [`Sequences::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged or of another version, model or cache: then the sequence is as it was. And as
    /// [`Sequences::restore`].
    pub fn load(&mut self, id: SequenceId, file: &Path, identity: &Identity) -> Result<(), Error> {
        let snapshot = state::read(file, &self.model.owner(identity)?)?;
        self.restore(id, &snapshot)
    }

    /// Takes the pages that a step writes to; all or none.
    fn take_pages(&mut self, parts: &[Part<'_>]) -> Result<(), Error> {
        let mut needed = 0;
        for (i, part) in parts.iter().enumerate() {
            assert!(parts[..i].iter().all(|p| p.sequence != part.sequence), "a sequence is twice in a step");
            assert!(!part.tokens.is_empty(), "a part has tokens");
            assert!(part.tokens.len() <= self.rows_max(), "a sequence has at most {} rows in a step", self.rows_max());
            self.check_rings(part.sequence)?;
            needed += self.pages_to_take(part.sequence, part.tokens.len());
        }
        let free = self.pages.available();
        if needed > free {
            return Err(Error::CacheFull { pages: needed, free });
        }
        for part in parts {
            self.unshare_last(part.sequence)?;
            let sequence = self.open[part.sequence.0].as_mut().expect(OPEN);
            let pages = (sequence.tokens.len() + part.tokens.len()).div_ceil(PAGE_TOKENS);
            assert!(self.pages.extend(&mut sequence.pages, pages), "the pages were counted");
        }
        Ok(())
    }

    /// How many free pages a sequence takes when it grows by `tokens` tokens.
    pub fn pages_to_take(&self, id: SequenceId, tokens: usize) -> usize {
        let sequence = self.open[id.0].as_ref().expect(OPEN);
        let pages = (sequence.tokens.len() + tokens).div_ceil(PAGE_TOKENS);
        pages.saturating_sub(sequence.pages.len()) + usize::from(self.shared_last(sequence).is_some())
    }

    /// The page that a sequence would write to next, if it begins there in the middle and may not.
    fn shared_last(&self, sequence: &Sequence) -> Option<u32> {
        let partial = !sequence.tokens.len().is_multiple_of(PAGE_TOKENS);
        sequence.pages.last().copied().filter(|page| partial && !self.pages.is_writable(*page))
    }

    /// Puts a copy in the place of a page that is not to be written to.
    fn unshare_last(&mut self, id: SequenceId) -> Result<(), Error> {
        let sequence = self.open[id.0].as_ref().expect(OPEN);
        let Some(shared) = self.shared_last(sequence) else { return Ok(()) };
        let (mut bytes, mut copy) = (Vec::new(), Vec::new());
        self.model.read_page(shared, &mut bytes)?;
        assert!(self.pages.extend(&mut copy, 1), "the pages were counted");
        if let Err(error) = self.model.write_page(copy[0], &bytes) {
            self.pages.shrink(&mut copy, 0);
            return Err(error);
        }
        let pages = &mut self.open[id.0].as_mut().expect(OPEN).pages;
        let keep = pages.len() - 1;
        self.pages.shrink(pages, keep);
        pages.append(&mut copy);
        Ok(())
    }
}

/// The whole pages of `tokens` that leave at least one token.
fn reusable(tokens: &[u32]) -> impl Iterator<Item = &[u32]> {
    tokens[..tokens.len().saturating_sub(1)].chunks_exact(PAGE_TOKENS)
}

const OPEN: &str = "the sequence is open";
