//! The one definition of a tile: grid, block, shared memory and the kernel's constants are all derived from it.

use std::collections::HashSet;

use tessera_ops::numerics::{CHAIN_DEPTH, PART_DEPTH, SEGMENTS_MAX, SQUARE_LANES, part_count};

use super::{
    layout::{Float, Layout, Scales, UNIT},
    wide_tile::{BLOCK_OWN_BYTES, shared_bytes_max},
};

/// Weight rows of the matrix instruction.
pub const MMA_ROWS: usize = 16;
/// Columns (tokens) of the matrix instruction.
pub const MMA_COLUMNS: usize = 8;
/// Threads of a warp.
pub const WARP: usize = 32;
/// Threads of a block, at most: a warp for each segment of the depth.
pub const THREADS_MAX: usize = SEGMENTS_MAX * WARP;

/// Shared memory of a block that every card has.
const SHARED_BYTES_MAX: usize = 99 << 10;

/// Shared memory that the blocks of a processor take together; the rest serves as cache.
const PROCESSOR_SHARED_BYTES: usize = 168 << 10;

/// Blocks that keep a card busy.
const BLOCKS_WANTED: usize = 264;

/// Beyond this, more bytes on their way make nothing faster.
const STAGES_MAX: usize = 8;

/// One stage is filled while another is taken.
const STAGES_MIN: usize = 2;

/// Turns of a block, at most; and where blocks come in several rounds.
const TURNS_MAX: usize = 16;
const TURNS_OF_MANY: usize = 8;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along rows, columns, segments.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
    /// Tiles of rows that a block takes, each by as many warps as the depth has segments.
    pub groups: usize,
}

/// What a block of `codes.cu` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodesTile {
    /// Runs of 16 rows of a warp.
    pub row_tiles: usize,
    /// Runs of 8 columns of a warp.
    pub column_tiles: usize,
    /// Runs of rows that share 8 columns, each having a part of them: 1, 2 or 4.
    pub fold: usize,
    /// Blocks that a processor shall hold at once: what bounds the registers of a thread.
    pub blocks: usize,
    /// Warps that share the segments of a tile's depth: 1, 2, 4 or 8. Where that makes too few blocks, there are more.
    pub warps: usize,
    /// Warps of a block: 4 or 8, as many at least.
    pub block_warps: usize,
    /// Steps of weights in a warp's ring.
    pub stages: usize,
    /// Whether activations lie beside weights in the rings; else they are read as they are taken.
    pub is_staged: bool,
}

/// Features of a step of a ring, at least.
const STEP_FEATURES: usize = 4 * UNIT;

