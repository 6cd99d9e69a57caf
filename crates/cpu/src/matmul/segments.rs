//! The segment table: which rows of activations meet which matrix, and where the results go.
//!
//! | op      | segments | rows of a segment  | input of a row             | output of a row            |
//! | ------- | -------- | ------------------ | -------------------------- | -------------------------- |
//! | dense   | 1        | all tokens         | the whole row              | the whole row              |
//! | grouped | G        | all tokens         | the group's slice          | the group's slice          |
//! | routed  | E        | those routed there | its token's row, or its own | row `token * slots + slot` |
//!
//! A routed row is named by its *place* `token * slots + slot`; a segment's places are ascending.

use super::dispatch::Op;
use crate::routes::Routes;

/// Rows, segment by segment.
#[derive(Clone, Copy, Debug)]
pub struct SegmentTable<'a> {
    op: Op,
    segments: usize,
    tokens: usize,
    routed: Routed<'a>,
}

/// The rows of routed segments.
#[derive(Clone, Copy, Debug)]
struct Routed<'a> {
    /// (segments + 1) where each segment's places start.
    starts: &'a [u32],
    /// (tokens * slots) places, segment by segment.
    places: &'a [u32],
    /// Places that share one row of input: `slots` on the way to the experts, 1 on the way back.
    share: usize,
}

const NONE: Routed<'static> = Routed { starts: &[], places: &[], share: 1 };

impl<'a> SegmentTable<'a> {
    /// All tokens meet one matrix.
    pub fn dense(tokens: usize) -> SegmentTable<'a> {
        SegmentTable { op: Op::Dense, segments: 1, tokens, routed: NONE }
    }

    /// Each of `segments` matrices meets its slice of all tokens.
    pub fn grouped(tokens: usize, segments: usize) -> SegmentTable<'a> {
        SegmentTable { op: Op::Grouped, segments, tokens, routed: NONE }
    }

    /// Segment e meets the rows that are routed to expert e. On the way `back` each place has an input row of its own;
    /// else it reads its token's.
    pub fn routed(routes: &'a Routes, back: bool) -> SegmentTable<'a> {
        let (slots, starts, places) = (routes.slots(), routes.starts(), routes.places());
        let routed = Routed { starts, places, share: if back { 1 } else { slots } };
        SegmentTable { op: Op::Routed, segments: starts.len() - 1, tokens: places.len() / slots, routed }
    }

    /// What kind of projection it is.
    pub fn op(&self) -> Op {
        self.op
    }

    /// How many segments.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Rows of a segment.
    pub fn rows(&self, segment: usize) -> usize {
        match self.op {
            Op::Dense | Op::Grouped => self.tokens,
            Op::Routed => (self.routed.starts[segment + 1] - self.routed.starts[segment]) as usize,
        }
    }

    /// Rows of all segments.
    pub fn rows_total(&self) -> usize {
        match self.op {
            Op::Dense | Op::Grouped => self.segments * self.tokens,
            Op::Routed => self.routed.places.len(),
        }
    }

    /// Segments that have rows.
    pub fn occupied(&self) -> usize {
        (0..self.segments).filter(|s| self.rows(*s) > 0).count()
    }

    /// Numbers of input, where matrices are `depth` deep.
    pub fn input_len(&self, depth: usize) -> usize {
        match self.op {
            Op::Dense | Op::Grouped => self.tokens * self.segments * depth,
            Op::Routed => self.routed.places.len() / self.routed.share * depth,
        }
    }

    /// Numbers of output, where matrices have `rows` rows.
    pub fn output_len(&self, rows: usize) -> usize {
        self.rows_total() * rows
    }

    /// Whether the input rows of a segment lie one after another.
    pub(super) fn is_plain(&self) -> bool {
        self.op == Op::Dense
    }

    /// The input rows of a segment.
    pub(super) fn input(&self, x: &'a [f32], depth: usize, segment: usize) -> InputRows<'a> {
        match self.op {
            Op::Dense | Op::Grouped => {
                let (stride, offset) = (self.segments * depth, segment * depth);
                InputRows { x, depth, stride, offset, places: None, share: 1 }
            }
            Op::Routed => {
                let (places, share) = (self.places(segment), self.routed.share);
                InputRows { x, depth, stride: depth, offset: 0, places, share }
            }
        }
    }

    /// The places of a routed segment.
    pub(super) fn places(&self, segment: usize) -> Option<&'a [u32]> {
        let at = |s: usize| self.routed.starts[s] as usize;
        (self.op == Op::Routed).then(|| &self.routed.places[at(segment)..at(segment + 1)])
    }

    /// Where a segment's output starts, and numbers from one row (or place) to the next.
    pub(super) fn output(&self, rows: usize, segment: usize) -> (usize, usize) {
        match self.op {
            Op::Dense | Op::Grouped => (segment * rows, self.segments * rows),
            Op::Routed => (0, rows),
        }
    }
}

/// The input rows of a segment, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputRows<'a> {
    pub(super) x: &'a [f32],
    /// Numbers of a row.
    pub(super) depth: usize,
    /// Numbers from one row to the next, and before the first.
    pub(super) stride: usize,
    pub(super) offset: usize,
    /// The rows' places; none: 0, 1, 2, …
    pub(super) places: Option<&'a [u32]>,
    /// Places that share a row.
    pub(super) share: usize,
}

impl<'a> InputRows<'a> {
    /// Row `index` of the part.
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        let row = self.places.map_or(index, |p| p[index] as usize / self.share);
        &self.x[row * self.stride + self.offset..][..self.depth]
    }

    /// The part from row `first` on.
    pub(super) fn skip(&self, first: usize) -> InputRows<'a> {
        match self.places {
            Some(places) => InputRows { places: Some(&places[first..]), ..*self },
            None => InputRows { offset: self.offset + first * self.stride, ..*self },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_where_the_table_says() {
        // Two groups of depth 2, three tokens.
        let x: Vec<f32> = (0..12u8).map(f32::from).collect();
        let table = SegmentTable::grouped(3, 2);
        let rows = table.input(&x, 2, 1);
        assert_eq!([rows.row(0), rows.row(2), rows.skip(1).row(1)], [[2.0, 3.0], [10.0, 11.0], [10.0, 11.0]]);
        assert_eq!((table.input_len(2), table.output_len(5), table.output(5, 1)), (12, 30, (5, 10)));
        // Three tokens of two slots; the second of three experts has no rows.
        let routes = Routes::new(3, 2, &[0, 2, 0, 0, 2, 0], &[1.0; 6]);
        let out = SegmentTable::routed(&routes, false);
        assert_eq!((out.rows(0), out.rows(1), out.occupied(), out.rows_total()), (4, 0, 2, 6));
        assert_eq!(out.places(0), Some(&[0, 2, 3, 5][..]));
        assert_eq!((out.input_len(4), out.output_len(5)), (12, 30));
        assert_eq!([out.input(&x, 4, 0).row(2)[0], out.input(&x, 4, 2).skip(1).row(0)[0]], [4.0, 8.0]);
        let back = SegmentTable::routed(&routes, true);
        assert_eq!((back.input_len(2), back.input(&x, 2, 0).row(2)), (12, &[6.0, 7.0][..]));
    }
}
