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
    /// The tokens whose keys and values it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of all that is kept of them.
    pub fn bytes(&self) -> usize {
        self.pages.len() + self.ring.len()
    }
}