impl CodesTile {
    /// Every tile of a layout, from the narrowest to the widest, which serves all above it by several tiles. Measured on an H200: more
    /// rows share the reading of activations, as long as their sums and weights fit into registers; where scaling the sums costs
    /// most, a few columns are folded. First come those for matrices of some shapes alone ([`CodesTile::suits`]).
    pub fn all(layout: Layout, arch: &str) -> Vec<CodesTile> {
        let shape = |row_tiles, column_tiles, fold, warps| {
            let (blocks, block_warps) = (2, SEGMENTS_MAX);
            let tile =
                CodesTile { row_tiles, column_tiles, fold, blocks, warps, block_warps, stages: 0, is_staged: false };
            tile.with_ring(layout)
        };
        let small = |blocks, tile: CodesTile| CodesTile { blocks, block_warps: 4, ..tile }.with_ring(layout);
        // What scales of many sub-blocks cost is shared by four row tiles; the others have registers to spare for more blocks.
        let is_bulky = layout.units == 8;
        let few = if is_bulky { small(3, shape(4, 1, 4, 4)) } else { small(5, shape(2, 1, 2, 4)) };
        // A matrix of few rows is on as many processors as it has row tiles, and much of it is on its way at once; but no more than leaves
        // room for what comes behind it, whose weights are to be on their way while this one ends.
        let few_stages = CodesTile { stages: STAGES_MIN, ..shape(1, 1, 1, 8).staged(layout, arch) };
        let many_blocks = CodesTile { blocks: if is_bulky { 2 } else { 3 }, ..shape(1, 1, 1, 8) }.with_ring(layout);
        let short = if few_stages.is_staged { few_stages } else { many_blocks };
        let by_width = [
            // Of a bulky layout two row tiles have no room.
            [shape(2, 1, 2, 4), shape(2, 1, 2, 8), shape(1, 1, 1, 2)],
            [shape(2, 1, 1, 4), shape(1, 1, 1, 2), shape(1, 1, 1, 2)],
            [shape(1, 2, 1, 2), shape(1, 2, 1, 4), shape(1, 2, 1, 8)],
            [shape(1, 4, 1, 4), shape(1, 4, 1, 8), shape(1, 4, 1, 8)],
            [CodesTile { blocks: 1, ..shape(1, 8, 1, 8) }.with_ring(layout); 3],
        ];
        let tiles = by_width.into_iter().map(|tiles| {
            let sound = tiles.into_iter().find(|t| t.is_sound(layout));
            sound.unwrap_or_else(|| panic!("no tile of {tiles:?} can be launched for {layout:?}"))
        });
        let tiles = [few, short].into_iter().filter(|t| t.is_sound(layout)).chain(tiles);
        let mut tiles: Vec<_> = tiles.map(|t| if t.is_staged { t } else { t.staged(layout, arch) }).collect();
        tiles.dedup();
        tiles
    }

    /// With activations in its rings, where a processor of a card has room for as many blocks of it as it shall hold. Bulky layouts gain by
    /// it in small blocks alone: in others it takes the room of weights.
    #[must_use]
    pub fn staged(self, layout: Layout, arch: &str) -> CodesTile {
        let can = self.column_tiles == 1 && (layout.units < 8 || self.block_warps < SEGMENTS_MAX);
        let staged = CodesTile { is_staged: can, ..self }.with_ring(layout);
        let of_block = staged.most_shared_bytes(layout) + BLOCK_OWN_BYTES;
        if staged.blocks * of_block <= shared_bytes_max(arch) + BLOCK_OWN_BYTES { staged } else { self }
    }

    /// Whether it is for matrices of some shapes alone.
    pub const fn is_for_some(self) -> bool {
        self.block_warps < SEGMENTS_MAX || self.is_short()
    }

    /// Whether its blocks have a single row tile, and a warp for each segment.
    const fn is_short(self) -> bool {
        self.row_tiles == 1 && self.column_tiles == 1 && self.has_one_segment()
    }

    /// Whether it is for so many matrices of so many rows: four row tiles that share columns are for experts; a single one where its blocks
    /// leave processors idle; blocks of four warps where a card holds them all at once, while there would be several rounds of those of
    /// eight.
    pub fn suits(self, rows: usize, segments: usize) -> bool {
        let blocks = rows.div_ceil(self.rows());
        match (self.is_for_some(), self.fold) {
            (false, _) => true,
            (true, 4) => segments > 1,
            (true, _) if self.is_short() => 4 * blocks * segments <= 3 * BLOCKS_WANTED,
            (true, _) => segments == 1 && (BLOCKS_WANTED..=self.blocks * BLOCKS_WANTED / 2).contains(&blocks),
        }
    }

    /// With as many stages as its share of a processor's shared memory holds.
    #[must_use]
    pub fn with_ring(self, layout: Layout) -> CodesTile {
        let share = (PROCESSOR_SHARED_BYTES / self.blocks).min(SHARED_BYTES_MAX);
        let rest = CodesTile { stages: 0, ..self }.most_shared_bytes(layout);
        let sums = if self.has_one_segment() { SEGMENTS_MAX * self.rows() * (self.columns() + 1) * 4 } else { 0 };
        let left = share.saturating_sub(rest - sums);
        let stages = left / (self.block_warps * (self.stage_bytes(layout) + self.input_bytes(layout)));
        CodesTile { stages: stages.clamp(STAGES_MIN, STAGES_MAX), ..self }
    }

