//! Activations in the form the kernels read: quantized once, in panels exactly as wide as a tile.
//!
//! A panel of C tokens holds, for each block of 32 features, `C x 32 codes | C scales | C scaled sums | C sums`: every
//! operand of a tile at a constant offset. Sub-blocks of 16 need sums of half a block; those lie in panels of their own,
//! behind the others. Layouts of floats read plain rows; where these do not lie one after another (a group's slices, an
//! expert's tokens) they are copied behind the panels.
//!
//! All panels of a *pass* (some rows of one segment) lie together in cache lines of the scratch memory.

use super::{
    quantize::{Lane, quantize_row},
    segments::InputRows,
    tile::{BLOCK, TOKENS_MAX, halves_bytes, record_bytes},
};
use crate::{
    isa::{Isa, Kernel},
    simd::Simd,
    threads::SharedSlice,
};

/// Scratch memory of quantized activations, kept from step to step.
#[derive(Default)]
pub struct Activations {
    lines: Vec<Line>,
    /// Under audit: what an earlier projection left is made useless.
    poisoned: bool,
    /// The passes of a projection whose workers share all panels.
    pub(super) passes: Vec<super::project::Pass>,
}

impl Activations {
    /// Empty scratch.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Empty scratch under audit: scales that a projection reads but never wrote are NaN.
    pub fn poisoned() -> Activations {
        Activations { poisoned: true, ..Activations::default() }
    }

    /// Room for `count` cache lines, with the list of passes. Room once made is kept, so that a warm step allocates
    /// nothing.
    pub(super) fn room(&mut self, count: usize) -> (SharedSlice<'_, Line>, &[super::project::Pass]) {
        if self.lines.len() < count {
            self.lines.resize(count, Line([0; LINE]));
        }
        if self.poisoned {
            self.lines[..count].fill(Line([0xff; LINE]));
        }
        (SharedSlice::new(&mut self.lines), &self.passes)
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(#[allow(dead_code)] [u8; 64]); // read and written through pointers

const LINE: usize = size_of::<Line>();

/// How the tokens of a pass are cut into panels: near-equal widths, the wider ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// How many panels.
    pub(super) count: usize,
    /// Tokens of a narrow panel; a wide one has one more.
    width: usize,
    /// How many panels are wide.
    wide: usize,
}

/// Neighbouring panels of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first panel.
    pub(super) first: usize,
    /// How many panels.
    pub(super) panels: usize,
    /// The first token.
    pub(super) start: usize,
    /// The width of each panel.
    pub(super) tokens: usize,
}

impl Cut {
    /// As few panels of at most `tokens_max` as will do.
    pub(super) fn new(tokens: usize, tokens_max: usize) -> Cut {
        assert!((1..=TOKENS_MAX).contains(&tokens_max), "no tile is {tokens_max} tokens wide");
        assert!(tokens > 0, "a pass has some tokens");
        let count = tokens.div_ceil(tokens_max);
        Cut { count, width: tokens / count, wide: tokens % count }
    }

    /// The wide panels and the narrow ones (there may be no wide ones).
    pub(super) fn runs(&self) -> [Run; 2] {
        let start = self.wide * (self.width + 1);
        [
            Run { first: 0, panels: self.wide, start: 0, tokens: self.width + 1 },
            Run { first: self.wide, panels: self.count - self.wide, start, tokens: self.width },
        ]
    }
}

/// What the matrices of a projection ask of its activations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Features of a row.
    pub(super) depth: usize,
    /// Some layout multiplies codes.
    pub(super) codes: bool,
    /// Some layout has scales of 16 weights.
    pub(super) halves: bool,
    /// Some layout multiplies plain rows that do not lie one after another.
    pub(super) copies: bool,
}

impl Form {
    /// Blocks of a row; the last may be short for floats.
    pub(super) fn blocks(&self) -> usize {
        self.depth.div_ceil(BLOCK)
    }

    /// Cache lines of a panel of `tokens` tokens, of its halves, and of a copied row.
    fn lines_each(&self, tokens: usize) -> [usize; 3] {
        let lines = |wanted: bool, bytes: usize| if wanted { bytes.div_ceil(LINE) } else { 0 };
        [
            lines(self.codes, self.blocks() * record_bytes(tokens)),
            lines(self.halves, self.blocks() * halves_bytes(tokens)),
            lines(self.copies, self.depth * size_of::<f32>()),
        ]
    }

