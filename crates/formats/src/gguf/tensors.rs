//! The tensor table of a GGUF file: every entry is checked before any byte of data is handed out.

use std::collections::HashSet;

use super::{Cursor, DType, FormatError, Tensor, TensorFault};
use crate::Bytes;

/// One row of the table as the file has it, its shape and format checked.
struct Entry {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes from the beginning of the data section.
    offset: u64,
    len: u64,
}

/// Reads the table at the cursor and the bytes that it points to.
pub(super) fn read(
    file: &str,
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
    bytes: &Bytes,
) -> Result<Vec<Tensor>, FormatError> {
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for i in 0..count {
        let entry = read_entry(file, cursor, i, alignment)?;
        if !names.insert(entry.name.clone()) {
            return Err(fault(file, &entry.name, TensorFault::Duplicate));
        }
        entries.push(entry);
    }
    // No overflow: the cursor is within the file, and an alignment beyond it is caught with the first tensor.
    let data = (cursor.at as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    refuse_overlaps(file, &entries)?;
    entries.into_iter().map(|entry| with_bytes(file, entry, data, bytes)).collect()
}

fn fault(file: &str, tensor: &str, fault: TensorFault) -> FormatError {
    FormatError::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), fault }
}

fn read_entry(file: &str, cursor: &mut Cursor<'_>, index: u64, alignment: u64) -> Result<Entry, FormatError> {
    let name = cursor.string_bytes(&format!("the name of tensor {index}"))?;
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(fault(file, &String::from_utf8_lossy(name), TensorFault::NotUtf8));
    };
    let what = format!("the table entry of tensor `{name}`");
    let rank = cursor.u32(&what)?;
    if !(1..=4).contains(&rank) {
        return Err(fault(file, name, TensorFault::Rank(rank)));
    }
    let shape = (0..rank).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;
    let checked = check_shape(shape, id).map_err(|f| fault(file, name, f))?;
    if !offset.is_multiple_of(alignment) {
        return Err(fault(file, name, TensorFault::Misaligned { offset, alignment }));
    }
    let (dtype, shape, len) = checked;
    Ok(Entry { name: name.to_owned(), dtype, shape, offset, len })
}

/// The format, the shape in `usize` and the length in bytes.
pub(super) fn check_shape(dims: Vec<u64>, id: u32) -> Result<(DType, Vec<usize>, u64), TensorFault> {
    let Some(dtype) = DType::from_ggml_id(id) else {
        let name = DType::unsupported_ggml_name(id).unwrap_or("unknown");
        return Err(TensorFault::UnknownType { id, name });
    };
    if dims.contains(&0) {
        return Err(TensorFault::Empty(dims));
    }
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    // Both the number of values and that of bytes must fit, with room for callers to count in signed numbers.
    let values = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as u64);
    let (Some(shape), Some(_)) = (shape, values) else {
        return Err(TensorFault::Overflow(dims));
    };
    if !shape[0].is_multiple_of(dtype.block_len()) {
        return Err(TensorFault::PartialBlock { dtype, len: shape[0] });
    }
    let rows: usize = shape[1..].iter().product();
    let len = dtype.row_bytes(shape[0]).and_then(|n| n.checked_mul(rows)).filter(|&n| n <= isize::MAX as usize);
    match len {
        Some(len) => Ok((dtype, shape, len as u64)),
        None => Err(TensorFault::Overflow(dims)),
    }
}

fn refuse_overlaps(file: &str, entries: &[Entry]) -> Result<(), FormatError> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|e| e.offset);
    for pair in order.windows(2) {
        // An end beyond u64 cannot precede the next tensor either.
        if pair[0].offset.checked_add(pair[0].len).is_none_or(|end| end > pair[1].offset) {
            return Err(fault(file, &pair[1].name, TensorFault::Overlap(pair[0].name.clone())));
        }
    }
    Ok(())
}

fn with_bytes(file: &str, entry: Entry, data: u64, bytes: &Bytes) -> Result<Tensor, FormatError> {
    let Entry { name, dtype, shape, offset, len } = entry;
    let start = data.saturating_add(offset);
    let end = start.saturating_add(len);
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok()).map(|(start, end)| start..end);
    match range.and_then(|range| bytes.slice(range)) {
        Some(bytes) => Ok(Tensor { name, dtype, shape, bytes }),
        None => {
            let file_len = bytes.len() as u64;
            Err(fault(file, &name, TensorFault::OutOfRange { start, len, file_len }))
        }
    }
}
