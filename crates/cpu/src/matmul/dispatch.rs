//! Dispatch: the only place where a variant, a tile and a division of work are chosen. A pure function, data in, data out.
//!
//! A plan is for one segment. Its tile and its pass follow from that segment's own rows; how workers share the work
//! follows from all segments together. Nothing that is chosen here moves a bit.
//!
//! Legality is here: what a tile can be on an instruction set, and which widths of a pass exist. What is fastest among that
//! stands in [`Tuning`]; what a user forces, in [`Overrides`].

use std::fmt;

use super::{overrides::Overrides, select::Packed, tile::ROWS, tuning::Tuning};
use crate::{
    isa::{Isa, Kernel},
    simd::Simd,
};

/// A kind of projection: a shape of the segment table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// One matrix, all tokens.
    Dense,
    /// A matrix for each slice of a row.
    Grouped,
    /// A matrix for each expert, the tokens routed there.
    Routed,
}

impl Op {
    /// Every op.
    pub const ALL: [Op; 3] = [Op::Dense, Op::Grouped, Op::Routed];

    /// `dense`, `grouped` or `routed`.
    pub fn name(self) -> &'static str {
        match self {
            Op::Dense => "dense",
            Op::Grouped => "grouped",
            Op::Routed => "routed",
        }
    }
}

/// The widths of a pass: at most this many tokens of a segment share one read of its weights.
pub const PASS_TOKENS: [usize; 6] = [16, 32, 64, 128, 256, 512];

/// Every width in tokens at which a plan changes on an instruction set: of its tiles, of passes, and where workers change
/// how they share.
pub fn edges(isa: Isa, tuning: &Tuning) -> impl Iterator<Item = usize> + use<> {
    let shares = [tuning.tokens_per_worker_min, 2 * tuning.tokens_per_worker_min];
    PASS_TOKENS.into_iter().chain(shares).chain([tile_tokens_max(isa)])
}

/// The widest tile that an instruction set's registers hold.
pub fn tile_tokens_max(isa: Isa) -> usize {
    isa.run(TileTokensMax)
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The kind of projection.
    pub op: Op,
    /// The packed layout of the weights.
    pub layout: Packed,
    /// Output features of each matrix.
    pub rows: usize,
    /// Inputs of each matrix.
    pub depth: usize,
    /// Tokens of this segment.
    pub tokens: usize,
    /// Segments that have tokens.
    pub segments: usize,
    /// Tokens of all segments.
    pub tokens_total: usize,
    /// Who computes.
    pub workers: usize,
}

/// The code that runs: an instruction set and a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The instruction set.
    pub isa: Isa,
    /// The packed layout.
    pub layout: Packed,
}

/// The most that one tile computes. Narrower tiles of the same variant take what is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of weights.
    pub rows: usize,
    /// Tokens.
    pub tokens: usize,
}

/// How workers share a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Each takes some rows of the weights, for all tokens: weights are read once.
    Weights,
    /// Each takes some tokens, segment by segment, and all rows: activations stay with one core.
    Tokens,
}

impl Split {
    /// Both.
    pub const ALL: [Split; 2] = [Split::Weights, Split::Tokens];

    /// `weights` or `tokens`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Weights => "weights",
            Split::Tokens => "tokens",
        }
    }
}

/// How a segment is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The code.
    pub variant: Variant,
    /// Its widest tile here.
    pub tile: Tile,
    /// Tokens that share one read of the weights, one of [`PASS_TOKENS`].
    pub pass_tokens: usize,
    /// How workers share the work.
    pub split: Split,
    /// Tokens of a pass that are computed at all: all of them, but in the variant that an audit has to catch.
    covered: usize,
}

