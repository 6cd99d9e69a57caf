//! What the engine tells of itself.

use std::{collections::VecDeque, time::Duration};

use super::SpeculationUse;
use crate::Finish;

/// The engine at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests that are computed.
    pub running: usize,
    /// Those of them whose prompt is not computed yet.
    pub prefilling: usize,
    /// Requests that wait, pre-empted ones too.
    pub waiting: usize,
    /// Pages of the cache, in all.
    pub pages: usize,
    /// Pages that sequences hold.
    pub pages_held: usize,
    /// Pages that nobody holds, with prefixes that may be wanted again. The rest is free.
    pub pages_cached: usize,
    /// Bytes of the cache, taken at the start.
    pub cache_bytes: usize,
    /// Rows of the last step.
    pub batch_rows: usize,
    /// Sequences in it.
    pub batch_sequences: usize,
    /// Tokens drawn in a second, over about the last second.
    pub tokens_per_second: f64,
    /// What happened since the start.
    pub counters: Counters,
}

/// What happened since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Steps of the model.
    pub steps: u64,
    /// Rows of these.
    pub rows: u64,
    /// Requests taken.
    pub submitted: u64,
    /// Tokens of the prompts of requests that were started.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub cached_tokens: u64,
    /// Tokens drawn.
    pub reply_tokens: u64,
    /// Requests whose pages were taken away, to be computed again.
    pub preemptions: u64,
    /// Requests that ended, by why, in the order of [`Counters::FINISHES`].
    pub finished: [u64; Counters::FINISHES.len()],
    /// Requests that failed.
    pub failed: u64,
    /// Guesses of all requests.
    pub speculation: SpeculationUse,
    /// Time of steps that only decoded and verified drafts.
    pub drafted_time: Duration,
    /// Time in which steps without drafts would have given the same tokens, by the times measured.
    pub undrafted_time: Duration,
}

impl Counters {
    /// Why requests end.
    pub const FINISHES: [Finish; 6] = [
        Finish::EndToken,
        Finish::StopString,
        Finish::Length,
        Finish::ContextFull,
        Finish::Cancelled,
        Finish::Deadline,
    ];

    /// How many times faster speculation made the steps that it was used in; none before the first.
    pub fn speculation_gain(&self) -> Option<f64> {
        let (without, with) = (self.undrafted_time.as_secs_f64(), self.drafted_time.as_secs_f64());
        (with > 0.0).then(|| without / with)
    }

    pub(super) fn finish(&mut self, why: Finish) {
        let index = Counters::FINISHES.iter().position(|f| *f == why).expect("all ends are listed");
        self.finished[index] += 1;
    }
}

/// Tokens over about the last second.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate {
    /// Times of steps, with the tokens drawn then.
    steps: VecDeque<(Duration, usize)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(1);

    pub(super) fn observe(&mut self, now: Duration, tokens: usize) {
        self.steps.push_back((now, tokens));
        // One step older than the window stays: tokens are counted from its end.
        while self.steps.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) > Rate::WINDOW) {
            self.steps.pop_front();
        }
    }

    /// Nothing is computed any more.
    pub(super) fn stop(&mut self) {
        self.steps.clear();
    }

    pub(super) fn per_second(&self) -> f64 {
        let (Some((first, _)), Some((last, _))) = (self.steps.front(), self.steps.back()) else { return 0.0 };
        let seconds = last.saturating_sub(*first).as_secs_f64();
        let tokens: usize = self.steps.iter().skip(1).map(|(_, tokens)| tokens).sum();
        if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
    }
}
