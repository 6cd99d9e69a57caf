//! SHA-256 of what passes by, and errors of the disk with their remedies.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::ui::Failure;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// A running SHA-256 with a count of its bytes.
#[derive(Clone, Default)]
pub(crate) struct Sum {
    hasher: Sha256,
    bytes: u64,
}

impl Sum {
    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lower-case hexadecimal.
    pub(crate) fn hex(&self) -> String {
        self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Adds all that is left in a reader, telling `seen` how many bytes each piece had.
    ///
    /// # Errors
    /// Where reading fails.
    pub(crate) fn update_from(&mut self, reader: &mut impl Read, mut seen: impl FnMut(u64)) -> io::Result<()> {
        copy(reader, &mut io::sink(), |piece| {
            self.update(piece);
            seen(piece.len() as u64);
        })
    }
}

/// Copies a reader to its end, showing each piece to `seen` once it is written.
///
/// # Errors
/// Where reading or writing fails.
pub(crate) fn copy(reader: &mut impl Read, writer: &mut impl Write, mut seen: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                writer.write_all(&buffer[..n])?;
                seen(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The sum of a whole file.
///
/// # Errors
/// Where reading fails.
pub(crate) fn of_file(path: &Path, seen: impl FnMut(u64)) -> io::Result<Sum> {
    let mut sum = Sum::default();
    sum.update_from(&mut File::open(path)?, seen)?;
    Ok(sum)
}

/// What a failure to write below the store means for its user.
pub(crate) fn disk_failure(path: &Path, error: io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, or set TESSERA_CACHE to a folder on another disk; what was fetched so far is kept"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make the folder writable, or set TESSERA_CACHE to one that is"
        }
        _ => "check the folder, or set TESSERA_CACHE to another one",
    };
    Failure::new(format!("cannot write {}: {error}", path.display()), remedy).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_match_the_standard_whatever_the_pieces() {
        // FIPS 180-4's example for "abc".
        let expect = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut sum = Sum::default();
        for byte in b"abc" {
            sum.update(&[*byte]);
        }
        assert_eq!((sum.hex().as_str(), sum.bytes()), (expect, 3));
        let mut seen = 0;
        let mut sum = Sum::default();
        sum.update_from(&mut &b"abc"[..], |n| seen += n).unwrap();
        assert_eq!((sum.hex().as_str(), seen), (expect, 3));
    }

    #[test]
    fn a_full_disk_has_its_own_remedy() {
        let failure = disk_failure(Path::new("x"), io::ErrorKind::StorageFull.into());
        assert!(format!("{failure:?}").contains("free some space"));
        let failure = disk_failure(Path::new("x"), io::ErrorKind::PermissionDenied.into());
        assert!(format!("{failure:?}").contains("writable"));
    }
}
