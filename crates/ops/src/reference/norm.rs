//! Root-mean-square norm.

use super::Tensor;
use crate::numerics::sum_of_squares;

pub(super) fn rms_norm(x: &Tensor, weight: &[f32], epsilon: f32) -> Tensor {
    assert!(!weight.is_empty() && x.width.is_multiple_of(weight.len()), "a row is whole runs of the weight's length");
    let mut y = x.clone();
    y.values.chunks_exact_mut(weight.len()).for_each(|run| norm_run(run, weight, epsilon));
    y
}

/// Norms a run of the weight's length.
pub(super) fn norm_run(run: &mut [f32], weight: &[f32], epsilon: f32) {
    let mean = sum_of_squares(run) / weight.len() as f32;
    let inverse = 1.0 / (mean + epsilon).sqrt();
    for (v, w) in run.iter_mut().zip(weight) {
        *v = (*v * inverse) * w;
    }
}
