//! A quick hash for small keys of our own: a launch looks up its module, and memory its pool, some hundred times a step.

use std::hash::{BuildHasherDefault, Hasher};

/// A map by such keys. Nobody outside picks them.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Quick>>;

/// Rotates, adds a word, multiplies.
#[derive(Default)]
pub(crate) struct Quick(u64);

/// 2^64 over pi, made odd: its bits are even.
const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

impl Quick {
    /// What `hash` becomes with a further word.
    pub(crate) fn with(hash: u64, word: u64) -> u64 {
        (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR)
    }
}

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        // Tables look at the highest bits and at the lowest.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = Quick::with(self.0, word);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;
    use crate::kernels::Module;

    #[test]
    fn keys_are_told_apart() {
        let hasher = BuildHasherDefault::<Quick>::default();
        let modules: HashSet<u64> = Module::all().iter().map(|module| hasher.hash_one(module)).collect();
        assert_eq!(modules.len(), Module::all().len());
        // Sizes are multiples of 512: both ends of the hash differ all the same.
        let sizes: Vec<u64> = (0..4096usize).map(|size| hasher.hash_one(512 * size)).collect();
        let ends = |bits: fn(&u64) -> u64| sizes.iter().map(bits).collect::<HashSet<_>>().len();
        assert!(ends(|h| h >> 57) > 120 && ends(|h| h & 4095) > 2000);
    }
}
