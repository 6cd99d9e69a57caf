//! GGUF, versions 2 and 3: one file with a model's metadata and tensors.
//!
//! Layout (all little-endian): magic, version, counts; the metadata entries (key, type, value); the tensor table
//! (name, dimensions, type, offset); padding to the alignment; the tensors' bytes, each at a multiple of it. The whole
//! table is checked when a file is opened, so that whoever holds a [`Tensor`] may trust its shape, format and bytes.

mod cursor;
mod tensors;
mod value;
mod writer;

use std::{collections::HashMap, path::Path};

pub use value::{Array, Value};
pub use writer::GgufWriter;

use crate::{
    Bytes, FormatError, codec,
    dtype::DType,
    error::{KeyFault, TensorFault},
};
use cursor::Cursor;

/// The alignment of tensors where a file names none.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// An opened and checked GGUF file.
pub struct Gguf {
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<Tensor>,
    names: HashMap<String, usize>,
}

/// A named matrix (or vector, or stack of matrices) of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its values lie in `bytes`.
    pub dtype: DType,
    /// At least one dimension (in a GGUF file at most four), none zero, in ggml's order: `shape[0]` is a row's length
    /// (depth), `shape[1]` the rows, and so on.
    pub shape: Vec<usize>,
    /// Its bytes: rows one after another, each a whole number of blocks. They may begin at any address.
    pub bytes: Bytes,
}

impl Gguf {
    /// Maps a file into memory and checks all of its header.
    ///
    /// # Errors
    /// If the file cannot be read or is not a sound GGUF file of version 2 or 3.
    pub fn open(path: &Path) -> Result<Gguf, FormatError> {
        Gguf::parse(&path.display().to_string(), crate::mmap::map(path)?)
    }

    /// The same from memory; `name` stands for the file in errors.
    ///
    /// # Errors
    /// If `bytes` are not a sound GGUF file of version 2 or 3.
    pub fn parse(name: &str, bytes: Bytes) -> Result<Gguf, FormatError> {
        let mut cursor = Cursor::new(name, &bytes);
        let version = read_version(name, &mut cursor, &bytes)?;
        // The least that an entry takes: a tensor's name length, rank, one dimension, type and offset; a metadata
        // entry's key length, type and value.
        let tensor_count = cursor.count("tensors", 8 + 4 + 8 + 4 + 8)?;
        let entry_count = cursor.count("metadata entries", 8 + 4 + 1)?;
        let (metadata, keys) = read_metadata(&mut cursor, entry_count)?;
        let alignment = match keys.get("general.alignment") {
            Some(&i) => check_alignment(&metadata[i].1).map_err(|f| cursor.key_fault("general.alignment", f))?,
            None => DEFAULT_ALIGNMENT,
        };
        let tensors = tensors::read(name, &mut cursor, tensor_count, alignment, &bytes)?;
        let names = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Gguf { version, metadata, keys, tensors, names })
    }

    /// What a file of version 3 with these entries would hold, without the file. Tensors may be in formats that GGUF
    /// has no number for.
    ///
    /// # Errors
    /// If a key or a name appears twice, or a tensor's shape, format and bytes do not fit each other; `name` stands for
    /// the file.
    pub fn from_parts(name: &str, metadata: Vec<(String, Value)>, tensors: Vec<Tensor>) -> Result<Gguf, FormatError> {
        let (mut keys, mut names) = (HashMap::new(), HashMap::new());
        for (i, (key, _)) in metadata.iter().enumerate() {
            if keys.insert(key.clone(), i).is_some() {
                return Err(FormatError::Key { file: name.to_owned(), key: key.clone(), fault: KeyFault::Duplicate });
            }
        }
        for (i, tensor) in tensors.iter().enumerate() {
            let fault = if names.insert(tensor.name.clone(), i).is_some() {
                Err(TensorFault::Duplicate)
            } else {
                tensor.check_bytes()
            };
            fault.map_err(|fault| FormatError::Tensor { file: name.to_owned(), tensor: tensor.name.clone(), fault })?;
        }
        Ok(Gguf { version: 3, metadata, keys, tensors, names })
    }

    /// The file's GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata entries, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// One metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&i| &self.metadata[i].1)
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.names.get(name).map(|&i| &self.tensors[i])
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (entries, tensors) = (self.metadata.len(), self.tensors.len());
        write!(f, "Gguf(version {}, {entries} metadata entries, {tensors} tensors)", self.version)
    }
}

