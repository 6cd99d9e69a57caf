//! What was computed, when, for which layer: a list that grows by one entry an op.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A layer (none outside of them) and a stage of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Index of the layer.
    pub layer: Option<usize>,
    /// Such as `q/k/v` or `head`.
    pub stage: &'static str,
}

/// One op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Where it belongs.
    pub label: Label,
    /// How long it took.
    pub time: Duration,
    /// Bytes read and written, each once: weights as the file holds them, activations in f32, keys and values as cached.
    pub bytes: u64,
    /// Additions and multiplications of projections and attention.
    pub operations: u64,
}

/// Which layer an op belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// That of the op before it.
    Here,
    /// To none.
    Outside,
    /// To that of its weights. So does a norm right before it.
    Of(Option<usize>),
}

/// What an op moves and computes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) bytes: usize,
    pub(super) operations: usize,
}

/// The entries since they were taken last.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    entries: Vec<Entry>,
    /// Of the op before.
    layer: Option<usize>,
    /// Entries whose time the device knows.
    marked: Vec<usize>,
}

impl Log {
    /// Runs an op and writes it down, with the caller's clock. What it moved and computed is counted when it is done.
    pub(super) fn time<T>(&self, place: Place, stage: &'static str, work: Work, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        let time = start.elapsed();
        let mut lines = self.lines();
        lines.layer = match place {
            Place::Here => lines.layer,
            Place::Outside => None,
            Place::Of(layer) => layer,
        };
        let layer = lines.layer;
        let before = lines.entries.last_mut().filter(|before| before.label.stage == super::NORM);
        if let (Place::Of(_), Some(norm)) = (place, before) {
            norm.label.layer = layer;
        }
        let Work { bytes, operations } = work;
        let label = Label { layer, stage };
        lines.entries.push(Entry { label, time, bytes: bytes as u64, operations: operations as u64 });
        result
    }

    /// The device knows the time of the last op.
    pub(super) fn mark(&self) {
        let mut lines = self.lines();
        if let Some(last) = lines.entries.len().checked_sub(1) {
            lines.marked.push(last);
        }
    }

    /// All entries; `times` are those of the marked ones.
    pub(super) fn take(&self, times: &[Duration]) -> Vec<Entry> {
        let mut lines = self.lines();
        let (mut entries, marked) = (std::mem::take(&mut lines.entries), std::mem::take(&mut lines.marked));
        for (index, time) in marked.into_iter().zip(times) {
            entries[index].time = *time;
        }
        entries
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // An entry is pushed whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_belongs_to_the_projection_that_it_is_for() {
        let log = Log::default();
        let ops = [
            (Place::Outside, "embed"),
            (Place::Here, super::super::NORM),
            (Place::Of(Some(0)), "q/k/v"),
            (Place::Here, super::super::NORM),
            (Place::Here, "residual"),
            (Place::Here, super::super::NORM),
            (Place::Of(Some(1)), "down"),
            (Place::Here, super::super::NORM),
            (Place::Of(None), "head"),
        ];
        for (place, stage) in ops {
            log.time(place, stage, Work::default(), || ());
        }
        let layers: Vec<_> = log.take(&[]).iter().map(|e| e.label.layer).collect();
        assert_eq!(layers, [None, Some(0), Some(0), Some(0), Some(0), Some(1), Some(1), None, None]);
        assert!(log.take(&[]).is_empty());
    }

    #[test]
    fn a_device_that_enqueues_tells_the_time_itself() {
        let log = Log::default();
        log.mark();
        for (stage, is_marked) in [("embed", true), ("rope", false), ("head", true)] {
            log.time(Place::Outside, stage, Work::default(), || ());
            if is_marked {
                log.mark();
            }
        }
        let times = [5, 7].map(Duration::from_secs);
        let entries = log.take(&times);
        assert_eq!([entries[0].time, entries[2].time], times);
        assert!(entries[1].time < Duration::from_secs(5));
    }
}
