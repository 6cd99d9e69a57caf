//! Tiles of the prefill kernels: what a block holds, how deep its rings are, and which tile a width gets.

use super::{
    layout::Float,
    select::Packed,
    tile::{FloatsTile, Launch, MMA_COLUMNS, MMA_ROWS, WARP},
};

/// Features of a stage of activations: what one swizzled row of shared memory holds.
pub const BLOCK: usize = 64;

/// Weight rows of a warpgroup's product.
pub(super) const PRODUCT_ROWS: usize = 64;

/// Columns of the widest tile: a copy may reach as far beyond the last one.
pub(super) const TOKENS_MAX: usize = 256;

/// Threads of a warpgroup.
const GROUP_THREADS: usize = 128;

/// Registers of a processor.
const REGISTERS: usize = 65_536;

/// Shared memory that a block of Hopper may have.
pub(super) const SHARED_BYTES_MAX: usize = 227 << 10;

/// Bytes of a stage of weights up to which there are three.
const SMALL_STAGE_BYTES: usize = 24 << 10;

/// Bytes of weights that a processor has on their way, if there is room.
const WEIGHTS_AHEAD_BYTES: usize = 144 << 10;

/// Segments whose tiles a block counts in shared memory.
pub const SEGMENTS_MAX: usize = 1024;

/// Columns at which tiles and their products end.
pub const WIDTHS: [usize; 9] = [32, 48, 56, 64, 128, 192, 208, 224, 256];

/// What a block of `prefill.cu` holds. The rings' depths follow from it and from the weights' form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillTile {
    /// Warpgroups that multiply: the narrower a product, the more of them hide the expansion of weights.
    pub consumers: usize,
    /// Columns.
    pub tokens: usize,
    /// Blocks that share columns.
    pub cluster: usize,
    /// Whether the parts of a sum can be added in registers.
    pub has_totals: bool,
}

/// Blocks of the depth that a stage of weights spans: whole chunks, and copies of a few kilobytes.
pub(crate) const fn span(form: Packed) -> usize {
    match form {
        Packed::Codes(layout) if layout.units == 8 => 4,
        Packed::Codes(_) => 2,
        Packed::Float(_) => 1,
    }
}

