//! Large zeroed memory on pages of its own, huge ones where the system has them: weights are read end to end at every
//! step, and small pages would cost a walk of the page tables every 4 KiB.

use memmap2::MmapMut;
use tessera_ops::Error;

/// From this size on huge pages are asked for.
const HUGE_BYTES_MIN: usize = 2 << 20;

/// Bytes, zero at first, that start on a page.
pub struct Buffer(MmapMut);

impl Buffer {
    /// `bytes` zero bytes for `what` (named in the error).
    ///
    /// # Errors
    /// The system has no room.
    pub fn zeroed(bytes: usize, what: &str) -> Result<Buffer, Error> {
        // A map of nothing is refused by some systems.
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|_| Error::OutOfMemory {
            device: "CPU".to_owned(),
            what: what.to_owned(),
            bytes,
        })?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_BYTES_MIN {
            // A wish: without huge pages all is the same but slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Buffer(map))
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_starts_on_a_page_and_is_zero() {
        for bytes in [0, 1, 4096, HUGE_BYTES_MIN + 5] {
            let mut buffer = Buffer::zeroed(bytes, "a test").unwrap();
            assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(4096));
            assert!(buffer.as_slice().len() >= bytes && buffer.as_slice().iter().all(|b| *b == 0));
            buffer.as_mut_slice().fill(1);
        }
    }

    #[test]
    fn too_much_is_an_error_that_says_what_for() {
        let error = Buffer::zeroed(usize::MAX / 4, "tensor t").err().unwrap().to_string();
        assert!(error.contains("tensor t"), "{error}");
    }
}
