//! The one order of candidates: higher logit first, equal logits by lower id. Sorted only as far as someone looks.

use std::cmp::Ordering;

/// How many candidates are put in order when the first is wanted. Most draws look no further.
const FIRST_CHUNK: usize = 128;

/// Token ids, of which the first `sorted` are in canonical order and not behind any other.
///
/// A full sort of 262,144 candidates costs more than a small model's layer; selecting the next chunk is linear.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    ids: Vec<u32>,
    sorted: usize,
}

impl Ranking {
    /// Forgets all order, over tokens 0 to `count` - 1.
    pub(super) fn reset(&mut self, count: usize) {
        self.ids.clear();
        self.ids.extend(0..count as u32);
        self.sorted = 0;
    }

    /// The first `count` tokens (or all there are), in order. `logits` must be the same since the last reset.
    pub(super) fn first(&mut self, count: usize, logits: &[f32]) -> &[u32] {
        let count = count.min(self.ids.len());
        if count > self.sorted {
            let by_rank = |a: &u32, b: &u32| order(logits, *a, *b);
            let rest = &mut self.ids[self.sorted..];
            let wanted = count - self.sorted;
            if wanted < rest.len() {
                rest.select_nth_unstable_by(wanted, by_rank);
            }
            rest[..wanted].sort_unstable_by(by_rank);
            self.sorted = count;
        }
        &self.ids[..count]
    }

    /// The token of rank `rank`, sorting in growing chunks as ranks are asked for one after another.
    pub(super) fn nth(&mut self, rank: usize, logits: &[f32]) -> Option<u32> {
        if rank >= self.sorted {
            self.first((self.sorted * 8).max(FIRST_CHUNK).max(rank + 1), logits);
        }
        self.ids.get(rank).copied()
    }
}

/// The canonical order; a total one for logits without NaN.
fn order(logits: &[f32], a: u32, b: u32) -> Ordering {
    // partial_cmp, not total_cmp: 0.0 and -0.0 are a tie.
    let by_logit = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal);
    by_logit.then(a.cmp(&b))
}

/// The first token in canonical order; none if all are -infinity or there is none.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let (mut best, mut highest) = (None, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > highest {
            (best, highest) = (Some(id as u32), logit);
        }
    }
    best
}
