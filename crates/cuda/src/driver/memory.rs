//! The card's memory: of steps, from a pool and back to it, and what stays.

use std::sync::{Arc, atomic::Ordering};

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use super::{Gpu, Inbox, lock, words};

/// Memory is taken in multiples of this.
const GRAIN: usize = 512;

/// Where launches run at once (`queue/order.rs`), what was given back is not given out again for so many of them, so that it stands between
/// none that could. Larger runs are, for they are many rows', and memory is full sooner.
const RESTING_LAUNCHES: u64 = 16;
const RESTING_BYTES_MAX: usize = 1 << 20;

/// What fills memory under audit: as f32, a NaN.
const POISON: u8 = 0xff;

/// A run of the card's memory.
pub(crate) struct Memory {
    pub(super) gpu: Arc<Gpu>,
    pub(super) pointer: sys::CUdeviceptr,
    pub(super) bytes: usize,
    home: Home,
}

/// Where memory goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// The pool of steps.
    Pool,
    /// The driver.
    Driver,
    /// What the host reads by itself.
    Inbox,
}

/// Memory of steps that nobody has.
#[derive(Clone, Copy)]
pub(super) struct Free {
    pointer: sys::CUdeviceptr,
    /// How many launches there were when it was given back.
    since: u64,
}

impl Gpu {
    /// Under audit memory is as long as what it holds, so that a tool which watches accesses sees every one behind the end.
    fn grain(&self) -> usize {
        if self.is_audited { 1 } else { GRAIN }
    }

    /// Memory of a step: from the pool, and back to it. Its contents are anything; under audit, NaN.
    pub(crate) fn take(self: &Arc<Gpu>, bytes: usize) -> Memory {
        let bytes = bytes.max(1).next_multiple_of(self.grain());
        let free = self.free_memory(bytes);
        let pointer = free.map_or_else(|| self.allocate(bytes), Ok).unwrap_or_else(|error| {
            let reason = if is_full(error) { format!("no room for {bytes} bytes") } else { words(error) };
            self.fail("take memory of a step", reason);
            0
        });
        let memory = Memory { gpu: self.clone(), pointer, bytes, home: Home::Pool };
        if self.is_audited {
            self.fill(&memory, POISON);
        }
        memory
    }

    /// Memory for so many numbers of 32 bits that kernels write and the host reads, and nobody else: the host's, where the card can write
    /// that, so that nothing has to be copied. Its contents are as those of [`Gpu::take`].
    pub(crate) fn take_answer(self: &Arc<Gpu>, numbers: usize) -> Memory {
        let bytes = numbers * size_of::<u32>();
        let Some((inbox, pointer)) = self.inbox.as_ref().and_then(|inbox| Some((inbox, inbox.room(bytes)?))) else {
            return self.take(bytes);
        };
        if self.is_audited {
            inbox.fill(pointer, POISON);
        }
        Memory { gpu: self.clone(), pointer, bytes, home: Home::Inbox }
    }

    /// Memory of the pool: of what has rested, the first in the card's memory. So a step that comes again has the same, whatever lay free
    /// in which order before it, and its launches are found to be those of a graph.
    fn free_memory(&self, bytes: usize) -> Option<sys::CUdeviceptr> {
        let launches = self.launches.load(Ordering::Relaxed);
        let mut free = lock(&self.free);
        let all = free.get_mut(&bytes)?;
        let must_rest = self.has_pairs() && bytes <= RESTING_BYTES_MAX;
        let has_rested = |f: &Free| !must_rest || launches - f.since >= RESTING_LAUNCHES;
        let rested = all.iter().enumerate().filter(|(_, f)| has_rested(f));
        let (first, _) = rested.min_by_key(|(_, f)| f.pointer)?;
        Some(all.swap_remove(first).pointer)
    }

    /// The host has waited for the card: all that was given back has rested.
    pub(super) fn wake_pool(&self) {
        self.launches.fetch_add(RESTING_LAUNCHES, Ordering::Relaxed);
    }

    /// Memory that stays: weights, caches. Under audit, NaN; else zeros.
    pub(crate) fn reserve(self: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Memory, Error> {
        let full = || Error::OutOfMemory { device: self.name.clone(), what: what.to_owned(), bytes };
        let bytes = bytes.max(1).checked_next_multiple_of(self.grain()).ok_or_else(full)?;
        let pointer = self.allocate(bytes).map_err(|e| if is_full(e) { full() } else { self.lost(words(e)) })?;
        let memory = Memory { gpu: self.clone(), pointer, bytes, home: Home::Driver };
        self.fill(&memory, if self.is_audited { POISON } else { 0 });
        Ok(memory)
    }

    /// Takes memory from the driver; where there is none, once more without what the pool holds.
    fn allocate(&self, bytes: usize) -> Result<sys::CUdeviceptr, result::DriverError> {
        self.bind();
        // SAFETY: what is given back is owned by the `Memory` made of it, or by the pool.
        let take = || unsafe { result::malloc_sync(bytes) };
        take().or_else(|_| {
            self.empty_pool();
            take()
        })
    }

    pub(super) fn empty_pool(&self) {
        self.flush();
        for free in lock(&self.free).drain().flat_map(|(_, free)| free) {
            // SAFETY: nothing else names the pool's memory, and the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(free.pointer) };
        }
    }

    /// Makes numbers of memory NaN, so that those which nobody writes show.
    pub(crate) fn poison(&self, memory: &Memory) {
        self.fill(memory, POISON);
    }

    pub(super) fn fill(&self, memory: &Memory, byte: u8) {
        if self.has_failed() {
            return;
        }
        self.flush();
        // SAFETY: the memory has as many bytes, and the stream is the one that all its users stand in.
        let filled = unsafe { result::memset_d8_async(memory.pointer, byte, memory.bytes, self.stream) };
        filled.unwrap_or_else(|e| self.fail("fill memory", words(e)));
    }
}

impl Memory {
    /// Whether the host reads it by itself.
    pub(super) fn is_answer(&self) -> bool {
        self.home == Home::Inbox
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.pointer == 0 {
            return;
        }
        match self.home {
            Home::Pool => {
                let free = Free { pointer: self.pointer, since: self.gpu.launches.load(Ordering::Relaxed) };
                lock(&self.gpu.free).entry(self.bytes).or_default().push(free);
            }
            Home::Driver => {
                self.gpu.flush();
                // SAFETY: this owns the memory, and the driver waits for work that uses it.
                let _ = unsafe { result::free_sync(self.pointer) };
            }
            Home::Inbox => self.gpu.inbox.iter().for_each(Inbox::give_back),
        }
    }
}

/// Whether memory is used up, rather than the card lost by what ran before.
fn is_full(error: result::DriverError) -> bool {
    error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
}