/// Of a form, and the rows that lie together in it.
fn weights_constants(form: Packed) -> (Vec<(&'static str, usize)>, usize) {
    match form {
        Packed::Codes(layout) => (layout.constants(), MMA_ROWS),
        Packed::Float(float) => (float.constants(), FloatsTile::ROWS),
    }
}

/// Threads that multiply, and the warpgroup that copies.
pub(super) const fn threads(consumers: usize) -> usize {
    (consumers + 1) * GROUP_THREADS
}

/// Registers of a thread that copies, and of one that multiplies: all have as many at first, and then give and take.
pub(super) const fn registers(consumers: usize) -> (usize, usize) {
    let each = REGISTERS / threads(consumers) / 8 * 8;
    let given = if consumers > 2 { 32 } else { 40 };
    (given, ((each * (consumers + 1) - given) / consumers) / 8 * 8)
}

/// Bytes of the barriers of rings of so many stages.
pub(super) const fn barrier_bytes(stages: usize) -> usize {
    16 * stages
}

/// The launch of blocks, in clusters, that go over at most `tiles` tiles on a card of so many processors.
pub(super) fn walk(
    (consumers, cluster): (usize, usize),
    shared_bytes: usize,
    tiles: usize,
    processors: usize,
) -> Launch {
    let blocks = tiles.min(processors / cluster).max(1) * cluster;
    Launch { grid: [blocks, 1, 1], threads: threads(consumers), shared_bytes, groups: 1 }
}

impl PrefillTile {
    /// Weight rows of a block.
    pub const fn rows(self) -> usize {
        self.consumers * PRODUCT_ROWS
    }

    /// Bytes of a stage of activations.
    const fn x_bytes(self) -> usize {
        self.tokens * BLOCK * 2
    }

    /// Bytes of a stage of weights.
    const fn weight_bytes(self, form: Packed) -> usize {
        let features = span(form) * BLOCK;
        match form {
            Packed::Codes(layout) => self.rows() / MMA_ROWS * layout.tile_bytes(features),
            Packed::Float(float) => self.rows() / FloatsTile::ROWS * float.tile_bytes(features),
        }
    }

    /// Stages of activations and of weights: as many as fit, within reason. Narrow products are limited by the reading of weights, of
    /// which enough must be on their way.
    pub fn stages(self, form: Packed) -> (usize, usize) {
        let each = self.weight_bytes(form);
        let room = SHARED_BYTES_MAX - self.bytes_behind(8, 16);
        let weights = match self.tokens {
            256 if each <= SMALL_STAGE_BYTES => 3,
            256 => 2,
            _ => ((room - 4 * self.x_bytes()) / each).clamp(2, (WEIGHTS_AHEAD_BYTES / each).max(2)),
        };
        let fit = (room - weights * each) / self.x_bytes();
        (if fit < 8 { fit } else { 8 }, weights)
    }

    /// Bytes for aligning the stages, and behind them: barriers, scales and places of columns, counts of tiles.
    const fn bytes_behind(self, stages: usize, weight_stages: usize) -> usize {
        1024 + barrier_bytes(stages + weight_stages) + 8 * self.tokens + 4 * (SEGMENTS_MAX + 1)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(self, form: Packed) -> usize {
        let (stages, weight_stages) = self.stages(form);
        stages * self.x_bytes() + weight_stages * self.weight_bytes(form) + self.bytes_behind(stages, weight_stages)
    }

    /// Registers of sums that a thread holds.
    pub const fn sums(self) -> usize {
        self.tokens / 2 * if self.has_totals { 2 } else { 1 }
    }

    /// Whether it can be launched for weights of a form.
    pub fn is_sound(self, form: Packed) -> bool {
        self.tokens <= TOKENS_MAX
            && self.sums() <= if self.consumers > 2 { 64 } else { 128 }
            && self.stages(form).0 >= 2
            && self.shared_bytes(form) <= SHARED_BYTES_MAX
    }

    /// Columns of the product that takes `left` of them, as `width_of` of the kernel has it.
    pub const fn width(self, left: usize) -> usize {
        match self.tokens {
            256 if left <= 128 => 128,
            256 if left <= 192 => 192,
            256 if left <= 208 => 208,
            256 if left <= 224 => 224,
            128 if left <= 64 => 64,
            64 if left <= 48 => 48,
            64 if left <= 56 => 56,
            tokens => tokens,
        }
    }

    /// Time of a tile whose last product is so wide, in microseconds of an H200 and 8,192 features: only their relations count.
    pub const fn time(self, width: usize) -> f64 {
        match (self.consumers, width) {
            (2, 256..) => 93.0,
            (2, 224) => 84.0,
            (2, 208) => 80.0,
            (2, 192) => 75.0,
            (2, 128) => 59.0,
            (2, _) => 41.0,
            (_, 128..) => 100.0,
            (_, 64) => 78.0,
            (_, 56) => 75.0,
            (_, 48) => 72.0,
            _ => 64.0,
        }
    }

    /// Tiles of one matrix: along rows for all blocks of a cluster, and along columns.
    pub const fn tiles(self, rows: usize, columns: usize) -> [usize; 2] {
        [rows.div_ceil(self.rows() * self.cluster), columns.div_ceil(self.tokens)]
    }

    /// The launch for at most `tiles` tiles on a card of so many processors.
    pub fn launch(self, form: Packed, tiles: usize, processors: usize) -> Launch {
        walk((self.consumers, self.cluster), self.shared_bytes(form), tiles, processors)
    }

    pub(crate) fn constants(self, form: Packed) -> Vec<(&'static str, usize)> {
        let PrefillTile { consumers, tokens, cluster, has_totals } = self;
        let (given, taken) = registers(consumers);
        let (stages, weight_stages) = self.stages(form);
        let (mut constants, tile_rows) = weights_constants(form);
        constants.extend([
            ("CONSUMERS", consumers),
            ("GIVEN_REGISTERS", given),
            ("TAKEN_REGISTERS", taken),
            ("TOKENS", tokens),
            ("CLUSTER", cluster),
            ("TOTALS", has_totals.into()),
            ("STAGES", stages),
            ("WEIGHT_STAGES", weight_stages),
            ("SPAN", span(form)),
            ("TILE_ROWS", tile_rows),
            ("THREADS", threads(consumers)),
            ("COLUMN_RUN", MMA_COLUMNS),
        ]);
        constants
    }
}

/// Every tile that a form of weights may be multiplied in.
pub fn all(form: Packed) -> Vec<PrefillTile> {
    let tile = |consumers, tokens, cluster, has_totals| PrefillTile { consumers, tokens, cluster, has_totals };
    let all = [
        tile(4, 32, 1, false),
        tile(2, 64, 1, false),
        tile(4, 64, 1, false),
        tile(2, 128, 1, false),
        tile(4, 128, 1, false),
        tile(2, 256, 2, false),
        tile(2, 128, 1, true),
    ];
    all.into_iter().filter(|t| t.is_sound(form)).collect()
}

/// How many parts the depth of a matrix is cut into, whose sums are added in order: a function of its shape alone, since
/// every number depends on it. A matrix of few rows has too few tiles for a card.
pub fn parts(rows: usize, depth: usize, segments: usize) -> usize {
    if segments > 1 || rows > 4096 || depth < 2048 {
        return 1;
    }
    if depth < 4096 { 2 } else { 4 }
}

/// Features of a stage of weights: no part of a depth is shorter.
pub const fn features_of_stage(form: Packed) -> usize {
    span(form) * BLOCK
}

impl Float {
    /// All forms of plain weights.
    pub fn forms() -> [Packed; 3] {
        Float::ALL.map(Packed::Float)
    }
}

/// The tile of cards that are not Hopper: warps of 16 rows.
pub(crate) mod warps {
    use super::*;

    /// Columns of a warp.
    pub(crate) const TOKENS: usize = 64;

    /// Warps of a block.
    const WARPS: usize = 4;

    /// The launch for `segments` matrices of `rows` rows, and at most `columns` columns each.
    pub(crate) fn launch(rows: usize, columns: usize, segments: usize) -> Launch {
        let grid = [rows.div_ceil(WARPS * MMA_ROWS), columns.div_ceil(TOKENS), segments];
        Launch { grid, threads: WARPS * WARP, shared_bytes: 0, groups: 1 }
    }

    pub(crate) fn constants(form: Packed) -> Vec<(&'static str, usize)> {
        let (mut constants, tile_rows) = weights_constants(form);
        let own = [("TOKENS", TOKENS), ("SPAN", span(form)), ("TILE_ROWS", tile_rows), ("THREADS", WARPS * WARP)];
        constants.extend(own);
        constants
    }
}
