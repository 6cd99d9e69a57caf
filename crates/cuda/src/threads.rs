//! How many threads the processor has for us.

use std::{num::NonZero, sync::OnceLock, thread};

/// The most that run at once. Asked once: the system reads files to tell, for tens of microseconds.
pub(crate) fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}
