//! The audit: every op of a device, at every edge, against the reference to the last bit and against float64.
//!
//! A *subject* is an op over given weights and a table of input rows. The reference computes every row once; then each
//! variant of the device computes them in many *arrangements*: every width around every tile's edge, in other
//! places, beside other rows and beside a row that is not a number, in steps of every size. A row's bits must always
//! be those of the reference, which says at once that a variant is right and that a row depends on itself alone.
//! An op whose arithmetic has no reference ([`Scope::has_reference`]) is held to its own bits of rows that are alone, and to float64,
//! of inputs that are rounded as it rounds them where that would hide what else is wrong.
//! The reference in turn must lie within [`compare::Arithmetic`]'s bound of float64, so that both cannot be wrong together.
//!
//! It bites only where outputs are poisoned: a device under audit fills memory with NaN before an op writes, so
//! that an element that nobody writes is seen, and never taken for the good number that lay there before.
//!
//! The caller gives the variants and the edges, which it takes from its own tables of tiles: whatever its dispatch can
//! name has to be among them.

mod attention;
mod best;
pub mod compare;
mod inputs;
mod latent;
mod matmul;
pub mod report;
mod routed;
mod rowwise;
mod streams;
mod subject;

use std::{collections::BTreeSet, fmt, num::NonZero};

use tessera_formats::DType;

use self::subject::Job;
pub use self::{
    compare::{Cause, Failure},
    report::{Report, Row},
};
use crate::Device;

/// What is audited: the ops, those that multiply weights of a format first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// [`Device::project`]
    Dense,
    /// [`Device::project_fine`]
    Fine,
    /// [`Device::project_grouped`]
    Grouped,
    /// [`Device::project_routed`]
    Routed,
    /// [`Device::combine_routed`]
    Combine,
    /// [`Device::embed`]
    Embed,
    /// [`Device::store_kv`] and [`Device::attention`]
    Attention,
    /// [`Device::compress`], seen through attention
    Compress,
    /// [`Device::select`]
    Select,
    /// [`Device::store_rows`] and [`Device::attend_latent`]
    Latent,
    /// [`Device::route`] and [`Device::route_chosen`]
    Route,
    /// [`Device::rms_norm`]
    Norm,
    /// [`Device::rope_angles`] and [`Device::rotate`]
    Rope,
    /// [`Device::round`]
    Round,
    /// [`Device::copies`], [`Device::stream_gates`], [`Device::collapse_streams`] and [`Device::spread_streams`]
    Streams,
    /// [`Device::gate`] and [`Device::gate_halves`]
    Gate,
    /// [`Device::columns`]
    Columns,
    /// [`Device::scale`]
    Scale,
    /// [`Device::add`]
    Add,
    /// [`Device::soft_cap`]
    SoftCap,
    /// [`Device::logit_rows`]
    LogitRows,
    /// [`Device::best`]
    Best,
}

impl Op {
    /// Every op.
    pub const ALL: [Op; 22] = [
        Op::Dense,
        Op::Fine,
        Op::Grouped,
        Op::Routed,
        Op::Combine,
        Op::Embed,
        Op::Attention,
        Op::Compress,
        Op::Select,
        Op::Latent,
        Op::Route,
        Op::Norm,
        Op::Rope,
        Op::Round,
        Op::Streams,
        Op::Gate,
        Op::Columns,
        Op::Scale,
        Op::Add,
        Op::SoftCap,
        Op::LogitRows,
        Op::Best,
    ];

