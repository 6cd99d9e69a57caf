//! Whose state it is: a model, and a cache whose bytes lie in one way.

use sha2::{Digest, Sha256};

use crate::Checkpoint;

/// Bytes at each of a tensor's places that are looked at.
const SAMPLE_BYTES: usize = 256;
/// Places of a tensor that are looked at.
const SAMPLES: usize = 4;

/// Which model: a hash of its metadata, the names, formats and shapes of its tensors, and samples of their bytes. Hashing all
/// weights would take as long as reading them; models that differ anywhere differ, in practice, in the samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    /// Of an opened model file.
    pub fn of(checkpoint: &Checkpoint) -> Identity {
        let mut hash = Sha256::new();
        let mut metadata = checkpoint.metadata();
        metadata.sort_by_key(|(key, _)| *key);
        for (key, value) in metadata {
            hash.update(format!("{key}\0{value:?}\0"));
        }
        for tensor in checkpoint.tensors() {
            hash.update(format!("{}\0{}\0{:?}\0", tensor.name, tensor.dtype, tensor.shape));
            // What is made when it is read follows from the metadata.
            let Some(bytes) = tensor.bytes.held() else { continue };
            for sample in 0..SAMPLES {
                let start = bytes.len() / SAMPLES * sample;
                hash.update(&bytes[start..bytes.len().min(start + SAMPLE_BYTES)]);
            }
        }
        Identity(hex(&hash.finalize()))
    }

    /// As 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whose state it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which model.
    pub identity: Identity,
    /// Its file, for messages.
    pub name: String,
    /// All that the bytes of the cache depend on beside the model: device, entries, formats.
    pub cache: String,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Bytes of a sequence's rings.
    pub ring_bytes: usize,
    /// Tokens that there is room for.
    pub context: usize,
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