/// Chooses. Defined for every request.
pub fn plan(isa: Isa, request: &Request, tuning: &Tuning, overrides: &Overrides) -> Plan {
    let tile_max = tile_tokens_max(isa);
    let tile_tokens = overrides.tile.map_or(tile_max, |t| t.clamp(1, tile_max)).min(request.tokens.max(1));
    let pass_cap = match request.op {
        Op::Dense | Op::Grouped => tuning.pass_tokens,
        Op::Routed => overrides.moe_tile.map_or(tuning.routed_pass_tokens, |cap| tuning.routed_pass_tokens.min(cap)),
    };
    Plan {
        variant: Variant { isa, layout: request.layout },
        tile: Tile { rows: ROWS, tokens: tile_tokens },
        pass_tokens: pass_tokens(request.tokens, pass_cap),
        split: overrides.split.unwrap_or_else(|| split(request, tuning)),
        covered: overrides.covered(),
    }
}

/// The narrowest pass that holds `tokens`, but none wider than `cap` (and the narrowest of all at least).
fn pass_tokens(tokens: usize, cap: usize) -> usize {
    let fits = PASS_TOKENS.into_iter().find(|p| *p >= tokens).unwrap_or(usize::MAX);
    let widest = PASS_TOKENS.into_iter().rfind(|p| *p <= cap).unwrap_or(PASS_TOKENS[0]);
    fits.min(widest)
}

/// Taking tokens pays where each worker gets enough tokens of a segment to make a read of its weights worth while. Where
/// there are more segments than workers, a worker has whole segments to itself.
fn split(request: &Request, tuning: &Tuning) -> Split {
    let (workers, mean) = (request.workers.max(1), request.tokens_total / request.segments.max(1));
    let tokens_each = mean.min(request.tokens_total / workers);
    if workers == 1 || tokens_each >= tuning.tokens_per_worker_min { Split::Tokens } else { Split::Weights }
}

struct TileTokensMax;

impl Kernel for TileTokensMax {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> usize {
        S::TOKENS_MAX
    }
}

/// Bytes that a projection moves, if nothing of it is in a cache yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesMoved {
    /// Packed weights.
    pub weights: usize,
    /// Activations in, once.
    pub input: usize,
    /// Results out.
    pub output: usize,
}

impl Plan {
    /// Passes over a segment of `tokens` tokens, cut evenly: the tokens of each.
    pub(super) fn passes(&self, tokens: usize) -> impl Iterator<Item = std::ops::Range<usize>> + Clone + use<> {
        let count = tokens.div_ceil(self.pass_tokens);
        (0..count).map(move |i| tokens * i / count..tokens * (i + 1) / count)
    }

    /// How many of a pass's `tokens` are computed.
    pub(super) fn covered(&self, tokens: usize) -> usize {
        tokens.min(self.covered)
    }

    /// Bytes moved for `request`, whose segments all have the same number of tokens.
    pub fn bytes_moved(&self, request: &Request) -> BytesMoved {
        let matrix = self.variant.layout.group_bytes(request.depth) * request.rows.div_ceil(ROWS);
        let reads = match self.split {
            // A worker's tokens begin and end inside segments; those are read by both neighbours.
            Split::Tokens => {
                let each = request.tokens.min(request.tokens_total.div_ceil(request.workers.max(1)));
                let shared = (request.workers.max(1) - 1).min(request.tokens_total.saturating_sub(1));
                let extra = if request.segments < request.workers { shared } else { 0 };
                (request.segments * request.tokens.div_ceil(each.max(1))).max(request.segments + extra)
                    * self.passes(each).count()
            }
            Split::Weights => request.segments * self.passes(request.tokens).count(),
        };
        BytesMoved {
            weights: if request.tokens_total == 0 { 0 } else { reads * matrix },
            input: request.tokens_total * request.depth * size_of::<f32>(),
            output: request.tokens_total * request.rows * size_of::<f32>(),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.isa.name(), self.layout)
    }
}

impl fmt::Display for Plan {
    /// `avx512/SupersOf4/16x12/pass128/tokens`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { variant, tile, pass_tokens, split, covered } = self;
        write!(f, "{variant}/{}x{}/pass{pass_tokens}/{}", tile.rows, tile.tokens, split.name())?;
        if *covered < usize::MAX { write!(f, "/narrowed{covered}") } else { Ok(()) }
    }
}
