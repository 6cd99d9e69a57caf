//! Several residual streams in f64. Rounding is its own truth: it is done to the f32 numbers.

use super::Tensor64;
use crate::{Rounding, streams::StreamGates};

pub(super) fn round(x: &mut Tensor64, head_dim: usize, rounding: Rounding) {
    for head in x.values.chunks_exact_mut(head_dim) {
        let mut narrow: Vec<f32> = head.iter().map(|v| *v as f32).collect();
        rounding.apply(&mut narrow);
        head.iter_mut().zip(narrow).for_each(|(v, n)| *v = f64::from(n));
    }
}

pub(super) fn copies(x: &Tensor64, count: usize) -> Tensor64 {
    let values = (0..x.rows).flat_map(|row| x.row(row).repeat(count)).collect();
    Tensor64 { rows: x.rows, width: count * x.width, values }
}

pub(super) fn gates(mix: &Tensor64, scale: &[f64], base: &[f64], spec: &StreamGates) -> Tensor64 {
    let (mut y, count, epsilon) = (mix.clone(), spec.count, f64::from(spec.epsilon));
    for row in 0..y.rows {
        let row = y.row_mut(row);
        for (at, v) in row.iter_mut().enumerate() {
            *v = *v * scale[spec.part(at)] + base[at];
            *v = match spec.part(at) {
                0 => 1.0 / (1.0 + (-*v).exp()) + epsilon,
                1 => 2.0 / (1.0 + (-*v).exp()),
                _ => v.exp(),
            };
        }
        let Some(rounds) = spec.rounds else { continue };
        let matrix = &mut row[2 * count..];
        for round in 0..rounds {
            for from in 0..count {
                let source = &mut matrix[from * count..][..count];
                let sum: f64 = source.iter().sum();
                for v in source {
                    *v = if round == 0 { *v / sum + epsilon } else { *v / (sum + epsilon) };
                }
            }
            for to in 0..count {
                let sum: f64 = (0..count).map(|from| matrix[from * count + to]).sum();
                (0..count).for_each(|from| matrix[from * count + to] /= sum + epsilon);
            }
        }
    }
    y
}

pub(super) fn collapse(streams: &Tensor64, gates: &Tensor64, count: usize) -> Tensor64 {
    let mut y = Tensor64::zeros(streams.rows, streams.width / count);
    for row in 0..y.rows {
        for feature in 0..y.width {
            let part = |j: usize| gates.row(row)[j] * streams.row(row)[j * y.width + feature];
            y.values[row * y.width + feature] = (0..count).map(part).sum();
        }
    }
    y
}

pub(super) fn spread(streams: &mut Tensor64, y: &Tensor64, gates: &Tensor64, count: usize) {
    for row in 0..y.rows {
        let (old, gates) = (streams.row(row).to_vec(), gates.row(row));
        for (at, v) in streams.row_mut(row).iter_mut().enumerate() {
            let (to, feature) = (at / y.width, at % y.width);
            let mixed = (0..count).map(|from| gates[(2 + from) * count + to] * old[from * y.width + feature]);
            *v = gates[count + to] * y.row(row)[feature] + mixed.sum::<f64>();
        }
    }
}
