//! Several stacks of matrices over the same input, segment by segment, and who computes what.
//!
//! A *pass* is some tokens of one segment, whose panels are read by all rows of its matrices. Workers share a projection in
//! one of two ways ([`super::dispatch`] says which):
//!
//! - by weights: all passes are filled first; then the groups of 16 rows of all matrices and passes are dealt out as one
//!   list, in contiguous runs of about the same cost. Each worker reads its own part of the weights.
//! - by tokens: each worker takes a contiguous part of all rows of all segments, and goes through it pass by pass. Its
//!   activations are quantized, and stay, with its core.

use super::{
    activations::{Activations, Cut, Form, Panels, Run},
    dispatch::{Plan, Request, Split, plan},
    kernel::{self, Outputs, Prefetch, Segments, Strip},
    overrides::Overrides,
    pack::PackedMatrix,
    segments::{InputRows, SegmentTable},
    tile::ROWS,
    tuning::Tuning,
};
use crate::{
    isa::Isa,
    threads::{SharedSlice, Threads},
};

/// One projection: matrices, perhaps biases, and where the result goes.
pub struct Job<'a> {
    matrix: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
    out_len: usize,
}

impl<'a> Job<'a> {
    /// `out` becomes `x · matrixᵀ + bias`, row by row as the segment table says.
    ///
    /// # Panics
    /// If the bias is not as long as the matrices have rows.
    pub fn new(matrix: &'a PackedMatrix, bias: Option<&'a [f32]>, out: &'a mut [f32]) -> Job<'a> {
        let rows = matrix.segments() * matrix.rows();
        assert!(bias.is_none_or(|b| b.len() == rows), "a bias has a number for each row");
        Job { matrix, bias, out_len: out.len(), out: SharedSlice::new(out) }
    }
}

/// What projections are computed with.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// The instruction set.
    pub isa: Isa,
    /// What was measured.
    pub tuning: Tuning,
    /// What is forced.
    pub overrides: Overrides,
}

impl Kernels {
    /// The defaults for an instruction set.
    pub fn new(isa: Isa) -> Kernels {
        Kernels { isa, tuning: Tuning::default(), overrides: Overrides::default() }
    }
}

/// Computes all jobs for `x` (tokens, depth) with default kernels. `scratch` is kept by the caller, so that a warm call
/// allocates nothing.
///
/// # Panics
/// If shapes do not fit each other.
pub fn project(
    isa: Isa,
    pool: &Threads,
    scratch: &mut Activations,
    x: &[f32],
    tokens: usize,
    depth: usize,
    jobs: &mut [Job<'_>],
) {
    project_segments(&Kernels::new(isa), pool, scratch, x, depth, &SegmentTable::dense(tokens), jobs);
}

/// Computes all jobs for the rows of `table`.
///
/// # Panics
/// If shapes do not fit each other.
pub fn project_segments(
    kernels: &Kernels,
    pool: &Threads,
    scratch: &mut Activations,
    x: &[f32],
    depth: usize,
    table: &SegmentTable<'_>,
    jobs: &mut [Job<'_>],
) {
    assert_eq!(x.len(), table.input_len(depth), "activations are as the segments say");
    for job in jobs.iter() {
        assert_eq!(job.matrix.depth(), depth, "a matrix multiplies rows of its own depth");
        assert_eq!(job.matrix.segments(), table.segments(), "there is a matrix for each segment");
        assert_eq!(job.out_len, table.output_len(job.matrix.rows()), "outputs are as the segments say");
    }
    let Some(first) = jobs.first() else { return };
    if table.rows_total() == 0 {
        return;
    }
    let some = |what: fn(&PackedMatrix) -> bool| jobs.iter().any(|j| what(j.matrix));
    let form = Form {
        depth,
        codes: some(|m| !m.layout().is_float()),
        halves: some(|m| m.layout().has_halves()),
        copies: some(|m| m.layout().is_float()) && !table.is_plain(),
    };
    let request = Request {
        op: table.op(),
        layout: first.matrix.layout(),
        rows: first.matrix.rows(),
        depth,
        tokens: 0,
        segments: table.occupied(),
        tokens_total: table.rows_total(),
        workers: pool.count(),
    };
    let work = Work { kernels, x, form, table, request, segments: Segments::new(depth), jobs };
    match work.plan(0).split {
        Split::Weights => work.by_weights(pool, scratch),
        Split::Tokens => work.by_tokens(pool, scratch),
    }
}

/// Some tokens of one segment, and where their panels lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    segment: usize,
    /// The first row of the segment that belongs to it, and how many.
    first: usize,
    tokens: usize,
    cut: Cut,
    /// The first of its cache lines.
    line: usize,
}

/// What the workers of a projection share.
struct Work<'a> {
    kernels: &'a Kernels,
    x: &'a [f32],
    form: Form,
    table: &'a SegmentTable<'a>,
    request: Request,
    segments: Segments,
    jobs: &'a [Job<'a>],
}

