//! Rotary position embedding: angles once a step, then each head in place.

use std::sync::Arc;

use tessera_ops::{Batch, Rope, RopeLayout, Rotation, math};

use crate::{
    isa::Kernel,
    lanes::{Workers, load, store},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
};

pub(crate) fn angles(workers: &Workers, pool: &Arc<Pool>, rope: &Rope, batch: &Batch) -> Tensor {
    let pairs = rope.frequencies.len();
    let mut y = pool.take(batch.len(), 2 * pairs);
    workers.runs(y.as_mut_slice(), 2 * pairs, |first, y| {
        for (row, angles) in y.chunks_exact_mut(2 * pairs).enumerate() {
            let position = f64::from(batch.positions[first + row]);
            let (cosines, sines) = angles.split_at_mut(pairs);
            for ((c, s), frequency) in cosines.iter_mut().zip(sines).zip(&rope.frequencies) {
                let (sin, cos) = math::sin_cos(position * frequency);
                (*c, *s) = (cos * rope.magnitude, sin * rope.magnitude);
            }
        }
    });
    y
}

pub(crate) fn rotate(workers: &Workers, x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
    assert_eq!(x.rows(), angles.rows(), "each row has its angles");
    rotation.check(x.width(), angles.width());
    let width = x.width();
    if angles.width() == 0 {
        return;
    }
    workers.runs(x.as_mut_slice(), width, |first, x| {
        let angles = &angles.as_slice()[first * angles.width()..][..x.len() / width * angles.width()];
        workers.isa.run(Rotate { x, width, rotation, angles });
    });
}

struct Rotate<'a> {
    /// (rows, width)
    x: &'a mut [f32],
    width: usize,
    rotation: &'a Rotation,
    /// (rows, 2 · pairs)
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.x.len() / self.width;
        let pairs = self.angles.len() / rows / 2;
        for (x, angles) in self.x.chunks_exact_mut(self.width).zip(self.angles.chunks_exact(2 * pairs)) {
            let (cosines, sines) = angles.split_at(pairs);
            let (first, inverse) = (self.rotation.first, self.rotation.inverse);
            for head in x.chunks_exact_mut(self.rotation.head_dim) {
                let features = &mut head[first..first + 2 * pairs];
                match self.rotation.layout {
                    RopeLayout::Halves => {
                        let (first, second) = features.split_at_mut(pairs);
                        turn_halves(simd, first, second, cosines, sines, inverse);
                    }
                    // Lanes would have to be shuffled to pair up; a pair at a time is fast enough here.
                    RopeLayout::Interleaved => {
                        let features = features.as_chunks_mut::<2>().0;
                        for ((pair, c), s) in features.iter_mut().zip(cosines).zip(sines) {
                            let [a, b] = *pair;
                            let s = if inverse { -*s } else { *s };
                            *pair = [a.mul_add(*c, -(b * s)), b.mul_add(*c, a * s)];
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn_halves<S: Simd>(simd: S, first: &mut [f32], second: &mut [f32], cosines: &[f32], sines: &[f32], inverse: bool) {
    let parts = first.chunks_mut(LANES).zip(second.chunks_mut(LANES));
    for ((a, b), (c, s)) in parts.zip(cosines.chunks(LANES).zip(sines.chunks(LANES))) {
        let (va, vb, c, s) = (load(simd, a), load(simd, b), load(simd, c), load(simd, s));
        let s = if inverse { simd.neg(s) } else { s };
        store(simd, a, simd.fma(va, c, simd.neg(simd.mul(vb, s))));
        store(simd, b, simd.fma(vb, c, simd.mul(va, s)));
    }
}
