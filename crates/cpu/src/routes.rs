//! Routing on the CPU: scores, the choice of experts, the segment table that follows from it, and the sum on the way back.

use std::sync::{Arc, Mutex, PoisonError};

use tessera_ops::{Routing, Score, math, routing::choose};

use crate::{
    isa::Kernel,
    lanes::{AddScaled, Workers, load, map_lanes, store},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

/// Lists that serve one step after another.
#[derive(Default)]
struct Lists {
    experts: Vec<u32>,
    weights: Vec<f32>,
    starts: Vec<u32>,
    places: Vec<u32>,
}

/// The free lists of a device.
pub struct RoutesPool {
    free: Mutex<Vec<Lists>>,
}

impl RoutesPool {
    /// An empty pool.
    pub fn new() -> Arc<RoutesPool> {
        Arc::new(RoutesPool { free: Mutex::new(Vec::new()) })
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, Vec<Lists>> {
        // A push or a pop cannot be left half done.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which experts each token goes to, with what weights; and for each expert the *places* `token * slots + slot` that came
/// to it, ascending. All places are there, each once.
pub struct Routes {
    slots: usize,
    lists: Lists,
    pool: Arc<RoutesPool>,
}

impl Routes {
    /// Routes to `experts` experts, from (tokens, slots) of expert ids and weights.
    ///
    /// # Panics
    /// If these are not whole tokens, or an expert does not exist.
    pub fn new(experts: usize, slots: usize, ids: &[u32], weights: &[f32]) -> Routes {
        assert!(slots > 0 && ids.len().is_multiple_of(slots) && ids.len() == weights.len(), "routes are whole tokens");
        let lists = Lists { experts: ids.to_vec(), weights: weights.to_vec(), ..Lists::default() };
        let mut routes = Routes { slots, lists, pool: RoutesPool::new() };
        routes.sort(experts);
        routes
    }

    /// Experts of a token.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// (tokens, slots) expert ids.
    pub fn experts(&self) -> &[u32] {
        &self.lists.experts
    }

    /// (tokens, slots) weights.
    pub fn weights(&self) -> &[f32] {
        &self.lists.weights
    }

    /// (experts + 1) where each expert's places start.
    pub(crate) fn starts(&self) -> &[u32] {
        &self.lists.starts
    }

    /// (tokens · slots) places, expert by expert.
    pub(crate) fn places(&self) -> &[u32] {
        &self.lists.places
    }

    /// Sorts places by expert, keeping their order: counts, sums, puts.
    fn sort(&mut self, experts: usize) {
        let Lists { experts: ids, starts, places, .. } = &mut self.lists;
        starts.clear();
        starts.resize(experts + 1, 0);
        for id in ids.iter() {
            starts[*id as usize + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        places.clear();
        places.resize(ids.len(), 0);
        for (place, id) in ids.iter().enumerate() {
            let at = &mut starts[*id as usize];
            places[*at as usize] = place as u32;
            *at += 1;
        }
        // Each start has moved to the next one.
        starts.rotate_right(1);
        starts[0] = 0;
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.pool.lists().push(std::mem::take(&mut self.lists));
    }
}

pub(crate) fn route(
    workers: &Workers,
    pool: &Arc<Pool>,
    routes_pool: &Arc<RoutesPool>,
    logits: &Tensor,
    routing: &Routing,
    (bias, factors): (Option<&[f32]>, Option<&[f32]>),
    chosen: Option<&[u32]>,
) -> Routes {
    let (tokens, experts, slots) = (logits.rows(), logits.width(), routing.slots);
    routing.check(experts);
    for vector in [bias, factors].into_iter().flatten() {
        assert_eq!(vector.len(), experts, "there is a number for each expert");
    }
    assert!(chosen.is_none_or(|c| c.len() == tokens * slots), "an expert for each slot");
    let mut lists = routes_pool.lists().pop().unwrap_or_default();
    lists.experts.clear();
    lists.experts.resize(tokens * slots, 0);
    lists.weights.clear();
    lists.weights.resize(tokens * slots, 0.0);
    let mut scores = pool.take(tokens, experts);
    let mut choices = bias.map(|_| pool.take(tokens, experts));
    {
        let (ids, weights) = (SharedSlice::new(&mut lists.experts), SharedSlice::new(&mut lists.weights));
        let scores = SharedSlice::new(scores.as_mut_slice());
        let choices = choices.as_mut().map(|c| SharedSlice::new(c.as_mut_slice()));
        workers.items(tokens, tokens * experts * SCORE_COST, |from, to| {
            for token in from..to {
                let (row, slot) = ((token * experts, (token + 1) * experts), (token * slots, (token + 1) * slots));
                // SAFETY: shares have tokens of their own.
                let (scores, ids, weights) =
                    unsafe { (scores.range(row.0, row.1), ids.range(slot.0, slot.1), weights.range(slot.0, slot.1)) };
                scores.copy_from_slice(logits.row(token));
                workers.isa.run(ScoreKernel { y: scores, score: routing.score });
                if let Some(chosen) = chosen {
                    ids.copy_from_slice(&chosen[slot.0..slot.1]);
                } else if let (Some(choices), Some(bias)) = (&choices, bias) {
                    // SAFETY: as above.
                    let choice = unsafe { choices.range(row.0, row.1) };
                    choice.iter_mut().zip(scores.iter().zip(bias)).for_each(|(c, (s, b))| *c = s + b);
                    choose(choice, routing, ids);
                } else {
                    choose(scores, routing, ids);
                }
                weigh(workers, scores, ids, routing, factors, weights);
            }
        });
    }
    let mut routes = Routes { slots, lists, pool: routes_pool.clone() };
    routes.sort(experts);
    routes
}

/// Scoring and choosing takes about this many times as long as reading a number.
const SCORE_COST: usize = 8;

/// The weights of a token's chosen experts.
fn weigh(
    workers: &Workers,
    scores: &[f32],
    ids: &[u32],
    routing: &Routing,
    factors: Option<&[f32]>,
    weights: &mut [f32],
) {
    weights.iter_mut().zip(ids).for_each(|(w, id)| *w = scores[*id as usize]);
    if routing.score == Score::SoftmaxOfChosen {
        workers.isa.run(ScoreKernel { y: weights, score: Score::Softmax });
    }
    if routing.normalise {
        let total = weights.iter().fold(0.0, |total, w| total + w);
        let least = routing.score.sum_min();
        let total = if total < least { least } else { total };
        weights.iter_mut().for_each(|w| *w /= total);
    }
    for (weight, id) in weights.iter_mut().zip(ids) {
        *weight *= routing.scale;
        if let Some(factors) = factors {
            *weight *= factors[*id as usize];
        }
    }
}

/// Logits to scores, in place.
struct ScoreKernel<'a> {
    y: &'a mut [f32],
    score: Score,
}

impl Kernel for ScoreKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let one = simd.splat(1.0);
        match self.score {
            Score::Softmax => softmax(simd, self.y),
            Score::Sigmoid => map_lanes!(simd, self.y, |x| simd.div(one, simd.add(one, simd.exp(simd.neg(x))))),
            Score::SoftmaxOfChosen => {}
            Score::SqrtSoftplus => map_lanes!(simd, self.y, |x| simd.sqrt(softplus(simd, x))),
        }
    }
}

/// [`math::softplus`] in each lane.
#[inline(always)]
fn softplus<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let (zero, two) = (simd.splat(0.0), simd.splat(2.0));
    let size = simd.max(x, simd.neg(x));
    let e = simd.exp(simd.neg(size));
    let t = simd.div(e, simd.add(two, e));
    let z = simd.mul(t, t);
    let mut p = simd.splat(math::ATANH_COEFFICIENTS[0]);
    for c in &math::ATANH_COEFFICIENTS[1..] {
        p = simd.fma(p, z, simd.splat(*c));
    }
    simd.add(simd.max(x, zero), simd.mul(simd.add(t, t), p))
}

/// Softmax of a row: the sum in lanes, the lanes beyond the row zero.
#[inline(always)]
fn softmax<S: Simd>(simd: S, y: &mut [f32]) {
    let mut highest = simd.splat(f32::NEG_INFINITY);
    for part in y.chunks(LANES) {
        highest = simd.max(simd.load_partial(part, f32::NEG_INFINITY), highest);
    }
    let highest = simd.splat(simd.max_lanes(highest));
    let mut total = simd.splat(0.0);
    for part in y.chunks_mut(LANES) {
        let e = simd.exp(simd.sub(load(simd, part), highest));
        store(simd, part, e);
        total = simd.add(total, load(simd, part));
    }
    let total = simd.splat(simd.add_lanes(total));
    map_lanes!(simd, y, |e| simd.div(e, total));
}

/// Sums of each token's rows, in the order of slots, each times its weight: (places, width) to (tokens, width).
pub(crate) fn combine(workers: &Workers, pool: &Arc<Pool>, rows: &Tensor, routes: &Routes) -> Tensor {
    let (slots, width) = (routes.slots, rows.width());
    let tokens = routes.experts().len() / slots;
    let mut y = pool.take(tokens, width);
    let out = SharedSlice::new(y.as_mut_slice());
    // Workers take vectors of a row, so that one token is shared too.
    workers.items(width.div_ceil(LANES), rows.as_slice().len(), |from, to| {
        let (from, to) = (from * LANES, width.min(to * LANES));
        for token in (0..tokens).filter(|_| from < to) {
            // SAFETY: shares have features of their own.
            let y = unsafe { out.range(token * width + from, token * width + to) };
            y.fill(0.0);
            for place in token * slots..(token + 1) * slots {
                let row = &rows.row(place)[from..to];
                workers.isa.run(AddScaled { x: row, factor: routes.weights()[place], y });
            }
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_are_sorted_by_expert_and_all_there(
            (experts, ids) in (1usize..9).prop_flat_map(|e| (Just(e), prop::collection::vec(0..e as u32, 0..40))),
        ) {
            let routes = Routes::new(experts, 1, &ids, &vec![1.0; ids.len()]);
            prop_assert_eq!(routes.starts().len(), experts + 1);
            let mut want: Vec<u32> = (0..ids.len() as u32).collect();
            want.sort_by_key(|p| ids[*p as usize]);
            prop_assert_eq!(routes.places(), &want[..]);
            for e in 0..experts {
                let part = routes.starts()[e] as usize..routes.starts()[e + 1] as usize;
                prop_assert!(routes.places()[part].iter().all(|p| ids[*p as usize] == e as u32));
            }
        }
    }

    #[test]
    fn lists_serve_again() {
        let pool = RoutesPool::new();
        let lists = Lists { experts: Vec::with_capacity(100), ..Lists::default() };
        drop(Routes { slots: 1, lists, pool: pool.clone() });
        assert_eq!(pool.lists().pop().map(|l| l.experts.capacity()), Some(100));
    }
}
