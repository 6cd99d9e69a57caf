//! Safetensors files: a JSON header and raw tensors. The header is read by the `safetensors` crate; what it says is
//! checked against the file here, and tensors are ranges of the mapped file.

use std::path::Path;

use safetensors::tensor::Metadata;

use crate::{Bytes, FormatError, error::TensorFault};

pub use safetensors::Dtype as StoredType;

/// The most bytes that a header may have; the safetensors format sets the limit.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: StoredType,
    /// Its dimensions, the row length last.
    pub shape: Vec<usize>,
    /// Its bytes, as many as shape and type ask for; at any alignment.
    pub bytes: Bytes,
}

/// Maps a file and gives its tensors in the order of their bytes.
///
/// # Errors
/// If the file cannot be read or its header does not describe it exactly.
pub fn open(path: &Path) -> Result<Vec<Stored>, FormatError> {
    parse(&path.display().to_string(), crate::mmap::map(path)?)
}

/// The same from memory; `name` stands for the file in errors.
///
/// # Errors
/// If the header is damaged or does not describe `bytes` exactly.
pub fn parse(name: &str, bytes: Bytes) -> Result<Vec<Stored>, FormatError> {
    let file = || name.to_owned();
    let damaged = |problem: String| FormatError::Checkpoint {
        file: file(),
        problem: format!("not a sound safetensors file: {problem}; download it again"),
    };
    let Some(header_len) = bytes.first_chunk().map(|b| u64::from_le_bytes(*b)) else {
        return Err(damaged(format!("it has only {} bytes", bytes.len())));
    };
    let after = bytes.len() as u64 - 8;
    if header_len > after.min(MAX_HEADER) {
        return Err(damaged(format!("its header claims {header_len} bytes, and {after} follow")));
    }
    let data_start = 8 + header_len as usize;
    let header: Metadata =
        serde_json::from_slice(&bytes[8..data_start]).map_err(|e| damaged(format!("its header is wrong: {e}")))?;
    let data = bytes.slice(data_start..bytes.len()).expect("the header lies within the file");
    let mut tensors = Vec::new();
    for (name, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let Some(bytes) = data.slice(start..end) else {
            let (start, len, file_len) = (start as u64, (end - start) as u64, bytes.len() as u64);
            let fault = TensorFault::OutOfRange { start: start.saturating_add(data_start as u64), len, file_len };
            return Err(FormatError::Tensor { file: file(), tensor: name, fault });
        };
        tensors.push((start, Stored { name, dtype: info.dtype, shape: info.shape.clone(), bytes }));
    }
    // The crate has checked that the tensors follow each other without holes or overlaps.
    if header.data_len() != data.len() {
        return Err(damaged(format!("its tensors take {} bytes of {}", header.data_len(), data.len())));
    }
    tensors.sort_by(|(a, x), (b, y)| (a, &x.name).cmp(&(b, &y.name)));
    Ok(tensors.into_iter().map(|(_, t)| t).collect())
}
