//! Several residual streams: copies, gates, the sum into a block, and the way back; and rounding head by head.

use super::Tensor;
use crate::{
    Rounding, math,
    streams::{StreamGates, gates_width, sinkhorn},
};

pub(super) fn round(x: &mut Tensor, head_dim: usize, rounding: Rounding) {
    assert!(head_dim > 0 && x.width.is_multiple_of(head_dim), "a row is whole heads");
    x.values.chunks_exact_mut(head_dim).for_each(|head| rounding.apply(head));
}

pub(super) fn copies(x: &Tensor, count: usize) -> Tensor {
    let mut y = Tensor::zeros(x.rows, count * x.width);
    for row in 0..x.rows {
        y.row_mut(row).chunks_exact_mut(x.width.max(1)).for_each(|copy| copy.copy_from_slice(x.row(row)));
    }
    y
}

pub(super) fn gates(mix: &Tensor, scale: &[f32], base: &[f32], spec: &StreamGates) -> Tensor {
    spec.check();
    assert_eq!(
        (mix.width, base.len(), scale.len()),
        (spec.width(), spec.width(), spec.parts()),
        "numbers for all gates"
    );
    let (mut y, count) = (mix.clone(), spec.count);
    for row in 0..y.rows {
        let row = y.row_mut(row);
        for (at, v) in row.iter_mut().enumerate() {
            *v = v.mul_add(scale[spec.part(at)], base[at]);
        }
        let sigmoid = |v: f32| 1.0 / (1.0 + math::exp(-v));
        row[..count].iter_mut().for_each(|v| *v = sigmoid(*v) + spec.epsilon);
        let Some(rounds) = spec.rounds else { continue };
        row[count..2 * count].iter_mut().for_each(|v| *v = 2.0 * sigmoid(*v));
        let matrix = &mut row[2 * count..];
        for source in matrix.chunks_exact_mut(count) {
            let highest = source.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
            source.iter_mut().for_each(|v| *v = math::exp(*v - highest));
        }
        sinkhorn(matrix, count, rounds, spec.epsilon);
    }
    y
}

pub(super) fn collapse(streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
    assert!(
        streams.rows == gates.rows && streams.width.is_multiple_of(count) && gates.width >= count,
        "a gate a stream"
    );
    let mut y = Tensor::zeros(streams.rows, streams.width / count);
    for row in 0..y.rows {
        let width = y.width;
        for (stream, gate) in streams.row(row).chunks_exact(width.max(1)).zip(gates.row(row)) {
            y.row_mut(row).iter_mut().zip(stream).for_each(|(v, s)| *v = gate.mul_add(*s, *v));
        }
    }
    y
}

pub(super) fn spread(streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
    assert!(streams.rows == y.rows && streams.width == count * y.width, "a row of streams for each row");
    assert_eq!((gates.rows, gates.width), (y.rows, gates_width(count)), "gates for all streams");
    for row in 0..y.rows {
        let (out, matrix) = gates.row(row)[count..].split_at(count);
        let old = streams.row(row).to_vec();
        for to in 0..count {
            for feature in 0..y.width {
                let mut v = out[to] * y.row(row)[feature];
                for from in 0..count {
                    v = matrix[from * count + to].mul_add(old[from * y.width + feature], v);
                }
                streams.row_mut(row)[to * y.width + feature] = v;
            }
        }
    }
}
