//! When each kernel had its turn, as kernels note it themselves (`kernels/timeline.cuh`): in graphs and started early, as in any step.

use std::{ffi::CString, time::Duration};

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use super::{Gpu, words};

/// Turns that there is room for.
pub(super) const TURNS_MAX: usize = 1 << 16;

/// Numbers of a turn: its time in nanoseconds, and sixteen letters of the kernel's name.
const TURN_NUMBERS: usize = 3;

/// The kernel that stands behind the last one of a step.
const END: &str = "spin";

/// Memory that kernels write their turns to: a count, and as many turns, `TURNS_MAX` at most.
pub(super) struct Timeline(sys::CUdeviceptr);

impl Timeline {
    /// Takes the memory, in the current context.
    pub(super) fn take() -> Result<Timeline, result::DriverError> {
        // SAFETY: a context is current; the memory is given back by `free`.
        let pointer = unsafe { result::malloc_sync((1 + TURNS_MAX * TURN_NUMBERS) * size_of::<u64>())? };
        let timeline = Timeline(pointer);
        timeline.clear()?;
        Ok(timeline)
    }

    /// Tells a module's kernels where it is.
    pub(super) fn show_to(&self, module: sys::CUmodule) -> Result<(), result::DriverError> {
        let name = CString::from(c"timeline");
        // SAFETY: the module is loaded, and its symbol is one pointer.
        unsafe {
            let (symbol, bytes) = result::module::get_global(module, name)?;
            assert_eq!(bytes, size_of::<sys::CUdeviceptr>(), "a kernel's timeline is a pointer");
            result::memcpy_htod_sync(symbol, &[self.0])
        }
    }

    fn clear(&self) -> Result<(), result::DriverError> {
        // SAFETY: the memory begins with its count.
        unsafe { result::memcpy_htod_sync(self.0, &[0u64]) }
    }

    /// All turns so far. No kernel runs.
    fn read(&self) -> Result<Vec<[u64; TURN_NUMBERS]>, result::DriverError> {
        let mut count = [0u64];
        // SAFETY: the memory begins with its count.
        unsafe { result::memcpy_dtoh_sync(&mut count, self.0)? };
        let mut turns = vec![0u64; TURN_NUMBERS * (count[0] as usize).min(TURNS_MAX)];
        if !turns.is_empty() {
            // SAFETY: behind the count there is room for so many turns.
            unsafe { result::memcpy_dtoh_sync(&mut turns, self.0 + size_of::<u64>() as u64)? };
        }
        Ok(turns.as_chunks().0.to_vec())
    }

    /// Gives the memory back.
    pub(super) fn free(self) {
        // SAFETY: `take` made it, and no kernel is left that knows of it.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

impl Gpu {
    /// Each kernel that runs in `work`, and the time from its turn to the next one's; none without a timeline.
    pub(crate) fn turns(&self, work: impl FnOnce()) -> Result<Vec<(String, Duration)>, Error> {
        self.wait()?;
        let Some(timeline) = &self.timeline else {
            work();
            return Ok(vec![]);
        };
        timeline.clear().map_err(|e| self.lost(words(e)))?;
        work();
        self.wait()?;
        let turns = timeline.read().map_err(|e| self.lost(words(e)))?;
        let time = |pair: &[[u64; TURN_NUMBERS]]| Duration::from_nanos(pair[1][0].saturating_sub(pair[0][0]));
        Ok(turns.windows(2).map(|pair| (kernel(pair[0]), time(pair))).collect())
    }

    /// Lets a kernel that does nothing tell when a step has ended, where turns are noted.
    pub(super) fn note_end(&self) {
        if self.timeline.is_some()
            && let Some(end) = self.spin(0)
        {
            self.enqueue(&end, false);
        }
    }
}

/// The kernel of a turn; between the end of a step and the next kernel it is the host.
fn kernel(turn: [u64; TURN_NUMBERS]) -> String {
    let letters = [turn[1].to_le_bytes(), turn[2].to_le_bytes()].concat();
    let name = String::from_utf8_lossy(&letters).trim_end_matches('\0').to_owned();
    if name == END { "host".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_their_letters() {
        let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
        assert_eq!(kernel([7, word(b"latent_s"), word(b"pans\0\0\0\0")]), "latent_spans");
        assert_eq!(kernel([7, word(b"spin\0\0\0\0"), 0]), "host");
    }
}
