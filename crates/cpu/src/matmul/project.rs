//! Several matrices over the same input in one parallel region, and who computes what.
//!
//! With few tokens the groups of 16 rows of all matrices are dealt out as one list, in contiguous runs; each worker reads
//! its own part of the weights, and all the activations. With many tokens each worker takes some of the tokens and
//! all rows: its activations are quantized, and stay, with its core.

use super::{
    activations::{Activations, Panels, Plan, Run},
    kernel::{self, Segments, Strip},
    pack::PackedMatrix,
    tile::ROWS,
    tuning,
};
use crate::{
    isa::{Isa, Kernel},
    simd::Simd,
    threads::{SharedSlice, Threads},
};

/// One projection: a matrix, perhaps a bias, and where the result goes.
pub struct Job<'a> {
    matrix: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
    out_len: usize,
}

impl<'a> Job<'a> {
    /// `out` (tokens, rows) becomes `x · matrixᵀ + bias`.
    ///
    /// # Panics
    /// If the bias is not as long as the matrix has rows.
    pub fn new(matrix: &'a PackedMatrix, bias: Option<&'a [f32]>, out: &'a mut [f32]) -> Job<'a> {
        assert!(bias.is_none_or(|b| b.len() == matrix.rows()), "a bias has a number for each row");
        Job { matrix, bias, out_len: out.len(), out: SharedSlice::new(out) }
    }
}

/// Computes all jobs for `x` (tokens, depth). `scratch` is kept by the caller, so that a warm call allocates nothing.
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
    assert_eq!(x.len(), tokens * depth, "activations are (tokens, depth)");
    for job in jobs.iter() {
        assert_eq!(job.matrix.depth(), depth, "a matrix multiplies rows of its own depth");
        assert_eq!(job.out_len, tokens * job.matrix.rows(), "outputs are (tokens, rows)");
    }
    if tokens == 0 {
        return;
    }
    let workers = pool.count();
    let by_tokens = workers > 1 && tokens >= tuning::TOKENS_PER_WORKER_MIN * workers;
    let plan = Plan::new(tokens, depth, isa.run(TokensMax), if by_tokens { workers } else { 1 });
    let quantized = jobs.iter().any(|j| !j.matrix.layout().is_float());
    let has_halves = jobs.iter().any(|j| j.matrix.layout().has_halves());
    scratch.with_panels(plan, has_halves, |panels| {
        let projection = Projection { isa, x, depth, panels, segments: Segments::new(depth), jobs };
        if by_tokens {
            pool.run(&|share, shares| {
                let (from, to) = (plan.count * share / shares, plan.count * (share + 1) / shares);
                // SAFETY: shares have panels of their own, and with them outputs of their own.
                unsafe {
                    if quantized {
                        panels.quantize_panels(isa, x, from, to);
                    }
                    projection.groups(0, projection.groups_total(), from, to);
                }
            });
        } else {
            if quantized {
                panels.quantize_all(isa, x, pool, tuning::QUANTIZE_ALONE_MAX);
            }
            let groups = projection.groups_total();
            pool.run(&|share, shares| {
                // SAFETY: all panels are filled, and shares have groups, and with them outputs, of their own.
                unsafe { projection.groups(groups * share / shares, groups * (share + 1) / shares, 0, plan.count) };
            });
        }
    });
}

/// How wide tiles may be.
struct TokensMax;

impl Kernel for TokensMax {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> usize {
        S::TOKENS_MAX
    }
}

/// What the workers of a projection share.
struct Projection<'a> {
    isa: Isa,
    x: &'a [f32],
    depth: usize,
    panels: Panels<'a>,
    segments: Segments,
    jobs: &'a [Job<'a>],
}

impl Projection<'_> {
    /// Groups of all jobs.
    fn groups_total(&self) -> usize {
        self.jobs.iter().map(|j| j.matrix.groups()).sum()
    }

    /// Computes groups `from..to` of the list of all jobs' groups, for panels `panels_from..panels_to`.
    ///
    /// # Safety
    /// These panels are quantized (if any matrix needs it), and no other thread computes the same groups for them.
    unsafe fn groups(&self, from: usize, to: usize, panels_from: usize, panels_to: usize) {
        let mut start = 0;
        for job in self.jobs {
            let end = start + job.matrix.groups();
            let (first, last) = (from.max(start), to.min(end));
            if first < last {
                // SAFETY: the caller's promise.
                unsafe { self.job(job, first - start, last - start, panels_from, panels_to) };
            }
            start = end;
        }
    }

    /// Groups `from..to` of one job.
    ///
    /// # Safety
    /// As [`Projection::groups`].
    unsafe fn job(&self, job: &Job<'_>, from: usize, to: usize, panels_from: usize, panels_to: usize) {
        let runs = self.panels.plan.runs(panels_from, panels_to);
        // Panels of two widths take turns at a few groups, so that the second finds the weights in the cache.
        let both = runs.iter().all(|r| r.panels > 0);
        let step = if both { (tuning::TURN_BYTES / job.matrix.group_bytes().max(1)).max(1) } else { to - from };
        for group in (from..to).step_by(step) {
            let groups = step.min(to - group);
            let mut prefetch_bytes = tuning::PREFETCH_BYTES;
            for run in runs.into_iter().filter(|r| r.panels > 0) {
                let strip = self.strip(job, group, groups, run, prefetch_bytes);
                // SAFETY: the strip is made of packed groups, filled panels and outputs that the caller vouches for;
                // shapes were checked in `project`.
                unsafe { kernel::run(self.isa, job.matrix.layout(), strip) };
                prefetch_bytes = 0;
            }
        }
    }

    /// `groups` groups from `group` on, for a run of panels.
    fn strip<'s>(
        &'s self,
        job: &'s Job<'_>,
        group: usize,
        groups: usize,
        run: Run,
        prefetch_bytes: usize,
    ) -> Strip<'s> {
        let (matrix, row) = (job.matrix, group * ROWS);
        Strip {
            group: matrix.group(group),
            groups,
            group_bytes: matrix.group_bytes(),
            depth: self.depth,
            segments: &self.segments,
            tokens: run.tokens,
            panels: run.panels,
            panel: self.panels.panel(run.first),
            halves: self.panels.halves(run.first),
            strides: self.panels.strides(run.tokens),
            x: self.x[run.start * self.depth..].as_ptr(),
            out: job.out.as_ptr().wrapping_add(run.start * matrix.rows() + row),
            out_stride: matrix.rows(),
            rows: matrix.rows() - row,
            bias: job.bias.map(|b| &b[row..]),
            prefetch_bytes,
        }
    }
}