    /// `dense`, `fine`, …
    pub const fn name(self) -> &'static str {
        match self {
            Op::Dense => "dense",
            Op::Fine => "fine",
            Op::Grouped => "grouped",
            Op::Routed => "routed",
            Op::Combine => "combine",
            Op::Embed => "embed",
            Op::Attention => "attention",
            Op::Compress => "compress",
            Op::Select => "select",
            Op::Latent => "latent",
            Op::Route => "route",
            Op::Norm => "norm",
            Op::Rope => "rope",
            Op::Round => "round",
            Op::Streams => "streams",
            Op::Gate => "gate",
            Op::Columns => "columns",
            Op::Scale => "scale",
            Op::Add => "add",
            Op::SoftCap => "soft-cap",
            Op::LogitRows => "logit-rows",
            Op::Best => "best",
        }
    }

    /// Whether it multiplies by weights, which switches of tiles and passes can change.
    pub const fn is_projection(self) -> bool {
        matches!(self, Op::Dense | Op::Fine | Op::Grouped | Op::Routed | Op::Combine)
    }

    /// Whether it reads tables of any weight format.
    pub const fn has_format(self) -> bool {
        self.is_projection() || matches!(self, Op::Embed)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The ops that a variant's switches can change; the others would only be audited twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Projections of every kind.
    Projections,
    /// Projections to experts and back.
    Routed,
    /// Attention.
    Attention,
    /// All, attention being in an arithmetic of its own; see [`Scope::has_reference`].
    Card,
    /// Projections and attention of prompt rows, in an arithmetic of their own: on operands of 16 bits.
    Prompt,
}

impl Scope {
    /// Whether an op is within.
    pub const fn holds(self, op: Op) -> bool {
        match self {
            Scope::All | Scope::Card => true,
            Scope::Projections => op.is_projection(),
            Scope::Prompt => op.is_projection() || matches!(op, Op::Attention | Op::Latent),
            Scope::Routed => matches!(op, Op::Routed | Op::Combine),
            Scope::Attention => matches!(op, Op::Attention),
        }
    }

    /// Whether it is the whole device.
    pub const fn is_whole(self) -> bool {
        matches!(self, Scope::All | Scope::Card)
    }

    /// Whether an op's bits are the reference's. Where there is none for them, a row must be near float64, and wherever it stands have
    /// the bits that it has alone.
    pub const fn has_reference(self, op: Op) -> bool {
        match self {
            Scope::Prompt => false,
            Scope::Card => !matches!(op, Op::Attention | Op::Latent),
            _ => true,
        }
    }
}

/// One way in which a device can compute.
pub struct Variant<D> {
    /// For people, and unique: `avx512, 2 threads, split=tokens`.
    pub name: String,
    /// The device, whose outputs are poisoned.
    pub device: D,
    /// What is audited on it.
    pub scope: Scope,
}

/// How much is audited.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Every width in tokens at which some variant changes its way: of tiles, of passes.
    pub edges: BTreeSet<usize>,
    /// Every width from 1 to 64, every format on every variant and at every width, and more shapes.
    pub full: bool,
    /// No step wider than [`BRIEF_TOKENS`], and fewer shapes and steps of attention: for a machine that computes slowly.
    pub brief: bool,
    /// This op alone.
    pub op: Option<Op>,
    /// This format of weights alone, and only the ops that have one.
    pub format: Option<DType>,
}

/// Widths up to this one are all audited in a full audit.
pub const SWEPT_TOKENS: usize = 64;

/// The widest step of a brief audit.
pub const BRIEF_TOKENS: usize = SWEPT_TOKENS + 2;

/// Wider steps are audited with every format in a full audit, else with one of each kind.
pub const WIDE_TOKENS: usize = SWEPT_TOKENS + 1;

impl Settings {
    /// The widths of a step, ascending: 0, 1, and of each edge T: T - 1, T, T + 1, 2 T, 2 T + 1.
    pub fn widths(&self) -> Vec<usize> {
        let around = |t: &usize| [t.saturating_sub(1), *t, t + 1, 2 * t, 2 * t + 1];
        let mut widths: BTreeSet<usize> = self.edges.iter().flat_map(around).chain([0, 1]).collect();
        if self.full {
            widths.extend(1..=SWEPT_TOKENS);
        }
        if self.brief {
            widths.retain(|w| *w <= BRIEF_TOKENS);
        }
        widths.into_iter().collect()
    }

