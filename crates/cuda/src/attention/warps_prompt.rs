//! Tiles of prompt rows on the matrix instructions of single warps: `kernels/attention/warps_prompt.cu`.

use tessera_ops::{KvFormat, PAGE_TOKENS};

use super::{
    SLAB_FEATURES,
    warps::{fits_registers, narrowest, stage_bytes, stages_beside},
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
        narrowest(&WarpsPromptTile::all(form, arch), WarpsPromptTile::columns, columns)
    }

    /// As many blocks on a processor as registers and shared memory allow.
    fn with(form: Pages, arch: &str, warps: usize) -> Option<WarpsPromptTile> {
        let tile = |resident: usize| {
            let none = WarpsPromptTile { warps, resident, stages: 0, is_capped: false };
            WarpsPromptTile { stages: stages_beside(form, arch, resident, none.shared_bytes(form)), ..none }
        };
        let registers = form.head_dim / 2 + PAGE_TOKENS / 2 + OTHER_REGISTERS;
        let fits = |t: &WarpsPromptTile| t.stages >= 2 && fits_registers(t.resident, t.threads(), registers);
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
    use crate::attention::warps::tests::hold_tiles;

    /// Heads of whole sixteens have a tile, up to 256 numbers.
    #[test]
    fn tiles_fit_every_card() {
        let shape = |t: &WarpsPromptTile, form| (t.resident, t.threads(), t.stages, t.shared_bytes(form));
        hold_tiles(WarpsPromptTile::all, shape, |form, tiles| {
            assert_eq!(tiles.is_empty(), form.head_dim > HEAD_DIM_MAX, "{form:?}");
        });
    }
}
