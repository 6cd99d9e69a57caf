//! The pieces of attention by themselves: the dense product and the softmax over rows, against f64.

use tessera_ops::{
    MatrixView, Numbers,
    reference::{
        dense::dense,
        softmax::{Weighed, finish, weigh_rows},
    },
};

use crate::support::Random;

/// The probabilities that weights, factors and totals stand for: (rows, pages · 64).
fn probabilities(weights: &[f32], pages: usize, weighed: &Weighed) -> Vec<f64> {
    let mut out = vec![];
    for (row, total) in weighed.totals.iter().enumerate() {
        let factors = &weighed.factors[row * pages..][..pages];
        for (i, weight) in weights[row * pages * 64..][..pages * 64].iter().enumerate() {
            let later: f64 = factors[i / 64 + 1..].iter().map(|f| f64::from(*f)).product();
            out.push(f64::from(finish(*weight, *total)) * later);
        }
    }
    out
}

#[test]
fn a_softmax_over_rows_is_close_to_the_truth() {
    for (seed, pages) in [1usize, 2, 5].into_iter().enumerate() {
        let length = 64 * pages;
        let ranges = [0..length, 0..1, 5..63.min(length), length - 1..length, length / 2..length, 3..3];
        for (sinks, soft_cap) in [(false, None), (true, None), (true, Some(4.0))] {
            let mut random = Random(seed as u64);
            let scores: Vec<f32> = random.values(ranges.len() * length).iter().map(|v| 8.0 * v).collect();
            let sinks = sinks.then(|| random.values(ranges.len()).iter().map(|v| 9.0 * v).collect::<Vec<f32>>());
            let mut weights = scores.clone();
            let weighed = weigh_rows(&mut weights, pages, &ranges, sinks.as_deref(), soft_cap);
            let got = probabilities(&weights, pages, &weighed);
            for (row, seen) in ranges.iter().enumerate() {
                let capped = |at: usize| {
                    let score = f64::from(scores[row * length + at]);
                    soft_cap.map_or(score, |cap: f32| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let sink = sinks.as_ref().map_or(0.0, |s| f64::from(s[row]).exp());
                let total: f64 = seen.clone().map(|at| capped(at).exp()).sum::<f64>() + sink;
                for at in 0..length {
                    let want = if seen.contains(&at) { capped(at).exp() / total } else { 0.0 };
                    // exp is good to 2e-7 of itself, a capped score to 1e-6, sums of 320 and five factors to 1e-6.
                    let error = (got[row * length + at] - want).abs();
                    assert!(error <= 4e-6 * want, "row {row}, score {at}: {error:e} of {want:e}");
                }
            }
            assert_eq!(weighed.totals[5] == 0.0, sinks.is_none(), "a row that sees nothing has its sink alone");
        }
    }
}

#[test]
fn a_row_that_sees_nothing_gives_zeros() {
    let mut scores = vec![f32::NAN; 128];
    let weighed = weigh_rows(&mut scores, 2, std::slice::from_ref(&(64..64)), None, None);
    assert_eq!((weighed.totals[0], finish(0.0, weighed.totals[0])), (0.0, 0.0));
    assert!(scores.iter().all(|w| *w == 0.0));
    let with_sink = weigh_rows(&mut [f32::NAN; 64], 1, std::slice::from_ref(&(0..0)), Some(&[3.0]), None);
    assert_eq!(finish(0.0, with_sink.totals[0]), 0.0);
}

#[test]
fn a_dense_product_is_close_to_the_truth() {
    for (seed, (rows, depth, columns)) in [(1, 1, 1), (3, 64, 5), (2, 513, 17), (4, 0, 3)].into_iter().enumerate() {
        let mut random = Random(40 + seed as u64);
        let (a, numbers) = (random.values(rows * (depth + 2)), random.values(7 + (depth + 3) * (columns + 3)));
        for is_transposed in [false, true] {
            let leading = 3 + if is_transposed { depth } else { columns };
            let view = MatrixView::new(Numbers::F32(&numbers), (depth, columns), 7, leading, is_transposed).unwrap();
            for accumulate in [false, true] {
                let mut c = vec![0.5; rows * (columns + 1)];
                dense(rows, (&a, depth + 2), &view, (&mut c, columns + 1), accumulate);
                for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |n| (r, n))) {
                    let products =
                        (0..depth).map(|k| f64::from(a[row * (depth + 2) + k]) * f64::from(view.get(k, column)));
                    let want = products.sum::<f64>() + if accumulate { 0.5 } else { 0.0 };
                    // Each of the depth's roundings is at most 2^-24 of a sum below depth.
                    let bound = 2f64.powi(-24) * (depth * depth + 1) as f64;
                    assert!((f64::from(c[row * (columns + 1) + column]) - want).abs() <= bound.min(1e-4));
                }
                assert!((0..rows).all(|row| c[row * (columns + 1) + columns] == 0.5), "what lies between stays");
            }
        }
    }
}
