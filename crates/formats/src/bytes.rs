//! Bytes that someone else keeps alive: a range of a mapped file or of a buffer, cheap to clone.

use std::{ops::Deref, ops::Range, sync::Arc};

/// A shared, immutable byte range. Clones share the owner (a memory map or a vector).
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        let range = 0..owner.as_ref().len();
        Bytes { owner: Arc::new(owner), range }
    }

    /// A part of these bytes, or none where `range` reaches beyond them.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Bytes { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::new(bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_stay_inside() {
        let all = Bytes::new(vec![0u8, 1, 2, 3, 4, 5]);
        let mid = all.slice(1..5).unwrap();
        assert_eq!(&*mid, [1, 2, 3, 4]);
        assert_eq!(&*mid.slice(2..4).unwrap(), [3, 4]);
        assert!(mid.slice(2..5).is_none());
    }
}
