//! Tiles of prompt rows on Hopper: `kernels/attention/prompt.cu`.

use tessera_ops::{KvFormat, PAGE_TOKENS};

use super::{PROCESSOR_SHARED_BYTES, SLAB_FEATURES};
use crate::kernels::Pages;

/// Columns of a tile: rows times heads of a group.
pub(crate) const COLUMNS: usize = 128;

/// Two warpgroups that multiply, and one that copies.
pub(crate) const THREADS: usize = 384;

/// The widest head whose sums fit into registers.
const HEAD_DIM_MAX: usize = 256;

/// Stages of keys, and of values, at most.
const STAGES_MAX: usize = 3;

/// How a tile takes keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PromptTile {
    /// Keys that are taken at once.
    pub keys: usize,
    /// Stages of keys, and of values.
    pub stages: usize,
}

impl PromptTile {
    /// The tile for pages of a form; none where `spans.cu` takes prompt rows too.
    pub fn of(form: Pages) -> Option<PromptTile> {
        let is_taken = form.format == KvFormat::F16
            && form.head_dim.is_multiple_of(SLAB_FEATURES)
            && form.head_dim <= HEAD_DIM_MAX;
        // The sums of a wide head leave registers for the scores of a page alone.
        let keys = if form.head_dim <= 128 { 2 * PAGE_TOKENS } else { PAGE_TOKENS };
        let stages = (1..=STAGES_MAX)
            .rev()
            .find(|stages| PromptTile { keys, stages: *stages }.shared_bytes(form) <= PROCESSOR_SHARED_BYTES);
        stages.filter(|_| is_taken).map(|stages| PromptTile { keys, stages })
    }

    pub(crate) fn shared_bytes(self, form: Pages) -> usize {
        let number = 2;
        let (queries, stage) = (COLUMNS * form.head_dim * number, self.keys * form.head_dim * number);
        1024 + queries + 2 * self.stages * stage + COLUMNS * 4 + self.stages * 32
    }

    pub(crate) fn constants(self, form: Pages) -> Vec<(&'static str, usize)> {
        vec![
            ("COLUMNS", COLUMNS),
            ("KEYS", self.keys),
            ("STAGES", self.stages),
            ("THREADS", THREADS),
            ("SHARED_BYTES", self.shared_bytes(form)),
        ]
    }
}
