//! Tiles of attention on the matrix instructions of single warps: `kernels/attention/warps.cu`.

use tessera_ops::{KvFormat, PAGE_TOKENS};

use super::{OPERAND_BYTES, SLAB_FEATURES};
use crate::{kernels::Pages, matmul::tile::WARP};

/// The widest head whose sums fit into registers.
const HEAD_DIM_MAX: usize = 512;

/// Registers of a processor.
const REGISTERS: usize = 1 << 16;

/// What the machine takes of shared memory for each block.
const BLOCK_SHARED_BYTES: usize = 1 << 10;

/// Beyond this, more slabs on their way make nothing faster.
const STAGES_MAX: usize = 8;

/// Fewer blocks on a processor are better than a shorter ring; of tiles that multiply more than they copy, two blocks are.
const STAGES_MIN: usize = 3;

/// Tiles from here on multiply more.
const WIDE_COLUMNS: usize = 64;

/// Registers of a thread beside sums and scores, which are there twice, as weights too.
const OTHER_REGISTERS: usize = 64;

/// How a block takes columns, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WarpsTile {
    /// Columns that share a read of keys and values.
    pub columns: usize,
    /// Warps that share the keys, and features, of a slab.
    pub key_warps: usize,
    /// Warps that share columns.
    pub column_warps: usize,
    /// Blocks that a processor shall hold.
    pub resident: usize,
    /// Slabs in a block's ring.
    pub stages: usize,
    /// Whether scores are capped.
    pub is_capped: bool,
}

/// Shared memory of a processor.
fn processor_shared_bytes(arch: &str) -> usize {
    match arch {
        "sm_80" => 164 << 10,
        "sm_90a" => 228 << 10,
        _ => 100 << 10,
    }
}

/// Stages of rings of as many blocks as a processor shall hold, each of which takes so much shared memory beside its ring.
pub(super) fn stages_beside(form: Pages, arch: &str, resident: usize, shared_bytes: usize) -> usize {
    let room = processor_shared_bytes(arch) / resident - BLOCK_SHARED_BYTES;
    (room.saturating_sub(shared_bytes) / stage_bytes(form).0).min(STAGES_MAX)
}

/// Whether so many blocks' registers are there, of threads that take so many each.
pub(super) fn fits_registers(resident: usize, threads: usize, registers: usize) -> bool {
    resident * threads * registers <= REGISTERS
}

/// The narrowest tile that takes so many columns at once, or the widest.
pub(super) fn narrowest<T: Copy>(all: &[T], columns: impl Fn(T) -> usize, wanted: usize) -> Option<T> {
    all.iter().find(|t| columns(**t) >= wanted).or(all.last()).copied()
}

/// Of a slab: what a stage of the ring takes, and the operand that its codes become.
pub(super) fn stage_bytes(form: Pages) -> (usize, usize) {
    match form.format {
        KvFormat::Q8_0 => (PAGE_TOKENS * (SLAB_FEATURES + 8), OPERAND_BYTES),
        _ => (OPERAND_BYTES, 0),
    }
}

impl WarpsTile {
    /// From the narrowest to the widest, none where pages have another form.
    pub fn all(form: Pages, arch: &str) -> Vec<WarpsTile> {
        let head_dim = form.head_dim;
        if form.format == KvFormat::F32 || !head_dim.is_multiple_of(16) || head_dim > HEAD_DIM_MAX {
            return vec![];
        }
        let most = |columns: usize| match columns {
            64 if head_dim > 256 => (4, 2),
            64 => (2, 2),
            128 => (2, 4),
            _ => (4, 1),
        };
        let widths = [8, 16, 32, 64, 128].into_iter().filter(|columns| *columns < 128 || head_dim <= 128);
        widths.filter_map(|columns| WarpsTile::with(form, arch, columns, most(columns))).collect()
    }

