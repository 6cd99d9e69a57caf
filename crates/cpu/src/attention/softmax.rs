//! The softmax over a row's pages, one page after another: scores become weights, relative to the highest score so far.

use std::ops::Range;

use tessera_ops::{PAGE_TOKENS, reference::softmax::Softmax};

use crate::{
    gate::soft_cap_lanes,
    lanes::{load, store},
    simd::{LANES, Simd},
};

/// What is known of a row and a query head before any page: from its sink, or nothing.
pub(super) fn begin(sink: Option<f32>) -> Softmax {
    sink.map_or(Softmax { highest: f32::NEG_INFINITY, total: 0.0 }, Softmax::of_sink)
}

/// Turns a row of scores (pages · 64), of which those in `visible` are seen, into weights, as
/// [`weigh_rows`](tessera_ops::reference::softmax::weigh_rows); what is not seen may become anything. `before` is what is known
/// from earlier pages. Writes the factor of each page on earlier sums, and gives what is known then.
#[inline(always)]
pub(super) fn weigh_row<S: Simd>(
    simd: S,
    scores: &mut [f32],
    factors: &mut [f32],
    visible: &Range<usize>,
    before: Softmax,
    soft_cap: Option<f32>,
) -> Softmax {
    let mut state = before;
    for (page, (scores, factor)) in scores.chunks_exact_mut(PAGE_TOKENS).zip(factors).enumerate() {
        let first = page * PAGE_TOKENS;
        let slot = |at: usize| at.clamp(first, first + PAGE_TOKENS) - first;
        let slots = slot(visible.start)..slot(visible.end);
        if slots.is_empty() {
            *factor = 1.0;
            continue;
        }
        // A sum of weights of nothing is zero, and of anything at least one (or NaN).
        (state, *factor) = weigh_page(simd, scores, slots, (state.total != 0.0).then_some(state), soft_cap);
    }
    state
}

/// Sums of weighted values as outputs: divided by the sum of weights, and zeros where there was nothing to weigh.
#[inline(always)]
pub(super) fn finish<S: Simd>(simd: S, sums: &[f32], total: f32, out: &mut [f32]) {
    let divisor = simd.splat(total);
    for (o, sum) in out.chunks_mut(LANES).zip(sums.chunks(LANES)) {
        let y = if total == 0.0 { simd.splat(0.0) } else { simd.div(load(simd, sum), divisor) };
        store(simd, o, y);
    }
}

/// Turns the scores of a page (64) into weights, of which `slots` are visible. `before` is what is known from earlier pages and
/// the sink, none at the first page without a sink. Gives what is known now, and the factor on sums from earlier pages.
#[inline(always)]
fn weigh_page<S: Simd>(
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_ops::reference::softmax;

    use super::*;
    use crate::isa::{Isa, Kernel};

    struct WeighRow<'a>(&'a mut [f32], &'a mut [f32], Range<usize>, Softmax, Option<f32>);

    impl Kernel for WeighRow<'_> {
        type Output = Softmax;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Softmax {
            weigh_row(simd, self.0, self.1, &self.2, self.3, self.4)
        }
    }

    struct Finish<'a>(&'a [f32], f32, &'a mut [f32]);

    impl Kernel for Finish<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            finish(simd, self.0, self.1, self.2);
        }
    }

    fn bits(x: f32) -> u32 {
        if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
    }

    proptest! {
        #[test]
        fn rows_have_the_reference_s_bits(
            scores in prop::collection::vec(-30f32..30.0, 64..=256),
            ends in (0usize..256, 0usize..=256),
            sink in prop::option::of(-20f32..40.0),
            soft_cap in prop::option::of(1f32..50.0),
            odd in prop::option::of((0usize..256, prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]))),
        ) {
            let pages = scores.len() / PAGE_TOKENS;
            let mut scores = scores[..pages * PAGE_TOKENS].to_vec();
            if let Some((at, odd)) = odd {
                let count = scores.len();
                scores[at % count] = odd;
            }
            let visible = ends.0.min(ends.1)..ends.1;
            let mut want = scores.clone();
            let sinks = sink.map(|s| [s]);
            let ranges = std::slice::from_ref(&visible);
            let weighed = softmax::weigh_rows(&mut want, pages, ranges, sinks.as_ref().map(|s| &s[..]), soft_cap);
            for isa in Isa::available() {
                let (mut got, mut factors) = (scores.clone(), vec![f32::NAN; pages]);
                let state = isa.run(WeighRow(&mut got, &mut factors, visible.clone(), begin(sink), soft_cap));
                prop_assert_eq!(bits(state.total), bits(weighed.totals[0]));
                prop_assert!(factors.iter().zip(&weighed.factors).all(|(g, w)| bits(*g) == bits(*w)));
                for at in visible.clone().filter(|at| *at < scores.len()) {
                    prop_assert_eq!(bits(got[at]), bits(want[at]), "{} {}", at, isa.name());
                }
            }
        }
    }

    #[test]
    fn a_row_that_sees_nothing_gives_zeros() {
        for isa in Isa::available() {
            let (mut scores, mut factors) = ([f32::NAN; 2 * PAGE_TOKENS], [f32::NAN; 2]);
            let state = isa.run(WeighRow(&mut scores, &mut factors, 64..64, begin(None), None));
            assert_eq!((state.total, factors), (0.0, [1.0; 2]));
            for (total, want) in [(0.0, 0.0), (2.0, 1.5)] {
                let mut out = [f32::NAN; 21];
                isa.run(Finish(&[3.0; 21], total, &mut out));
                assert_eq!(out, [want; 21], "{}", isa.name());
            }
        }
    }
}
