//! Snapshots in files.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tessera_ops::PAGE_TOKENS;

use super::{Owner, Snapshot, StateError};

const MAGIC: &[u8; 8] = b"TESSERA\0";
/// To be raised with every change of what follows the magic bytes, or of what a device writes into a page.
const VERSION: u32 = 1;
/// A head is a few hundred bytes; what claims more is none.
const HEAD_BYTES_MAX: u32 = 1 << 16;
const HASH_BYTES: u64 = 32;
/// Bytes read at a time.
const SLAB_BYTES: usize = 1 << 20;

/// What stands before the tokens.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    model: String,
    model_file: String,
    cache: String,
    tokens: usize,
    prompt_tokens: usize,
    page_bytes: usize,
    pages: usize,
    ring_bytes: usize,
    ring_end: usize,
}

/// Writes a snapshot. A file at `path` is replaced once the new one is whole.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, owner: &Owner, snapshot: &Snapshot) -> Result<(), StateError> {
    let failed = |source| StateError::Io { file: path.display().to_string(), doing: "write", source };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = write_all(Path::new(&part), owner, snapshot).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // What is left of it is of no use; that it cannot be removed either is the same trouble.
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(failed)
}

fn write_all(path: &Path, owner: &Owner, snapshot: &Snapshot) -> std::io::Result<()> {
    let head = Head {
        model: owner.identity.as_str().to_owned(),
        model_file: owner.name.clone(),
        cache: owner.cache.clone(),
        tokens: snapshot.tokens.len(),
        prompt_tokens: snapshot.prompt_tokens,
        page_bytes: owner.page_bytes,
        pages: snapshot.tokens.len().div_ceil(PAGE_TOKENS),
        ring_bytes: snapshot.ring.len(),
        ring_end: snapshot.ring_end,
    };
    let head = serde_json::to_vec(&head)?;
    let tokens: Vec<u8> = snapshot.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let (version, length) = (VERSION.to_le_bytes(), (head.len() as u32).to_le_bytes());
    let mut out = BufWriter::new(File::create(path)?);
    let mut hash = Sha256::new();
    for bytes in [&MAGIC[..], &version, &length, &head, &tokens, &snapshot.pages, &snapshot.ring] {
        hash.update(bytes);
        out.write_all(bytes)?;
    }
    out.write_all(&hash.finalize())?;
    out.into_inner()?.sync_all()
}

/// Reads a snapshot of `owner`.
///
/// # Errors
/// If the file cannot be read, is no whole state file of this version, or another's.
pub(crate) fn read(path: &Path, owner: &Owner) -> Result<Snapshot, StateError> {
    let file = path.display().to_string();
    let io = |source| StateError::Io { file: file.clone(), doing: "read", source };
    let opened = File::open(path).map_err(io)?;
    let length = opened.metadata().map_err(io)?.len();
    let mut reader = Reader { file: &file, from: BufReader::new(opened), left: length, hash: Sha256::new() };
    let foreign = || StateError::Foreign { file: file.clone() };
    if length < MAGIC.len() as u64 || reader.bytes(MAGIC.len() as u64)? != MAGIC {
        return Err(foreign());
    }
    let version = reader.number()?;
    if version != VERSION {
        return Err(StateError::Version { file, found: version, known: VERSION });
    }
    let head = match reader.number()? {
        length @ ..=HEAD_BYTES_MAX => reader.bytes(length.into())?,
        length => return Err(reader.damaged(format!("its head claims {length} bytes"))),
    };
    let head: Head =
        serde_json::from_slice(&head).map_err(|e| reader.damaged(format!("its head is not sound, {e}")))?;
    check(&head, owner, &reader)?;
    let tokens = reader.bytes(4 * head.tokens as u64)?;
    let pages = reader.bytes(head.pages as u64 * head.page_bytes as u64)?;
    let ring = reader.bytes(head.ring_bytes as u64)?;
    let hash = std::mem::take(&mut reader.hash).finalize();
    if reader.bytes(HASH_BYTES)?[..] != hash[..] {
        return Err(reader.damaged("its bytes are not those that were written"));
    }
    let tokens = tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Snapshot { tokens, prompt_tokens: head.prompt_tokens, pages, ring, ring_end: head.ring_end })
}

/// Holds a head to its owner and to the file's length.
fn check(head: &Head, owner: &Owner, reader: &Reader<'_>) -> Result<(), StateError> {
    let file = reader.file.to_owned();
    if head.model != owner.identity.as_str() {
        return Err(StateError::Model { file, found: head.model_file.clone(), expected: owner.name.clone() });
    }
    if head.cache != owner.cache {
        return Err(StateError::Cache { file, found: head.cache.clone(), expected: owner.cache.clone() });
    }
    if head.tokens > owner.context {
        return Err(StateError::TooLong { file, tokens: head.tokens, context: owner.context });
    }
    let pages = head.tokens.div_ceil(PAGE_TOKENS);
    let sound = head.prompt_tokens <= head.tokens
        && (head.tokens..=owner.context).contains(&head.ring_end)
        && (head.pages, head.page_bytes, head.ring_bytes) == (pages, owner.page_bytes, owner.ring_bytes);
    if !sound {
        return Err(reader.damaged("its head contradicts itself"));
    }
    // The context bounds all three, so nothing overflows.
    let expected = 4 * head.tokens as u64 + pages as u64 * head.page_bytes as u64 + head.ring_bytes as u64 + HASH_BYTES;
    if reader.left != expected {
        return Err(reader.damaged(format!("{} bytes follow its head instead of {expected}", reader.left)));
    }
    Ok(())
}

/// A file that is read from its beginning to its end.
struct Reader<'a> {
    file: &'a str,
    from: BufReader<File>,
    left: u64,
    hash: Sha256,
}

impl Reader<'_> {
    fn damaged(&self, what: impl Into<String>) -> StateError {
        StateError::Damaged { file: self.file.to_owned(), what: what.into() }
    }

    fn number(&mut self) -> Result<u32, StateError> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The next `count` bytes; takes no memory for bytes that the file has not.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, StateError> {
        if count > self.left {
            return Err(self.damaged("it ends too early"));
        }
        self.left -= count;
        let mut out = Vec::new();
        while (out.len() as u64) < count {
            let start = out.len();
            out.resize(start + SLAB_BYTES.min((count - start as u64) as usize), 0);
            let read = self.from.read_exact(&mut out[start..]);
            read.map_err(|source| StateError::Io { file: self.file.to_owned(), doing: "read", source })?;
            self.hash.update(&out[start..]);
        }
        Ok(out)
    }
}
