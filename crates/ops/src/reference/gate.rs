//! Element by element: the feed-forward gate, the residual sum, a factor, the soft cap; and parts of rows.

use std::ops::Range;

use super::Tensor;
use crate::{Gate, math};

pub(super) fn gate(x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
    assert_eq!((x.rows, x.width), (up.rows, up.width), "gate and up have one shape");
    let mut y = x.clone();
    for (v, u) in y.values.iter_mut().zip(&up.values) {
        *v = match gate {
            Gate::Silu => math::silu(*v) * u,
            Gate::GeluTanh => math::gelu_tanh(*v) * u,
            Gate::SwigluOai => math::swiglu_oai(*v, *u),
            Gate::SiluClamped(limit) => math::swiglu_clamped(*v, *u, limit),
        };
    }
    y
}

pub(super) fn gate_halves(x: &Tensor, kind: Gate) -> Tensor {
    assert!(x.width.is_multiple_of(2), "a row is two halves");
    let half = x.width / 2;
    gate(&columns(x, 0..half), &columns(x, half..x.width), kind)
}

pub(super) fn columns(x: &Tensor, columns: Range<usize>) -> Tensor {
    let mut y = Tensor::zeros(x.rows, columns.len());
    for row in 0..x.rows {
        y.row_mut(row).copy_from_slice(&x.row(row)[columns.clone()]);
    }
    y
}

pub(super) fn scale(x: &mut Tensor, factor: f32) {
    x.values.iter_mut().for_each(|v| *v *= factor);
}

pub(super) fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!((x.rows, x.width), (y.rows, y.width), "summands have one shape");
    for (v, u) in x.values.iter_mut().zip(&y.values) {
        *v += u;
    }
}

pub(super) fn soft_cap(x: &mut Tensor, cap: f32) {
    for v in &mut x.values {
        *v = math::soft_cap(*v, cap);
    }
}
