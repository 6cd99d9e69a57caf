//! Rotary position embedding.

use super::Tensor;
use crate::{Batch, Rope, RopeLayout, Rotation, math};

pub(super) fn angles(rope: &Rope, batch: &Batch) -> Tensor {
    let pairs = rope.frequencies.len();
    let mut y = Tensor::zeros(batch.len(), 2 * pairs);
    for (row, position) in batch.positions.iter().enumerate() {
        let (cosines, sines) = angles_at(rope, *position);
        y.row_mut(row)[..pairs].copy_from_slice(&cosines);
        y.row_mut(row)[pairs..].copy_from_slice(&sines);
    }
    y
}

/// The cosines and the sines of a position.
pub(super) fn angles_at(rope: &Rope, position: u32) -> (Vec<f32>, Vec<f32>) {
    let angle = |frequency: &f64| {
        let (sin, cos) = math::sin_cos(f64::from(position) * frequency);
        (cos * rope.magnitude, sin * rope.magnitude)
    };
    rope.frequencies.iter().map(angle).unzip()
}

/// Turns these features, a pair for each cosine.
pub(super) fn turn(features: &mut [f32], layout: RopeLayout, cosines: &[f32], sines: &[f32], inverse: bool) {
    for (pair, (cos, sin)) in cosines.iter().zip(sines).enumerate() {
        let sin = if inverse { -*sin } else { *sin };
        let (first, second) = layout.pair(pair, cosines.len());
        let (a, b) = (features[first], features[second]);
        features[first] = a.mul_add(*cos, -(b * sin));
        features[second] = b.mul_add(*cos, a * sin);
    }
}

pub(super) fn rotate(x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
    assert_eq!(x.rows, angles.rows, "each row has its angles");
    rotation.check(x.width, angles.width);
    let pairs = angles.width / 2;
    for row in 0..x.rows {
        let (cosines, sines) = angles.row(row).split_at(pairs);
        for head in x.row_mut(row).chunks_exact_mut(rotation.head_dim) {
            let features = &mut head[rotation.first..rotation.first + angles.width];
            turn(features, rotation.layout, cosines, sines, rotation.inverse);
        }
    }
}