    /// Cache lines before panel `index` of a cut and before its halves, from where the first of each starts.
    fn lines_before(&self, cut: &Cut, index: usize) -> [usize; 2] {
        let (wide, narrow) = (self.lines_each(cut.width + 1), self.lines_each(cut.width));
        let before = |i: usize| index.min(cut.wide) * wide[i] + index.saturating_sub(cut.wide) * narrow[i];
        [before(0), before(1)]
    }

    /// Cache lines of a pass.
    pub(super) fn lines(&self, cut: &Cut) -> usize {
        let [panels, halves] = self.lines_before(cut, cut.count);
        panels + halves + (cut.count * cut.width + cut.wide) * self.lines_each(1)[2]
    }
}

/// The panels of one pass, to be filled and read by one worker or many.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub(super) form: Form,
    pub(super) cut: Cut,
    start: *mut Line,
}

// SAFETY: it is an address with sizes; what it points to is reached through unsafe functions alone.
unsafe impl Sync for Panels {}

impl Panels {
    /// The panels that start at line `at` of `room`.
    pub(super) fn new(form: Form, cut: Cut, room: &SharedSlice<'_, Line>, at: usize) -> Panels {
        Panels { form, cut, start: room.as_ptr().wrapping_add(at) }
    }

    /// Where panel `index` starts.
    pub(super) fn panel(&self, index: usize) -> *mut u8 {
        self.start.wrapping_add(self.form.lines_before(&self.cut, index)[0]).cast()
    }

    /// Where the halves of panel `index` start, if there are any.
    pub(super) fn halves(&self, index: usize) -> *mut u8 {
        let panels = self.form.lines_before(&self.cut, self.cut.count)[0];
        self.start.wrapping_add(panels + self.form.lines_before(&self.cut, index)[1]).cast()
    }

    /// Where the copied row of token `token` starts, if rows are copied.
    pub(super) fn copy(&self, token: usize) -> *mut f32 {
        let [panels, halves] = self.form.lines_before(&self.cut, self.cut.count);
        self.start.wrapping_add(panels + halves + token * self.form.lines_each(1)[2]).cast()
    }

    /// Numbers from one copied row to the next.
    pub(super) fn copy_stride(&self) -> usize {
        self.form.lines_each(1)[2] * (LINE / size_of::<f32>())
    }

    /// Bytes from one panel of this width to the next, and from its halves to the next one's.
    pub(super) fn strides(&self, tokens: usize) -> (usize, usize) {
        let [panel, halves, _] = self.form.lines_each(tokens);
        (panel * LINE, halves * LINE)
    }

