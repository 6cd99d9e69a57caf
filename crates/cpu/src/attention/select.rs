//! Which way attention takes: a pure function of shapes, data in, data out. All ways give the same bits.
//!
//! - *single*: few rows of a sequence together in one item, one read of its pages for all of them.
//! - *two-pass*: a sequence is shared among threads; scores by pages, then the rest in order.
//! - *fused*: blocks of rows, page by page.
//! - *unfused*: more rows, tiles of several pages, keys and values widened into panels.

use std::fmt;

use tessera_ops::{KvFormat, PAGE_TOKENS};

/// Columns of a fused block: enough to serve several register tiles from one page in the first cache.
pub(super) const COLUMNS: usize = 24;

/// Columns of an unfused block, so that its memory at head_dim 512 is half of a second cache of 1 MiB.
pub(super) const COLUMNS_UNFUSED: usize = 96;

/// Pages of an unfused block's tile.
pub(super) const TILE_PAGES_UNFUSED: usize = 4;

/// Blocks for each thread, so that the last ones even out the work.
const BLOCKS_PER_THREAD: usize = 6;

/// The same of unfused blocks, which are larger.
const BLOCKS_PER_THREAD_UNFUSED: usize = 3;

/// From this many pages on, rows that leave threads without work are shared inside: measured, two passes lose at 8 pages and
/// win at 64.
const SHARED_PAGES_MIN: usize = 32;

/// Up to this many columns of a sequence go together.
const SINGLE_COLUMNS_MAX: usize = COLUMNS;

/// Below this many multiplications a step is not worth a second thread.
const ALONE_MAX: usize = 64 << 10;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A sequence's few rows in one item.
    Single,
    /// A sequence shared among threads.
    TwoPass,
    /// Blocks of rows, page by page.
    Fused,
    /// Blocks of more rows, tiles of pages, panels.
    Unfused,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 4] = [Way::Single, Way::TwoPass, Way::Fused, Way::Unfused];

    /// `single`, `two-pass`, `fused` or `unfused`.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Single => "single",
            Way::TwoPass => "two-pass",
            Way::Fused => "fused",
            Way::Unfused => "unfused",
        }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How keys and values are kept.
    pub format: KvFormat,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Query heads that share one of them.
    pub group: usize,
    /// Rows of the step.
    pub rows: usize,
    /// The most rows of a sequence that can be taken together.
    pub run: usize,
    /// The most positions that a row sees.
    pub longest: usize,
    /// Positions that all rows see, summed.
    pub visible: usize,
    /// Who computes.
    pub threads: usize,
}

/// How rows are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Rows of a block, at most.
    pub rows: usize,
    /// Pages of a tile.
    pub tile_pages: usize,
    /// Whether keys and values are widened into panels.
    pub panels: bool,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The way.
    pub way: Way,
    /// Threads that take part.
    pub threads: usize,
    /// The blocks, where the way has any.
    pub cut: Cut,
}

impl fmt::Display for Plan {
    /// `fused/24x1`: columns are rows here, as tiles of pages are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Way::TwoPass => f.write_str(self.way.name()),
            way => write!(f, "{}/{}x{}", way.name(), self.cut.rows, self.cut.tile_pages),
        }
    }
}

/// From this head_dim, this many columns of a sequence and this many positions on, rows go unfused: where that won when it was
/// measured, for each format (BENCHMARKS.md, "Attention"). All other rows go fused.
const UNFUSED_FROM: [(KvFormat, usize, usize, usize); 3] = [
    (KvFormat::F32, 512, COLUMNS_UNFUSED, 2048),
    (KvFormat::F16, 512, COLUMNS_UNFUSED, 4096),
    (KvFormat::Q8_0, 128, COLUMNS_UNFUSED, 1024),
];

