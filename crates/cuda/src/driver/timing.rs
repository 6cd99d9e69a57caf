//! Time as the card counts it: of a run of work, and of stages.
//!
//! Stages are timed by events between launches. So that the card never waits for the host meanwhile, a window of launches is held up by
//! a kernel that spins until all of them are there; what lies between windows is not counted.

use std::time::Duration;

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use super::{Arg, Gpu, lock, words};
use crate::{kernels::Module, queue::Call, tensor::blocks};

/// How long the host takes at most to enqueue a launch and an event.
const SPIN_NANOSECONDS: usize = 12_000;

/// What was timed, until someone asks.
#[derive(Debug, Default)]
pub(super) struct Timing {
    segments: Vec<Segment>,
}

// SAFETY: events are handles that the driver lets any thread use.
unsafe impl Send for Timing {}

/// Between two neighbouring events of a window.
#[derive(Debug)]
struct Segment {
    from: sys::CUevent,
    to: sys::CUevent,
    /// Whether a stage ends with it.
    ends: bool,
}

impl Gpu {
    /// Microseconds that the card takes for what `work` enqueues.
    pub(crate) fn time(&self, work: impl FnOnce()) -> Result<f64, Error> {
        self.wait()?;
        let (start, end) = (self.event()?, self.event()?);
        self.record(start);
        work();
        self.flush();
        self.record(end);
        self.wait()?;
        let time = self.between(start, end);
        [start, end].into_iter().for_each(destroy);
        Ok(time?.as_secs_f64() * 1e6)
    }

    /// A stage ends here. From the first time on stages are timed, and graphs are not used, until [`Gpu::stages`] is called.
    pub(crate) fn mark(&self) {
        if lock(&self.timing).is_none() {
            self.flush();
            *lock(&self.timing) = Some(Timing::default());
        }
        lock(&self.queue).mark();
    }

    /// The time of each stage, and no more are timed.
    pub(crate) fn stages(&self) -> Result<Vec<Duration>, Error> {
        let waited = self.wait();
        let Some(Timing { segments, .. }) = lock(&self.timing).take() else { return Ok(vec![]) };
        let (mut stages, mut sum) = (vec![], Duration::ZERO);
        let mut failed = waited.err();
        // A window's segments share events.
        let mut events: Vec<sys::CUevent> = vec![];
        for Segment { from, to, ends } in segments {
            match self.between(from, to) {
                Ok(time) => sum += time,
                Err(error) => failed = failed.or(Some(error)),
            }
            if ends {
                stages.push(std::mem::take(&mut sum));
            }
            events.extend([from, to]);
        }
        events.sort_unstable();
        events.dedup();
        events.into_iter().for_each(destroy);
        failed.map_or(Ok(stages), Err)
    }

    /// Enqueues launches, with events where stages end: behind so many of them as `marks` say.
    pub(super) fn send_timed(&self, calls: &[Call], marks: &[usize], timing: &mut Timing) {
        if calls.is_empty() && marks.is_empty() {
            return;
        }
        if let Some(spin) = self.spin(calls.len()) {
            self.enqueue(&spin, false);
        }
        let mut from = self.recorded();
        let mut segment = |ends| {
            if let (Some(start), Some(end)) = (from, self.recorded()) {
                timing.segments.push(Segment { from: start, to: end, ends });
                from = Some(end);
            }
        };
        let mut marks = marks.iter().copied().peekable();
        for behind in 0..=calls.len() {
            while marks.next_if_eq(&behind).is_some() {
                segment(true);
            }
            let Some(call) = calls.get(behind) else { break };
            self.enqueue(call, false);
        }
        // What follows the last mark belongs to a stage that ends in another window.
        segment(false);
    }

    /// What holds the card up until so many launches are there.
    pub(super) fn spin(&self, launches: usize) -> Option<Call> {
        let launch = blocks([1, 1, 1], 1);
        self.call(Module::Elementwise, "spin", launch, &[Arg::U64(launches * SPIN_NANOSECONDS)])
    }

    fn event(&self) -> Result<sys::CUevent, Error> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| self.lost(words(e)))
    }

    fn record(&self, event: sys::CUevent) {
        // SAFETY: event and stream are alive.
        let recorded = unsafe { result::event::record(event, self.stream) };
        recorded.unwrap_or_else(|e| self.fail("record an event", words(e)));
    }

    /// An event that stands in the stream from now on.
    fn recorded(&self) -> Option<sys::CUevent> {
        match self.event() {
            Ok(event) => {
                self.record(event);
                Some(event)
            }
            Err(error) => {
                self.fail("make an event", error);
                None
            }
        }
    }

    /// The time between two events that were recorded and waited for.
    fn between(&self, from: sys::CUevent, to: sys::CUevent) -> Result<Duration, Error> {
        // SAFETY: both events are alive.
        let milliseconds = unsafe { result::event::elapsed(from, to) }.map_err(|e| self.lost(words(e)))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

fn destroy(event: sys::CUevent) {
    // SAFETY: the event was made here, and is let go of once.
    let _ = unsafe { result::event::destroy(event) };
}
