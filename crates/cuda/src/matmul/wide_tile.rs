//! Tiles of the kernel for many columns: what a block holds, which shapes there are, and which a launch gets.

use tessera_ops::numerics::SEGMENTS_MAX;

use super::{
    layout::{Layout, Levels, Scales, UNIT},
    many_tile::ManyTile,
    prefill_tile::SEGMENTS_MAX as SEGMENTS_COUNTED_MAX,
    tile::{CodesTile, Launch, MMA_COLUMNS, MMA_ROWS, WARP},
};

/// What a block of `wide.cu` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WideTile {
    /// Runs of 16 rows of a warp.
    pub row_tiles: usize,
    /// Runs of 8 columns of a warp: 1, 2, 4 or 8.
    pub column_tiles: usize,
    /// Runs of rows that share 8 columns, each having a part of them: 1, 2 or 4.
    pub fold: usize,
    /// Warps that share features and columns, and differ in rows.
    pub teams: usize,
    /// Shares of the depth: 1, or 4 to 8.
    pub parts: usize,
    /// Blocks that a processor shall hold at once.
    pub blocks: usize,
    /// Steps of weights and activations in the ring.
    pub stages: usize,
}

/// Beyond this, more bytes on their way make nothing faster.
const STAGES_MAX: usize = 6;

/// What a row and column cost in a narrow tile beside a wide one of two blocks a processor, by columns: measured on an H200. Few columns
/// are limited by memory, many by the scales of columns, which a narrow tile reads for 16 rows.
const NARROW_COSTS: [(usize, f64); 3] = [(8, 1.03), (16, 1.2), (usize::MAX, 2.2)];

/// The same in a wide tile that has a processor to itself, unless four row tiles share columns.
const ALONE_COST: f64 = 1.29;

/// More columns than any tile has.
const MANY_COLUMNS: usize = 4096;

/// Bytes of shared memory that a block of a card may have.
pub fn shared_bytes_max(arch: &str) -> usize {
    match arch {
        "sm_90a" => 227 << 10,
        "sm_80" => 163 << 10,
        _ => 99 << 10,
    }
}

/// Bytes that a processor keeps for itself of each block's shared memory.
pub(super) const BLOCK_OWN_BYTES: usize = 1 << 10;

impl WideTile {
    /// Every tile of a layout on a card. Measured on an H200, of 88 shapes: two row tiles of
    /// a warp, four warps and two blocks a processor are the fastest at every width for matrices that fill the card. Small ones are faster
    /// in narrow tiles than with parts of the depth. Folded scales take few registers: of few columns four row tiles share them, or four
    /// blocks a processor.
    pub fn all(layout: Layout, arch: &str) -> Vec<WideTile> {
        let room = shared_bytes_max(arch);
        let is_folded = layout.scales == Scales::Folded;
        let runs = [(4, 1, 4), (2, 1, 2), (2, 1, 1), (2, 2, 1), (2, 4, 1), (2, 8, 1)];
        let runs = runs.into_iter().filter(|(_, _, fold)| is_folded || *fold < 4);
        let shapes = runs.filter_map(|(row_tiles, column_tiles, fold)| {
            let shape = |teams, blocks| {
                let tile = WideTile { row_tiles, column_tiles, fold, teams, parts: 1, blocks, stages: 0 };
                tile.with_ring(layout, room)
            };
            let blocks = if is_folded && row_tiles == 2 && column_tiles == 1 { 4 } else { 2 };
            let shapes = [shape(4, blocks), shape(4, 2), shape(8, 1), shape(4, 1)];
            shapes.into_iter().find(|t| t.is_sound(layout, room))
        });
        shapes.collect()
    }

    /// With as many stages as fit.
    #[must_use]
    pub fn with_ring(self, layout: Layout, room: usize) -> WideTile {
        let share = room / self.blocks - if self.blocks > 1 { BLOCK_OWN_BYTES } else { 0 };
        let stages = share.saturating_sub(self.columns() * size_of::<u32>()) / self.stage_bytes(layout);
        WideTile { stages: stages.min(STAGES_MAX), ..self }
    }

