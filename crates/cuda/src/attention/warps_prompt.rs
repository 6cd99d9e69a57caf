//! Tiles of prompt rows on the matrix instructions of single warps: `kernels/attention/warps_prompt.cu`.

use tessera_ops::{KvFormat, PAGE_TOKENS};

use super::{
    SLAB_FEATURES,
    warps::{BLOCK_SHARED_BYTES, REGISTERS, STAGES_MAX, processor_shared_bytes, stage_bytes},
};
use crate::{kernels::Pages, matmul::tile::WARP};

/// The widest head whose sums fit into registers.
const HEAD_DIM_MAX: usize = 256;

/// Registers of a thread beside its sums and scores.
const OTHER_REGISTERS: usize = 64;

/// Columns of a warp.
const COLUMNS: usize = 16;

/// How a block takes columns, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WarpsPromptTile {
    /// Warps, each with sixteen columns.
    pub warps: usize,
    /// Blocks that a processor shall hold.
    pub resident: usize,
    /// Slabs in a block's ring.
    pub stages: usize,
    /// Whether scores are capped.
    pub is_capped: bool,
}

impl WarpsPromptTile {
    /// The narrow one and the wide one; none where pages have another form. More columns a warp, measured, were slower.
    pub fn all(form: Pages, arch: &str) -> Vec<WarpsPromptTile> {
        let head_dim = form.head_dim;
        if form.format == KvFormat::F32 || !head_dim.is_multiple_of(COLUMNS) || head_dim > HEAD_DIM_MAX {
            return vec![];
        }
        [4, 8].into_iter().filter_map(|warps| WarpsPromptTile::with(form, arch, warps)).collect()
    }

    /// The narrowest that takes so many columns at once, or the widest.
    pub(super) fn for_columns(form: Pages, arch: &str, columns: usize) -> Option<WarpsPromptTile> {
        let all = WarpsPromptTile::all(form, arch);
        all.iter().find(|t| t.columns() >= columns).or(all.last()).copied()
    }

    /// As many blocks on a processor as registers and shared memory allow.
    fn with(form: Pages, arch: &str, warps: usize) -> Option<WarpsPromptTile> {
        let tile = |resident: usize| {
            let none = WarpsPromptTile { warps, resident, stages: 0, is_capped: false };
            let room = processor_shared_bytes(arch) / resident - BLOCK_SHARED_BYTES;
            let stages = room.saturating_sub(none.shared_bytes(form)) / stage_bytes(form).0;
            WarpsPromptTile { stages: stages.min(STAGES_MAX), ..none }
        };
        let registers = form.head_dim / 2 + PAGE_TOKENS / 2 + OTHER_REGISTERS;
        let fits = |t: &WarpsPromptTile| t.stages >= 2 && t.resident * t.threads() * registers <= REGISTERS;
        (1..=4).rev().map(tile).find(fits)
    }

    /// Columns of a block.
    pub fn columns(self) -> usize {
        self.warps * COLUMNS
    }

    pub(super) fn threads(self) -> usize {
        self.warps * WARP
    }

    pub(super) fn shared_bytes(self, form: Pages) -> usize {
        let (stage, expanded) = stage_bytes(form);
        let queries = form.head_dim.div_ceil(SLAB_FEATURES) * self.columns() * 128;
        queries + expanded + self.stages * stage + self.columns() * size_of::<f32>()
    }

    pub(crate) fn constants(self, form: Pages) -> Vec<(&'static str, usize)> {
        vec![
            ("CAPPED", self.is_capped.into()),
            ("COLUMNS", self.columns()),
            ("KEYS", PAGE_TOKENS),
            ("RESIDENT", self.resident),
            ("STAGES", self.stages),
            ("THREADS", self.threads()),
            ("SHARED_BYTES", self.shared_bytes(form)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::CARDS;

    /// Heads of whole sixteens, of up to 256 numbers, have a tile on every card, within what a processor has.
    #[test]
    fn tiles_fit_every_card() {
        for (arch, format) in CARDS.into_iter().flat_map(|arch| [KvFormat::F16, KvFormat::Q8_0].map(|f| (arch, f))) {
            for head_dim in (16..=2 * HEAD_DIM_MAX).step_by(16) {
                let form = Pages { head_dim, format };
                let tiles = WarpsPromptTile::all(form, arch);
                assert_eq!(tiles.is_empty(), head_dim > HEAD_DIM_MAX, "{form:?} on {arch}");
                for tile in tiles {
                    let bytes = tile.shared_bytes(form) + BLOCK_SHARED_BYTES;
                    assert!(bytes * tile.resident <= processor_shared_bytes(arch), "{form:?} on {arch}: {tile:?}");
                    assert!(tile.stages >= 2 && tile.threads() <= 1024, "{form:?} on {arch}: {tile:?}");
                }
            }
        }
    }
}
