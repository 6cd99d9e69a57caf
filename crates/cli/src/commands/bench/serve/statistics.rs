//! What many requests show together.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{client::Ending, load::Done};

/// The middle and the slow end of some times, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
}

impl Percentiles {
    /// By nearest rank; zeros where there is nothing.
    pub(super) fn of(mut times: Vec<f64>) -> Percentiles {
        times.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Percentiles { p50: rank(50), p95: rank(95), p99: rank(99) }
    }
}

/// A load in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) requests: usize,
    pub(super) whole: usize,
    pub(super) refused: usize,
    pub(super) failed: usize,
    /// Tokens of whole replies.
    pub(super) tokens: usize,
    /// From the first request's beginning to the last one's end.
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    /// From a request to its first piece of text.
    pub(super) first_seconds: Percentiles,
    /// From a piece of text to the next.
    pub(super) between_seconds: Percentiles,
    /// What went wrong first.
    pub(super) problem: Option<String>,
}

impl Summary {
    pub(super) fn of(all: &[Done]) -> Summary {
        let mut summary = Summary { requests: all.len(), ..Summary::default() };
        for done in all {
            match &done.outcome.ending {
                Ending::Whole { tokens, .. } => {
                    summary.whole += 1;
                    summary.tokens += tokens;
                }
                Ending::Cut => {}
                Ending::Refused(_) => summary.refused += 1,
                Ending::Failed(problem) => {
                    summary.failed += 1;
                    summary.problem.get_or_insert_with(|| problem.clone());
                }
            }
        }
        let began = all.iter().map(|d| d.outcome.began).min();
        let ended = all.iter().map(|d| d.outcome.ended).max();
        summary.seconds = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
        summary.tokens_per_second = if summary.seconds > 0.0 { summary.tokens as f64 / summary.seconds } else { 0.0 };
        summary.first_seconds = Percentiles::of(firsts(all));
        summary.between_seconds = Percentiles::of(gaps(all, |_| true));
        summary
    }
}

fn firsts(all: &[Done]) -> Vec<f64> {
    let first = |done: &Done| Some((*done.outcome.pieces.first()? - done.outcome.began).as_secs_f64());
    all.iter().filter_map(first).collect()
}

/// The times between pieces of text, of those pieces whose moment is wanted.
pub(super) fn gaps(all: &[Done], wanted: impl Fn(Instant) -> bool) -> Vec<f64> {
    let pairs = all.iter().flat_map(|done| done.outcome.pieces.windows(2));
    pairs.filter(|pair| wanted(pair[1])).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
}

/// For people: milliseconds.
pub(super) fn millis(seconds: f64) -> String {
    let millis = Duration::from_secs_f64(seconds).as_secs_f64() * 1e3;
    if millis < 100.0 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(Percentiles::of(vec![]), Percentiles::default());
        assert_eq!(Percentiles::of(vec![2.0]), Percentiles { p50: 2.0, p95: 2.0, p99: 2.0 });
        let hundred = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Percentiles::of(hundred), Percentiles { p50: 50.0, p95: 95.0, p99: 99.0 });
        let ten = (1..=10).map(f64::from).collect();
        assert_eq!(Percentiles::of(ten), Percentiles { p50: 5.0, p95: 10.0, p99: 10.0 });
    }
}
