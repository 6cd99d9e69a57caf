//! Root-mean-square norm, a row or a head at a time.

use crate::{
    isa::Kernel,
    lanes::{Workers, zip_lanes},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
};
use std::sync::Arc;

pub(crate) fn rms_norm(workers: &Workers, pool: &Arc<Pool>, x: &Tensor, weight: &[f32], epsilon: f32) -> Tensor {
    let run = weight.len();
    assert!(run > 0 && x.width().is_multiple_of(run), "a row is whole runs of the weight's length");
    let mut y = pool.take(x.rows(), x.width());
    workers.runs(y.as_mut_slice(), run, |first, y| {
        let x = &x.as_slice()[first * run..][..y.len()];
        workers.isa.run(Norm { x, y, weight, epsilon });
    });
    y
}

struct Norm<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let run = self.weight.len();
        for (x, y) in self.x.chunks_exact(run).zip(self.y.chunks_exact_mut(run)) {
            let (chunks, rest) = x.as_chunks::<LANES>();
            let mut squares = simd.splat(0.0);
            for chunk in chunks {
                let v = simd.load(chunk);
                squares = simd.fma(v, v, squares);
            }
            // The lanes beyond the row add a square of zero, which changes nothing: sums of squares are never -0.
            let v = simd.load_partial(rest, 0.0);
            squares = simd.fma(v, v, squares);
            let mean = simd.add_lanes(squares) / run as f32;
            let inverse = simd.splat(1.0 / (mean + self.epsilon).sqrt());
            y.copy_from_slice(self.weight);
            zip_lanes!(simd, x, y, |x, w| simd.mul(simd.mul(x, inverse), w));
        }
    }
}
