//! Bytes that someone else keeps alive: a range of a mapped file or of a buffer, cheap to clone. Or bytes that do not
//! exist until they are read: see [`Bytes::produced`].

use std::{
    ops::Deref,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A shared, immutable byte range. Clones share the owner (a memory map or a vector).
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Held(Arc<dyn AsRef<[u8]> + Send + Sync>),
    /// The function, and what it made. A clone shares what is made already, and else makes its own.
    Produced(Arc<dyn Fn() -> Vec<u8> + Send + Sync>, OnceLock<Arc<Vec<u8>>>),
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        let range = 0..owner.as_ref().len();
        Bytes { owner: Owner::Held(Arc::new(owner)), range }
    }

    /// `len` bytes that `produce` makes when they are first read; it must make the same ones every time.
    ///
    /// Clones taken before that make bytes of their own. So whoever keeps one unread and hands out clones holds no
    /// memory: what a clone made goes with the clone.
    pub fn produced(len: usize, produce: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Bytes {
        Bytes { owner: Owner::Produced(Arc::new(produce), OnceLock::new()), range: 0..len }
    }

    /// The number of bytes; reads none of them.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes, unless they are yet to be made.
    pub fn held(&self) -> Option<&[u8]> {
        match &self.owner {
            Owner::Held(_) => Some(self),
            Owner::Produced(..) => None,
        }
    }

    /// The same bytes, not made yet if they are to be: so what was made goes with `self`.
    pub fn unread(&self) -> Bytes {
        let owner = match &self.owner {
            Owner::Produced(produce, _) => Owner::Produced(produce.clone(), OnceLock::new()),
            held @ Owner::Held(_) => held.clone(),
        };
        Bytes { owner, range: self.range.clone() }
    }

    /// Whether both are known to be the same without a look at them: the same range of what one function makes.
    pub fn are_made_alike(&self, other: &Bytes) -> bool {
        let function = |owner: &Owner| match owner {
            Owner::Produced(produce, _) => Some(Arc::as_ptr(produce).cast::<()>()),
            Owner::Held(_) => None,
        };
        self.range == other.range && function(&self.owner).is_some_and(|own| function(&other.owner) == Some(own))
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
    /// # Panics
    /// If a function given to [`Bytes::produced`] makes fewer bytes than it promised.
    fn deref(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::Held(owner) => (**owner).as_ref(),
            Owner::Produced(produce, made) => made.get_or_init(|| Arc::new(produce())).as_slice(),
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn slices_of_slices_stay_inside() {
        let all = Bytes::new(vec![0u8, 1, 2, 3, 4, 5]);
        let mid = all.slice(1..5).unwrap();
        assert_eq!(&*mid, [1, 2, 3, 4]);
        assert_eq!(&*mid.slice(2..4).unwrap(), [3, 4]);
        assert!(mid.slice(2..5).is_none());
    }

    #[test]
    fn produced_bytes_are_made_when_read_and_once_for_each_clone() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let kept = Bytes::produced(3, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            vec![7, 8, 9]
        });
        assert_eq!((kept.len(), kept.is_empty(), calls.load(Ordering::Relaxed)), (3, false, 0));
        let first = kept.clone();
        assert_eq!((&*first, first[1]), (&[7u8, 8, 9][..], 8));
        assert_eq!(&*first.clone().slice(1..3).unwrap(), [8, 9]);
        assert_eq!(calls.load(Ordering::Relaxed), 1, "a clone of what is made shares it");
        assert!(first.are_made_alike(&kept) && !first.are_made_alike(&kept.slice(0..2).unwrap()));
        assert!(
            !first.are_made_alike(&Bytes::produced(3, || vec![7, 8, 9]))
                && !first.are_made_alike(&vec![7, 8, 9].into())
        );
        assert_eq!(calls.load(Ordering::Relaxed), 1, "nobody had to look");
        assert_eq!(&*kept.slice(2..3).unwrap(), [9]);
        assert_eq!(calls.load(Ordering::Relaxed), 2, "and a clone of what is not, does not");
        assert_eq!(&*first.unread(), [7, 8, 9]);
        assert_eq!(calls.load(Ordering::Relaxed), 3, "nor does what is unread");
    }
}
