//! Memory of the host's that the card reads and writes by itself: what is sent to a step, and what a step answers. A copy of a few
//! numbers by the driver takes the host some microseconds, and a turn of the stream.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{result, sys};

/// What is sent between two waits, at most; and of it at once. More goes by the driver, which copies it in the meantime.
const OUTBOX_BYTES: usize = 1 << 20;
const SEND_BYTES_MAX: usize = 256 << 10;

/// An answer, at most: of 128 rows the 128 likeliest tokens.
const INBOX_BYTES: usize = 128 << 10;

/// What is sent begins at a multiple of this: what a thread of `receive` takes.
pub(crate) const PIECE_BYTES: usize = 16;

/// Memory of the host's, and where the card finds it.
struct Pinned {
    host: *mut u8,
    device: sys::CUdeviceptr,
}

// SAFETY: memory of this alone, which is read and written by way of `Outbox` and `Inbox` only.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Takes memory, in the current context; none where the driver refuses.
    fn take(bytes: usize) -> Option<Pinned> {
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: a context is current; what is taken is let go of when this is dropped.
        let host = unsafe { result::malloc_host(bytes, flags) }.ok()?;
        let mut pinned = Pinned { host: host.cast(), device: 0 };
        // SAFETY: the memory was taken to be seen by the card; the address is written.
        let seen = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut pinned.device, host, 0) };
        (seen == sys::CUresult::CUDA_SUCCESS).then_some(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: `take` made it, and no work is left that knows of it. A failure changes nothing any more.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}

/// What is on its way to steps. The card has read it by the time that the host has waited for it; until then nothing is written over.
pub(super) struct Outbox {
    pinned: Pinned,
    room: Room,
}

impl Outbox {
    pub(super) fn take() -> Option<Outbox> {
        let pinned = Pinned::take(OUTBOX_BYTES)?;
        Some(Outbox { pinned, room: Room::default() })
    }

    /// Keeps numbers of 32 bits until the card has read them, and gives the address that it reads them at; none where there is no room.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Option<sys::CUdeviceptr> {
        let at = self.room.take(bytes.len())?;
        // SAFETY: the memory has room from `at` on, which no work that is on its way reads.
        unsafe { self.pinned.host.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(self.pinned.device + at as u64)
    }

    /// How much was sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.room.sent
    }

    /// The card has read what was the last at that time.
    pub(super) fn read(&mut self, sent: u64) {
        self.room.read(sent);
    }
}

/// The room that is left.
#[derive(Debug, Default)]
struct Room {
    used: usize,
    /// How often some was taken.
    sent: u64,
}

impl Room {
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (at, end) = (self.used, self.used + bytes.next_multiple_of(PIECE_BYTES));
        let fits = bytes <= SEND_BYTES_MAX && bytes.is_multiple_of(size_of::<u32>()) && end <= OUTBOX_BYTES;
        fits.then(|| {
            (self.used, self.sent) = (end, self.sent + 1);
            at
        })
    }

    /// Nobody needs what was taken until then.
    fn read(&mut self, sent: u64) {
        // Another thread's may be on its way meanwhile.
        if sent == self.sent {
            self.used = 0;
        }
    }
}

/// Where a step's answer comes to. One answer at a time.
pub(super) struct Inbox {
    pinned: Pinned,
    is_taken: AtomicBool,
}

impl Inbox {
    pub(super) fn take() -> Option<Inbox> {
        let pinned = Pinned::take(INBOX_BYTES)?;
        Some(Inbox { pinned, is_taken: AtomicBool::new(false) })
    }

    /// Room for so many bytes of an answer, which is the caller's until [`Inbox::give_back`]. It ends where the memory does, so that who
    /// writes behind it is seen.
    pub(super) fn room(&self, bytes: usize) -> Option<sys::CUdeviceptr> {
        let can = bytes <= INBOX_BYTES && !self.is_taken.swap(true, Ordering::Acquire);
        can.then(|| self.pinned.device + (INBOX_BYTES - bytes) as u64)
    }

    /// Makes an answer NaN, before anybody writes it.
    pub(super) fn fill(&self, pointer: sys::CUdeviceptr, byte: u8) {
        let at = (pointer - self.pinned.device) as usize;
        // SAFETY: the memory ends there, and no work that is on its way writes it.
        unsafe { self.pinned.host.add(at).write_bytes(byte, INBOX_BYTES - at) };
    }

    /// Copies what the card has written from an address on. The host has waited for the card.
    pub(super) fn read(&self, pointer: sys::CUdeviceptr, out: &mut [u8]) {
        let at = (pointer - self.pinned.device) as usize;
        assert!(at + out.len() <= INBOX_BYTES, "what is read is there");
        // SAFETY: the memory has so many bytes, and no work is left that writes them.
        unsafe { self.pinned.host.add(at).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
    }

    pub(super) fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_out_until_it_is_full_and_again_once_it_was_read() {
        let mut room = Room::default();
        assert_eq!([room.take(40), room.take(4), room.take(16)], [Some(0), Some(48), Some(64)]);
        assert_eq!([room.take(SEND_BYTES_MAX + 4), room.take(6)], [None; 2], "too much at once, and no whole numbers");
        // What another thread has sent since then is still to be read.
        let sent = room.sent;
        assert_eq!(room.take(4), Some(80));
        room.read(sent);
        assert_eq!(room.take(4), Some(96));
        room.read(room.sent);
        assert_eq!(room.take(8), Some(0));
        let taken: Vec<_> = std::iter::from_fn(|| room.take(SEND_BYTES_MAX)).collect();
        assert_eq!(taken.len(), (OUTBOX_BYTES - PIECE_BYTES) / SEND_BYTES_MAX);
        assert_eq!(taken.last(), Some(&(PIECE_BYTES + (taken.len() - 1) * SEND_BYTES_MAX)));
        room.read(room.sent);
        assert_eq!(room.take(8), Some(0));
    }
}
