//! Root-mean-square norm, a row or a head at a time.

use std::sync::Arc;

use tessera_ops::numerics::{PART_DEPTH, SQUARE_LANES};

use crate::{
    isa::Kernel,
    lanes::{Workers, load, zip_lanes},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
};

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
            let mut sum = 0.0;
            for (i, part) in x.chunks(PART_DEPTH).enumerate() {
                let squares = squares_of_part(simd, part);
                sum = if i == 0 { squares } else { sum + squares };
            }
            let mean = sum / run as f32;
            let inverse = simd.splat(1.0 / (mean + self.epsilon).sqrt());
            y.copy_from_slice(self.weight);
            zip_lanes!(simd, x, y, |x, w| simd.mul(simd.mul(x, inverse), w));
        }
    }
}

/// The sum of squares of a part, in four vectors of lanes.
#[inline(always)]
fn squares_of_part<S: Simd>(simd: S, part: &[f32]) -> f32 {
    let mut squares = [simd.splat(0.0); VECTORS];
    let (chunks, rest) = part.as_chunks::<SQUARE_LANES>();
    for chunk in chunks {
        for (square, v) in squares.iter_mut().zip(chunk.as_chunks::<LANES>().0) {
            let v = simd.load(v);
            *square = simd.fma(v, v, *square);
        }
    }
    // The lanes beyond the row add a square of zero, which changes nothing: sums of squares are never -0.
    for (square, v) in squares.iter_mut().zip(rest.chunks(LANES)) {
        let v = load(simd, v);
        *square = simd.fma(v, v, *square);
    }
    let [a, b, c, d] = squares;
    simd.add_lanes(simd.add(simd.add(a, c), simd.add(b, d)))
}

/// Vectors of the lanes of a sum of squares.
const VECTORS: usize = SQUARE_LANES / LANES;

const _: () = assert!(VECTORS == 4, "lanes are folded by halves");
