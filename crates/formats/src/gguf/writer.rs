//! Writes GGUF files of version 3, tensor by tensor, without holding more than one of them.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{Array, DType, FormatError, TensorFault, Value};
use super::{DEFAULT_ALIGNMENT, check_alignment, tensors::check_shape, value::type_id};
use crate::Bytes;

/// A writer has no path; what stands for it in errors.
const FILE: &str = "the GGUF file to be written";

/// What a produced tensor's bytes come from: a function that writes exactly the length its shape asks for.
type Produce<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

enum Source<'a> {
    Bytes(Bytes),
    Produced(Produce<'a>),
}

struct Planned<'a> {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    source: Source<'a>,
}

/// A GGUF file to be: metadata and tensors in the order in which they are added.
#[derive(Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Planned<'a>>,
}

impl<'a> GgufWriter<'a> {
    /// An empty file.
    pub fn new() -> GgufWriter<'a> {
        GgufWriter::default()
    }

    /// Sets a metadata value; a key set before keeps its place and takes the new value.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> GgufWriter<'a> {
        let (key, value) = (key.into(), value.into());
        match self.metadata.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key, value)),
        }
        self
    }

    /// Adds a tensor. `shape` is in ggml's order (row length first); `bytes` are its rows, one after another.
    pub fn tensor(
        self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Bytes>,
    ) -> GgufWriter<'a> {
        self.plan(name.into(), dtype, shape.into(), Source::Bytes(bytes.into()))
    }

    /// Adds a tensor whose bytes `produce` writes when their turn comes: for conversions that should not hold a whole
    /// model in memory.
    pub fn produced_tensor(
        self,
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> GgufWriter<'a> {
        self.plan(name.into(), dtype, shape.into(), Source::Produced(Box::new(produce)))
    }

    fn plan(mut self, name: String, dtype: DType, shape: Vec<usize>, source: Source<'a>) -> GgufWriter<'a> {
        self.tensors.push(Planned { name, dtype, shape, source });
        self
    }

    /// Writes the whole file. All is checked before the header is written, so nothing is written where a shape, a
    /// length or the alignment is wrong.
    ///
    /// # Errors
    /// If the parts do not make a sound file, or if writing fails.
    pub fn write_to(self, out: &mut impl Write) -> Result<(), FormatError> {
        let alignment = match self.metadata.iter().find(|(k, _)| k == "general.alignment") {
            Some((key, value)) => check_alignment(value).map_err(|fault| FormatError::Key {
                file: FILE.to_owned(),
                key: key.clone(),
                fault,
            })?,
            None => DEFAULT_ALIGNMENT,
        };
        let (header, lens) = self.header(alignment)?;
        let io = |source| FormatError::Io { file: FILE.to_owned(), source };
        out.write_all(&header).map_err(io)?;
        for (tensor, len) in self.tensors.into_iter().zip(lens) {
            let mut counted = Counted { out, len: 0 };
            match tensor.source {
                Source::Bytes(bytes) => counted.write_all(&bytes),
                Source::Produced(produce) => produce(&mut counted),
            }
            .map_err(io)?;
            if counted.len != len {
                let problem = format!("{} bytes were written, and its shape asks for {len}", counted.len);
                return Err(fault(&tensor.name, TensorFault::Other(problem)));
            }
            pad(out, len, alignment).map_err(io)?;
        }
        Ok(())
    }

    /// Writes the file at `path`, in place of one that is there: under a temporary name beside it, renamed when it is
    /// whole. A failure leaves nothing behind.
    ///
    /// # Errors
    /// As [`GgufWriter::write_to`], or if the file cannot be made or renamed.
    pub fn write_file(self, path: &Path) -> Result<(), FormatError> {
        let file = path.display().to_string();
        let io = |source| FormatError::Io { file: file.clone(), source };
        let temporary = temporary_name(path);
        let written = File::create_new(&temporary).map_err(io).and_then(|created| {
            let mut out = BufWriter::new(created);
            self.write_to(&mut out).map_err(|error| match error {
                FormatError::Io { source, .. } => io(source),
                other => other,
            })?;
            let finished = out.flush().and_then(|()| out.get_ref().sync_all());
            finished.and_then(|()| fs::rename(&temporary, path)).map_err(io)
        });
        if written.is_err() {
            // What went wrong first is what matters; the file may not even exist.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// All that precedes the data, padded, and each tensor's length in bytes.
    fn header(&self, alignment: u64) -> Result<(Vec<u8>, Vec<u64>), FormatError> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let (mut offset, mut lens, mut names) = (0u64, Vec::new(), HashSet::new());
        for tensor in &self.tensors {
            if !names.insert(&tensor.name) {
                return Err(fault(&tensor.name, TensorFault::Duplicate));
            }
            let (id, len) = checked(tensor).map_err(|f| fault(&tensor.name, f))?;
            put_string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            out.extend(id.to_le_bytes());
            out.extend(offset.to_le_bytes());
            lens.push(len);
            let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or_else(|| fault(&tensor.name, TensorFault::Overflow(dims(tensor))))?;
        }
        let len = out.len() as u64;
        pad(&mut out, len, alignment).expect("writing to a vector cannot fail");
        Ok((out, lens))
    }
}

/// Hidden, in the same folder (a rename must not cross file systems), and unlike that of another process.
fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

fn fault(tensor: &str, fault: TensorFault) -> FormatError {
    FormatError::Tensor { file: FILE.to_owned(), tensor: tensor.to_owned(), fault }
}

fn dims(tensor: &Planned<'_>) -> Vec<u64> {
    tensor.shape.iter().map(|&d| d as u64).collect()
}

/// The type number and the length in bytes of a sound tensor.
fn checked(tensor: &Planned<'_>) -> Result<(u32, u64), TensorFault> {
    let Some(id) = tensor.dtype.ggml_id() else {
        return Err(TensorFault::Other(format!("{} has no GGUF type; convert it to another format", tensor.dtype)));
    };
    if !(1..=4).contains(&tensor.shape.len()) {
        return Err(TensorFault::Rank(tensor.shape.len() as u32));
    }
    let (_, _, len) = check_shape(dims(tensor), id)?;
    match &tensor.source {
        Source::Bytes(bytes) if bytes.len() as u64 != len => {
            Err(TensorFault::Other(format!("has {} bytes, and its shape asks for {len}", bytes.len())))
        }
        _ => Ok((id, len)),
    }
}

/// Counts what passes through.
struct Counted<'a, W> {
    out: &'a mut W,
    len: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.len += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Zeros from `len` to the next multiple of `alignment`.
fn pad(out: &mut impl Write, len: u64, alignment: u64) -> io::Result<()> {
    let zeros = len.checked_next_multiple_of(alignment).map_or(0, |end| end - len);
    io::copy(&mut io::Read::take(io::repeat(0), zeros), out).map(|_| ())
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(type_id::U8, &v.to_le_bytes()),
        Value::I8(v) => put(type_id::I8, &v.to_le_bytes()),
        Value::U16(v) => put(type_id::U16, &v.to_le_bytes()),
        Value::I16(v) => put(type_id::I16, &v.to_le_bytes()),
        Value::U32(v) => put(type_id::U32, &v.to_le_bytes()),
        Value::I32(v) => put(type_id::I32, &v.to_le_bytes()),
        Value::U64(v) => put(type_id::U64, &v.to_le_bytes()),
        Value::I64(v) => put(type_id::I64, &v.to_le_bytes()),
        Value::F32(v) => put(type_id::F32, &v.to_le_bytes()),
        Value::F64(v) => put(type_id::F64, &v.to_le_bytes()),
        Value::Bool(v) => put(type_id::BOOL, &[u8::from(*v)]),
        Value::String(v) => {
            put(type_id::STRING, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(type_id::ARRAY, &[]);
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    /// The element type, the count, and each element's bytes.
    fn put<T: Copy, const N: usize>(out: &mut Vec<u8>, id: u32, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
        out.extend(id.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|&v| out.extend(bytes(v)));
    }
    match array {
        Array::U8(v) => put(out, type_id::U8, v, u8::to_le_bytes),
        Array::I8(v) => put(out, type_id::I8, v, i8::to_le_bytes),
        Array::U16(v) => put(out, type_id::U16, v, u16::to_le_bytes),
        Array::I16(v) => put(out, type_id::I16, v, i16::to_le_bytes),
        Array::U32(v) => put(out, type_id::U32, v, u32::to_le_bytes),
        Array::I32(v) => put(out, type_id::I32, v, i32::to_le_bytes),
        Array::U64(v) => put(out, type_id::U64, v, u64::to_le_bytes),
        Array::I64(v) => put(out, type_id::I64, v, i64::to_le_bytes),
        Array::F32(v) => put(out, type_id::F32, v, f32::to_le_bytes),
        Array::F64(v) => put(out, type_id::F64, v, f64::to_le_bytes),
        Array::Bools(v) => put(out, type_id::BOOL, v, |b| [u8::from(b)]),
        Array::Strings(v) => {
            out.extend(type_id::STRING.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| put_string(out, s));
        }
    }
}