impl Tensor {
    /// The length of a row.
    pub fn depth(&self) -> usize {
        self.shape[0]
    }

    /// The number of rows, over all further dimensions.
    pub fn rows(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values; never so for a tensor of a checked file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether shape, format and bytes fit each other.
    fn check_bytes(&self) -> Result<(), TensorFault> {
        let dims = || self.shape.iter().map(|&d| d as u64).collect();
        match self.shape.as_slice() {
            [] => return Err(TensorFault::Rank(0)),
            shape if shape.contains(&0) => return Err(TensorFault::Empty(dims())),
            _ => {}
        }
        let len = self.depth();
        let row = self.dtype.row_bytes(len).ok_or(TensorFault::PartialBlock { dtype: self.dtype, len })?;
        let bytes = self.shape[1..].iter().try_fold(row, |bytes, &d| bytes.checked_mul(d));
        match bytes.ok_or_else(|| TensorFault::Overflow(dims()))? {
            bytes if bytes == self.bytes.len() => Ok(()),
            bytes => Err(TensorFault::Other(format!("has {} bytes, and its shape asks for {bytes}", self.bytes.len()))),
        }
    }

    /// All values as f32, rows one after another: for small tensors, such as norms and biases.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        codec::decode(self.dtype, &self.bytes, &mut out);
        out
    }

    /// Checks that all weights are finite. It reads all of the bytes, so opening a file does not do it; loading does.
    /// `file` is named in the error.
    ///
    /// # Errors
    /// If a weight is infinite or NaN, or a scale could make one; says where.
    pub fn check_finite(&self, file: &str) -> Result<(), FormatError> {
        match codec::first_non_finite_block(self.dtype, &self.bytes) {
            None => Ok(()),
            Some(block) => {
                let value = block * self.dtype.block_len();
                let fault = TensorFault::NotFinite { row: value / self.depth(), column: value % self.depth() };
                Err(FormatError::Tensor { file: file.to_owned(), tensor: self.name.clone(), fault })
            }
        }
    }
}

fn read_version(file: &str, cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<u32, FormatError> {
    let file = file.to_owned();
    if !bytes.starts_with(b"GGUF") {
        return Err(FormatError::Magic { file, found: bytes[..bytes.len().min(4)].to_vec() });
    }
    cursor.u32("the magic")?;
    match cursor.u32("the version")? {
        version @ 2..=3 => Ok(version),
        // A small number written by a big-endian machine has its bytes at the top.
        version if version != 0 && version & 0xffff == 0 => Err(FormatError::BigEndian { file }),
        version => Err(FormatError::Version { file, version }),
    }
}

type Metadata = (Vec<(String, Value)>, HashMap<String, usize>);

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, FormatError> {
    let (mut metadata, mut keys) = (Vec::new(), HashMap::new());
    for i in 0..count {
        let key = cursor.string_bytes(&format!("the key of metadata entry {i}"))?;
        let Ok(key) = std::str::from_utf8(key) else {
            return Err(cursor.key_fault(&String::from_utf8_lossy(key), KeyFault::NotUtf8));
        };
        if keys.insert(key.to_owned(), metadata.len()).is_some() {
            return Err(cursor.key_fault(key, KeyFault::Duplicate));
        }
        let value = cursor.value(key)?;
        metadata.push((key.to_owned(), value));
    }
    Ok((metadata, keys))
}

/// GGUF wants a multiple of 8; ggml, which pads by masks, a power of two.
fn check_alignment(value: &Value) -> Result<u64, KeyFault> {
    match value.as_u64() {
        Some(n) if n.is_power_of_two() && n >= 8 => Ok(n),
        Some(n) => Err(KeyFault::Alignment(n.to_string())),
        None => Err(KeyFault::Alignment("no unsigned integer".to_owned())),
    }
}
