//! Several residual streams: copies, gates, the sum into a block, and the way back; and rounding head by head.

use std::sync::Arc;

use tessera_ops::{
    Rounding, StreamGates,
    streams::{STREAMS_MAX, gates_width, sinkhorn},
};

use crate::{
    isa::Kernel,
    lanes::{AddScaled, Workers, load, map_lanes, store},
    simd::{LANES, Simd},
    tensor::{Pool, Tensor},
    threads::SharedSlice,
};

pub(crate) fn round(workers: &Workers, x: &mut Tensor, head_dim: usize, rounding: Rounding) {
    assert!(head_dim > 0 && x.width().is_multiple_of(head_dim), "a row is whole heads");
    workers.runs(x.as_mut_slice(), head_dim, |_, heads| {
        heads.chunks_exact_mut(head_dim).for_each(|head| rounding.apply(head));
    });
}

pub(crate) fn copies(workers: &Workers, pool: &Arc<Pool>, x: &Tensor, count: usize) -> Tensor {
    let width = x.width();
    let mut y = pool.take(x.rows(), count * width);
    workers.runs(y.as_mut_slice(), width, |first, copies| {
        for (i, copy) in copies.chunks_exact_mut(width).enumerate() {
            copy.copy_from_slice(x.row((first + i) / count));
        }
    });
    y
}

pub(crate) fn gates(
    workers: &Workers,
    pool: &Arc<Pool>,
    mix: &Tensor,
    scale: &[f32],
    base: &[f32],
    spec: &StreamGates,
) -> Tensor {
    spec.check();
    let width = spec.width();
    assert_eq!((mix.width(), base.len(), scale.len()), (width, width, spec.parts()), "numbers for all gates");
    let mut factors = [0.0; gates_width(STREAMS_MAX)];
    factors.iter_mut().take(width).enumerate().for_each(|(at, f)| *f = scale[spec.part(at)]);
    let factors = &factors[..width];
    let mut y = pool.take(mix.rows(), width);
    workers.runs(y.as_mut_slice(), width, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(width).enumerate() {
            workers.isa.run(Gates { mix: mix.row(first + i), factors, base, spec, y });
        }
    });
    y
}

/// The gates of one row.
struct Gates<'a> {
    mix: &'a [f32],
    factors: &'a [f32],
    base: &'a [f32],
    spec: &'a StreamGates,
    y: &'a mut [f32],
}

impl Kernel for Gates<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let StreamGates { count, rounds, epsilon } = *self.spec;
        for ((y, base), (mix, factors)) in self
            .y
            .chunks_mut(LANES)
            .zip(self.base.chunks(LANES))
            .zip(self.mix.chunks(LANES).zip(self.factors.chunks(LANES)))
        {
            store(simd, y, simd.fma(load(simd, mix), load(simd, factors), load(simd, base)));
        }
        let (gates, matrix) = self.y.split_at_mut(if rounds.is_some() { 2 * count } else { count });
        let one = simd.splat(1.0);
        map_lanes!(simd, gates, |t| simd.div(one, simd.add(one, simd.exp(simd.neg(t)))));
        gates[..count].iter_mut().for_each(|v| *v += epsilon);
        gates[count..].iter_mut().for_each(|v| *v *= 2.0);
        let Some(rounds) = rounds else { return };
        for source in matrix.chunks_exact_mut(count) {
            let highest = source.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
            source.iter_mut().for_each(|v| *v -= highest);
        }
        map_lanes!(simd, matrix, |t| simd.exp(t));
        sinkhorn(matrix, count, rounds, epsilon);
    }
}

pub(crate) fn collapse(workers: &Workers, pool: &Arc<Pool>, streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
    let (rows, width) = (streams.rows(), streams.width() / count);
    assert!(rows == gates.rows() && streams.width() == count * width && gates.width() >= count, "a gate a stream");
    let mut y = pool.take(rows, width);
    let out = SharedSlice::new(y.as_mut_slice());
    // Workers take vectors of a stream, so that one token is shared too.
    workers.items(width.div_ceil(LANES), streams.as_slice().len(), |from, to| {
        let (from, to) = (from * LANES, width.min(to * LANES));
        for row in (0..rows).filter(|_| from < to) {
            // SAFETY: shares have features of their own.
            let y = unsafe { out.range(row * width + from, row * width + to) };
            y.fill(0.0);
            for (stream, gate) in streams.row(row).chunks_exact(width).zip(gates.row(row)) {
                workers.isa.run(AddScaled { x: &stream[from..to], factor: *gate, y });
            }
        }
    });
    y
}

pub(crate) fn spread(workers: &Workers, streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
    let (rows, width) = (y.rows(), y.width());
    assert!((1..=STREAMS_MAX).contains(&count), "there are 1 to 4 streams");
    assert!(streams.rows() == rows && streams.width() == count * width, "a row of streams for each row");
    assert_eq!((gates.rows(), gates.width()), (rows, gates_width(count)), "gates for all streams");
    let numbers = streams.as_slice().len();
    let all = SharedSlice::new(streams.as_mut_slice());
    workers.items(width.div_ceil(LANES), numbers, |from, to| {
        let (from, to) = (from * LANES, width.min(to * LANES));
        for row in (0..rows).filter(|_| from < to) {
            let part = |stream: usize| {
                let at = (row * count + stream.min(count - 1)) * width;
                let (first, last) = if stream < count { (at + from, at + to) } else { (at, at) };
                // SAFETY: shares have features of their own, and streams of a row do not overlap.
                unsafe { all.range(first, last) }
            };
            let streams: [&mut [f32]; STREAMS_MAX] = std::array::from_fn(part);
            workers.isa.run(Spread { streams, y: &y.row(row)[from..to], gates: gates.row(row), count });
        }
    });
}

/// Features of one row; streams beyond `count` are empty.
struct Spread<'a> {
    streams: [&'a mut [f32]; STREAMS_MAX],
    y: &'a [f32],
    gates: &'a [f32],
    count: usize,
}

impl Kernel for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.count;
        let (out, matrix) = self.gates[count..].split_at(count);
        for (i, y) in self.y.chunks(LANES).enumerate() {
            let part = i * LANES..i * LANES + y.len();
            let y = load(simd, y);
            let mut old = [simd.splat(0.0); STREAMS_MAX];
            for (old, stream) in old.iter_mut().zip(&self.streams[..count]) {
                *old = load(simd, &stream[part.clone()]);
            }
            for to in 0..count {
                let mut v = simd.mul(simd.splat(out[to]), y);
                for (from, old) in old[..count].iter().enumerate() {
                    v = simd.fma(simd.splat(matrix[from * count + to]), *old, v);
                }
                store(simd, &mut self.streams[to][part.clone()], v);
            }
        }
    }
}