    /// The narrowest tile that takes so many columns at once, or the widest.
    pub fn for_columns(layout: Layout, arch: &str, columns: usize) -> CodesTile {
        let all = CodesTile::all(layout, arch);
        let fits = all.iter().find(|t| t.columns() >= columns);
        *fits.or(all.last()).expect("a layout has tiles")
    }

    /// Whether a launch can have it: it holds something, its sums fit into registers and shared memory.
    pub fn is_sound(self, layout: Layout) -> bool {
        let sums = self.row_tiles * self.column_tiles * 4 / self.fold;
        let is_folded = matches!(self.fold, 1 | 2 | 4) && self.row_tiles.is_multiple_of(self.fold);
        let is_shared =
            matches!(self.warps, 1 | 2 | 4 | 8) && self.warps <= self.block_warps && self.stages >= STAGES_MIN;
        is_folded
            && is_shared
            && self.blocks > 0
            && sums > 0
            && sums <= 64
            && self.most_shared_bytes(layout) <= SHARED_BYTES_MAX
    }

    /// Shared memory of a block, whatever the depth.
    fn most_shared_bytes(self, layout: Layout) -> usize {
        let bytes = (1..=SEGMENTS_MAX).map(|split| self.shared_bytes(layout, split, self.warps.min(split)));
        bytes.max().unwrap_or(0)
    }

    /// Rows of a warp.
    pub const fn rows(self) -> usize {
        self.row_tiles * MMA_ROWS
    }

    /// Columns of a block.
    pub const fn columns(self) -> usize {
        self.column_tiles * MMA_COLUMNS / self.fold
    }

    /// Whether each warp has one segment of the depth.
    const fn has_one_segment(self) -> bool {
        self.warps == SEGMENTS_MAX
    }

    /// Bytes of a step of a ring.
    const fn stage_bytes(self, layout: Layout) -> usize {
        let chunks = STEP_FEATURES.div_ceil(layout.chunk_features());
        self.row_tiles * chunks * layout.chunk_bytes()
    }

    /// Bytes of activations beside a step of weights (`kernels/matmul/codes_inputs.cuh`): codes of all its units and columns, and what
    /// scaling takes of each.
    const fn input_bytes(self, layout: Layout) -> usize {
        if !self.is_staged {
            return 0;
        }
        let units = STEP_FEATURES.div_ceil(layout.chunk_features()) * layout.units;
        let takes_weighed = layout.has_min && !matches!(layout.scales, Scales::Folded);
        let takes_sums = layout.offset > 0 || !takes_weighed;
        units * self.columns() * (UNIT + 8 * (takes_sums as usize + takes_weighed as usize))
    }

    /// Rings of all warps, and the sums of all segments of each tile, whose rows of cells are padded by one.
    const fn shared_bytes(self, layout: Layout, split: usize, warps_each: usize) -> usize {
        let groups = self.block_warps / warps_each;
        let sums = groups * split * self.rows() * (self.columns() + 1) * size_of::<f32>();
        let ring = groups * warps_each * self.stages * (self.stage_bytes(layout) + self.input_bytes(layout));
        // Where each warp has one segment, its sums take the place of weights that are done with.
        if !self.has_one_segment() {
            ring + sums
        } else if ring > sums {
            ring
        } else {
            sums
        }
    }

