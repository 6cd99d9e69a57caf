//! Files mapped into memory. The only file of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::{fs::File, path::Path};

use crate::{Bytes, FormatError};

/// Maps a whole file, read-only.
///
/// The file must not shrink while it is mapped: the operating system would then end the process on the next access.
/// Writers of model files write to a temporary name and rename, so a mapped file keeps its bytes.
///
/// # Errors
/// If the file cannot be opened, is not a regular file, or cannot be mapped.
pub fn map(path: &Path) -> Result<Bytes, FormatError> {
    let failed = |source| FormatError::Io { file: path.display().to_string(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FormatError::NotAFile { file: path.display().to_string() });
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new(Vec::new())); // an empty file has no pages to map
    }
    // SAFETY: the mapping is read-only and lives as long as its owner inside `Bytes`. That no other process changes
    // or truncates the file meanwhile is this function's documented condition; every reader of the bytes treats
    // them as plain numbers and checks what it uses as an index, so a change could at worst yield wrong values.
    let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
    Ok(Bytes::new(mapped))
}
