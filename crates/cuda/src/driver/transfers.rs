//! Numbers between the host and the card.

use cudarc::driver::result;
use tessera_ops::Error;

use super::{Arg, Args, Gpu, Memory, lock, pinned::PIECE_BYTES, words};
use crate::{kernels::Module, queue::RECEIVED_MAX, tensor::each};

/// Numbers that are all of their bits.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for f32 {}

/// The same as bytes.
fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no bytes between them, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// As `bytes_of`, to be written.
fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above; any bits are such a number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

impl Gpu {
    /// Copies numbers to memory of a step, behind all work so far. They have been read when this returns.
    pub(crate) fn send<T: Plain>(&self, memory: &Memory, values: &[T]) {
        if self.has_failed() || values.is_empty() {
            return;
        }
        assert!(size_of_val(values) <= memory.bytes, "what is sent fits");
        if self.send_by_launch(memory, bytes_of(values)) {
            return;
        }
        self.flush();
        // SAFETY: the memory has room; the driver has copied pageable memory when the call returns, so `values` may go.
        let sent = unsafe { result::memcpy_htod_async(memory.pointer, values, self.stream) };
        sent.unwrap_or_else(|e| self.fail("send numbers", words(e)));
    }

    /// The same, by a launch that fetches them, and that others may become one with; whether there was room.
    fn send_by_launch(&self, memory: &Memory, bytes: &[u8]) -> bool {
        let Some(outbox) = &self.outbox else { return false };
        // Held until it is launched, so that who waits meanwhile waits for it, or leaves it in its place.
        let mut outbox = lock(outbox);
        let Some(from) = outbox.put(bytes) else { return false };
        let mut args = Args::of([Arg::Memory(memory)]);
        args.extend([Arg::Null; RECEIVED_MAX - 1]);
        args.extend([Arg::U64(from as usize), Arg::U32(bytes.len() / size_of::<u32>())]);
        args.extend([Arg::U32(0); RECEIVED_MAX - 1]);
        self.launch(Module::Elementwise, "receive", each(bytes.len().div_ceil(PIECE_BYTES)), &args);
        true
    }

    /// Copies all of a memory to another of the same length, behind all work so far.
    pub(crate) fn copy(&self, from: &Memory, to: &Memory) {
        assert_eq!(from.bytes, to.bytes, "what is copied fits");
        if self.has_failed() {
            return;
        }
        self.flush();
        // SAFETY: both have as many bytes, and the stream is the one that all their users stand in.
        let copied = unsafe { result::memcpy_dtod_async(to.pointer, from.pointer, from.bytes, self.stream) };
        copied.unwrap_or_else(|e| self.fail("copy memory", words(e)));
    }

    /// Copies bytes into memory from `at` on, and waits.
    pub(crate) fn upload(&self, memory: &Memory, at: usize, bytes: &[u8]) -> Result<(), Error> {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= memory.bytes), "what is uploaded fits");
        self.flush();
        // SAFETY: the memory has room, and `bytes` live until the stream has been waited for.
        let sent = unsafe { result::memcpy_htod_async(memory.pointer + at as u64, bytes, self.stream) };
        sent.map_err(|e| self.lost(words(e)))?;
        self.wait()
    }

    /// Copies memory from byte `at` on to `out`, behind all work so far, and waits.
    pub(crate) fn download<T: Plain>(&self, memory: &Memory, at: usize, out: &mut [T]) -> Result<(), Error> {
        assert!(at.checked_add(size_of_val(out)).is_some_and(|end| end <= memory.bytes), "what is read is there");
        let (from, bytes) = (memory.pointer + at as u64, bytes_of_mut(out));
        self.flush();
        self.note_end();
        if let (Some(inbox), true) = (&self.inbox, memory.is_answer()) {
            return self.wait().map(|()| inbox.read(from, bytes));
        }
        if !bytes.is_empty() && !self.has_failed() {
            // SAFETY: the memory has as many bytes, any bits are a `T`, and `out` lives until the stream has been waited for.
            let got = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) };
            got.unwrap_or_else(|e| self.fail("run the step", words(e)));
        }
        self.wait()
    }

    /// Waits for all work.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let outbox = self.outbox.as_ref().map(lock);
        self.flush();
        // Nobody may send between both, or it would pass for read.
        let sent = outbox.map(|outbox| outbox.sent());
        // SAFETY: the stream lives as long as this.
        if let Err(error) = unsafe { result::stream::synchronize(self.stream) } {
            self.fail("run the step", words(error));
        }
        if let (Some(outbox), Some(sent)) = (&self.outbox, sent) {
            lock(outbox).read(sent);
        }
        lock(&self.queue).waited();
        self.wake_pool();
        self.failure.get().map_or(Ok(()), |reason| Err(self.lost(reason.clone())))
    }
}
