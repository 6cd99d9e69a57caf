//! Hyper-connections (Zhu et al. 2024): the residual stream is several streams, side by side in a row.
//!
//! A block reads a weighed sum of them ([`crate::Device::collapse_streams`]) and writes back through a gain for each and a
//! matrix that mixes them ([`crate::Device::spread_streams`]). DeepSeek V4 makes the matrix doubly stochastic by Sinkhorn's
//! normalisation (Sinkhorn 1964), so that what it mixes neither grows nor fades. All gates of a row come from one small
//! projection of it: `count` gates into the block, `count` out of it, and the matrix, a row for each source stream.

/// The most streams.
pub const STREAMS_MAX: usize = 4;

/// What makes gates of a row's mix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamGates {
    /// Streams.
    pub count: usize,
    /// Rounds of Sinkhorn's normalisation, at least 1. None: there are only gates into the block, as at a model's end.
    pub rounds: Option<usize>,
    /// Added to gates into the block, to the matrix and to what it is divided by.
    pub epsilon: f32,
}

impl StreamGates {
    /// Numbers of a row: of the mix, and of its gates.
    pub const fn width(&self) -> usize {
        if self.rounds.is_some() { gates_width(self.count) } else { self.count }
    }

    /// The parts of a row: each has a scale of its own.
    pub const fn parts(&self) -> usize {
        if self.rounds.is_some() { 3 } else { 1 }
    }

    /// The part that a number of the row belongs to.
    pub const fn part(&self, at: usize) -> usize {
        let part = at / self.count;
        if part < 2 { part } else { 2 }
    }

    /// Holds what must be true of every spec.
    ///
    /// # Panics
    /// Where there are no streams or too many, or no round: a model's loader has to refuse these.
    pub fn check(&self) {
        assert!((1..=STREAMS_MAX).contains(&self.count), "there are 1 to 4 streams");
        assert!(self.rounds != Some(0), "a matrix is normalised at least once");
    }
}

/// Gates of `count` streams: into the block, out of it, and between streams.
pub const fn gates_width(count: usize) -> usize {
    count * (2 + count)
}

/// Sinkhorn's normalisation of a matrix (`count`, `count`) of exponentials, in place:
///
/// ```text
/// c[r][k] = e[r][k] / sum over k of e[r][k] + epsilon
/// c[r][k] = c[r][k] / (sum over r of c[r][k] + epsilon)
/// and rounds - 1 times:  c[r][k] / (sum over k of c[r][k] + epsilon),  then as the line above
/// ```
///
/// Sums run in order, from 0.
pub fn sinkhorn(matrix: &mut [f32], count: usize, rounds: usize, epsilon: f32) {
    for row in matrix.chunks_exact_mut(count) {
        let sum = row.iter().fold(0.0, |sum, v| sum + v);
        row.iter_mut().for_each(|v| *v = *v / sum + epsilon);
    }
    for round in 0..rounds {
        if round > 0 {
            for row in matrix.chunks_exact_mut(count) {
                let sum = row.iter().fold(0.0, |sum, v| sum + v) + epsilon;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for column in 0..count {
            let sum = matrix.iter().skip(column).step_by(count).fold(0.0, |sum, v| sum + v) + epsilon;
            matrix.iter_mut().skip(column).step_by(count).for_each(|v| *v /= sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Columns are normalised last. Rows follow as rounds go on: a round shortens Hilbert's distance from the matrix to
        /// its limit at least by tanh(d/4)^2, where `d` is the greatest difference of logits taken crosswise (Birkhoff 1957;
        /// Franklin and Lorenz 1989). With logits within 1 of zero `d` is at most 4, so forty rounds leave 4e-10 of it; within
        /// 3 they may leave two thirds, and nothing is promised of rows.
        #[test]
        fn rows_and_columns_sum_to_one(logits in prop::collection::vec(-1f32..1.0, 16), wide in 1f32..3.0) {
            for (factor, rows_follow) in [(1.0, true), (wide, false)] {
                let mut matrix: Vec<f32> = logits.iter().map(|l| (factor * l).exp()).collect();
                sinkhorn(&mut matrix, 4, 40, 1e-6);
                for i in 0..4 {
                    let row: f32 = matrix[4 * i..][..4].iter().sum();
                    let column: f32 = (0..4).map(|r| matrix[4 * r + i]).sum();
                    prop_assert!((column - 1.0).abs() < 1e-5, "column {i}: {column}");
                    prop_assert!(!rows_follow || (row - 1.0).abs() < 1e-5, "row {i}: {row}");
                }
            }
        }
    }

    #[test]
    fn every_step_is_as_written() {
        let e = [1.0f32, 3.0, 2.0, 2.0];
        let mut first = e;
        sinkhorn(&mut first, 2, 1, 0.5);
        // Rows: 0.25, 0.75; 0.5, 0.5, and a half more; columns 1.75 and 2.25, and a half more.
        let want = [0.75 / 2.25, 1.25 / 2.75, 1.0 / 2.25, 1.0 / 2.75];
        assert!(first.iter().zip(want).all(|(g, w): (&f32, f32)| (g - w).abs() < 1e-6), "{first:?}");
        let mut second = e;
        sinkhorn(&mut second, 2, 2, 0.5);
        let rows = [want[0] + want[1] + 0.5, want[2] + want[3] + 0.5];
        let c = [want[0] / rows[0], want[1] / rows[0], want[2] / rows[1], want[3] / rows[1]];
        let sums = [c[0] + c[2] + 0.5, c[1] + c[3] + 0.5];
        let want = [c[0] / sums[0], c[1] / sums[1], c[2] / sums[0], c[3] / sums[1]];
        assert!(second.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{second:?}");
    }

    #[test]
    fn numbers_belong_to_their_parts() {
        let gates = StreamGates { count: 3, rounds: Some(2), epsilon: 0.0 };
        assert_eq!((gates.width(), gates.parts()), (15, 3));
        let parts: Vec<usize> = (0..15).map(|at| gates.part(at)).collect();
        assert_eq!(parts, [[0; 3].as_slice(), &[1; 3], &[2; 9]].concat());
        let last = StreamGates { rounds: None, ..gates };
        assert_eq!((last.width(), last.parts(), last.part(2)), (3, 1, 0));
        for bad in [
            StreamGates { count: 0, ..gates },
            StreamGates { count: 5, ..gates },
            StreamGates { rounds: Some(0), ..gates },
        ] {
            assert!(std::panic::catch_unwind(|| bad.check()).is_err(), "{bad:?}");
        }
    }
}
