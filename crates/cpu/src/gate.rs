//! Element by element: the feed-forward gate, the residual sum, a factor, the soft cap; and parts of rows.

use std::{ops::Range, sync::Arc};

use tessera_ops::{Gate, math};

use crate::{
    isa::Kernel,
    lanes::{Workers, map_lanes, zip_lanes},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
};

pub(crate) fn gate(workers: &Workers, pool: &Arc<Pool>, x: &Tensor, up: &Tensor, gate: Gate) -> Tensor {
    assert_eq!((x.rows(), x.width()), (up.rows(), up.width()), "gate and up have one shape");
    let mut y = pool.take(x.rows(), x.width());
    workers.runs(y.as_mut_slice(), LANES, |first, y| {
        let part = first * LANES..first * LANES + y.len();
        y.copy_from_slice(&up.as_slice()[part.clone()]);
        workers.isa.run(GateKernel { x: &x.as_slice()[part], y, gate });
    });
    y
}

/// The gate is the first half of a row, up the second.
pub(crate) fn gate_halves(workers: &Workers, pool: &Arc<Pool>, x: &Tensor, gate: Gate) -> Tensor {
    assert!(x.width().is_multiple_of(2), "a row is two halves");
    let half = x.width() / 2;
    let mut y = pool.take(x.rows(), half);
    if half == 0 {
        return y;
    }
    workers.runs(y.as_mut_slice(), half, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(half).enumerate() {
            let (x, up) = x.row(first + i).split_at(half);
            y.copy_from_slice(up);
            workers.isa.run(GateKernel { x, y, gate });
        }
    });
    y
}

pub(crate) fn columns(workers: &Workers, pool: &Arc<Pool>, x: &Tensor, columns: Range<usize>) -> Tensor {
    let width = columns.len();
    let mut y = pool.take(x.rows(), width);
    if width == 0 {
        return y;
    }
    workers.runs(y.as_mut_slice(), width, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(width).enumerate() {
            y.copy_from_slice(&x.row(first + i)[columns.clone()]);
        }
    });
    y
}

pub(crate) fn scale(workers: &Workers, x: &mut Tensor, factor: f32) {
    workers.runs(x.as_mut_slice(), LANES, |_, y| workers.isa.run(ScaleKernel { y, factor }));
}

pub(crate) fn add(workers: &Workers, x: &mut Tensor, y: &Tensor) {
    assert_eq!((x.rows(), x.width()), (y.rows(), y.width()), "summands have one shape");
    workers.runs(x.as_mut_slice(), LANES, |first, x| {
        workers.isa.run(AddKernel { x: &y.as_slice()[first * LANES..][..x.len()], y: x });
    });
}

pub(crate) fn soft_cap(workers: &Workers, x: &mut Tensor, cap: f32) {
    workers.runs(x.as_mut_slice(), LANES, |_, y| workers.isa.run(CapKernel { y, cap }));
}

/// [`math::soft_cap`] in each lane.
#[inline(always)]
pub(crate) fn soft_cap_lanes<S: Simd>(simd: S, x: S::F32, cap: f32) -> S::F32 {
    let (cap, one, two) = (simd.splat(cap), simd.splat(1.0), simd.splat(2.0));
    let e = simd.exp(simd.mul(two, simd.div(x, cap)));
    simd.mul(cap, simd.sub(one, simd.div(two, simd.add(e, one))))
}

/// x · sigmoid(u), as the gates of [`math`] write it.
#[inline(always)]
fn swish<S: Simd>(simd: S, x: S::F32, u: S::F32) -> S::F32 {
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(simd.neg(u))))
}

struct GateKernel<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    gate: Gate,
}

impl Kernel for GateKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.gate {
            Gate::Silu => zip_lanes!(simd, self.x, self.y, |x, up| simd.mul(swish(simd, x, x), up)),
            Gate::GeluTanh => {
                let (scale, cubic) = (simd.splat(math::GELU_SCALE), simd.splat(math::GELU_CUBIC));
                let one = simd.splat(1.0);
                zip_lanes!(simd, self.x, self.y, |x, up| {
                    let bend = simd.fma(simd.mul(x, x), cubic, one);
                    simd.mul(swish(simd, x, simd.mul(simd.mul(scale, x), bend)), up)
                });
            }
            Gate::SwigluOai => {
                let (limit, least) = (simd.splat(math::SWIGLU_LIMIT), simd.splat(-math::SWIGLU_LIMIT));
                let (slope, one) = (simd.splat(math::SWIGLU_SLOPE), simd.splat(1.0));
                zip_lanes!(simd, self.x, self.y, |x, up| {
                    // What may be NaN stands second: then NaN stays.
                    let (x, up) = (simd.min(limit, x), simd.min(limit, simd.max(least, up)));
                    simd.mul(swish(simd, x, simd.mul(slope, x)), simd.add(up, one))
                });
            }
            Gate::SiluClamped(limit) => {
                let (limit, least) = (simd.splat(limit), simd.splat(-limit));
                zip_lanes!(simd, self.x, self.y, |x, up| {
                    let (x, up) = (simd.min(limit, x), simd.min(limit, simd.max(least, up)));
                    simd.mul(swish(simd, x, x), up)
                });
            }
        }
    }
}

struct AddKernel<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for AddKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        zip_lanes!(simd, self.x, self.y, |x, y| simd.add(y, x));
    }
}

struct ScaleKernel<'a> {
    y: &'a mut [f32],
    factor: f32,
}

impl Kernel for ScaleKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(self.factor);
        map_lanes!(simd, self.y, |x| simd.mul(x, factor));
    }
}

struct CapKernel<'a> {
    y: &'a mut [f32],
    cap: f32,
}

impl Kernel for CapKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        map_lanes!(simd, self.y, |x| soft_cap_lanes(simd, x, self.cap));
    }
}
