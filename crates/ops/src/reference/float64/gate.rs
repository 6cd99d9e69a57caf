//! The feed-forward gate and parts of rows, in f64, by the formulas as papers have them.

use std::ops::Range;

use super::Tensor64;
use crate::{Gate, math};

pub(super) fn gate(x: &Tensor64, up: &Tensor64, gate: Gate) -> Tensor64 {
    let mut y = x.clone();
    for (v, u) in y.values.iter_mut().zip(&up.values) {
        *v = match gate {
            Gate::Silu => *v / (1.0 + (-*v).exp()) * u,
            Gate::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (*v + 0.044_715 * v.powi(3));
                0.5 * *v * (1.0 + inner.tanh()) * u
            }
            Gate::SwigluOai => {
                let (limit, slope) = (f64::from(math::SWIGLU_LIMIT), f64::from(math::SWIGLU_SLOPE));
                // Not `min`, which would lose NaN.
                let x = if *v > limit { limit } else { *v };
                x / (1.0 + (-slope * x).exp()) * (u.clamp(-limit, limit) + 1.0)
            }
            Gate::SiluClamped(limit) => {
                let limit = f64::from(limit);
                let x = if *v > limit { limit } else { *v };
                x / (1.0 + (-x).exp()) * u.clamp(-limit, limit)
            }
        };
    }
    y
}

pub(super) fn columns(x: &Tensor64, columns: Range<usize>) -> Tensor64 {
    let mut y = Tensor64::zeros(x.rows, columns.len());
    for row in 0..x.rows {
        y.row_mut(row).copy_from_slice(&x.row(row)[columns.clone()]);
    }
    y
}
