//! What can be wrong with a model file, and what its user may do about it.

use crate::DType;

/// Why a file cannot be read. Every variant names the file; most name the key or the tensor too.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum FormatError {
    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}: not a regular file; give the path of the model file itself")]
    NotAFile { file: String },
    #[error("{file}: not a GGUF file (it begins with {found:02x?}, not \"GGUF\"); check that the download is complete")]
    Magic { file: String, found: Vec<u8> },
    #[error("{file}: a big-endian GGUF file; convert the model again for a little-endian machine")]
    BigEndian { file: String },
    #[error("{file}: GGUF version {version}; versions 2 and 3 can be read, so convert the model again")]
    Version { file: String, version: u32 },
    #[error(
        "{file}: ends inside {what}: {needed} bytes are wanted at byte {offset} and {left} are left; download it again"
    )]
    Truncated { file: String, what: String, offset: u64, needed: u64, left: u64 },
    #[error(
        "{file}: claims {count} {what}, more than its remaining {left} bytes can hold; the file is damaged, download it again"
    )]
    Count { file: String, what: String, count: u64, left: u64 },
    #[error("{file}: metadata key `{key}`: {fault}")]
    Key { file: String, key: String, fault: KeyFault },
    #[error("{file}: tensor `{tensor}`: {fault}")]
    Tensor { file: String, tensor: String, fault: TensorFault },
    #[error("{file}: {problem}")]
    Checkpoint { file: String, problem: String },
}

/// What is wrong with a metadata entry.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum KeyFault {
    #[error("the key is not valid UTF-8; the file is damaged")]
    NotUtf8,
    #[error("appears twice; the file was written wrongly, convert the model again")]
    Duplicate,
    #[error("value type {0} is unknown (0 to 12 are known); the file is damaged or newer than this program")]
    UnknownType(u32),
    #[error("an array of arrays, which no known model uses, cannot be read")]
    NestedArray,
    #[error("{0} is no boolean (0 or 1); the file is damaged")]
    NotBool(u8),
    #[error("an alignment must be a power of two of at least 8, and this is {0}; convert the model again")]
    Alignment(String),
}

/// What is wrong with a tensor.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TensorFault {
    #[error("the name is not valid UTF-8; the file is damaged")]
    NotUtf8,
    #[error("appears twice; the file was written wrongly, convert the model again")]
    Duplicate,
    #[error("{0} dimensions; 1 to 4 can be read")]
    Rank(u32),
    #[error("shape {0:?} has a dimension of zero")]
    Empty(Vec<u64>),
    #[error("shape {0:?} is too large to address")]
    Overflow(Vec<u64>),
    #[error("type {id} ({name}) is not supported; supported are {}", supported())]
    UnknownType { id: u32, name: &'static str },
    #[error("rows of {len} values do not divide into {dtype} blocks of {}; quantize it in another format", dtype.block_len())]
    PartialBlock { dtype: DType, len: usize },
    #[error(
        "begins at byte {offset} of the data, which is not a multiple of the alignment {alignment}; convert the model again"
    )]
    Misaligned { offset: u64, alignment: u64 },
    #[error("its {len} bytes at byte {start} reach beyond the file's {file_len} bytes; download it again")]
    OutOfRange { start: u64, len: u64, file_len: u64 },
    #[error("its bytes overlap those of tensor `{0}`; the file was written wrongly, convert the model again")]
    Overlap(String),
    #[error(
        "row {row} has an infinite or undefined (NaN) weight near value {column}; the model is damaged, convert it again"
    )]
    NotFinite { row: usize, column: usize },
    #[error("{0}")]
    Other(String),
}

/// The names of the supported formats, for messages.
fn supported() -> String {
    let names: Vec<_> = DType::all().filter(|d| d.ggml_id().is_some()).map(DType::name).collect();
    names.join(", ")
}