/// The way of a step, and its blocks. What is `forced` stands in for the choice.
pub fn plan(request: &Request, forced: Option<Way>) -> Plan {
    let Request { format, head_dim, kv_heads, group, rows, run, longest, visible, threads } = *request;
    let alone = threads == 1 || 2 * visible * kv_heads * group * head_dim <= ALONE_MAX;
    let threads = if alone { 1 } else { threads };
    // Items that do not fill a second round leave threads waiting, unless each has one.
    let items = rows * kv_heads;
    let is_uneven = items < 2 * threads && !items.is_multiple_of(threads);
    let is_unfused = |&(of, dim, columns, positions): &(KvFormat, usize, usize, usize)| {
        of == format && head_dim >= dim && run * group >= columns && longest >= positions
    };
    let way = forced.unwrap_or(match () {
        () if is_uneven && longest >= SHARED_PAGES_MIN * PAGE_TOKENS => Way::TwoPass,
        () if run * group <= SINGLE_COLUMNS_MAX => Way::Single,
        () if UNFUSED_FROM.iter().any(is_unfused) => Way::Unfused,
        () => Way::Fused,
    });
    let most = |columns: usize| (columns / group).max(1);
    let fair = |blocks: usize, columns: usize| (rows * kv_heads / (threads * blocks)).clamp(1, most(columns));
    let cut = match way {
        Way::Single => {
            // One item for each head of keys, unless that leaves threads without any.
            let parts = threads.div_ceil(kv_heads * rows.div_ceil(run.max(1)).max(1)).max(1);
            Cut { rows: run.div_ceil(parts).clamp(1, most(COLUMNS)), tile_pages: 1, panels: false }
        }
        Way::TwoPass | Way::Fused => Cut { rows: fair(BLOCKS_PER_THREAD, COLUMNS), tile_pages: 1, panels: false },
        Way::Unfused => {
            let rows = fair(BLOCKS_PER_THREAD_UNFUSED, COLUMNS_UNFUSED);
            Cut { rows, tile_pages: TILE_PAGES_UNFUSED, panels: true }
        }
    };
    Plan { way, threads, cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last `rows` of a sequence of `tokens`: 8 query heads over 2.
    fn request(head_dim: usize, rows: usize, tokens: usize, threads: usize) -> Request {
        let visible = (tokens - rows..tokens).map(|p| p + 1).sum();
        Request {
            format: KvFormat::F16,
            head_dim,
            kv_heads: 2,
            group: 4,
            rows,
            run: rows,
            longest: tokens,
            visible,
            threads,
        }
    }

    /// Each line of choices, on both sides of its edge.
    #[test]
    fn every_edge_is_where_it_should_be() {
        let few = |rows, tokens, threads| plan(&request(128, rows, tokens, threads), None);
        for (rows, tokens, threads, way, threads_used) in [
            // One row of two heads is an item for each of two threads, and half of those that four need.
            (1, 4096, 2, Way::Single, 2),
            (1, 2047, 4, Way::Single, 4),
            (1, 2048, 4, Way::TwoPass, 4),
            (1, 2048, 1, Way::Single, 1),
            (1, 31, 2, Way::Single, 1),
            (1, 33, 2, Way::Single, 2),
            (2, 4096, 4, Way::Single, 4),
            (3, 4096, 4, Way::TwoPass, 4),
            (5, 4096, 4, Way::Single, 4),
            // Six rows of four query heads are 24 columns.
            (6, 4096, 2, Way::Single, 2),
            (7, 4096, 2, Way::Fused, 2),
        ] {
            let plan = few(rows, tokens, threads);
            assert_eq!((plan.way, plan.threads), (way, threads_used), "{rows} rows of {tokens}, {threads} threads");
        }
        for (format, head_dim, columns, positions) in UNFUSED_FROM {
            let many = |head_dim: usize, columns: usize, positions: usize| {
                plan(&Request { format, ..request(head_dim, columns / 4, positions, 2) }, None).way
            };
            assert_eq!(many(head_dim, columns, positions), Way::Unfused);
            assert_eq!(many(head_dim - 1, columns, positions), Way::Fused);
            assert_eq!(many(head_dim, columns - 4, positions), Way::Fused);
            assert_eq!(many(head_dim, columns, positions - 1), Way::Fused);
        }
    }

    #[test]
    fn blocks_hold_what_a_way_allows() {
        for way in Way::ALL {
            for (group, kv_heads) in [(1, 1), (4, 2), (3, 3), (8, 1), (25, 1), (128, 1)] {
                for rows in (1..70).chain([512, 4096]) {
                    for threads in [1, 2, 3, 16] {
                        let request = Request { kv_heads, group, ..request(64, rows, 5000, threads) };
                        let plan = plan(&request, Some(way));
                        let columns = if way == Way::Unfused { COLUMNS_UNFUSED } else { COLUMNS };
                        assert!(plan.way == way && plan.cut.rows > 0, "{request:?}");
                        assert!(plan.cut.rows == 1 || plan.cut.rows * group <= columns, "{request:?}: {plan}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sequence_s_few_rows_go_together_unless_threads_would_wait() {
        let cut = |kv_heads, rows, run, threads| {
            let request = Request { kv_heads, group: 2, run, ..request(64, rows, 5000, threads) };
            plan(&request, Some(Way::Single)).cut.rows
        };
        assert_eq!((cut(2, 8, 8, 2), cut(1, 8, 8, 2), cut(1, 8, 8, 4)), (8, 4, 2));
        assert_eq!((cut(1, 16, 8, 2), cut(1, 5, 1, 2), cut(2, 20, 20, 2)), (8, 1, 12));
    }

    #[test]
    fn plans_have_names() {
        let names = Way::ALL.map(|way| plan(&request(64, 512, 512, 2), Some(way)).to_string());
        assert_eq!(names, ["single/6x1", "two-pass", "fused/6x1", "unfused/24x4"]);
    }
}
