//! The one order of candidates: higher logit first, equal logits by lower id. Sorted only as far as someone looks.

use std::cmp::Ordering;

use tessera_ops::ranking;

/// How many candidates are put in order when the first is wanted. Most draws look no further.
const FIRST_CHUNK: usize = 128;

/// Logits of which only the highest is looked at, at first.
const GROUP: usize = 64;

/// The candidates in canonical order, as far as someone has asked.
///
/// A full sort of 262,144 candidates costs more than a small model's layer. Those that reach a [bound](ranking::bound) are few, are
/// found in the groups whose maximum does, and come before all others.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// In order; not behind any candidate that is missing.
    ids: Vec<u32>,
    /// The highest logit of each group, while `ids` is not all; and the same to be put in order.
    maxima: Vec<f32>,
    bounds: Vec<f32>,
}

impl Ranking {
    /// Forgets all order.
    pub(super) fn reset(&mut self) {
        self.ids.clear();
        self.maxima.clear();
    }

    /// The first `count` tokens (or all there are), in order. `logits` must be the same since the last reset.
    pub(super) fn first(&mut self, count: usize, logits: &[f32]) -> &[u32] {
        let count = count.min(logits.len());
        if count > self.ids.len() {
            self.collect(count, logits);
        }
        &self.ids[..count]
    }

    /// The token of rank `rank`, sorting in growing chunks as ranks are asked for one after another.
    pub(super) fn nth(&mut self, rank: usize, logits: &[f32]) -> Option<u32> {
        if rank >= self.ids.len() {
            self.first((self.ids.len() * 8).max(FIRST_CHUNK).max(rank + 1), logits);
        }
        self.ids.get(rank).copied()
    }

    /// Puts at least `count` candidates in order.
    fn collect(&mut self, count: usize, logits: &[f32]) {
        if self.maxima.is_empty() {
            self.maxima.extend(logits.chunks(GROUP).map(highest));
        }
        self.bounds.clone_from(&self.maxima);
        let bound = ranking::bound(&mut self.bounds, count);
        self.ids.clear();
        for (group, _) in self.maxima.iter().enumerate().filter(|(_, highest)| **highest >= bound) {
            let first = group * GROUP;
            let members = logits[first..].iter().take(GROUP).enumerate();
            self.ids.extend(members.filter(|(_, l)| **l >= bound).map(|(i, _)| (first + i) as u32));
        }
        let by_rank = |a: &u32, b: &u32| order(logits, *a, *b);
        if count < self.ids.len() / 2 {
            self.ids.select_nth_unstable_by(count, by_rank);
            self.ids.truncate(count);
        }
        self.ids.sort_unstable_by(by_rank);
    }
}

/// The canonical order; a total one for logits without NaN.
fn order(logits: &[f32], a: u32, b: u32) -> Ordering {
    // partial_cmp, not total_cmp: 0.0 and -0.0 are a tie.
    let by_logit = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal);
    by_logit.then(a.cmp(&b))
}

/// The highest of some logits, none of them NaN; -infinity where there are none.
pub(super) fn highest(logits: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(h, l)| *h = higher(*h, *l));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, higher)
}

/// The first token in canonical order; none if all are -infinity or there is none.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    // Two passes that the compiler turns into vectors are several times faster than one that must remember where.
    let highest = highest(logits);
    if highest == f32::NEG_INFINITY {
        return None;
    }
    let (chunks, _) = logits.as_chunks::<16>();
    let chunk = chunks.iter().position(|chunk| chunk.iter().fold(false, |found, l| found | (*l == highest)));
    let start = chunk.unwrap_or(chunks.len()) * 16;
    let within = logits[start..].iter().position(|l| *l == highest)?;
    Some((start + within) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The walk that remembers where is the definition.
        #[test]
        fn argmax_is_the_first_in_order(
            picks in prop::collection::vec(0usize..7, 0..70),
        ) {
            let values = [f32::NEG_INFINITY, -1.5, -0.0, 0.0, 2.0, f32::MIN, f32::MAX];
            let logits: Vec<f32> = picks.iter().map(|i| values[*i]).collect();
            let ids = (0..logits.len() as u32).filter(|id| logits[*id as usize] > f32::NEG_INFINITY);
            prop_assert_eq!(argmax(&logits), ids.min_by(|a, b| order(&logits, *a, *b)));
        }

        /// A full sort is the definition, whatever is asked for first and next. Few values, so that many are equal.
        #[test]
        fn ranks_are_those_of_a_full_sort(
            picks in prop::collection::vec(0usize..30, 1..1000),
            counts in prop::collection::vec(0usize..1100, 1..4),
        ) {
            let logits: Vec<f32> =
                picks.iter().map(|&i| if i == 0 { f32::NEG_INFINITY } else { i as f32 / 3.0 - 4.0 }).collect();
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|a, b| order(&logits, *a, *b));
            let mut ranking = Ranking::default();
            for count in counts {
                let count = count.min(logits.len());
                prop_assert_eq!(ranking.first(count, &logits), &sorted[..count]);
                let rank = (count * 7) % (logits.len() + 1);
                prop_assert_eq!(ranking.nth(rank, &logits), sorted.get(rank).copied());
            }
        }
    }
}