impl Work<'_> {
    /// How a segment with this many tokens is computed. All but the layout holds for all jobs.
    fn plan(&self, tokens: usize) -> Plan {
        let Kernels { isa, tuning, overrides } = self.kernels;
        plan(*isa, &Request { tokens, ..self.request }, tuning, overrides)
    }

    /// The passes over rows `from..to` of all segments' rows, one after another in the scratch from `line` on; or each
    /// at `line`, where they take turns.
    fn passes(&self, from: usize, to: usize, turns: bool, mut each: impl FnMut(Pass)) {
        let (mut start, mut line) = (0, 0);
        for segment in 0..self.table.segments() {
            let end = start + self.table.rows(segment);
            let (first, last) = (from.max(start), to.min(end));
            if first < last {
                let plan = self.plan(end - start);
                for part in plan.passes(last - first) {
                    let cut = Cut::new(plan.covered(part.len()), plan.tile.tokens);
                    each(Pass { segment, first: first - start + part.start, tokens: part.len(), cut, line });
                    line = if turns { line } else { line + self.form.lines(&cut) };
                }
            }
            start = end;
        }
    }

    fn rows_of(&self, pass: &Pass) -> InputRows<'_> {
        self.table.input(self.x, self.request.depth, pass.segment).skip(pass.first)
    }

    /// Workers take rows of the weights.
    fn by_weights(&self, pool: &Threads, scratch: &mut Activations) {
        let mut lines = 0;
        scratch.passes.clear();
        self.passes(0, usize::MAX, false, |pass| {
            lines = pass.line + self.form.lines(&pass.cut);
            scratch.passes.push(pass);
        });
        let (room, passes) = scratch.room(lines);
        let panels = |pass: &Pass| Panels::new(self.form, pass.cut, &room, pass.line);
        let isa = self.kernels.isa;
        let fill = |from: usize, to: usize| {
            for pass in passes {
                // SAFETY: the room holds all passes, and shares take disjoint blocks.
                unsafe { panels(pass).fill(isa, &self.rows_of(pass), (from, to)) };
            }
        };
        let blocks = self.form.blocks();
        if self.form.codes || self.form.copies {
            if self.table.rows_total() * self.request.depth <= self.kernels.tuning.quantize_alone_max {
                fill(0, blocks);
            } else {
                // Tokens of one panel lie within a cache line of each other, so blocks are shared out.
                pool.run(&|share, shares| fill(blocks * share / shares, blocks * (share + 1) / shares));
            }
        }
        let total: u64 = self.jobs.iter().flat_map(|j| passes.iter().map(|p| self.cost(j, p).1)).sum();
        pool.run(&|share, shares| {
            let bound = |share: usize| (u128::from(total) * share as u128 / shares as u128) as u64;
            let (from, to) = (bound(share), bound(share + 1));
            let mut start = 0;
            for (job, pass) in self.jobs.iter().flat_map(|j| passes.iter().map(move |p| (j, p))) {
                let (each, all) = self.cost(job, pass);
                // A group is whose part its start falls into.
                let cut = |at: u64| (at.saturating_sub(start).div_ceil(each) as usize).min(job.matrix.groups());
                let (first, last) = (cut(from), cut(to));
                if first < last {
                    // SAFETY: all panels are filled, and shares have groups, and with them outputs, of their own.
                    unsafe { self.groups(job, pass, &panels(pass), first, last) };
                }
                start += all;
            }
        });
    }

    /// What a group of a job costs in a pass, and all of them: in products.
    fn cost(&self, job: &Job<'_>, pass: &Pass) -> (u64, u64) {
        let read = self.kernels.tuning.products_per_byte * job.matrix.group_bytes();
        let each = (read + ROWS * self.request.depth * pass.tokens).max(1) as u64;
        (each, each * job.matrix.groups() as u64)
    }

    /// Workers take tokens.
    fn by_tokens(&self, pool: &Threads, scratch: &mut Activations) {
        let (total, shares) = (self.table.rows_total(), pool.count());
        let part = |share: usize| (total * share / shares, total * (share + 1) / shares);
        let mut lines = 0;
        for (from, to) in (0..shares).map(part) {
            self.passes(from, to, true, |pass| lines = lines.max(self.form.lines(&pass.cut)));
        }
        let (room, _) = scratch.room(lines * shares);
        pool.run(&|share, _| {
            let (from, to) = part(share);
            self.passes(from, to, true, |pass| {
                let panels = Panels::new(self.form, pass.cut, &room, lines * share);
                // SAFETY: shares have rows of their own, and with them outputs, and a part of the room that holds each of
                // their passes.
                unsafe {
                    panels.fill(self.kernels.isa, &self.rows_of(&pass), (0, self.form.blocks()));
                    for job in self.jobs {
                        self.groups(job, &pass, &panels, 0, job.matrix.groups());
                    }
                }
            });
        });
    }

    /// Groups `from..to` of one job in one pass.
    ///
    /// # Safety
    /// The panels are filled from the pass's rows, and no other thread computes the same groups for them.
    unsafe fn groups(&self, job: &Job<'_>, pass: &Pass, panels: &Panels, from: usize, to: usize) {
        let (tuning, runs) = (&self.kernels.tuning, pass.cut.runs());
        // Panels of two widths take turns at a few groups, so that the second finds the weights in the cache.
        let both = runs.iter().all(|r| r.panels > 0);
        let group_bytes = job.matrix.group_bytes().max(1);
        let step = if both { (tuning.turn_bytes / group_bytes).max(1) } else { to - from };
        // A panel alone asks for what it reads next; several share in asking for what the first will read next.
        let ahead = if both { step } else { pass.cut.count.min(2) - 1 };
        let bytes = tuning.prefetch_bytes.max(ahead * group_bytes);
        for group in (from..to).step_by(step) {
            let groups = step.min(to - group);
            let mut prefetch = Prefetch { bytes, first: 0, turns: pass.cut.count };
            for run in runs.into_iter().filter(|r| r.panels > 0) {
                let strip = self.strip(job, pass, panels, group, groups, run, prefetch);
                // SAFETY: the strip is made of packed groups, filled panels and outputs that the caller vouches for;
                // shapes were checked in `project_segments`, and a table's places are within its outputs.
                unsafe { kernel::run(self.kernels.isa, job.matrix.layout(), strip) };
                prefetch.first += run.panels;
            }
        }
    }

    /// `groups` groups from `group` on, for a run of panels.
    #[allow(clippy::too_many_arguments)] // they are the coordinates of a strip
    fn strip<'s>(
        &'s self,
        job: &'s Job<'_>,
        pass: &Pass,
        panels: &Panels,
        group: usize,
        groups: usize,
        run: Run,
        prefetch: Prefetch,
    ) -> Strip<'s> {
        let (matrix, row) = (job.matrix, group * ROWS);
        let token = pass.first + run.start;
        let (offset, stride) = self.table.output(matrix.rows(), pass.segment);
        let out = job.out.as_ptr().wrapping_add(offset + row);
        let to = match self.table.places(pass.segment) {
            Some(places) => Outputs::scattered(out, stride, &places[token..]),
            None => Outputs::in_order(out.wrapping_add(token * stride), stride),
        };
        let (x, x_stride) = if self.form.copies {
            (panels.copy(run.start).cast_const(), panels.copy_stride())
        } else {
            (self.x.as_ptr().wrapping_add(token * self.request.depth), self.request.depth)
        };
        Strip {
            group: matrix.group(pass.segment, group),
            groups,
            group_bytes: matrix.group_bytes(),
            depth: self.request.depth,
            segments: &self.segments,
            tokens: run.tokens,
            panels: run.panels,
            panel: panels.panel(run.first),
            halves: panels.halves(run.first),
            strides: panels.strides(run.tokens),
            x,
            x_stride,
            to,
            rows: matrix.rows() - row,
            bias: job.bias.map(|b| &b[pass.segment * matrix.rows() + row..]),
            prefetch,
        }
    }
}
