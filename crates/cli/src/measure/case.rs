//! One width of a subject: computed once with care, and then as often as a measurement wants.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Subject,
    times::{self, Hash},
};
use crate::device::Chosen;

/// How much is spent on a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// A measurement is at least this long, so that the clock does not matter.
    pub(crate) seconds: f64,
    /// Turns at most, where a subject has more.
    pub(crate) turns_max: usize,
    /// Tokens of a width that are computed alone as well.
    pub(crate) alone_max: usize,
}

/// A width of a subject.
pub(crate) struct Case {
    pub(crate) width: usize,
    turns: usize,
    /// Turns of a measurement: all of them, some times.
    count: usize,
    pub(crate) hash: Hash,
}

impl Case {
    /// Computes all turns once, and some tokens alone.
    ///
    /// # Errors
    /// If a token alone has other bits.
    pub(crate) fn new(subject: &dyn Subject, device: &Chosen, width: usize, effort: &Effort) -> Result<Case> {
        let turns = subject.turns(width).min(effort.turns_max).max(1);
        let start = Instant::now();
        for turn in 0..turns - 1 {
            subject.run(device, width, turn);
        }
        let last = subject.run(device, width, turns - 1);
        let seconds = start.elapsed().as_secs_f64();
        let alone = effort.alone_max.min(width);
        for token in (0..width).step_by(width.div_ceil(alone.max(1))).take(alone) {
            let alone = subject.alone(device, width, turns - 1, token);
            let row = last.row(token);
            let (expected, found) = (Hash::of_floats([alone.as_slice()]), Hash::of_floats([row]));
            times::check(&format!("token {token} in a width of {width}"), &expected, &found)?;
        }
        let count = turns * ((effort.seconds / seconds) as usize + 1);
        Ok(Case { width, turns, count, hash: Hash::of_floats([last.as_slice()]) })
    }

    /// The mean time of a turn.
    ///
    /// # Errors
    /// If the result has other bits than at first; `what` names the measurement.
    pub(crate) fn measure(&self, subject: &dyn Subject, device: &Chosen, what: &str) -> Result<Duration> {
        subject.run(device, self.width, self.turns - 1); // wakes the threads
        let start = Instant::now();
        for turn in 0..self.count - 1 {
            subject.run(device, self.width, turn % self.turns);
        }
        let last = subject.run(device, self.width, self.turns - 1);
        let time = start.elapsed();
        times::check(what, &self.hash, &Hash::of_floats([last.as_slice()]))?;
        Ok(time.div_f64(self.count as f64))
    }
}
