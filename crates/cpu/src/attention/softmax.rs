//! The softmax over a row's pages, one page after another: scores become weights, relative to the highest score so far.

use std::ops::Range;

use crate::{
    gate::soft_cap_lanes,
    simd::{LANES, Simd},
};

/// What is known of a row and a query head after some pages.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// The highest score.
    pub(super) highest: f32,
    /// The sum of weights relative to it.
    pub(super) total: f32,
}

impl Softmax {
    /// What is known before the first page where the head has a sink.
    pub(super) fn of_sink(sink: f32) -> Softmax {
        Softmax { highest: sink, total: 1.0 }
    }
}

/// Turns the scores of a page (64) into weights, of which `slots` are visible. `before` is what is known from earlier pages and
/// the sink, none at the first page without a sink. Gives what is known now, and the factor on sums from earlier pages.
#[inline(always)]
pub(super) fn weigh_page<S: Simd>(
    simd: S,
    scores: &mut [f32],
    slots: Range<usize>,
    before: Option<Softmax>,
    soft_cap: Option<f32>,
) -> (Softmax, f32) {
    let first = slots.start / LANES;
    let weights = &mut scores.as_chunks_mut::<LANES>().0[first..slots.end.div_ceil(LANES)];
    let start = first * LANES;
    let mut lanes = simd.splat(f32::NEG_INFINITY);
    for (i, scores) in weights.iter_mut().enumerate() {
        if let Some(cap) = soft_cap {
            let capped = soft_cap_lanes(simd, simd.load(scores), cap);
            simd.store(scores, capped);
        }
        let base = start + i * LANES;
        if base < slots.start || base + LANES > slots.end {
            for (lane, score) in scores.iter_mut().enumerate() {
                if !slots.contains(&(base + lane)) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        // A score that is NaN is not above the lane's maximum, which stays.
        lanes = simd.max(simd.load(scores), lanes);
    }
    let known = before.unwrap_or(Softmax { highest: f32::NEG_INFINITY, total: 0.0 });
    let page_highest = simd.max_lanes(lanes);
    let highest = if page_highest > known.highest { page_highest } else { known.highest };

    let mut sums = simd.splat(0.0);
    for scores in weights.iter_mut() {
        // Slots put out weigh exp(-inf) = 0 (or NaN where all is lost already).
        let weight = simd.exp(simd.sub(simd.load(scores), simd.splat(highest)));
        simd.store(scores, weight);
        sums = simd.add(sums, weight);
    }
    let keep = if before.is_none() {
        0.0
    } else {
        let mut lanes = [0.0; LANES];
        simd.store(&mut lanes, simd.exp(simd.splat(known.highest - highest)));
        lanes[0]
    };
    (Softmax { highest, total: known.total.mul_add(keep, simd.add_lanes(sums)) }, keep)
}
