//! What passes of verified drafts gave and took.

use std::time::Duration;

/// All passes of a run. A pass verifies drafts, forgets those that are wrong, and makes the next.
#[derive(Debug)]
pub(super) struct Passes {
    depth: usize,
    /// Tokens, the first of them from the prompt.
    pub(super) told: Vec<u32>,
    pub(super) count: usize,
    /// (depth) how many drafts were verified at each place, and how many of them were right.
    pub(super) tried: Vec<usize>,
    pub(super) right: Vec<usize>,
    /// Of all passes: verification, drafts, and what becomes of the state of those that are wrong.
    pub(super) times: [Duration; 3],
    /// Of those with all drafts, and how many these are.
    pub(super) whole_times: [Duration; 3],
    pub(super) whole: usize,
}

impl Passes {
    pub(super) fn new(depth: usize, first: u32) -> Passes {
        let (count, whole, [tried, right]) = (0, 0, [(); 2].map(|()| vec![0; depth]));
        let (times, whole_times) = Default::default();
        Passes { depth, told: vec![first], count, tried, right, times, whole_times, whole }
    }

    /// A pass that told these tokens, all but the last of which were drafts.
    pub(super) fn add(&mut self, told: &[u32], drafts: usize, times: [Duration; 3]) {
        self.told.extend_from_slice(told);
        self.count += 1;
        self.tried[..drafts].iter_mut().for_each(|n| *n += 1);
        self.right[..told.len() - 1].iter_mut().for_each(|n| *n += 1);
        let add = |to: &mut [Duration; 3]| to.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
        add(&mut self.times);
        if drafts == self.depth {
            add(&mut self.whole_times);
            self.whole += 1;
        }
    }

    /// Of all passes.
    pub(super) fn time(&self) -> Duration {
        self.times.iter().sum()
    }

    /// Tokens that a pass told, in the mean.
    pub(super) fn tokens_per_pass(&self) -> f64 {
        (self.told.len() - 1) as f64 / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_as_far_as_drafts_were_right() {
        let mut passes = Passes::new(3, 9);
        let millis = |n: [u64; 3]| n.map(Duration::from_millis);
        passes.add(&[1], 0, millis([1, 2, 0]));
        passes.add(&[2, 3, 4], 3, millis([5, 6, 1]));
        passes.add(&[5, 6, 7, 8], 3, millis([7, 8, 1]));
        passes.add(&[9], 1, millis([2, 0, 0]));
        assert_eq!((&passes.tried[..], &passes.right[..]), (&[3, 2, 2][..], &[2, 2, 1][..]));
        assert_eq!((passes.count, passes.whole, passes.tokens_per_pass()), (4, 2, 2.25));
        assert_eq!((passes.times, passes.whole_times), (millis([15, 16, 2]), millis([12, 14, 2])));
        assert_eq!(passes.time(), Duration::from_millis(33));
    }
}
