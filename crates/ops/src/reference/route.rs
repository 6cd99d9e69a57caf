//! Routing of tokens to experts, a row of logits at a time.

use super::Tensor;
use crate::{Routing, Score, math, numerics::sum, routing::choose};

/// Which experts each token goes to, and with what weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes<T> {
    /// Experts of a token.
    pub slots: usize,
    /// (tokens, slots)
    pub experts: Vec<u32>,
    /// (tokens, slots)
    pub weights: Vec<T>,
}

pub(super) fn route(
    logits: &Tensor,
    routing: &Routing,
    bias: Option<&[f32]>,
    factors: Option<&[f32]>,
    chosen: Option<&[u32]>,
) -> Routes<f32> {
    routing.check(logits.width);
    let count = logits.rows * routing.slots;
    let mut routes = Routes { slots: routing.slots, experts: vec![0; count], weights: vec![0.0; count] };
    for token in 0..logits.rows {
        let slots = token * routing.slots..(token + 1) * routing.slots;
        let experts = &mut routes.experts[slots.clone()];
        let scores = scores(logits.row(token), routing.score);
        let choice = match bias {
            Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
            None => scores.clone(),
        };
        match chosen {
            Some(chosen) => experts.copy_from_slice(&chosen[slots.clone()]),
            None => choose(&choice, routing, experts),
        }
        let mut weights: Vec<f32> = experts.iter().map(|e| scores[*e as usize]).collect();
        if routing.score == Score::SoftmaxOfChosen {
            softmax(&mut weights);
        }
        if routing.normalise {
            let total = weights.iter().fold(0.0, |total, w| total + w);
            let least = routing.score.sum_min();
            let total = if total < least { least } else { total };
            weights.iter_mut().for_each(|w| *w /= total);
        }
        for (weight, expert) in weights.iter_mut().zip(experts) {
            *weight *= routing.scale;
            if let Some(factors) = factors {
                *weight *= factors[*expert as usize];
            }
        }
        routes.weights[slots].copy_from_slice(&weights);
    }
    routes
}

fn scores(logits: &[f32], score: Score) -> Vec<f32> {
    let mut scores = logits.to_vec();
    match score {
        Score::Softmax => softmax(&mut scores),
        Score::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + math::exp(-*s))),
        Score::SoftmaxOfChosen => {}
        Score::SqrtSoftplus => scores.iter_mut().for_each(|s| *s = math::softplus(*s).sqrt()),
    }
    scores
}

fn softmax(values: &mut [f32]) {
    let highest = values.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
    values.iter_mut().for_each(|v| *v = math::exp(*v - highest));
    let total = sum(values);
    values.iter_mut().for_each(|v| *v /= total);
}