    /// Whether a launch can have it.
    pub fn is_sound(self, layout: Layout, room: usize) -> bool {
        let is_folded = match self.fold {
            1 => true,
            2 | 4 => self.row_tiles.is_multiple_of(self.fold) && self.column_tiles == 1,
            _ => false,
        };
        let has_parts = self.parts == 1 || (4..=SEGMENTS_MAX).contains(&self.parts);
        is_folded
            && has_parts
            && matches!(self.column_tiles, 1 | 2 | 4 | 8)
            && self.row_tiles * self.column_tiles <= 16
            && self.stages >= 2
            && self.threads() >= self.columns()
            && self.shared_bytes(layout) <= room
    }

    /// Weight rows of a block.
    pub const fn rows(self) -> usize {
        self.teams * self.row_tiles * MMA_ROWS
    }

    /// Columns of a block.
    pub const fn columns(self) -> usize {
        self.column_tiles * MMA_COLUMNS / self.fold
    }

    const fn threads(self) -> usize {
        self.teams * self.parts * WARP
    }

    /// Bytes of a step of all parts: whole chunks, four units at least.
    const fn stage_bytes(self, layout: Layout) -> usize {
        let units = if layout.units > 4 { layout.units } else { 4 };
        let weights = self.teams * self.row_tiles * (units / layout.units) * layout.chunk_bytes();
        let is_signed = layout.low == 8 && layout.offset == 128 || !matches!(layout.levels, Levels::None);
        let is_corrected = layout.offset > 0 && !is_signed;
        let scales = 4 << (layout.has_min || is_corrected) as usize;
        self.parts * (weights + units * self.columns() * (UNIT + scales))
    }

    /// Where the blocks of columns are noted: behind the ring, and behind the sums that take its place.
    const fn first_blocks_at(self, layout: Layout) -> usize {
        let segments = if self.parts == 1 { 1 } else { SEGMENTS_MAX };
        let sums = segments * self.rows() * (self.columns() + 1) * size_of::<f32>();
        let ring = self.stages * self.stage_bytes(layout);
        if ring > sums { ring } else { sums }
    }

    const fn shared_bytes(self, layout: Layout) -> usize {
        self.first_blocks_at(layout) + self.columns() * size_of::<u32>()
    }

    /// The launch for `segments` matrices of some rows and columns each.
    pub fn launch(self, layout: Layout, (rows, columns): (usize, usize), segments: usize) -> Launch {
        Launch {
            grid: [rows.div_ceil(self.rows()), columns.div_ceil(self.columns()), segments],
            threads: self.threads(),
            shared_bytes: self.shared_bytes(layout),
            groups: 1,
        }
    }

    pub(crate) fn constants(self, layout: Layout) -> Vec<(&'static str, usize)> {
        let WideTile { row_tiles, column_tiles, fold, teams, parts, blocks, stages } = self;
        vec![
            ("ROW_TILES", row_tiles),
            ("COLUMN_TILES", column_tiles),
            ("FOLD", fold),
            ("TEAMS", teams),
            ("PARTS", parts),
            ("BLOCKS", blocks),
            ("THREADS", self.threads()),
            ("STAGES", stages),
            ("STAGE_BYTES", self.stage_bytes(layout)),
            ("FIRST_BLOCKS_AT", self.first_blocks_at(layout)),
        ]
    }
}

/// A tile of some kernel of quantized products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// Of `codes.cu`.
    Narrow(CodesTile),
    /// Of `wide.cu`.
    Wide(WideTile),
    /// Of `many.cu`.
    Many(ManyTile),
}

/// The matrices of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of each.
    pub rows: usize,
    /// Matrices.
    pub segments: usize,
    /// Columns that each is expected to have.
    pub columns: usize,
}

impl Tile {
    /// Columns of a block.
    pub fn columns(self) -> usize {
        match self {
            Tile::Narrow(tile) => tile.columns(),
            Tile::Wide(tile) => tile.columns(),
            Tile::Many(tile) => tile.columns(),
        }
    }

    const fn kind(self) -> usize {
        match self {
            Tile::Narrow(_) => 0,
            Tile::Wide(_) => 1,
            Tile::Many(_) => 2,
        }
    }

