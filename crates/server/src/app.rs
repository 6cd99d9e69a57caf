//! What all requests share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{Settings, catalog::Catalog, metrics::Metrics};

/// What all requests share.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
    /// No new requests are taken.
    pub(crate) closing: AtomicBool,
    /// Requests whose response is not sent to its end.
    open: Arc<AtomicUsize>,
}

impl App {
    pub(crate) fn new(settings: Settings, catalog: Arc<Catalog>) -> App {
        let metrics = Arc::new(Metrics::new(catalog.clone()));
        let (closing, open) = (AtomicBool::new(false), Arc::default());
        App { settings, catalog, metrics, started: Instant::now(), closing, open }
    }

    /// Counts a request until it is dropped.
    pub(crate) fn enter(&self) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        Open(self.open.clone())
    }

    /// Requests whose response is not sent to its end.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

/// A request that is not done.
pub(crate) struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A name that nobody else has: `prefix` and 24 digits.
pub(crate) fn fresh_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    let (high, low) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    format!("{prefix}{high:016x}{:08x}", low >> 32)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
