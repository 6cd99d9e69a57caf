//! Comparison: bit for bit with the reference, within a bound of float64, and what is said about a difference.

use std::fmt;

/// How exactly an op computes: what its distance from float64 may be.
///
/// Distances are root mean squares over a row of `n` outputs, relative to the root mean square of the true row (or of all
/// true rows, where that is larger: a row may be small by chance). Errors of the outputs of a row are close to normal
/// and nearly independent, so their mean square over few outputs scatters; the bound is `base · (1 + 4 / sqrt(n))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 throughout. Chains of up to some thousand fused multiply-adds drift by sqrt(depth) · 2^-25, about 1e-6.
    Rounded,
    /// Activations as 8-bit codes. A code is wrong by `amax / 127 / sqrt(12)` in the root mean square, `amax` the largest of
    /// its block of 32. The inputs here have about every second block with an outlier of eight times their range, and a
    /// root mean square of 1: that makes 1.2e-2.
    Quantized,
    /// Codes, and codes of what they leave: 254 times as fine, 5e-5, and the rounding of two sums.
    Fine,
    /// Operands of 11 significant bits. An activation is wrong by 1.6e-4 of itself in the root mean square, a weight by as much for
    /// each rounding: of its scale, of its minimum, of their product and sum. Where a minimum takes away most of a product, by
    /// three times that.
    Halves,
    /// Keys and values of 11 significant bits. They are wrong by 1.4e-4 of themselves in the root mean square, and a weight
    /// by as large a part of its score: where outliers meet, and scores reach 20, by 3e-3. Rows like that are few.
    KvHalf,
    /// Weights of attention of 11 significant bits, over operands that are exact: each is wrong by 1.4e-4 of itself in the root
    /// mean square, and a row by no more, as weights are divided by their sum.
    HalfWeights,
    /// Keys and values as 8-bit codes: wrong by 1.2e-2 as activations are, 86 times as much as halves.
    KvCodes,
    /// What is chosen among numbers that were rounded: a choice has no distance. That it is the right one is seen where nothing is
    /// rounded.
    Choice,
}

impl Arithmetic {
    /// The most that a row of `outputs` outputs may be wrong.
    pub fn bound(self, outputs: usize) -> f64 {
        let base = match self {
            Arithmetic::Rounded => 5e-6,
            Arithmetic::Quantized => 1.5e-2,
            Arithmetic::Fine => 1e-4,
            Arithmetic::Halves => 1e-3,
            Arithmetic::KvHalf => 1.5e-3,
            Arithmetic::HalfWeights => 2.5e-4,
            Arithmetic::KvCodes => 0.13,
            Arithmetic::Choice => f64::MAX.sqrt(),
        };
        base * (1.0 + 4.0 / (outputs.max(1) as f64).sqrt())
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// It was never written, or what was written is not a number.
    NotWritten,
    /// Its bits are not those of the reference.
    Differs,
    /// It is too far from float64.
    Inexact {
        /// How far.
        error: f64,
        /// How far it may be.
        bound: f64,
    },
    /// There are more or fewer numbers than the op should give.
    Length,
    /// The device said so.
    Failed(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NotWritten => f.write_str("not written, or not a number"),
            Cause::Differs => f.write_str("other bits than the reference"),
            Cause::Inexact { error, bound } => write!(f, "{error:.1e} from float64, more than {bound:.1e}"),
            Cause::Length => f.write_str("the result has another size"),
            Cause::Failed(error) => f.write_str(error),
        }
    }
}

/// The first thing that is wrong in a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The subject: `37 x 288`.
    pub shape: String,
    /// How rows were arranged: `in order`.
    pub arrangement: String,
    /// Rows of the step.
    pub width: usize,
    /// The first row of the step that is wrong, counted from 1.
    pub row: usize,
    /// Its first element that is wrong, counted from 1.
    pub element: usize,
    /// Rows of the step that are wrong.
    pub rows_wrong: usize,
    /// What should be there.
    pub expected: f32,
    /// What is there.
    pub got: f32,
    /// Why it is wrong.
    pub cause: Cause,
}

/// Where and how two results differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Counted from 0.
    pub row: usize,
    /// Counted from 0.
    pub element: usize,
    /// Rows that differ.
    pub rows_wrong: usize,
    /// What should be there.
    pub expected: f32,
    /// What is there.
    pub got: f32,
    /// What is wrong.
    pub cause: Cause,
}

/// Compares rows of `width` numbers with what the reference has for their ids, bit for bit; one NaN equals another. None
/// where all are equal.
pub fn bits(got: &[f32], ids: &[u32], reference: &[f32], width: usize) -> Option<Difference> {
    if got.len() != ids.len() * width {
        let nothing = f32::NAN;
        let (expected, rows_wrong) = (nothing, ids.len());
        return Some(Difference { row: 0, element: 0, rows_wrong, expected, got: nothing, cause: Cause::Length });
    }
    let same = |(g, w): (&f32, &f32)| g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
    let mut first: Option<Difference> = None;
    for (row, id) in ids.iter().enumerate() {
        let (got, want) = (&got[row * width..][..width], &reference[*id as usize * width..][..width]);
        if got.iter().zip(want).all(same) {
            continue;
        }
        if let Some(first) = &mut first {
            first.rows_wrong += 1;
            continue;
        }
        let element = got.iter().zip(want).position(|pair| !same(pair)).unwrap_or(0);
        let (got, expected) = (got[element], want[element]);
        let cause = if got.is_nan() { Cause::NotWritten } else { Cause::Differs };
        first = Some(Difference { row, element, rows_wrong: 1, expected, got, cause });
    }
    first
}

