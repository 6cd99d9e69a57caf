//! A bounds-checked reader over the header of a GGUF file. It never reserves memory that the file could not fill.

use super::value::{Array, Value, type_id};
use crate::{FormatError, error::KeyFault};

/// A position in a file's bytes.
pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { file, bytes, at: 0 }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `len` bytes; `what` names them in the error.
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], FormatError> {
        if len > self.left() {
            return Err(FormatError::Truncated {
                file: self.file.to_owned(),
                what: what.to_owned(),
                offset: self.at as u64,
                needed: len,
                left: self.left(),
            });
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.take(N as u64, what)?;
        Ok(*bytes.first_chunk().expect("take gave N bytes"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each. It is refused where the rest of the file cannot hold
    /// them, so that a wrong count fails here and not in an allocation.
    pub(super) fn count(&mut self, what: &str, min_bytes: u64) -> Result<u64, FormatError> {
        let count = self.u64(what)?;
        self.check_count(count, what, min_bytes)?;
        Ok(count)
    }

    pub(super) fn check_count(&self, count: u64, what: &str, min_bytes: u64) -> Result<(), FormatError> {
        if count > self.left() / min_bytes {
            let (file, what) = (self.file.to_owned(), what.to_owned());
            return Err(FormatError::Count { file, what, count, left: self.left() });
        }
        Ok(())
    }

    /// A string's bytes: a 64-bit length, then the bytes.
    pub(super) fn string_bytes(&mut self, what: &str) -> Result<&'a [u8], FormatError> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// The value of metadata entry `key`.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, FormatError> {
        let what = format!("the value of `{key}`");
        let id = self.u32(&what)?;
        Ok(match id {
            type_id::U8 => Value::U8(self.array::<1>(&what)?[0]),
            type_id::I8 => Value::I8(self.array(&what).map(i8::from_le_bytes)?),
            type_id::U16 => Value::U16(self.array(&what).map(u16::from_le_bytes)?),
            type_id::I16 => Value::I16(self.array(&what).map(i16::from_le_bytes)?),
            type_id::U32 => Value::U32(self.u32(&what)?),
            type_id::I32 => Value::I32(self.array(&what).map(i32::from_le_bytes)?),
            type_id::U64 => Value::U64(self.u64(&what)?),
            type_id::I64 => Value::I64(self.array(&what).map(i64::from_le_bytes)?),
            type_id::F32 => Value::F32(self.array(&what).map(f32::from_le_bytes)?),
            type_id::F64 => Value::F64(self.array(&what).map(f64::from_le_bytes)?),
            type_id::BOOL => Value::Bool(self.bool(self.bytes.get(self.at).copied(), key, &what)?),
            type_id::STRING => Value::String(String::from_utf8_lossy(self.string_bytes(&what)?).into_owned()),
            type_id::ARRAY => Value::Array(self.array_value(key, &what)?),
            other => return Err(self.key_fault(key, KeyFault::UnknownType(other))),
        })
    }

    /// Checks a boolean's byte and steps over it.
    fn bool(&mut self, byte: Option<u8>, key: &str, what: &str) -> Result<bool, FormatError> {
        self.take(1, what)?;
        match byte {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            other => Err(self.key_fault(key, KeyFault::NotBool(other.unwrap_or_default()))),
        }
    }

    fn array_value(&mut self, key: &str, what: &str) -> Result<Array, FormatError> {
        let id = self.u32(what)?;
        let count = self.u64(what)?;
        Ok(match id {
            type_id::U8 => Array::U8(self.numbers(count, what, u8::from_le_bytes)?),
            type_id::I8 => Array::I8(self.numbers(count, what, i8::from_le_bytes)?),
            type_id::U16 => Array::U16(self.numbers(count, what, u16::from_le_bytes)?),
            type_id::I16 => Array::I16(self.numbers(count, what, i16::from_le_bytes)?),
            type_id::U32 => Array::U32(self.numbers(count, what, u32::from_le_bytes)?),
            type_id::I32 => Array::I32(self.numbers(count, what, i32::from_le_bytes)?),
            type_id::U64 => Array::U64(self.numbers(count, what, u64::from_le_bytes)?),
            type_id::I64 => Array::I64(self.numbers(count, what, i64::from_le_bytes)?),
            type_id::F32 => Array::F32(self.numbers(count, what, f32::from_le_bytes)?),
            type_id::F64 => Array::F64(self.numbers(count, what, f64::from_le_bytes)?),
            type_id::BOOL => {
                self.check_count(count, what, 1)?;
                let bools = (0..count).map(|_| self.bool(self.bytes.get(self.at).copied(), key, what));
                Array::Bools(bools.collect::<Result<_, _>>()?)
            }
            type_id::STRING => {
                self.check_count(count, what, 8)?;
                let strings = (0..count).map(|_| Ok(String::from_utf8_lossy(self.string_bytes(what)?).into_owned()));
                Array::Strings(strings.collect::<Result<_, FormatError>>()?)
            }
            type_id::ARRAY => return Err(self.key_fault(key, KeyFault::NestedArray)),
            other => return Err(self.key_fault(key, KeyFault::UnknownType(other))),
        })
    }

    /// `count` numbers of `N` bytes each.
    fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        what: &str,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, FormatError> {
        self.check_count(count, what, N as u64)?;
        let bytes = self.take(count * N as u64, what)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect())
    }

    pub(super) fn key_fault(&self, key: &str, fault: KeyFault) -> FormatError {
        FormatError::Key { file: self.file.to_owned(), key: key.to_owned(), fault }
    }
}
