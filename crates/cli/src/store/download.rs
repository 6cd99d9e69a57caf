//! Fetching one file of a repository: taken up where an earlier run ended, checked, then given its name.
//!
//! A file's name while it grows holds its content's id, so that pieces of two versions never meet. Bytes are written as
//! they come, so an interruption loses none of them, and a file of any size needs one buffer.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use anyhow::Result;
use indicatif::ProgressBar;

use super::{
    StoredFile,
    client::Client,
    digest::{self, Sum, disk_failure},
    trouble::{Trouble, persistently},
};
use crate::ui::Failure;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// The end of the name of a file that is not whole.
const PART: &str = ".part";

/// A file to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// Its path in the repository: relative, and never upwards.
    pub(super) path: &'a str,
    pub(super) bytes: u64,
    /// Letters and digits that change with the content.
    pub(super) id: &'a str,
    /// If the hub tells it.
    pub(super) sha256: Option<&'a str>,
}

/// One commit of a repository.
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) client: &'a Client,
    pub(super) commit: &'a str,
}

impl Source<'_> {
    /// Fetches one file into `folder`, or what is missing of it, and checks it.
    ///
    /// # Errors
    /// Where the hub refuses, the file is not what the hub promised, or the network or the disk fail.
    pub(super) fn fetch_file(&self, file: &Wanted<'_>, folder: &Path, bar: &ProgressBar) -> Result<StoredFile> {
        let path = folder.join(file.path);
        let growing = folder.join(format!("{}.{}{PART}", file.path, file.id));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| disk_failure(parent, e))?;
        }
        remove_other_versions(&path, &growing);
        // A file under its own name was checked by an earlier run; it may be of an earlier commit all the same.
        if let Ok(sum) = digest::of_file(&path, |_| {})
            && sum.bytes() == file.bytes
            && file.sha256 == Some(&sum.hex())
        {
            bar.inc(file.bytes);
            return Ok(StoredFile { path: file.path.to_owned(), bytes: file.bytes, sha256: sum.hex() });
        }
        let sum = self.complete(file, &growing, bar)?;
        if sum.bytes() != file.bytes || file.sha256.is_some_and(|expected| expected != sum.hex()) {
            let _ = fs::remove_file(&growing);
            let expected = file.sha256.unwrap_or("unknown");
            let message = format!(
                "{}: {} is not what it should be: its SHA-256 is {} ({} bytes), expected {expected} ({} bytes)",
                self.name,
                file.path,
                sum.hex(),
                sum.bytes(),
                file.bytes
            );
            return Err(Failure::new(message, "what was fetched is deleted: run the command again").into());
        }
        fs::rename(&growing, &path).map_err(|e| disk_failure(&path, e))?;
        Ok(StoredFile { path: file.path.to_owned(), bytes: file.bytes, sha256: sum.hex() })
    }

    /// Appends to what is at `path` until the file has its size.
    fn complete(&self, file: &Wanted<'_>, path: &Path, bar: &ProgressBar) -> Result<Sum> {
        let disk = |error| disk_failure(path, error);
        let sum = match File::open(path) {
            Ok(_) => digest::of_file(path, |n| bar.inc(n)).map_err(disk)?,
            Err(_) => Sum::default(),
        };
        let out = OpenOptions::new().create(true).append(true).open(path).map_err(disk)?;
        let mut growing = Growing { path, out, sum };
        while growing.sum.bytes() < file.bytes {
            let before = growing.sum.bytes();
            match persistently(|| self.append(file, &mut growing, bar)) {
                // A bad connection brings a large file too, in many pieces, as long as it brings something.
                Err(Trouble::Network(_)) if growing.sum.bytes() - before >= CHUNK as u64 => {}
                result => result.map_err(|trouble| trouble.explain(self.name))?,
            }
        }
        growing.out.sync_all().map_err(disk)?;
        Ok(growing.sum)
    }

    /// Asks for the rest of the file and appends what comes of it.
    fn append(&self, file: &Wanted<'_>, growing: &mut Growing<'_>, bar: &ProgressBar) -> Result<(), Trouble> {
        let start = growing.sum.bytes();
        let odd =
            |got: &str| Trouble::Odd(format!("asked for {} bytes of {}, got {got}", file.bytes - start, file.path));
        let mut rest = self.client.rest(self.commit, file.path, start..file.bytes)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let left = file.bytes - growing.sum.bytes();
            match rest.read(&mut buffer) {
                Ok(0) if left > 0 => return Err(odd(&format!("{left} fewer"))),
                Ok(0) => return Ok(()),
                Ok(n) if n as u64 > left => return Err(odd("more")),
                Ok(n) => {
                    growing.push(&buffer[..n])?;
                    bar.inc(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::Network(error.into())),
            }
        }
    }
}

/// A file that is not whole yet.
struct Growing<'a> {
    path: &'a Path,
    out: File,
    /// Of all that is in it.
    sum: Sum,
}

impl Growing<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.out.write_all(bytes).map_err(|error| Trouble::Disk(disk_failure(self.path, error)))?;
        self.sum.update(bytes);
        Ok(())
    }
}

/// Frees the space of what an earlier run fetched of another version of the file.
fn remove_other_versions(path: &Path, growing: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let start = format!("{}.", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(folder) else { return };
    for other in entries.flatten().map(|entry| entry.path()).filter(|other| other != growing) {
        let other_name = other.file_name().unwrap_or_default().to_string_lossy();
        // The id is all letters and digits: `a.gguf.0123.part`, but not `a.gguf.b.gguf.0123.part`.
        let id = other_name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(PART));
        if id.is_some_and(|id| id.bytes().all(|b| b.is_ascii_alphanumeric())) {
            // Left behind, it is in nobody's way.
            let _ = fs::remove_file(&other);
        }
    }
}