    /// The formats that stand for all of their kind, unless the audit is full: they alone are audited on variants of
    /// narrower scope and above [`WIDE_TOKENS`] tokens. A kind is what the division of work and the input's form may
    /// look at: plain numbers or codes, how many share a scale, and whether there are minima.
    pub fn is_for_its_kind(&self, dtype: DType) -> bool {
        let kind = |d: DType| (d.is_float(), d.sub_block_len(), d.has_min());
        self.full || self.format.is_some() || DType::all().find(|d| kind(*d) == kind(dtype)) == Some(dtype)
    }

    fn formats(&self) -> impl Iterator<Item = DType> {
        let only = self.format;
        DType::all().filter(move |d| only.is_none_or(|o| o == *d))
    }

    fn wants(&self, op: Op) -> bool {
        self.op.is_none_or(|o| o == op) && (self.format.is_none() || op.has_format())
    }
}

/// How far an audit is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Subjects done.
    pub done: usize,
    /// Subjects in all.
    pub total: usize,
    /// What is next.
    pub next: &'a str,
}

/// Audits all variants. What is wrong stands in the report.
pub fn audit<D: Device>(
    settings: &Settings,
    variants: &[Variant<D>],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Report {
    let mut jobs: Vec<Job<D>> = vec![];
    for dtype in settings.formats() {
        matmul::jobs(settings, dtype, &mut jobs);
        routed::jobs(settings, dtype, &mut jobs);
        rowwise::embed_jobs(settings, dtype, &mut jobs);
    }
    attention::jobs(settings, &mut jobs);
    latent::jobs(settings, &mut jobs);
    routed::route_jobs(settings, &mut jobs);
    rowwise::jobs(settings, &mut jobs);
    streams::jobs(settings, &mut jobs);
    best::jobs(settings, &mut jobs);
    let total = NonZero::new(jobs.len()).map_or(1, NonZero::get);
    let mut report = Report::default();
    for (done, job) in jobs.into_iter().enumerate() {
        progress(Progress { done, total, next: &job.label });
        report.merge((job.run)(variants));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_stand_around_every_edge() {
        let settings = Settings { edges: [4, 32].into(), ..Settings::default() };
        assert_eq!(settings.widths(), [0, 1, 3, 4, 5, 8, 9, 31, 32, 33, 64, 65]);
        let full = Settings { full: true, ..settings };
        assert_eq!(full.widths(), (0..=65).collect::<Vec<_>>());
        let brief = Settings { edges: [64, 256].into(), brief: true, ..Settings::default() };
        assert_eq!(brief.widths(), [0, 1, 63, 64, 65]);
    }

    #[test]
    fn names_of_ops_are_unique() {
        let names: BTreeSet<_> = Op::ALL.iter().map(|op| op.name()).collect();
        assert_eq!(names.len(), Op::ALL.len());
    }

    #[test]
    fn a_format_alone_leaves_the_ops_that_have_none() {
        let settings = Settings { format: Some(DType::Q4_K), ..Settings::default() };
        assert!(settings.wants(Op::Combine) && settings.wants(Op::Embed) && !settings.wants(Op::Norm));
        assert_eq!(settings.formats().collect::<Vec<_>>(), [DType::Q4_K]);
        assert!(settings.is_for_its_kind(DType::Q4_K));
    }

    #[test]
    fn every_kind_has_one_format() {
        let settings = Settings::default();
        let few: Vec<_> = DType::all().filter(|d| settings.is_for_its_kind(*d)).collect();
        assert_eq!(few, [DType::F32, DType::Q4_0, DType::Q4_1, DType::Q2_K, DType::Q3_K]);
        let full = Settings { full: true, ..settings };
        assert!(DType::all().all(|d| full.is_for_its_kind(d)));
    }
}
