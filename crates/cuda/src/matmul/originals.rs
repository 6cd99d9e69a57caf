//! Matrices that were packed, for others whose bytes one function makes too: layers of a synthetic model may be alike. These are copied on
//! the card, which takes milliseconds where packing takes seconds.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tessera_formats::{Bytes, DType};
use tessera_ops::MatrixSource;

use crate::driver::Memory;

/// What was packed and is still on the card.
#[derive(Default)]
pub(crate) struct Originals(Mutex<Vec<Original>>);

struct Original {
    like: Like,
    /// Unread.
    bytes: Bytes,
    memory: Weak<Memory>,
    largest: f32,
}

/// What two matrices must have in common beside their bytes: format, rows, depth, segments.
type Like = (DType, usize, usize, usize);

fn like(source: &MatrixSource, segments: usize) -> Like {
    (source.dtype, source.rows, source.depth, segments)
}

impl Originals {
    /// A packed matrix of the same bytes, and its largest weight.
    pub(super) fn find(&self, source: &MatrixSource, segments: usize) -> Option<(Arc<Memory>, f32)> {
        let like = like(source, segments);
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut same = all.iter().filter(|o| o.like == like && o.bytes.are_made_alike(&source.bytes));
        same.find_map(|o| Some((o.memory.upgrade()?, o.largest)))
    }

    /// Keeps in mind what was packed, if there can be another of its bytes.
    pub(super) fn add(&self, source: &MatrixSource, segments: usize, memory: &Arc<Memory>, largest: f32) {
        if source.bytes.held().is_some() {
            return;
        }
        let (like, bytes, memory) = (like(source, segments), source.bytes.unread(), Arc::downgrade(memory));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|o| o.memory.strong_count() > 0);
        all.push(Original { like, bytes, memory, largest });
    }
}
