//! The likeliest tokens of rows of logits, without a copy of them. All threads find the greatest of each run of logits;
//! they [bound](ranking::bound) what is wanted, and only runs that reach the bound are looked at again.

use tessera_ops::ranking::{self, Candidate, is_sound};

use crate::{
    isa::Kernel,
    lanes::Workers,
    simd::{LANES, Simd},
    tensor::Tensor,
};

/// Logits whose greatest is noted: few, so that a small vocabulary has more runs than tokens are asked for.
const RUN: usize = 8 * LANES;

/// Appends the `count` likeliest tokens of each row (or all), in order.
pub(crate) fn best(workers: &Workers, logits: &Tensor, count: usize, out: &mut Vec<Candidate>) {
    let (width, count) = (logits.width(), count.min(logits.width()));
    if count == 0 {
        return;
    }
    let (rows, runs, logits) = (logits.as_slice().len() / width, width.div_ceil(RUN), logits.as_slice());
    let mut greatest = vec![f32::NEG_INFINITY; rows * runs];
    workers.runs_of(&mut greatest, 1, logits.len(), |first, greatest| {
        workers.isa.run(Greatest { logits, width, first, greatest });
    });
    let before = out.len();
    out.resize(before + rows * count, Candidate { id: 0, logit: 0.0 });
    // A run for each candidate, or a few more, is looked at again.
    let numbers = rows * (runs + count.min(runs) * RUN);
    workers.runs_of(&mut out[before..], count, numbers, |first, out| {
        for (row, out) in (first..).zip(out.chunks_exact_mut(count)) {
            choose_of_row(&logits[row * width..(row + 1) * width], &greatest[row * runs..(row + 1) * runs], out);
        }
    });
}

/// What a logit counts as beside others: one that no sound model gives comes before all else.
#[inline(always)]
fn key(logit: f32) -> f32 {
    if is_sound(logit) { logit } else { f32::INFINITY }
}

/// The greatest [`key`]s of runs of logits, from the run `first` of all rows on.
struct Greatest<'a> {
    logits: &'a [f32],
    width: usize,
    first: usize,
    greatest: &'a mut [f32],
}

impl Kernel for Greatest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let runs = self.width.div_ceil(RUN);
        for (index, greatest) in (self.first..).zip(self.greatest) {
            let (row, run) = (index / runs, index % runs);
            let run = &self.logits[row * self.width + run * RUN..row * self.width + self.width.min((run + 1) * RUN)];
            let (lines, rest) = run.as_chunks::<LANES>();
            // Lane by lane, which the compiler turns into the instructions at hand.
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for line in lines {
                for (lane, logit) in lanes.iter_mut().zip(line) {
                    let key = key(*logit);
                    *lane = if key > *lane { key } else { *lane };
                }
            }
            for logit in rest {
                lanes[0] = lanes[0].max(key(*logit));
            }
            *greatest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        }
    }
}

/// Fills `out` with the first candidates of a row, given the greatest of its runs.
fn choose_of_row(row: &[f32], greatest: &[f32], out: &mut [Candidate]) {
    let least = ranking::bound(&mut greatest.to_vec(), out.len());
    let runs = (0..).step_by(RUN).zip(row.chunks(RUN)).zip(greatest).filter(|(_, greatest)| **greatest >= least);
    let candidates = runs.flat_map(|((start, run), _)| (start..).zip(run)).filter(|(_, logit)| key(**logit) >= least);
    let found = ranking::first(candidates.map(|(id, logit)| Candidate { id, logit: *logit }).collect(), out.len());
    out.copy_from_slice(&found);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{isa::Isa, lanes::ALONE_MAX, tensor::Pool, threads::Threads};

    /// Few values, so that many are equal; what no sound model gives; and tokens that are ruled out.
    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => (-8i8..8).prop_map(f32::from),
            2 => Just(f32::NEG_INFINITY),
            1 => prop_oneof![Just(-0.0f32), Just(f32::NAN), Just(f32::INFINITY), Just(f32::MAX), Just(f32::MIN)],
        ]
    }

    fn assert_best(rows: usize, width: usize, count: usize, values: &[f32]) {
        for isa in Isa::available() {
            let workers = Workers { isa, pool: Threads::new(3.try_into().unwrap()) };
            let mut logits = Pool::new().take(rows, width);
            logits.as_mut_slice().iter_mut().zip(values.iter().cycle()).for_each(|(to, from)| *to = *from);
            let (mut found, mut expected) = (vec![], vec![]);
            logits.as_slice().chunks_exact(width).for_each(|row| ranking::best(row, count, &mut expected));
            best(&workers, &logits, count, &mut found);
            let bits = |of: &[Candidate]| of.iter().map(|c| (c.id, c.logit.to_bits())).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{rows} rows of {width}, {count}, {isa:?}");
        }
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_the_whole_order(
            rows in 1usize..5, width in 1usize..5000, count in 0usize..150, values in prop::collection::vec(logit(), 1..3000),
        ) {
            assert_best(rows, width, count, &values);
        }
    }

    #[test]
    fn runs_that_end_early_and_rows_that_are_all_alike_are_no_exception() {
        for width in [1, LANES - 1, RUN - 1, RUN, RUN + 1, 2 * RUN, ALONE_MAX, ALONE_MAX + 1] {
            for count in [1, 2, width, width + 1] {
                for value in [1.0, f32::NEG_INFINITY, f32::NAN] {
                    assert_best(2, width, count.min(ranking::BEST_MAX), &[value]);
                }
            }
        }
    }
}