    /// Every tile that a launch on some card may get, whatever its shape.
    pub fn all(layout: Layout, arch: &str) -> Vec<Tile> {
        let wide = WideTile::all(layout, arch).into_iter().map(Tile::Wide);
        let many = ManyTile::all(layout, arch).into_iter().map(Tile::Many);
        CodesTile::all(layout, arch).into_iter().map(Tile::Narrow).chain(wide).chain(many).collect()
    }

    /// Those that a matrix of a shape may get at any width.
    pub fn of_matrix(tiles: &[Tile], processors: usize, (rows, segments): (usize, usize)) -> Vec<Tile> {
        let mut some: Vec<Tile> = vec![];
        for columns in tiles.iter().map(|t| t.columns()).chain([MANY_COLUMNS]) {
            let tile = Tile::select(tiles, processors, Shape { rows, segments, columns });
            if !some.contains(&tile) {
                some.push(tile);
            }
        }
        some
    }

    /// One of the tiles that some shape of this width has: which of them goes by the rows.
    pub fn any(tiles: &[Tile], shape: Shape) -> Tile {
        let width = width_for(tiles.iter(), shape.columns);
        // Beyond the widest of other cards, both kernels.
        let widest = width_for(tiles.iter().filter(|t| !matches!(t, Tile::Many(_))), shape.columns);
        let fits = |t: &&Tile| t.columns() == width || shape.columns > widest && t.columns() == widest;
        let fitting: Vec<Tile> = tiles.iter().filter(fits).copied().collect();
        fitting[shape.rows % fitting.len()]
    }

    /// The tile of a launch, of those of its layout: the narrowest that takes all columns at once, or the widest; of those of one width,
    /// the one whose rounds over the card's processors are shortest. No bit depends on it.
    pub fn select(tiles: &[Tile], processors: usize, shape: Shape) -> Tile {
        let columns = shape.columns.max(1);
        let own =
            |t: &&Tile| matches!(t, Tile::Narrow(tile) if tile.is_for_some() && tile.suits(shape.rows, shape.segments));
        if let Some(tile) = tiles.iter().filter(own).find(|t| t.columns() >= columns) {
            return *tile;
        }
        let tiles = || tiles.iter().filter(|t| !matches!(t, Tile::Narrow(tile) if tile.is_for_some()));
        let widths = [0, 1, 2].map(|kind| width_for(tiles().filter(move |t| t.kind() == kind), columns));
        let narrow_cost = NARROW_COSTS.iter().find(|(most, _)| columns <= *most).map_or(1.0, |(_, cost)| *cost);
        let cost = |tile: &Tile| {
            let (height, cluster) = match tile {
                Tile::Narrow(tile) => (tile.rows(), 1),
                Tile::Wide(tile) => (tile.rows(), 1),
                Tile::Many(tile) => (tile.rows(), tile.cluster),
            };
            let launched = shape.rows.div_ceil(height * cluster) * columns.div_ceil(tile.columns()) * shape.segments;
            let rounds = launched.div_ceil(processors / cluster);
            let each = match tile {
                Tile::Narrow(_) => narrow_cost,
                Tile::Wide(tile) if rounds == 1 && tile.fold < 4 => ALONE_COST,
                Tile::Wide(_) => 1.0,
                Tile::Many(tile) => tile.cost_percent as f64 / 100.0,
            };
            (rounds * height * tile.columns().max(MMA_COLUMNS)) as f64 * each
        };
        // Few columns of many matrices go to narrow tiles: most blocks have nothing to do.
        let wanted = |t: &&Tile| match t {
            Tile::Narrow(_) => true,
            Tile::Wide(_) => columns > MMA_COLUMNS || shape.segments == 1,
            Tile::Many(tile) => columns > tile.columns() / 2 && shape.segments <= SEGMENTS_COUNTED_MAX,
        };
        let fits = |t: &&Tile| t.columns() == widths[t.kind()];
        let best = tiles().filter(fits).filter(wanted).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        *best.expect("a layout has tiles")
    }
}

