//! Zeroed memory for weights, on huge pages where the system has them.
//!
//! Weights are read end to end at every step, and small pages would cost a walk of the page tables every 4 KiB. But most
//! matrices of a small model are smaller than a huge page. So smaller pieces are cut one after another from shared
//! chunks: matrices that are loaded one after another, and so used one after another, lie one after another, and what
//! a kernel asks for ahead of its end is the next matrix. A chunk goes back when its last piece does.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;
use tessera_ops::Error;

use crate::threads::Threads;

/// From this size on a map gets huge pages.
const HUGE_BYTES_MIN: usize = 2 << 20;

/// Size of a chunk. Only what is used of it takes memory.
const CHUNK_BYTES: usize = 64 << 20;

/// Larger pieces get a map of their own.
const PIECE_BYTES_MAX: usize = CHUNK_BYTES / 8;

/// No system that we know has smaller pages.
const SYSTEM_PAGE_BYTES: usize = 4 << 10;

/// Pieces start on cache lines.
const ALIGNMENT: usize = 64;

/// The chunk that pieces are cut from at present, and how much of it is cut.
static CURRENT: Mutex<(Weak<Chunk>, usize)> = Mutex::new((Weak::new(), 0));

/// A map. Its bytes are reached through the pieces alone.
struct Chunk {
    map: MmapMut,
    start: *mut u8,
}

// SAFETY: a chunk only keeps the map alive; its bytes belong to pieces, which are disjoint.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// Bytes, zero at first, that start on a cache line.
pub struct Buffer {
    chunk: Arc<Chunk>,
    offset: usize,
    bytes: usize,
}

impl Buffer {
    /// `bytes` zero bytes for `what` (named in the error).
    ///
    /// # Errors
    /// The system has no room.
    pub fn zeroed(bytes: usize, what: &str) -> Result<Buffer, Error> {
        let no_room = |_| Error::OutOfMemory { device: "CPU".to_owned(), what: what.to_owned(), bytes };
        if bytes > PIECE_BYTES_MAX {
            return Ok(Buffer { chunk: Chunk::map(bytes).map_err(no_room)?, offset: 0, bytes });
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let chunk = match current.0.upgrade() {
            Some(chunk) if chunk.map.len() - current.1 >= bytes => chunk,
            _ => {
                let chunk = Chunk::map(CHUNK_BYTES).map_err(no_room)?;
                *current = (Arc::downgrade(&chunk), 0);
                chunk
            }
        };
        let offset = current.1;
        current.1 = (offset + bytes).next_multiple_of(ALIGNMENT).min(chunk.map.len());
        Ok(Buffer { chunk, offset, bytes })
    }

    /// Writes to every page, in parallel, so that the system gives the memory now and not in the middle of a step. The
    /// bytes become zero.
    pub fn touch(&mut self, pool: &Threads) {
        pool.run_chunks(self.as_mut_slice(), SYSTEM_PAGE_BYTES, |_, part| {
            part.iter_mut().step_by(SYSTEM_PAGE_BYTES).for_each(|byte| *byte = 0);
        });
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: a piece of the chunk's map that is this buffer's alone, initialised (maps are zero at first), alive as
        // long as the chunk.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.offset), self.bytes) }
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; and this buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.offset), self.bytes) }
    }
}

impl Chunk {
    fn map(bytes: usize) -> std::io::Result<Arc<Chunk>> {
        let mut map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_BYTES_MIN {
            // A wish: without huge pages all is the same but slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = map.as_mut_ptr();
        Ok(Arc::new(Chunk { map, start }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zero_and_apart() {
        let sizes = [0, 1, 64, 4095, PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, HUGE_BYTES_MIN + 5];
        let mut pieces: Vec<Buffer> =
            sizes.iter().cycle().take(40).map(|b| Buffer::zeroed(*b, "a test").unwrap()).collect();
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.as_slice().len(), sizes[i % sizes.len()]);
            assert!(piece.as_slice().as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(piece.as_slice().iter().all(|b| *b == 0));
            piece.as_mut_slice().fill(i as u8 + 1);
        }
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.as_slice().iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn too_much_is_an_error_that_says_what_for() {
        let error = Buffer::zeroed(usize::MAX / 4, "tensor t").err().unwrap().to_string();
        assert!(error.contains("tensor t"), "{error}");
    }
}