/// Distances of the first `rows` rows of `width` numbers from the truth, each as [`Arithmetic`] measures them. A row that
/// is not a number is infinitely far.
pub fn distances(got: &[f32], truth: &[f32], rows: usize, width: usize) -> Vec<f64> {
    let mean_square = |sum: f64, count: usize| (sum / count.max(1) as f64).sqrt();
    let square = |v: &f32| f64::from(*v).powi(2);
    let overall = mean_square(truth[..rows * width].iter().map(square).sum(), rows * width);
    let one = |row: usize| {
        let (got, truth) = (&got[row * width..][..width], &truth[row * width..][..width]);
        let own = mean_square(truth.iter().map(square).sum(), width);
        let off = got.iter().zip(truth).map(|(g, t)| (f64::from(*g) - f64::from(*t)).powi(2)).sum();
        let distance = mean_square(off, width);
        // No distance at all is none even from a truth of zeros.
        let relative = if distance == 0.0 { 0.0 } else { distance / own.max(overall) };
        if relative.is_nan() { f64::INFINITY } else { relative }
    };
    (0..rows).map(one).collect()
}

/// The first row that is farther than the bound.
pub fn inexact(got: &[f32], truth: &[f32], distances: &[f64], width: usize, bound: f64) -> Option<Difference> {
    let row = distances.iter().position(|d| *d > bound)?;
    let rows_wrong = distances.iter().filter(|d| **d > bound).count();
    let (got, truth) = (&got[row * width..][..width], &truth[row * width..][..width]);
    let off = |i: usize| (got[i] - truth[i]).abs();
    let farther = |a: usize, b: usize| if off(b) > off(a) || off(b).is_nan() && !off(a).is_nan() { b } else { a };
    let element = (0..width).reduce(farther).unwrap_or(0);
    let cause = Cause::Inexact { error: distances[row], bound };
    Some(Difference { row, element, rows_wrong, expected: truth[element], got: got[element], cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTH: usize = 5;

    /// Eight rows of different numbers, and a step that picks from them.
    fn reference() -> (Vec<f32>, Vec<u32>, Vec<f32>) {
        let reference: Vec<f32> = (0..8 * WIDTH).map(|i| i as f32 * 0.37 - 3.0).collect();
        let ids = vec![3, 0, 7, 7, 1, 5];
        let got = ids.iter().flat_map(|id| reference[*id as usize * WIDTH..][..WIDTH].to_vec()).collect();
        (reference, ids, got)
    }

    #[test]
    fn equal_rows_are_equal_and_nan_is_nan() {
        let (mut reference, ids, mut got) = reference();
        assert_eq!(bits(&got, &ids, &reference, WIDTH), None);
        reference[7 * WIDTH + 2] = f32::NAN;
        got[2 * WIDTH + 2] = -f32::NAN;
        got[3 * WIDTH + 2] = f32::NAN;
        assert_eq!(bits(&got, &ids, &reference, WIDTH), None);
        assert_eq!(bits(&[], &[], &reference, WIDTH), None);
    }

    #[test]
    fn a_row_of_another_is_found() {
        let (reference, ids, mut got) = reference();
        got[4 * WIDTH..5 * WIDTH].copy_from_slice(&reference[2 * WIDTH..3 * WIDTH]);
        let found = bits(&got, &ids, &reference, WIDTH).unwrap();
        assert_eq!((found.row, found.element, found.rows_wrong, found.cause), (4, 0, 1, Cause::Differs));
        assert_eq!((found.expected, found.got), (reference[WIDTH], reference[2 * WIDTH]));
    }

    #[test]
    fn a_missing_row_is_found() {
        let (reference, ids, got) = reference();
        for part in [&got[WIDTH..], &[&got[..], &[0.0]].concat()] {
            assert_eq!(bits(part, &ids, &reference, WIDTH).unwrap().cause, Cause::Length);
        }
    }

    #[test]
    fn distance_is_relative_and_nan_is_far() {
        let truth = [3.0f32, 4.0, 3.0, 4.0];
        let got = [3.0, 4.0, 3.0, 4.1];
        let d = distances(&got, &truth, 2, 2);
        assert!(d[0] == 0.0 && (d[1] - 0.02).abs() < 1e-6, "{d:?}");
        let found = inexact(&got, &truth, &d, 2, 0.019).unwrap();
        assert_eq!((found.row, found.element, found.rows_wrong), (1, 1, 1));
        assert_eq!(inexact(&got, &truth, &d, 2, 0.021), None);
        let d = distances(&[f32::NAN, 4.0, 3.0, 4.0], &truth, 2, 2);
        assert_eq!(d, [f64::INFINITY, 0.0]);
        assert_eq!(distances(&[0.0; 4], &[0.0; 4], 2, 2), [0.0, 0.0]);
    }

    proptest! {
        /// A NaN left in the output, or the last bit of one number: found where it is.
        #[test]
        fn one_number_is_found(at in 0..6 * WIDTH, other in 0..6 * WIDTH, unwritten: bool) {
            let (reference, ids, mut got) = reference();
            for at in [at, other] {
                got[at] = if unwritten { f32::NAN } else { f32::from_bits(got[at].to_bits() ^ 1) };
            }
            let first = if at == other && !unwritten { None } else { Some(at.min(other)) };
            let found = bits(&got, &ids, &reference, WIDTH);
            prop_assert_eq!(found.as_ref().map(|d| d.row * WIDTH + d.element), first);
            if let (Some(found), Some(first)) = (found, first) {
                prop_assert_eq!(found.rows_wrong, if at / WIDTH == other / WIDTH { 1 } else { 2 });
                prop_assert_eq!(found.got.to_bits(), got[first].to_bits());
                prop_assert_eq!(found.cause, if unwritten { Cause::NotWritten } else { Cause::Differs });
            }
        }
    }
}
