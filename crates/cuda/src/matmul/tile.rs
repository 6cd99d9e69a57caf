//! The one definition of a tile: grid, block, shared memory and the kernel's constants are all derived from it.

use tessera_ops::numerics::SEGMENTS_MAX;

use super::layout::{Layout, Scales};

/// Weight rows of the matrix instruction.
pub const MMA_ROWS: usize = 16;
/// Columns (tokens) of the matrix instruction.
pub const MMA_COLUMNS: usize = 8;
/// Threads of a warp.
pub const WARP: usize = 32;
/// Threads of a block, at most: a warp for each segment of the depth.
pub const THREADS_MAX: usize = SEGMENTS_MAX * WARP;

/// Limit of shared memory without asking the driver for more.
const SHARED_BYTES_MAX: usize = 48 << 10;

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
}

impl CodesTile {
    /// Every tile of a layout, from the narrowest to the widest, which serves all above it by several tiles. Measured on an H200: more
    /// rows share the reading of activations, as long as their sums and weights fit into registers; where scaling the sums costs
    /// most, a few columns are folded.
    pub fn all(layout: Layout) -> impl Iterator<Item = CodesTile> {
        let is_light = layout.units == 1 && layout.sub == 32 && !layout.has_min && matches!(layout.scales, Scales::F16);
        let is_wide = layout.units == 8;
        let folded = (is_wide && layout.sub == 16).then_some((2, 1, 2, 1));
        let by_width = [
            match (is_wide, layout.sub) {
                (true, 32) => (1, 1, 1, 2),
                (true, _) => (2, 1, 1, 1),
                (false, _) => (4, 1, 1, 1),
            },
            (1, 2, 1, 2),
            if is_wide || is_light { (2, 4, 1, 1) } else { (1, 4, 1, 2) },
            (1, 8, 1, 1),
        ];
        folded.into_iter().chain(by_width).map(move |(row_tiles, column_tiles, fold, blocks)| {
            let tile = CodesTile { row_tiles, column_tiles, fold, blocks };
            assert!(tile.is_sound(layout), "a tile of the table can be launched");
            tile
        })
    }

    /// The narrowest tile that takes so many columns at once, or the widest.
    pub fn for_columns(layout: Layout, columns: usize) -> CodesTile {
        let fits = CodesTile::all(layout).find(|t| t.columns() >= columns);
        fits.or(CodesTile::all(layout).last()).expect("a layout has tiles")
    }

    /// Whether a launch can have it: it holds something, its sums fit into registers and shared memory.
    pub const fn is_sound(self, layout: Layout) -> bool {
        let sums = self.row_tiles * self.column_tiles * 4 / self.fold;
        let is_folded = matches!(self.fold, 1 | 2 | 4) && self.row_tiles.is_multiple_of(self.fold);
        is_folded
            && self.blocks > 0
            && sums > 0
            && sums <= 64
            && self.shared_bytes(layout, SEGMENTS_MAX) <= SHARED_BYTES_MAX
    }

    /// Rows of a warp.
    pub const fn rows(self) -> usize {
        self.row_tiles * MMA_ROWS
    }

    /// Columns of a block.
    pub const fn columns(self) -> usize {
        self.column_tiles * MMA_COLUMNS / self.fold
    }

    /// Sums of all warps, whose rows of cells are padded by one; before them the scales of a chunk, where they are worked out together.
    const fn shared_bytes(self, layout: Layout, warps: usize) -> usize {
        let sums = self.rows() * (self.columns() + 1) * size_of::<f32>();
        let scales = match layout.scales {
            Scales::Super => self.rows() * layout.subs() * size_of::<f32>() * if layout.has_min { 2 } else { 1 },
            Scales::F16 | Scales::F32 => 0,
        };
        warps * if sums > scales { sums } else { scales }
    }

    /// The launch for `segments` matrices of some rows and columns each, their depth cut into `split`.
    pub fn launch(self, layout: Layout, (rows, columns): (usize, usize), segments: usize, split: usize) -> Launch {
        let groups = SEGMENTS_MAX / split;
        Launch {
            grid: [rows.div_ceil(self.rows() * groups), columns.div_ceil(self.columns()), segments],
            threads: groups * split * WARP,
            shared_bytes: self.shared_bytes(layout, groups * split),
            groups,
        }
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        let CodesTile { row_tiles, column_tiles, fold, blocks } = self;
        vec![
            ("ROW_TILES", row_tiles),
            ("COLUMN_TILES", column_tiles),
            ("FOLD", fold),
            ("BLOCKS", blocks),
            ("THREADS", THREADS_MAX),
        ]
    }
}

/// What a block of `floats.cu` holds: 32 rows a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatsTile {
    /// Columns of a thread.
    pub columns: usize,
}

impl FloatsTile {
    /// Every tile.
    pub const ALL: [FloatsTile; 3] = [FloatsTile { columns: 1 }, FloatsTile { columns: 4 }, FloatsTile { columns: 8 }];

    /// Rows of a warp: one a thread.
    pub const ROWS: usize = WARP;

    /// The narrowest tile that takes so many columns at once, or the widest.
    pub fn for_columns(columns: usize) -> FloatsTile {
        let [.., widest] = FloatsTile::ALL;
        FloatsTile::ALL.into_iter().find(|t| t.columns >= columns).unwrap_or(widest)
    }

    /// As [`CodesTile::launch`].
    pub fn launch(self, rows: usize, columns: usize, segments: usize, split: usize) -> Launch {
        let groups = SEGMENTS_MAX / split;
        Launch {
            grid: [rows.div_ceil(FloatsTile::ROWS * groups), columns.div_ceil(self.columns), segments],
            threads: groups * split * WARP,
            shared_bytes: groups * split * self.columns * WARP * size_of::<f32>(),
            groups,
        }
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        vec![("COLUMNS", self.columns), ("THREADS", THREADS_MAX)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Blocks cover every cell once: no tile starts behind the last row or column, and none is left out.
        #[test]
        fn launches_cover_all_cells(rows in 1usize..5000, columns in 1usize..300, split in 1usize..=SEGMENTS_MAX) {
            for layout in Layout::all() {
                let tile = CodesTile::for_columns(layout, columns);
                let launch = tile.launch(layout, (rows, columns), 3, split);
                let height = tile.rows() * launch.groups;
                prop_assert!(launch.grid[0] * height >= rows && (launch.grid[0] - 1) * height < rows);
                prop_assert!(launch.grid[1] * tile.columns() >= columns && (launch.grid[1] - 1) * tile.columns() < columns);
                prop_assert!(launch.threads <= THREADS_MAX && launch.threads == launch.groups * split * WARP);
                prop_assert!(launch.shared_bytes <= SHARED_BYTES_MAX);
            }
            let tile = FloatsTile::for_columns(columns);
            let launch = tile.launch(rows, columns, 1, split);
            prop_assert!(launch.grid[0] * launch.groups * FloatsTile::ROWS >= rows);
            prop_assert!(launch.grid[1] * tile.columns >= columns && (launch.grid[1] - 1) * tile.columns < columns);
        }
    }
}
