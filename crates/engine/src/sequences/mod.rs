//! Many sequences on one model: they come and go, and share the pages of its cache.
//!
//! A sequence takes pages as it grows and gives them back when it is closed or rewound. A step computes some tokens of
//! some sequences; who else is in the step changes no bit of a sequence's logits. A sequence can be copied out of the cache
//! ([`Sequences::snapshot`]) and back in, into whichever pages are free then.

mod pages;

use tessera_ops::{Batch, PAGE_TOKENS, Role};

use crate::{Config, Error, models::LanguageModel};
use pages::FreePages;

/// A model whose cache is shared by sequences.
pub struct Sequences {
    model: Box<dyn LanguageModel>,
    free: FreePages,
    /// By id; none where a sequence was closed.
    open: Vec<Option<Sequence>>,
    batch: Batch,
    logits: Vec<f32>,
}

/// An open sequence. Ids of closed ones are given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<u32>,
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

/// A sequence outside of the cache. It fits the model (and the kind of device) that it came from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    tokens: Vec<u32>,
    /// One after another, as [`tessera_ops::Device::read_page`] gives them.
    pages: Vec<u8>,
}

impl Snapshot {
    /// The tokens whose keys and values it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.pages.len()
    }
}

impl Sequences {
    /// A model with all of its cache free.
    pub fn new(model: Box<dyn LanguageModel>) -> Sequences {
        let free = FreePages::new(model.cache_tokens() / PAGE_TOKENS);
        Sequences { model, free, open: Vec::new(), batch: Batch::default(), logits: Vec::new() }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// Pages of [`PAGE_TOKENS`] tokens that no sequence has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
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
        self.open[id.0] = None;
    }

    /// The tokens of a sequence that are computed.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.open[id.0].as_ref().expect(OPEN).tokens
    }

    /// Forgets all tokens of a sequence from position `len` on, and takes back the pages that held only these.
    pub fn rewind(&mut self, id: SequenceId, len: usize) {
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        sequence.tokens.truncate(len);
        self.free.shrink(&mut sequence.pages, sequence.tokens.len().div_ceil(PAGE_TOKENS));
    }

    /// Computes one step and gives the logits of the wanted rows, (rows, vocabulary), part by part.
    ///
    /// # Errors
    /// If a token does not exist, the cache has too few free pages (then the step changed nothing), or the device fails.
    ///
    /// # Panics
    /// If a sequence is twice in the step, or has no tokens there.
    pub fn step(&mut self, parts: &[Part<'_>]) -> Result<&[f32], Error> {
        self.take_pages(parts)?;
        self.batch.clear();
        for part in parts {
            let Sequence { tokens, pages } = self.open[part.sequence.0].as_ref().expect(OPEN);
            self.batch.push(part.tokens, tokens.len(), pages, part.role, part.logits);
        }
        self.model.forward(&self.batch, &mut self.logits)?;
        for part in parts {
            let sequence = self.open[part.sequence.0].as_mut().expect(OPEN);
            sequence.tokens.extend_from_slice(part.tokens);
        }
        Ok(&self.logits)
    }

    /// Computes tokens of one sequence in steps of at most `chunk`, and gives the logits of the last.
    ///
    /// # Errors
    /// As [`Sequences::step`], and if there are no tokens.
    pub fn prefill(&mut self, sequence: SequenceId, tokens: &[u32], chunk: usize) -> Result<&[f32], Error> {
        let chunks = tokens.chunks(chunk.max(1));
        let last = chunks.len().checked_sub(1).ok_or(Error::EmptyPrompt)?;
        for (i, tokens) in chunks.enumerate() {
            self.step(&[Part { sequence, tokens, role: Role::Prefill, logits: usize::from(i == last) }])?;
        }
        Ok(&self.logits)
    }

    /// Copies a sequence out of the cache.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(&self, id: SequenceId) -> Result<Snapshot, Error> {
        let Sequence { tokens, pages } = self.open[id.0].as_ref().expect(OPEN);
        let mut bytes = Vec::new();
        for page in pages {
            self.model.read_page(*page, &mut bytes)?;
        }
        Ok(Snapshot { tokens: tokens.clone(), pages: bytes })
    }

    /// Makes a sequence what it was when the snapshot was taken; what it holds now is forgotten.
    ///
    /// # Errors
    /// If the cache has too few free pages, the snapshot is of another model's cache, or the device fails. The sequence is
    /// empty then.
    pub fn restore(&mut self, id: SequenceId, snapshot: &Snapshot) -> Result<(), Error> {
        self.rewind(id, 0);
        let count = snapshot.tokens.len().div_ceil(PAGE_TOKENS);
        let sequence = self.open[id.0].as_mut().expect(OPEN);
        if !self.free.extend(&mut sequence.pages, count) {
            return Err(Error::CacheFull { pages: count, free: self.free.len() });
        }
        let page_bytes = snapshot.pages.len() / count.max(1);
        for (page, bytes) in sequence.pages.iter().zip(snapshot.pages.chunks_exact(page_bytes.max(1))) {
            if let Err(error) = self.model.write_page(*page, bytes) {
                self.rewind(id, 0);
                return Err(error);
            }
        }
        sequence.tokens.clone_from(&snapshot.tokens);
        Ok(())
    }

    /// Takes the pages that a step writes to; all or none.
    fn take_pages(&mut self, parts: &[Part<'_>]) -> Result<(), Error> {
        let pages_for =
            |sequence: &Sequence, part: &Part<'_>| (sequence.tokens.len() + part.tokens.len()).div_ceil(PAGE_TOKENS);
        let mut needed = 0;
        for (i, part) in parts.iter().enumerate() {
            assert!(parts[..i].iter().all(|p| p.sequence != part.sequence), "a sequence is twice in a step");
            assert!(!part.tokens.is_empty(), "a part has tokens");
            let sequence = self.open[part.sequence.0].as_ref().expect(OPEN);
            needed += pages_for(sequence, part).saturating_sub(sequence.pages.len());
        }
        if needed > self.free.len() {
            return Err(Error::CacheFull { pages: needed, free: self.free.len() });
        }
        for part in parts {
            let sequence = self.open[part.sequence.0].as_mut().expect(OPEN);
            let pages = pages_for(sequence, part);
            assert!(self.free.extend(&mut sequence.pages, pages), "the pages were counted");
        }
        Ok(())
    }
}

const OPEN: &str = "the sequence is open";