    /// The launch for `segments` matrices of some rows and columns each, their depth cut into `split`.
    pub fn launch(self, layout: Layout, (rows, columns): (usize, usize), segments: usize, split: usize) -> Launch {
        let shape = |warps_each: usize| {
            let groups = self.block_warps / warps_each;
            let grid = [rows.div_ceil(self.rows() * groups), columns.div_ceil(self.columns()), segments];
            (grid, groups)
        };
        let mut warps_each = self.warps.min(split);
        while warps_each < split.min(self.block_warps) && shape(warps_each).0.iter().product::<usize>() < BLOCKS_WANTED
        {
            warps_each = (2 * warps_each).min(split);
        }
        let (grid, groups) = shape(warps_each);
        let shared_bytes = self.shared_bytes(layout, split, warps_each);
        Launch { grid, threads: groups * warps_each * WARP, shared_bytes, groups }
    }

    /// Whether a block can go on to further rows and columns: those that experts get.
    pub const fn goes_on(self) -> bool {
        self.column_tiles == 1 && !self.has_one_segment() && (self.block_warps == SEGMENTS_MAX || self.fold == 4)
    }

    /// Whether a card holds so many blocks at once.
    pub const fn fits_at_once(self, blocks: usize) -> bool {
        blocks <= self.blocks * BLOCKS_WANTED / 2
    }

    /// How many tiles of rows each block takes, one after another, where a launch is for several matrices: so many that a card holds
    /// all blocks of `joined` such launches at once. What a block spends on its start and its end is shared by them, and none comes late.
    pub fn turns(self, launch: Launch, rows: usize, joined: usize) -> usize {
        let [blocks, columns, segments] = launch.grid;
        if !self.goes_on() || segments == 1 || !rows.is_multiple_of(self.rows() * launch.groups) {
            return 1;
        }
        let fits = |turns: &usize| self.fits_at_once(blocks.div_ceil(*turns) * columns * segments * joined);
        // So many that they do not fit come in rounds, of which the last is not full: they are short.
        (1..=TURNS_MAX).find(fits).unwrap_or(TURNS_OF_MANY).min(blocks)
    }

    pub(crate) fn constants(self, layout: Layout) -> Vec<(&'static str, usize)> {
        let CodesTile { row_tiles, column_tiles, fold, blocks, warps: _, block_warps, stages, is_staged } = self;
        vec![
            ("ROW_TILES", row_tiles),
            ("COLUMN_TILES", column_tiles),
            ("FOLD", fold),
            ("BLOCKS", blocks),
            ("THREADS", block_warps * WARP),
            ("STAGES", stages),
            ("STAGE_BYTES", self.stage_bytes(layout)),
            ("IS_STAGED", is_staged.into()),
            ("INPUT_BYTES", self.input_bytes(layout)),
            ("ONE_SEGMENT", self.has_one_segment().into()),
            ("GOES_ON", self.goes_on().into()),
        ]
    }
}

/// What a block of `floats.cu` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatsTile {
    /// Columns of a lane.
    pub columns: usize,
    /// Its rows: a power of two.
    pub lane_rows: usize,
}

impl FloatsTile {
    /// A row a lane, and a column: as `connect.cu` has it, too.
    pub const SINGLE: FloatsTile = FloatsTile { columns: 1, lane_rows: 1 };

    /// Every tile. More rows share activations; fewer meet more processors.
    pub const ALL: [FloatsTile; 7] = [
        FloatsTile::SINGLE,
        FloatsTile { columns: 4, lane_rows: 1 },
        FloatsTile { columns: 4, lane_rows: 2 },
        FloatsTile { columns: 4, lane_rows: 4 },
        FloatsTile { columns: 8, lane_rows: 1 },
        FloatsTile { columns: 8, lane_rows: 2 },
        FloatsTile { columns: 8, lane_rows: 4 },
    ];

    /// Rows that are packed together.
    pub const ROWS: usize = WARP;

    /// Warps of a block. Few, so that a few rows meet several processors.
    const WARPS: usize = 4;

    /// Steps whose activations are in shared memory.
    const STAGES: usize = 2;

    /// Pieces of 16 bytes of a lane's weights that are on their way, at most.
    const PIECES_MAX: usize = 16;

