//! A pool of threads that starts work in well under a microsecond.
//!
//! A step of a model is some hundred small parallel regions, so a region must cost next to nothing. The caller takes
//! part; workers that have nothing to do spin for a short while, then yield, then sleep, so that an idle engine costs no
//! CPU. Work is cut into one *share* for each thread. A share is claimed by a compare-and-swap: normally by its own
//! thread, but a caller that has finished takes the shares whose threads have not come (asleep, or off the core
//! for another process). So results may not depend on which thread runs a share, only on its number.
//!
//! Given up: balancing inside a share. Shares are static, which keeps a weight's rows with one core.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    hint::spin_loop,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// A worker with nothing to do spins this long: longer than a step's ends, where a token is drawn. Whoever gives way to
/// another process may be without a core for milliseconds, which is many layers.
const SPIN: Duration = Duration::from_micros(200);
/// Then it gives way to others between looks until this long, and then sleeps.
const YIELD: Duration = Duration::from_micros(500);
/// A caller that waits for another's share spins this long, then sleeps.
const WAIT: Duration = Duration::from_micros(30);
/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// What a region runs: `(share, shares)`.
type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A pool of threads. Dropping it ends them.
pub struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// One region at a time.
    region: Mutex<()>,
}

/// Something that two cores write at once, on cache lines of its own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Counts regions; the low bit of nothing else. Written by the caller alone.
    epoch: Line<AtomicU64>,
    /// The region's job, written before `epoch` moves.
    job: UnsafeCell<Option<Job<'static>>>,
    /// For each share, the last epoch in which it was claimed.
    claimed: Vec<Line<AtomicU64>>,
    /// Shares done in this epoch.
    finished: Line<AtomicUsize>,
    /// For each worker (share - 1), whether it sleeps or is about to.
    asleep: Vec<Line<AtomicBool>>,
    /// The caller, where it sleeps until the last share is done.
    waiting: Mutex<Option<Thread>>,
    caller_asleep: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the caller alone, between regions: after all shares of the last epoch are finished and
// before the epoch moves. It is read only by a thread that has claimed a share of the current epoch, which keeps the caller
// from ending the region until that share is finished. The atomics order both.
unsafe impl Sync for Shared {}
// SAFETY: as above; all else in it is Send.
unsafe impl Send for Shared {}