/// The narrowest of some tiles that takes so many columns at once, or the widest.
fn width_for<'a>(tiles: impl Iterator<Item = &'a Tile> + Clone, columns: usize) -> usize {
    let widths = tiles.map(|t| t.columns());
    widths.clone().filter(|w| *w >= columns).min().or(widths.max()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Folded scales: of a large matrix's one column four row tiles share columns, though each block has a processor to itself.
    #[test]
    fn few_columns_of_folded_scales_are_shared_by_four() {
        let layout = Layout::all().into_iter().find(|l| l.scales == Scales::Folded).expect("Q2_K");
        let tiles = Tile::all(layout, "sm_90a");
        for (columns, shape) in [(1, (4, 4, 2)), (2, (4, 4, 2)), (4, (2, 2, 4)), (8, (2, 1, 4))] {
            let tile = Tile::select(&tiles, 132, Shape { rows: 32_768, segments: 1, columns });
            let Tile::Wide(WideTile { row_tiles, fold, blocks, .. }) = tile else {
                panic!("{columns} columns: {tile:?}")
            };
            assert_eq!((row_tiles, fold, blocks), shape, "{columns} columns");
        }
    }

    /// A matrix as large as the card gets wide tiles, and those for many columns beyond; a small one narrow ones.
    #[test]
    fn shapes_get_their_tile() {
        let tiles = Tile::all(Layout::all()[0], "sm_90a");
        let [is_narrow, is_wide, is_many] = [0, 1, 2];
        for (rows, segments, columns, kind, width) in [
            (32_768, 1, 1, is_wide, 4),
            (32_768, 1, 8, is_wide, 8),
            (32_768, 1, 16, is_wide, 16),
            (32_768, 1, 64, is_wide, 64),
            (32_768, 1, 65, is_many, 128),
            (32_768, 1, 2048, is_many, 128),
            (9728, 1, 16, is_narrow, 16),
            (9728, 1, 32, is_wide, 32),
            (9728, 1, 33, is_many, 64),
            (9728, 1, 64, is_many, 64),
            (4096, 1, 64, is_narrow, 64),
            (4096, 1, 128, is_narrow, 64),
            (4096, 1, 2048, is_many, 128),
            (2048, 48, 8, is_narrow, 8),
            (2048, 48, 100, is_many, 128),
            (2048, 2000, 100, is_wide, 64),
        ] {
            let tile = Tile::select(&tiles, 132, Shape { rows, segments, columns });
            assert_eq!(
                (tile.kind(), tile.columns()),
                (kind, width),
                "{rows} rows, {segments} matrices, {columns} columns: {tile:?}"
            );
        }
    }

    /// Of sub-blocks of 16, a few users' columns of a large matrix go to the kernel of many columns, but not where scales are folded.
    #[test]
    fn short_sub_blocks_have_many_columns_sooner() {
        for layout in Layout::all().into_iter().filter(|l| l.sub == 16) {
            let tiles = Tile::all(layout, "sm_90a");
            let kind = |columns| Tile::select(&tiles, 132, Shape { rows: 32_768, segments: 1, columns }).kind();
            let is_many = 1 + usize::from(layout.scales != Scales::Folded);
            assert_eq!([32, 33, 64].map(kind), [1, is_many, is_many], "{layout:?}");
        }
    }

    proptest! {
        /// Whatever is multiplied, its tile was compiled when it was loaded, covers its cells, and fits.
        #[test]
        fn every_shape_has_a_tile(rows in 1usize..40_000, columns in 1usize..5000, segments in 1usize..300, arch in 0usize..4) {
            let arch = ["sm_80", "sm_86", "sm_89", "sm_90a"][arch];
            for layout in Layout::all() {
                let tiles = Tile::all(layout, arch);
                let tile = Tile::select(&tiles, 132, Shape { rows, segments, columns });
                prop_assert!(columns > 64 || Tile::of_matrix(&tiles, 132, (rows, segments)).contains(&tile), "{tile:?}");
                let Tile::Wide(wide) = tile else { continue };
                let launch = wide.launch(layout, (rows, columns), segments);
                prop_assert!(launch.grid[0] * wide.rows() >= rows && (launch.grid[0] - 1) * wide.rows() < rows);
                prop_assert!(launch.grid[1] * wide.columns() >= columns && (launch.grid[1] - 1) * wide.columns() < columns);
                prop_assert!(launch.shared_bytes <= shared_bytes_max(arch));
            }
        }
    }
}
