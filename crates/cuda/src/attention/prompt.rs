//! Tiles of prompt rows on Hopper: `kernels/attention/prompt.cu`, and of wide heads `kernels/attention/prompt_wide.cu`.

use tessera_ops::{KvFormat, PAGE_TOKENS};

use super::{BRINGERS, OPERAND_BYTES, PROCESSOR_SHARED_BYTES, SLAB_FEATURES, SLAB_HEAD_DIM_MAX};
use crate::kernels::Pages;

/// Two warpgroups that multiply, and one that copies.
pub(crate) const THREADS: usize = 384;

/// The widest head whose sums, for 64 columns, fit into a warpgroup's registers.
const NARROW_HEAD_DIM: usize = 256;

/// Stages of keys, and of values, at most.
const STAGES_MAX: usize = 3;

/// Bytes of a number.
const NUMBER: usize = 2;

/// How a block takes columns, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PromptTile {
    /// Rows times heads of a group.
    pub columns: usize,
    /// Keys that are taken at once.
    pub keys: usize,
    /// Stages of keys, and of values; of wide heads slabs.
    pub stages: usize,
    /// Blocks that share what they copy.
    pub cluster: usize,
    /// Whether scores are capped.
    pub is_capped: bool,
}

impl PromptTile {
    /// The tiles for pages of a form; none where `spans.cu` takes prompt rows too.
    pub fn all(form: Pages) -> Vec<PromptTile> {
        let (head_dim, pair) = (form.head_dim, 2 * PAGE_TOKENS);
        if form.format != KvFormat::F16 || !head_dim.is_multiple_of(SLAB_FEATURES) || head_dim > SLAB_HEAD_DIM_MAX {
            return vec![];
        }
        let tile = |columns, keys, cluster| {
            let fits = |tile: &PromptTile| tile.shared_bytes(form) <= PROCESSOR_SHARED_BYTES;
            let most = if head_dim > NARROW_HEAD_DIM { PROCESSOR_SHARED_BYTES / OPERAND_BYTES } else { STAGES_MAX };
            let is_whole = |stages: &usize| head_dim <= NARROW_HEAD_DIM || stages.is_multiple_of(BRINGERS);
            let tile = |stages| PromptTile { columns, keys, stages, cluster, is_capped: false };
            (1..=most).rev().filter(is_whole).map(tile).find(fits)
        };
        let tiles = match head_dim {
            // The sums of a wide head leave registers for the scores of a page alone.
            ..=128 => vec![tile(128, pair, 1)],
            129..=NARROW_HEAD_DIM => vec![tile(128, PAGE_TOKENS, 1)],
            _ if head_dim.is_multiple_of(pair) => vec![tile(64, pair, 1), tile(64, pair, 2)],
            _ => vec![],
        };
        tiles.into_iter().flatten().collect()
    }

    /// Whether the head's numbers are shared out among warpgroups.
    pub(crate) fn is_wide(form: Pages) -> bool {
        form.head_dim > NARROW_HEAD_DIM
    }

    pub(crate) fn shared_bytes(self, form: Pages) -> usize {
        let queries = self.columns * form.head_dim * NUMBER;
        if PromptTile::is_wide(form) {
            let weights = self.columns * self.keys * NUMBER;
            return 1024 + queries + weights + self.stages * (OPERAND_BYTES + 16) + 3 * self.columns * size_of::<f32>();
        }
        let stage = self.keys * form.head_dim * NUMBER;
        1024 + queries + 2 * self.stages * stage + self.columns * size_of::<f32>() + self.stages * 32
    }

    pub(crate) fn constants(self, form: Pages) -> Vec<(&'static str, usize)> {
        vec![
            ("CAPPED", self.is_capped.into()),
            ("COLUMNS", self.columns),
            ("KEYS", self.keys),
            ("STAGES", self.stages),
            ("CLUSTER", self.cluster),
            ("THREADS", THREADS),
            ("SHARED_BYTES", self.shared_bytes(form)),
        ]
    }
}