    /// As many blocks on a processor as registers and rings allow.
    fn with(form: Pages, arch: &str, columns: usize, (key_warps, column_warps): (usize, usize)) -> Option<WarpsTile> {
        let tile = |resident: usize| {
            let none = WarpsTile { columns, key_warps, column_warps, resident, stages: 0, is_capped: false };
            WarpsTile { stages: stages_beside(form, arch, resident, none.shared_bytes(form)), ..none }
        };
        let scores = 4 / key_warps * columns / 8 / column_warps * 4;
        let registers = (form.head_dim.div_ceil(SLAB_FEATURES) + 2) * scores + OTHER_REGISTERS;
        let fits = |t: &WarpsTile| fits_registers(t.resident, t.threads(), registers);
        let roomy = (1..=4)
            .rev()
            .map(tile)
            .find(|t| fits(t) && t.stages >= if columns < WIDE_COLUMNS { STAGES_MIN } else { 2 });
        roomy.or_else(|| Some(tile(1)).filter(|t| t.stages >= 2))
    }

    /// The narrowest that takes so many columns at once, or the widest.
    pub(super) fn for_columns(form: Pages, arch: &str, columns: usize) -> Option<WarpsTile> {
        narrowest(&WarpsTile::all(form, arch), |t| t.columns, columns)
    }

    pub(super) fn threads(self) -> usize {
        self.key_warps * self.column_warps * WARP
    }

    pub(super) fn shared_bytes(self, form: Pages) -> usize {
        let (stage, expanded) = stage_bytes(form);
        let queries = form.head_dim.div_ceil(SLAB_FEATURES) * self.columns * 128;
        queries + self.columns * PAGE_TOKENS * 2 + expanded + self.stages * stage + 11 * self.columns * size_of::<f32>()
    }

    pub(crate) fn constants(self, form: Pages) -> Vec<(&'static str, usize)> {
        vec![
            ("CAPPED", self.is_capped.into()),
            ("COLUMNS", self.columns),
            ("KEY_WARPS", self.key_warps),
            ("COLUMN_WARPS", self.column_warps),
            ("RESIDENT", self.resident),
            ("STAGES", self.stages),
            ("THREADS", self.threads()),
            ("SHARED_BYTES", self.shared_bytes(form)),
        ]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernels::CARDS;

    /// Every card with every form of heads of whole sixteens, and what these are to have: blocks that fit into a processor, with a ring.
    pub(in crate::attention) fn hold_tiles<T: std::fmt::Debug>(
        all: impl Fn(Pages, &str) -> Vec<T>,
        shape: impl Fn(&T, Pages) -> (usize, usize, usize, usize),
        check: impl Fn(Pages, &[T]),
    ) {
        for (arch, format) in CARDS.into_iter().flat_map(|arch| [KvFormat::F16, KvFormat::Q8_0].map(|f| (arch, f))) {
            for head_dim in (16..=HEAD_DIM_MAX).step_by(16) {
                let form = Pages { head_dim, format };
                let tiles = all(form, arch);
                check(form, &tiles);
                for tile in tiles {
                    let (resident, threads, stages, shared_bytes) = shape(&tile, form);
                    let bytes = (shared_bytes + BLOCK_SHARED_BYTES) * resident;
                    assert!(bytes <= processor_shared_bytes(arch), "{form:?} on {arch}: {tile:?}");
                    let is_whole = stages >= 2 && threads <= 1024 && fits_registers(resident, threads, 32);
                    assert!(is_whole, "{form:?} on {arch}: {tile:?}");
                }
            }
            assert!(all(Pages { head_dim: 40, format }, arch).is_empty());
        }
        assert!(all(Pages { head_dim: 64, format: KvFormat::F32 }, "sm_80").is_empty());
    }

    /// Every head of whole sixteens has tiles, narrow ones among them.
    #[test]
    fn tiles_fit_every_card() {
        let shape = |t: &WarpsTile, form| (t.resident, t.threads(), t.stages, t.shared_bytes(form));
        hold_tiles(WarpsTile::all, shape, |form, tiles| {
            let columns: Vec<usize> = tiles.iter().map(|t| t.columns).collect();
            assert!(columns.starts_with(&[8, 16, 32]), "{form:?}: {tiles:?}");
            assert!(tiles.iter().all(|t| (t.columns / 8).is_multiple_of(t.column_warps)), "{form:?}: {tiles:?}");
        });
    }
}
