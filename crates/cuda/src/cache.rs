//! Compiled kernels on disk: compiled once for a source, its constants, a card and a compiler.
//!
//! A file's name is the hash of all that goes in, so nothing is ever stale; its first bytes are the hash of the rest, so
//! that a damaged one is compiled again. Whatever fails here costs time and nothing else.

use std::{fs, io, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::{compiler::Compiler, error::CompileError, kernels::Module};

const HASH_BYTES: usize = 32;

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// In a folder, which is made when there is something to keep; none: nowhere.
    pub fn new(folder: Option<PathBuf>) -> Cache {
        Cache { folder }
    }

    /// The machine code of a module, from the disk or the compiler.
    ///
    /// # Errors
    /// If the compiler refuses.
    pub(crate) fn binary(&self, compiler: Compiler, module: Module, arch: &str) -> Result<Vec<u8>, CompileError> {
        let path = self.folder.as_ref().map(|f| f.join(key(compiler, module, arch)));
        if let Some(binary) = path.as_ref().and_then(|p| fs::read(p).ok()).and_then(checked) {
            return Ok(binary);
        }
        let compiled = compiler.compile(module, arch)?;
        if let Some(path) = path {
            // A cache that cannot be written is no reason to stop.
            let _ = keep(&path, &compiled.binary);
        }
        Ok(compiled.binary)
    }
}

fn key(compiler: Compiler, module: Module, arch: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(module.source());
    hash.update(format!("{:?} {arch} {}", module.constants(), compiler.key()));
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{hex}.cubin", module.name())
}

/// What follows the hash, if it is what was written.
fn checked(file: Vec<u8>) -> Option<Vec<u8>> {
    let (hash, binary) = file.split_at_checked(HASH_BYTES)?;
    (Sha256::digest(binary).as_slice() == hash).then(|| binary.to_vec())
}

/// Writes beside the file and renames, so that a reader sees all of it or nothing.
fn keep(path: &PathBuf, binary: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&part, [Sha256::digest(binary).as_slice(), binary].concat())?;
    fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/k.cubin");
        keep(&path, b"machine code").unwrap();
        let file = fs::read(&path).unwrap();
        assert_eq!(checked(file.clone()), Some(b"machine code".to_vec()));
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(checked(damaged), None);
        }
        assert_eq!(checked(file[..20].to_vec()), None);
    }
}
