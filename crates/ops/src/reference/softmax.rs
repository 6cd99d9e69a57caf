//! The softmax of attention: scores of a row become weights page by page, relative to the highest score so far.
//!
//! A weight of an earlier page counts with the product of all later factors: the probability of score t of page i is
//! `weight[t] · factor[i + 1] · factor[i + 2] · … / total`. Nothing is rescaled but sums, and a page never has to be read twice.

use std::ops::Range;

use crate::{PAGE_TOKENS, math, numerics::sum};

/// What is known of a row after some pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// The highest score.
    pub highest: f32,
    /// The sum of weights relative to it.
    pub total: f32,
}

impl Softmax {
    /// What is known before the first page where there is a sink: a score whose weight is one.
    pub fn of_sink(sink: f32) -> Softmax {
        Softmax { highest: sink, total: 1.0 }
    }
}

/// Turns the scores of a page into weights; those that are not `visible` become zeros. `before` is what is known from a sink
/// and from earlier pages, none where there are neither. Gives what is known now, and the factor on earlier sums.
pub fn weigh_page(
    scores: &mut [f32; PAGE_TOKENS],
    visible: Range<usize>,
    before: Option<Softmax>,
    soft_cap: Option<f32>,
) -> (Softmax, f32) {
    let known = before.unwrap_or(Softmax { highest: f32::NEG_INFINITY, total: 0.0 });
    let mut highest = known.highest;
    for score in &mut scores[visible.clone()] {
        if let Some(cap) = soft_cap {
            *score = math::soft_cap(*score, cap);
        }
        if *score > highest {
            highest = *score;
        }
    }
    for (slot, score) in scores.iter_mut().enumerate() {
        *score = if visible.contains(&slot) { math::exp(*score - highest) } else { 0.0 };
    }
    let factor = before.map_or(0.0, |b| math::exp(b.highest - highest));
    (Softmax { highest, total: known.total.mul_add(factor, sum(scores)) }, factor)
}

/// What rows of scores have become: see [`weigh_rows`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weighed {
    /// (rows, pages) factors on the sums of earlier pages; 1 where a row sees nothing of a page.
    pub factors: Vec<f32>,
    /// (rows) sums of weights relative to the highest score; 0 where a row sees nothing and has no sink.
    pub totals: Vec<f32>,
}

/// Turns rows of scores (rows, pages · 64) into weights. Row r sees the scores `visible[r]`, and has the sink `sinks[r]` where
/// there are any.
pub fn weigh_rows(
    scores: &mut [f32],
    pages: usize,
    visible: &[Range<usize>],
    sinks: Option<&[f32]>,
    soft_cap: Option<f32>,
) -> Weighed {
    let mut weighed = Weighed::default();
    for (row, seen) in visible.iter().enumerate() {
        let mut state = sinks.map(|sinks| Softmax::of_sink(sinks[row]));
        for page in 0..pages {
            let first = page * PAGE_TOKENS;
            let slot = |at: usize| at.clamp(first, first + PAGE_TOKENS) - first;
            let (slots, at) = (slot(seen.start)..slot(seen.end), row * pages * PAGE_TOKENS + first);
            let scores: &mut [f32; PAGE_TOKENS] = scores[at..].first_chunk_mut().expect("rows are whole pages");
            if slots.is_empty() {
                scores.fill(0.0);
                weighed.factors.push(1.0);
                continue;
            }
            let (now, factor) = weigh_page(scores, slots, state, soft_cap);
            state = Some(now);
            weighed.factors.push(factor);
        }
        weighed.totals.push(state.map_or(0.0, |s| s.total));
    }
    weighed
}

/// A sum of weighted values as an output: divided by the sum of weights, and zero where there was nothing to weigh.
pub fn finish(sum: f32, total: f32) -> f32 {
    if total == 0.0 { 0.0 } else { sum / total }
}
