//! Tiles of the kernel for many columns on Hopper: what a block holds, and how deep its rings are.

use super::{
    layout::{Layout, Scales},
    prefill_tile::{
        BLOCK, PRODUCT_ROWS, SEGMENTS_MAX, SHARED_BYTES_MAX, TOKENS_MAX, barrier_bytes, registers, span, threads, walk,
    },
    select::Packed,
    tile::{Launch, MMA_ROWS},
};

/// Columns whose scales lie together: those of four threads, four each.
pub(crate) const COLUMN_RUN: usize = 16;

/// Stages of activations beyond which more bytes on their way make nothing faster, and of weights.
const STAGES_MAX: usize = 6;
const WEIGHT_STAGES_MAX: usize = 3;

/// What a block of `many.cu` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ManyTile {
    /// Warpgroups that multiply.
    pub consumers: usize,
    /// Columns.
    pub tokens: usize,
    /// Pieces of the columns, of which two have sums at a time.
    pub pieces: usize,
    /// Blocks that share columns.
    pub cluster: usize,
    /// What a row and column cost beside a wide tile of two blocks a processor, in percent: measured on an H200.
    pub cost_percent: usize,
}

impl ManyTile {
    /// Every tile of a layout, if a card is Hopper. Measured on an H200, of nine shapes: two warpgroups, 128 columns and two pieces are the
    /// fastest, and a pair of blocks beats one for Q8_0. With minima one was faster when both were measured. Of 64 columns single blocks of
    /// two warpgroups are the fastest of five shapes. Costs of 128 columns are those of Q4_K and of Q8_0; neither counts the launch that
    /// makes numbers of codes.
    pub fn all(layout: Layout, arch: &str) -> Vec<ManyTile> {
        let tile = |tokens, cluster, cost_percent| ManyTile { consumers: 2, tokens, pieces: 2, cluster, cost_percent };
        // Of 17 formats: sub-blocks of 16 have twice the sums, which here are numbers as they are: 0.74 to 0.90. Others 0.94 to 1.07.
        let narrow_cost = match (layout.scales, layout.sub) {
            (Scales::Folded, _) => 130,
            (_, 16) => 80,
            _ => 105,
        };
        let wide = if layout.has_min { tile(128, 1, 93) } else { tile(128, 2, 79) };
        let all = if arch == crate::kernels::HOPPER_ARCH { vec![tile(64, 1, narrow_cost), wide] } else { vec![] };
        all.into_iter().filter(|tile| tile.is_sound(layout)).collect()
    }

    /// Weight rows of a block.
    pub const fn rows(self) -> usize {
        self.consumers * PRODUCT_ROWS
    }

    /// Columns of a block.
    pub const fn columns(self) -> usize {
        self.tokens
    }

    /// Whether a product of half the columns is made of whole pieces and runs.
    const fn has_half(self) -> bool {
        self.tokens / self.pieces == 64 && (self.tokens / 2).is_multiple_of(COLUMN_RUN * self.cluster)
    }

    /// Bytes of a stage of activations: numbers, and scales (and minima) of two units.
    const fn x_bytes(self, layout: Layout) -> usize {
        let minima = if layout.has_min { 32 / layout.sub } else { 0 };
        self.tokens * (BLOCK * 2 + 2 * size_of::<f32>() * (1 + minima))
    }

    /// Bytes of a stage of weights.
    const fn weight_bytes(self, layout: Layout) -> usize {
        self.rows() / MMA_ROWS * layout.tile_bytes(span(Packed::Codes(layout)) * BLOCK)
    }

    /// Bytes of the sums of segments that are done.
    const fn totals_bytes(self) -> usize {
        self.rows() * self.tokens * size_of::<f32>()
    }

    /// Bytes for aligning the stages, and behind them: barriers, places of columns, counts of tiles.
    const fn bytes_around(self, stages: usize) -> usize {
        1024 + barrier_bytes(stages) + 4 * self.tokens + 4 * (SEGMENTS_MAX + 1)
    }

    /// Stages of activations and of weights: as many as fit, within reason.
    fn stages(self, layout: Layout) -> (usize, usize) {
        let room =
            SHARED_BYTES_MAX.saturating_sub(self.bytes_around(STAGES_MAX + WEIGHT_STAGES_MAX) + self.totals_bytes());
        let (x, each) = (self.x_bytes(layout), self.weight_bytes(layout));
        let weights = (room.saturating_sub(3 * x) / each).clamp(2, WEIGHT_STAGES_MAX);
        ((room.saturating_sub(weights * each) / x).min(STAGES_MAX), weights)
    }

    /// Bytes of stages and sums.
    fn stage_bytes(self, layout: Layout) -> usize {
        let (stages, weight_stages) = self.stages(layout);
        stages * self.x_bytes(layout) + weight_stages * self.weight_bytes(layout) + self.totals_bytes()
    }

    fn shared_bytes(self, layout: Layout) -> usize {
        let (stages, weight_stages) = self.stages(layout);
        self.stage_bytes(layout) + self.bytes_around(stages + weight_stages)
    }

    /// Whether a launch can have it.
    pub fn is_sound(self, layout: Layout) -> bool {
        self.tokens <= TOKENS_MAX
            && self.tokens.is_multiple_of(COLUMN_RUN * self.pieces)
            && self.tokens.is_multiple_of(COLUMN_RUN * self.cluster)
            && matches!(self.tokens / self.pieces, 32 | 64)
            && self.stages(layout).0 >= 2
            && self.shared_bytes(layout) <= SHARED_BYTES_MAX
    }

    /// Tiles of `segments` matrices: `columns` of each, or where they are routed of all together.
    pub fn tiles(self, (rows, columns): (usize, usize), segments: usize, is_routed: bool) -> usize {
        let (along_rows, along_columns) = (rows.div_ceil(self.rows() * self.cluster), columns.div_ceil(self.tokens));
        along_rows * if is_routed { along_columns + segments } else { along_columns * segments }
    }

    /// The launch for at most `tiles` tiles on a card of so many processors.
    pub fn launch(self, layout: Layout, tiles: usize, processors: usize) -> Launch {
        walk((self.consumers, self.cluster), self.shared_bytes(layout), tiles, processors)
    }

    pub(crate) fn constants(self, layout: Layout) -> Vec<(&'static str, usize)> {
        let ManyTile { consumers, tokens, pieces, cluster, .. } = self;
        let (given, taken) = registers(consumers);
        let (stages, weight_stages) = self.stages(layout);
        let own = [
            ("CONSUMERS", consumers),
            ("GIVEN_REGISTERS", given),
            ("TAKEN_REGISTERS", taken),
            ("TOKENS", tokens),
            ("PIECES", pieces),
            ("HAS_HALF", self.has_half().into()),
            ("CLUSTER", cluster),
            ("COLUMN_RUN", COLUMN_RUN),
            ("STAGES", stages),
            ("WEIGHT_STAGES", weight_stages),
            ("SHARED_BYTES", self.stage_bytes(layout)),
            ("SPAN", span(Packed::Codes(layout))),
            ("TILE_ROWS", MMA_ROWS),
            ("THREADS", threads(consumers)),
        ];
        [layout.constants(), own.to_vec()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_tiles_on_hopper_alone() {
        for layout in Layout::all() {
            assert!(!ManyTile::all(layout, "sm_90a").is_empty(), "{layout:?}");
            assert!(ManyTile::all(layout, "sm_89").is_empty(), "{layout:?}");
        }
    }
}