    /// Matrices of so many rows fill the card with warps of more of them.
    const ROWS_MANY: usize = 4096;

    /// Blocks that a tile shall have, where one of fewer rows has them.
    const BLOCKS_WANTED: usize = 128;

    /// The tile of matrices of so many rows in all and columns: of those that fill the card the one of the most rows, or the one with
    /// the most blocks. To read weights twice costs less than sums that take registers, so eight columns go four by four.
    pub fn of(rows: usize, columns: usize) -> FloatsTile {
        let wanted = match columns {
            0 | 1 => 1,
            2..=8 => 4,
            _ => 8,
        };
        // How many blocks there are if all warps share a row.
        let blocks =
            |t: &FloatsTile| rows.div_ceil(t.lane_rows << FloatsTile::row_bits(rows)) * columns.div_ceil(t.columns);
        let fits = FloatsTile::ALL.into_iter().filter(|t| t.columns == wanted);
        let full = fits.clone().rfind(|t| blocks(t) >= FloatsTile::BLOCKS_WANTED);
        full.or_else(|| fits.max_by_key(blocks)).expect("there are tiles of all widths")
    }

    /// The tiles of matrices of so many rows in all, at all usual widths.
    pub fn of_matrix(rows: usize) -> HashSet<FloatsTile> {
        [1, 4, 8, 16, 64].into_iter().map(|columns| FloatsTile::of(rows, columns)).collect()
    }

    /// Features of each chain that a step takes: its weights are in registers, activations of all columns in shared memory.
    pub(crate) const fn step_features(self, float: Float) -> usize {
        let held = FloatsTile::PIECES_MAX * float.run() / self.lane_rows;
        let most = CHAIN_DEPTH / if self.columns <= 2 { 1 } else { self.columns / 2 };
        if held < most { held } else { most }
    }

    /// Lanes of a warp that have different rows, as a power of two, for matrices of so many rows in all.
    const fn row_bits(rows: usize) -> usize {
        if rows >= FloatsTile::ROWS_MANY { 3 } else { 2 }
    }

    /// These, and the groups of a block that have different rows, as powers of two, for matrices of so many rows in all and a depth: the
    /// warps of a group share its parts.
    pub(crate) fn shape(rows: usize, depth: usize) -> (usize, usize) {
        let row_bits = FloatsTile::row_bits(rows);
        let parts_of_warp = (WARP >> row_bits) / CHAINS_OF_PART;
        let sharing = part_count(depth).max(1).div_ceil(parts_of_warp).next_power_of_two().min(FloatsTile::WARPS);
        (row_bits, (FloatsTile::WARPS / sharing).ilog2() as usize)
    }

    /// As [`CodesTile::launch`], in blocks of a shape.
    pub fn launch(
        self,
        float: Float,
        (rows, columns): (usize, usize),
        segments: usize,
        (row_bits, group_bits): (usize, usize),
    ) -> Launch {
        let threads = FloatsTile::WARPS * WARP;
        let (groups, chains) = (1 << group_bits, threads >> (row_bits + group_bits));
        // Between chains lie four numbers, which spread them over the banks.
        let stage = self.columns * chains * (self.step_features(float) + 4) * size_of::<f32>();
        Launch {
            grid: [rows.div_ceil((self.lane_rows * groups) << row_bits), columns.div_ceil(self.columns), segments],
            threads,
            shared_bytes: FloatsTile::STAGES * stage,
            groups,
        }
    }

    pub(crate) fn constants(self, float: Float) -> Vec<(&'static str, usize)> {
        let threads = ("THREADS", FloatsTile::WARPS * WARP);
        let step = ("STEP_FEATURES", self.step_features(float));
        let rows = ("LANE_ROWS", self.lane_rows);
        vec![("COLUMNS", self.columns), rows, threads, ("STAGES", FloatsTile::STAGES), step]
    }
}

