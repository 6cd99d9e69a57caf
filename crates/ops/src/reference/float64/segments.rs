//! Grouped and routed projections, and routing, in f64.

use super::{Float64Device, Tensor64, dot};
use crate::{LinearStack, Router, Score, reference::Routes, routing::choose};

/// Output `feature` of matrix `index` for a row.
fn product(linear: &LinearStack<Float64Device>, index: usize, feature: usize, x: &[f64]) -> f64 {
    let stack = &linear.matrices;
    let bias = linear.bias.as_ref().map_or(0.0, |b| b[index * stack.rows + feature]);
    bias + dot(x, stack.matrices[index].row(feature))
}

pub(super) fn project_grouped(x: &Tensor64, linear: &LinearStack<Float64Device>) -> Tensor64 {
    let (rows, depth) = (linear.matrices.rows, linear.matrices.depth);
    assert_eq!(x.width, linear.matrices.matrices.len() * depth, "each group has its slice of a row");
    let mut y = Tensor64::zeros(x.rows, linear.matrices.matrices.len() * rows);
    for token in 0..x.rows {
        for (i, out) in y.row_mut(token).iter_mut().enumerate() {
            *out = product(linear, i / rows, i % rows, &x.row(token)[i / rows * depth..][..depth]);
        }
    }
    y
}

pub(super) fn project_routed(x: &Tensor64, linear: &LinearStack<Float64Device>, routes: &Routes<f64>) -> Tensor64 {
    let mut y = Tensor64::zeros(routes.experts.len(), linear.matrices.rows);
    for (place, expert) in routes.experts.iter().enumerate() {
        for (feature, out) in y.row_mut(place).iter_mut().enumerate() {
            *out = product(linear, *expert as usize, feature, x.row(place / routes.slots));
        }
    }
    y
}

pub(super) fn combine_routed(x: &Tensor64, linear: &LinearStack<Float64Device>, routes: &Routes<f64>) -> Tensor64 {
    let mut y = Tensor64::zeros(x.rows / routes.slots, linear.matrices.rows);
    for (place, expert) in routes.experts.iter().enumerate() {
        for (feature, out) in y.row_mut(place / routes.slots).iter_mut().enumerate() {
            *out += routes.weights[place] * product(linear, *expert as usize, feature, x.row(place));
        }
    }
    y
}

fn softmax(values: &mut [f64]) {
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter_mut().for_each(|v| *v = (*v - highest).exp());
    let total: f64 = values.iter().sum();
    values.iter_mut().for_each(|v| *v /= total);
}

pub(super) fn route(logits: &Tensor64, router: &Router<Float64Device>, chosen: Option<&[u32]>) -> Routes<f64> {
    let routing = &router.routing;
    let mut routes = Routes { slots: routing.slots, experts: vec![], weights: vec![] };
    for token in 0..logits.rows {
        let mut scores = logits.row(token).to_vec();
        match routing.score {
            Score::Softmax => softmax(&mut scores),
            Score::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + (-*s).exp())),
            Score::SoftmaxOfChosen => {}
            // Its own sum loses nothing where the exponential is small.
            Score::SqrtSoftplus => scores.iter_mut().for_each(|s| *s = (s.max(0.0) + (-s.abs()).exp().ln_1p()).sqrt()),
        }
        let bias = |expert: usize| router.bias.as_ref().map_or(0.0, |b| b[expert]);
        let choice: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias(e)).collect();
        let mut experts = vec![0; routing.slots];
        match chosen {
            Some(chosen) => experts.copy_from_slice(&chosen[token * routing.slots..][..routing.slots]),
            None => choose(&choice, routing, &mut experts),
        }
        let mut weights: Vec<f64> = experts.iter().map(|e| scores[*e as usize]).collect();
        if routing.score == Score::SoftmaxOfChosen {
            softmax(&mut weights);
        }
        let total = weights.iter().sum::<f64>().max(f64::from(routing.score.sum_min()));
        for (weight, expert) in weights.iter_mut().zip(&experts) {
            let factor = router.factors.as_ref().map_or(1.0, |f| f[*expert as usize]);
            *weight *= f64::from(routing.scale) * factor / if routing.normalise { total } else { 1.0 };
        }
        routes.experts.extend(experts);
        routes.weights.extend(weights);
    }
    routes
}
