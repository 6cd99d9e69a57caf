//! Rotary position embedding.

use super::Tensor;
use crate::{Batch, Rope, RopeLayout, math};

pub(super) fn angles(rope: &Rope, batch: &Batch) -> Tensor {
    let pairs = rope.frequencies.len();
    let mut y = Tensor::zeros(batch.len(), 2 * pairs);
    for (row, position) in batch.positions.iter().enumerate() {
        let (cosines, sines) = y.row_mut(row).split_at_mut(pairs);
        for (i, frequency) in rope.frequencies.iter().enumerate() {
            let (sin, cos) = math::sin_cos(f64::from(*position) * frequency);
            cosines[i] = cos * rope.magnitude;
            sines[i] = sin * rope.magnitude;
        }
    }
    y
}

pub(super) fn rotate(x: &mut Tensor, head_dim: usize, layout: RopeLayout, angles: &Tensor) {
    assert_eq!(x.rows, angles.rows, "each row has its angles");
    assert!(head_dim > 0 && x.width.is_multiple_of(head_dim) && angles.width <= head_dim, "angles fit into a head");
    let pairs = angles.width / 2;
    for row in 0..x.rows {
        let (cosines, sines) = angles.row(row).split_at(pairs);
        for head in x.row_mut(row).chunks_exact_mut(head_dim) {
            for pair in 0..pairs {
                let (first, second) = layout.pair(pair, pairs);
                let (a, b) = (head[first], head[second]);
                head[first] = a.mul_add(cosines[pair], -(b * sines[pair]));
                head[second] = b.mul_add(cosines[pair], a * sines[pair]);
            }
        }
    }
}