    /// Fills blocks `blocks.0..blocks.1` of all panels from the first rows of `rows`, as many as there are tokens.
    ///
    /// # Safety
    /// The room has all lines of the pass, and no other thread reads or writes these blocks meanwhile.
    pub(super) unsafe fn fill(&self, isa: Isa, rows: &InputRows<'_>, blocks: (usize, usize)) {
        for run in self.cut.runs() {
            for i in 0..run.panels {
                let first = run.start + i * run.tokens;
                if self.form.codes {
                    isa.run(Quantize {
                        rows: *rows,
                        first,
                        tokens: run.tokens,
                        blocks,
                        panel: self.panel(run.first + i),
                        halves: self.form.halves.then(|| self.halves(run.first + i)),
                    });
                }
                for token in (first..first + run.tokens).filter(|_| self.form.copies) {
                    let features = blocks.0 * BLOCK..self.form.depth.min(blocks.1 * BLOCK);
                    let from = &rows.row(token)[features.clone()];
                    // SAFETY: a copied row has `depth` numbers, and these are this thread's.
                    unsafe { self.copy(token).add(features.start).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
                }
            }
        }
    }
}

/// Quantizes some blocks of a panel, bit for bit as [`tessera_ops::numerics::quantize_block`].
struct Quantize<'a> {
    rows: InputRows<'a>,
    /// The panel's first row, and how many.
    first: usize,
    tokens: usize,
    blocks: (usize, usize),
    panel: *mut u8,
    halves: Option<*mut u8>,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for token in 0..self.tokens {
            let row = &self.rows.row(self.first + token).as_chunks::<BLOCK>().0[self.blocks.0..self.blocks.1];
            let lane = Lane { panel: self.panel, halves: self.halves, tokens: self.tokens, token };
            // SAFETY: panels hold a record for each block, and halves where they are given.
            unsafe { quantize_row(simd, row, self.blocks.0, lane) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_ops::numerics;

    use super::*;

    #[test]
    fn panels_cover_all_tokens_once() {
        for tokens in 1..200 {
            for tokens_max in [1, 4, 7, 12] {
                let cut = Cut::new(tokens, tokens_max);
                let (mut panel, mut token) = (0, 0);
                for run in cut.runs().iter().filter(|r| r.panels > 0) {
                    assert_eq!((run.first, run.start), (panel, token));
                    assert!((1..=tokens_max).contains(&run.tokens));
                    panel += run.panels;
                    token += run.panels * run.tokens;
                }
                assert_eq!((panel, token), (cut.count, tokens));
            }
        }
    }

    #[derive(Debug, Clone)]
    struct Case {
        x: Vec<f32>,
        tokens: usize,
    }

    fn case() -> impl Strategy<Value = Case> {
        let special = vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-42, -1e-38, f32::MAX, 0.5, 127.0];
        let block = prop_oneof![
            4 => prop::collection::vec(-50f32..50.0, BLOCK),
            1 => prop::collection::vec(prop::sample::select(special), BLOCK),
            1 => prop::collection::vec(-1e-40f32..1e-40, BLOCK),
            1 => Just(vec![0.0; BLOCK]),
        ];
        (1usize..=26, 1usize..=3).prop_flat_map(move |(tokens, blocks)| {
            prop::collection::vec(block.clone(), tokens * blocks).prop_map(move |x| Case { x: x.concat(), tokens })
        })
    }

    proptest! {
        /// Rows in any order, blocks filled in two parts, copied rows beside them.
        #[test]
        fn panels_hold_the_contract_s_blocks(case in case(), seam in 0usize..=3, seed in 0usize..26) {
            let depth = case.x.len() / case.tokens;
            let places: Vec<u32> = (0..case.tokens).map(|i| ((i + seed) % case.tokens) as u32).collect();
            let rows = InputRows { x: &case.x, depth, stride: depth, offset: 0, places: Some(&places), share: 1 };
            let x: Vec<f32> = (0..case.tokens).flat_map(|i| rows.row(i).to_vec()).collect();
            let form = Form { depth, codes: true, halves: true, copies: true };
            let (cut, seam) = (Cut::new(case.tokens, 12), seam.min(form.blocks()));
            for isa in Isa::available() {
                let mut scratch = Activations::new();
                let (room, _) = scratch.room(form.lines(&cut));
                let panels = Panels::new(form, cut, &room, 0);
                // SAFETY: the room is all this thread's.
                unsafe {
                    panels.fill(isa, &rows, (0, seam));
                    panels.fill(isa, &rows, (seam, form.blocks()));
                }
                for run in cut.runs() {
                    for i in 0..run.panels {
                        check_panel(&panels, run, i, &x, depth);
                    }
                }
            }
        }
    }

    fn check_panel(panels: &Panels, run: Run, i: usize, x: &[f32], depth: usize) {
        let (index, start, c) = (run.first + i, run.start + i * run.tokens, run.tokens);
        for (token, block) in (0..c).flat_map(|t| (0..depth / BLOCK).map(move |b| (t, b))) {
            let at = (start + token) * depth + block * BLOCK;
            let want = numerics::quantize_block(&x[at..at + BLOCK]);
            let sums: Vec<i32> = want.codes.chunks(16).map(|h| h.iter().map(|q| i32::from(*q)).sum()).collect();
            let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
            // SAFETY: the panel is filled, and records are read as they were written.
            unsafe {
                let copy = panels.copy(start + token).add(block * BLOCK).cast::<[f32; BLOCK]>().read();
                assert!(copy.iter().zip(&x[at..at + BLOCK]).all(|(a, b)| a.to_bits() == b.to_bits()));
                let record = panels.panel(index).add(block * record_bytes(c));
                assert_eq!(record.add(token * BLOCK).cast::<[i8; BLOCK]>().read(), want.codes);
                let numbers = record.add(c * BLOCK).cast::<f32>().add(token);
                assert_eq!(bits(numbers.read()), bits(want.scale));
                assert_eq!(bits(numbers.add(c).read()), bits(want.scale * (sums[0] + sums[1]) as f32));
                assert_eq!(numbers.add(2 * c).cast::<i32>().read(), sums[0] + sums[1]);
                let halves = panels.halves(index).add(block * halves_bytes(c)).cast::<i32>().add(token);
                for (h, sum) in sums.iter().enumerate() {
                    assert_eq!(i32::from((halves.read() >> (16 * h)) as i16), *sum);
                    assert_eq!(halves.add((1 + h) * c).read(), *sum);
                }
            }
        }
    }
}