/// How sums of squares and chains of products go, as kernels are told: the definition's numbers.
pub(crate) const PARTS_OF_DEPTH: [(&str, usize); 3] =
    [("PART_DEPTH", PART_DEPTH), ("CHAIN_DEPTH", CHAIN_DEPTH), ("SQUARE_LANES", SQUARE_LANES)];

/// Chains of a part.
const CHAINS_OF_PART: usize = PART_DEPTH / CHAIN_DEPTH;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernels::CARDS, matmul::layout::Levels};

    /// Experts of a few tokens: all blocks of gate and up are on the card at once.
    #[test]
    fn experts_blocks_come_in_one_round() {
        let layout = Layout::all().into_iter().find(|l| l.levels == Levels::Iq2 && l.sub == 32).expect("IQ2_XXS");
        let tile = CodesTile::all(layout, "sm_90a")[0];
        assert!(tile.goes_on() && tile.suits(2048, 6), "{tile:?}");
        for (places, turns, blocks) in
            [(6, 1, 384), (12, 2, 384), (18, 3, 396), (24, 4, 384), (48, 8, 384), (256, 8, 2048)]
        {
            let launch = tile.launch(layout, (2048, 1), places, 8);
            assert_eq!(tile.turns(launch, 2048, 2), turns, "{places} places");
            assert_eq!(launch.grid[0].div_ceil(turns) * places * 2, blocks);
        }
        let launch = tile.launch(layout, (2040, 1), 48, 8);
        assert_eq!(tile.turns(launch, 2040, 2), 1, "the last block is not whole");
    }

    proptest! {
        /// Blocks cover every cell once: no tile starts behind the last row or column, and none is left out.
        #[test]
        fn launches_cover_all_cells(
            rows in 1usize..5000,
            columns in 1usize..300,
            split in 1usize..=SEGMENTS_MAX,
            depth in 0usize..40_000,
        ) {
            for (layout, arch) in Layout::all().into_iter().flat_map(|l| CARDS.map(|arch| (l, arch))) {
                let tile = CodesTile::for_columns(layout, arch, columns);
                let launch = tile.launch(layout, (rows, columns), 3, split);
                let height = tile.rows() * launch.groups;
                prop_assert!(launch.grid[0] * height >= rows && (launch.grid[0] - 1) * height < rows);
                prop_assert!(launch.grid[1] * tile.columns() >= columns && (launch.grid[1] - 1) * tile.columns() < columns);
                prop_assert!(launch.threads <= THREADS_MAX && launch.threads.is_multiple_of(launch.groups * WARP));
                prop_assert!(launch.shared_bytes <= shared_bytes_max(arch));
            }
            for float in Float::ALL {
                let tile = FloatsTile::of(rows, columns);
                let (row_bits, group_bits) = FloatsTile::shape(rows, depth);
                let launch = tile.launch(float, (rows, columns), 1, (row_bits, group_bits));
                let height = tile.lane_rows << (row_bits + group_bits);
                // The rows of a lane are in one run of packed rows.
                prop_assert!(FloatsTile::ROWS.is_multiple_of(tile.lane_rows << row_bits));
                prop_assert!(launch.grid[0] * height >= rows && (launch.grid[0] - 1) * height < rows);
                prop_assert!(launch.grid[1] * tile.columns >= columns && (launch.grid[1] - 1) * tile.columns < columns);
                prop_assert!(launch.shared_bytes <= SHARED_BYTES_MAX);
                // Half as many warps would not do for the parts of a group, or there is one.
                let (sharing, parts_of_warp) = (FloatsTile::WARPS / launch.groups, (WARP >> row_bits) / CHAINS_OF_PART);
                prop_assert!(sharing == 1 || sharing / 2 * parts_of_warp < part_count(depth));
                prop_assert!(launch.groups == 1 << group_bits && sharing * launch.groups == FloatsTile::WARPS);
                prop_assert!(CHAIN_DEPTH.is_multiple_of(tile.step_features(float)));
            }
        }
    }
}
