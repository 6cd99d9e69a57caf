//! What a sequence left in a cache, outside of it: a copy in memory ([`Snapshot`]), or in a file.
//!
//! A snapshot fits the model that it came from, and a cache whose bytes lie in the same way. In memory whoever took it knows
//! that. A file may come back after months, beside another model: so it says whose it is ([`Owner`]), in which version
//! of this format it is written, how long it is, and it ends in a hash of all that. What does not fit is refused with the
//! reason before anything is changed, and before memory is taken for it; nothing is tried twice.
//!
//! The layout of a file, numbers in little-endian order:
//!
//! ```text
//! TESSERA\0        8 bytes
//! version          u32
//! length           u32, bytes of the head
//! head             JSON: model, cache, tokens, prompt_tokens, page_bytes, pages, ring_bytes, ring_end
//! token ids        u32 each
//! pages            as Device::read_page gives them, in the order of the sequence
//! ring             as Device::read_ring gives it
//! SHA-256          32 bytes, of all before
//! ```

mod error;
mod file;
mod owner;

pub use error::StateError;
pub use owner::{Identity, Owner};

pub(crate) use file::{read, write};

use tessera_ops::{PAGE_TOKENS, RingPart};

use crate::{Error, models::LanguageModel, sequences::rings::Reach};

/// A sequence outside of the cache. It fits the model (and the kind of device) that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) tokens: Vec<u32>,
    /// The first of them that was not computed as part of a prompt.
    pub(crate) prompt_tokens: usize,
    /// One after another, as [`tessera_ops::Device::read_page`] gives them.
    pub(crate) pages: Vec<u8>,
    /// As [`tessera_ops::Device::read_ring`] gives it; empty where the model has no rings.
    pub(crate) ring: Vec<u8>,
    /// One past the highest position that was written to it.
    pub(crate) ring_end: usize,
}

impl Snapshot {
    /// Copies a sequence out of a model's cache: its tokens, of which the first `prompt_tokens` were computed as part of a prompt, from
    /// its pages and its ring, where it has one.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn take(
        model: &dyn LanguageModel,
        (tokens, prompt_tokens): (&[u32], usize),
        pages: &[u32],
        (ring, reach): (Option<u32>, Reach),
    ) -> Result<Snapshot, Error> {
        let (mut page_bytes, mut ring_bytes) = (Vec::new(), Vec::new());
        for page in &pages[..tokens.len().div_ceil(PAGE_TOKENS)] {
            model.read_page(*page, &mut page_bytes)?;
        }
        if let Some(ring) = ring {
            model.read_ring(ring, RingPart::Whole, &mut ring_bytes)?;
        }
        let (tokens, pages, ring, ring_end) = (tokens.to_vec(), page_bytes, ring_bytes, reach.end);
        Ok(Snapshot { tokens, prompt_tokens, pages, ring, ring_end })
    }

    /// Copies it back, into these pages (as many as it has) and this ring. Gives how far it had come in that.
    ///
    /// # Errors
    /// If it is of another model's cache, or the device fails.
    pub(crate) fn put(&self, model: &mut dyn LanguageModel, pages: &[u32], ring: u32) -> Result<Reach, Error> {
        let page_bytes = (self.pages.len() / pages.len().max(1)).max(1);
        for (page, bytes) in pages.iter().zip(self.pages.chunks_exact(page_bytes)) {
            model.write_page(*page, bytes)?;
        }
        if !pages.is_empty() {
            model.write_ring(ring, RingPart::Whole, &self.ring)?;
        }
        Ok(Reach { end: self.ring_end, ..Reach::default() })
    }

    /// Pages that it fills.
    pub(crate) fn page_count(&self) -> usize {
        self.tokens.len().div_ceil(PAGE_TOKENS)
    }

    /// The tokens whose keys and values it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of all that is kept of them.
    pub fn bytes(&self) -> usize {
        self.pages.len() + self.ring.len()
    }
}
