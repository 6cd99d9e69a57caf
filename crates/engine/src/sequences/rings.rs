//! Rings: what a model keeps of the last positions of a sequence alone.
//!
//! A ring overwrites its oldest rows, so a sequence can go back by as many tokens as a step has rows ([`Rings::rows_max`]), and no
//! further. For the same reason published pages are of use to another sequence only where somebody kept what is seen of the ring from
//! their end on: a *checkpoint*. There are a few of these, in the machine's memory; the one that was used longest ago makes room.

use super::prefixes::Link;
use crate::models::Rings;

/// How far a sequence has come in its ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// One past the highest position that was written.
    pub(crate) end: usize,
    /// Where a checkpoint was taken that it came from: what is seen from before that is not there.
    pub(crate) from: usize,
}

impl Reach {
    /// Rows up to position `end` were written.
    pub(crate) fn wrote(&mut self, end: usize) {
        self.end = self.end.max(end);
    }

    /// Whether the ring has all that rows from position `len` on see.
    pub(crate) fn can_go_on_at(self, len: usize, rings: Option<Rings>) -> bool {
        let is_kept = |rings: Rings| len >= self.from && self.end.saturating_sub(len) <= rings.rows_max;
        len == 0 || rings.is_none_or(is_kept)
    }
}

/// Checkpoints that are kept.
const CHECKPOINTS_MAX: usize = 8;

/// What is seen of rings from the end of published pages on.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// The one that was used last stands last.
    kept: Vec<(Link, Vec<u8>)>,
}

impl Checkpoints {
    /// Whether there is one at the end of this page.
    pub(super) fn has(&self, link: Link) -> bool {
        self.kept.iter().any(|(l, ..)| *l == link)
    }

    /// Keeps that part of a ring.
    pub(super) fn insert(&mut self, link: Link, ring: Vec<u8>) {
        if self.kept.len() == CHECKPOINTS_MAX {
            self.kept.remove(0);
        }
        self.kept.push((link, ring));
    }

    /// What was kept at the end of this page.
    pub(super) fn find(&mut self, link: Link) -> Option<&[u8]> {
        let at = self.kept.iter().position(|(l, ..)| *l == link)?;
        let found = self.kept.remove(at);
        self.kept.push(found);
        self.kept.last().map(|(_, ring)| &ring[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_goes_back_as_far_as_a_step_is_long() {
        let rings = Some(Rings { count: 1, rows_max: 10 });
        let mut reach = Reach::default();
        reach.wrote(100);
        reach.wrote(95);
        assert!(reach.can_go_on_at(90, rings) && !reach.can_go_on_at(89, rings));
        assert!(reach.can_go_on_at(0, rings) && reach.can_go_on_at(1, None));
        let mut from_checkpoint = Reach { end: 64, from: 64 };
        from_checkpoint.wrote(66);
        assert!(from_checkpoint.can_go_on_at(64, rings) && !from_checkpoint.can_go_on_at(63, rings));
        assert!(from_checkpoint.can_go_on_at(0, rings));
    }
}
