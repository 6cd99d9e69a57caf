//! Element by element: the feed-forward gate, the residual sum, the soft cap.

use super::Tensor;
use crate::{Gate, math};

pub(super) fn gate(x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
    assert_eq!((x.rows, x.width), (up.rows, up.width), "gate and up have one shape");
    let mut y = x.clone();
    for (v, u) in y.values.iter_mut().zip(&up.values) {
        *v = match gate {
            Gate::Silu => math::silu(*v),
            Gate::GeluTanh => math::gelu_tanh(*v),
        } * u;
    }
    y
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