thread_local! {
    /// Whether this thread is inside a region, where a second would wait for itself for ever.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The number of threads to use where the user says nothing: the cores this process may use.
pub fn default_thread_count() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

impl Threads {
    /// A pool of `count` threads, the caller among them.
    pub fn new(count: NonZero<usize>) -> Threads {
        let count = count.get();
        let line = |_| Line(AtomicU64::new(0));
        let shared = Arc::new(Shared {
            epoch: Line(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            claimed: (0..count).map(line).collect(),
            finished: Line(AtomicUsize::new(0)),
            asleep: (1..count).map(|_| Line(AtomicBool::new(false))).collect(),
            waiting: Mutex::new(None),
            caller_asleep: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let start = |share: usize| {
            let shared = shared.clone();
            let name = format!("tessera-cpu-{share}");
            thread::Builder::new().name(name).spawn(move || shared.work(share)).ok()
        };
        // A thread that the system refuses is no loss but of speed: the caller takes its shares.
        let handles = (1..count).filter_map(start).collect();
        Threads { shared, handles, region: Mutex::new(()) }
    }

    /// How many shares a region has.
    pub fn count(&self) -> usize {
        self.shared.claimed.len()
    }

    /// Runs `job(share, shares)` once for each share in `0..count()`, spread over the threads, and waits for all.
    ///
    /// # Panics
    /// If a share panicked (with its panic, after all have ended), or if called from inside a region.
    pub fn run(&self, job: Job<'_>) {
        if self.count() == 1 {
            return job(0, 1);
        }
        assert!(!INSIDE.replace(true), "a parallel region may not start another");
        let result = {
            let _region = lock(&self.region);
            self.shared.start(job, &self.handles);
            self.shared.run_share(0, self.shared.epoch.0.load(Ordering::Relaxed));
            self.shared.wait();
            lock(&self.shared.panic).take()
        };
        INSIDE.set(false);
        if let Some(payload) = result {
            resume_unwind(payload);
        }
    }

    /// Cuts `data` into runs of `unit` elements, gives each share a contiguous range of whole runs, and calls
    /// `job(index of the first run, runs)` for each share that has any. The last run may be short.
    pub fn run_chunks<T: Send>(&self, data: &mut [T], unit: usize, job: impl Fn(usize, &mut [T]) + Sync) {
        let units = data.len().div_ceil(unit);
        let length = data.len();
        let data = SharedSlice::new(data);
        self.run(&|share, shares| {
            let (from, to) = (units * share / shares, units * (share + 1) / shares);
            if from < to {
                // SAFETY: shares take disjoint ranges of the slice.
                let part = unsafe { data.range(from * unit, (to * unit).min(length)) };
                job(from, part);
            }
        });
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker cannot panic outside of shares, and those are caught.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Publishes a job and wakes who sleeps.
    fn start(&self, job: Job<'_>, handles: &[JoinHandle<()>]) {
        self.finished.0.store(0, Ordering::Relaxed);
        // SAFETY: no share of an earlier epoch is unfinished, so nobody reads `job` (see `Sync`). The longer lifetime is
        // never used: `run` returns only after every share of this epoch has finished.
        unsafe { *self.job.get() = Some(std::mem::transmute::<Job<'_>, Job<'static>>(job)) };
        let epoch = self.epoch.0.load(Ordering::Relaxed) + 1;
        self.epoch.0.store(epoch, Ordering::SeqCst);
        // Pairs with the fence in `sleep`: either the sleeper sees the epoch or we see that it sleeps.
        fence(Ordering::SeqCst);
        for (asleep, handle) in self.asleep.iter().zip(handles) {
            if asleep.0.load(Ordering::Relaxed) {
                handle.thread().unpark();
            }
        }
    }

    /// Runs a share of an epoch if nobody has claimed it, and it is still that epoch's turn.
    fn run_share(&self, share: usize, epoch: u64) {
        let claim = &self.claimed[share].0;
        if claim.compare_exchange(epoch - 1, epoch, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: the claim holds this epoch open until the share is finished (see `Sync`).
        let job = unsafe { *self.job.get() };
        if let Some(job) = job
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(share, self.claimed.len())))
        {
            lock(&self.panic).get_or_insert(payload);
        }
        let last = self.finished.0.fetch_add(1, Ordering::SeqCst) + 1 == self.claimed.len();
        if last
            && self.caller_asleep.load(Ordering::SeqCst)
            && let Some(caller) = lock(&self.waiting).as_ref()
        {
            caller.unpark();
        }
    }

    /// The caller: waits until all shares are done, taking those that nobody has begun.
    fn wait(&self) {
        let epoch = self.epoch.0.load(Ordering::Relaxed);
        let done = || self.finished.0.load(Ordering::Acquire) == self.claimed.len();
        for _ in 0..LOOKS {
            if done() {
                return;
            }
            spin_loop();
        }
        for share in 1..self.claimed.len() {
            self.run_share(share, epoch);
        }
        let start = Instant::now();
        while start.elapsed() < WAIT {
            for _ in 0..LOOKS {
                if done() {
                    return;
                }
                spin_loop();
            }
        }
        // Someone has been taken off its core in the middle of a share: leave ours to it.
        *lock(&self.waiting) = Some(thread::current());
        self.caller_asleep.store(true, Ordering::SeqCst);
        while self.finished.0.load(Ordering::SeqCst) != self.claimed.len() {
            thread::park();
        }
        self.caller_asleep.store(false, Ordering::SeqCst);
        lock(&self.waiting).take();
    }

    /// A worker's life.
    fn work(&self, share: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(share, seen) {
            seen = epoch;
            self.run_share(share, epoch);
        }
    }

    /// Waits for an epoch after `seen`; none when the pool ends.
    fn next_epoch(&self, share: usize, seen: u64) -> Option<u64> {
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let epoch = self.epoch.0.load(Ordering::Acquire);
                if epoch != seen {
                    return Some(epoch);
                }
                spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let waited = start.elapsed();
            if waited >= YIELD {
                self.sleep(share, seen);
            } else if waited >= SPIN {
                thread::yield_now();
            }
        }
    }

    /// Sleeps until the epoch is not `seen` or the pool ends.
    fn sleep(&self, share: usize, seen: u64) {
        let asleep = &self.asleep[share - 1].0;
        asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while self.epoch.0.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }
}

/// Locks a mutex whose data cannot be left half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mutable slice that the shares of a region write disjoint parts of.
pub struct SharedSlice<'a, T> {
    start: *mut T,
    length: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only through `range`, whose callers vouch for disjointness.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}
// SAFETY: it is a mutable slice.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Takes the slice for as long as the region runs.
    pub fn new(slice: &'a mut [T]) -> SharedSlice<'a, T> {
        SharedSlice { start: slice.as_mut_ptr(), length: slice.len(), borrow: std::marker::PhantomData }
    }

    /// Elements `from..to`.
    ///
    /// # Safety
    /// No two parts that are in use at once overlap.
    #[allow(clippy::mut_from_ref)] // disjointness is the caller's promise
    #[inline(always)]
    pub unsafe fn range(&self, from: usize, to: usize) -> &mut [T] {
        assert!(from <= to && to <= self.length, "a part reaches beyond its slice");
        // SAFETY: inside the slice, and disjoint from all other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), to - from) }
    }

    /// The slice's first element, for kernels that write by pointer.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: usize) -> Threads {
        Threads::new(NonZero::new(count).unwrap())
    }

    #[test]
    fn every_share_runs_once() {
        for count in [1, 2, 3, 8] {
            let pool = pool(count);
            for round in 0..2000 {
                let ran: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|share, shares| {
                    assert_eq!(shares, count);
                    ran[share].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|r| r.load(Ordering::Relaxed) == 1), "round {round}");
            }
        }
    }

    #[test]
    fn sleepers_wake() {
        let pool = pool(3);
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(1));
            let sum = AtomicUsize::new(0);
            pool.run(&|share, _| {
                thread::sleep(Duration::from_millis(1));
                sum.fetch_add(share + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 6);
        }
    }

    #[test]
    fn chunks_cover_the_data_once() {
        let pool = pool(3);
        for length in [0usize, 1, 6, 7, 8, 100] {
            let mut data = vec![0usize; length];
            pool.run_chunks(&mut data, 7, |first, part| {
                for (i, v) in part.iter_mut().enumerate() {
                    *v += first * 7 + i + 1;
                }
            });
            assert!(data.iter().enumerate().all(|(i, v)| *v == i + 1), "{length}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = pool(2);
        for guilty in [0, 1] {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|share, _| assert_ne!(share, guilty, "guilty"))));
            assert!(caught.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(&|share, _| {
            sum.fetch_add(share + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3);
    }

    #[test]
    fn a_region_in_a_region_is_refused() {
        let pool = pool(2);
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&|_, _| pool.run(&|_, _| {})))).is_err());
        pool.run(&|_, _| {});
    }

    #[test]
    fn several_callers_take_turns() {
        let pool = pool(2);
        let total = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(&|_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 1200);
    }
}
