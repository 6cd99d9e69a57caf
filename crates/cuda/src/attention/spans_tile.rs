//! Tiles of attention in spans on Hopper: `kernels/attention/spans.cu`.

use tessera_ops::KvFormat;

use super::{BRINGERS, OPERAND_BYTES, PROCESSOR_SHARED_BYTES, STAGES_MAX};
use crate::{kernels::Pages, matmul::tile::WARP};

/// Sums of values that a thread holds, at most.
const HELD_SUMS_MAX: usize = 128;

/// Tickets of a block that goes from span to span, their barriers, and whose queries it has.
const TICKET_BYTES: usize = 48;

/// Columns whose blocks are two on a processor.
const RESIDENT_COLUMNS: usize = 16;

/// Spans of a tile up to which its blocks are a cluster: as many as one has on every card that has clusters.
const CLUSTER_MAX: usize = 8;

/// A cluster lies in one part of the card. Such a part has so many processors, at least and at most: an H200 has eight, which hold fifteen
/// clusters of eight processors.
const PART_PROCESSORS: (usize, usize) = (14, 18);

/// How a block of `spans.cu` takes columns, which are rows times heads of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpansTile {
    /// Columns that share a read of keys and values.
    pub columns: usize,
    /// Blocks that a processor shall hold.
    pub resident: usize,
    /// Slabs in a block's ring.
    pub stages: usize,
    /// Whether scores are capped.
    pub is_capped: bool,
    /// Whether the blocks of a tile are a cluster, which merges their spans.
    pub is_clustered: bool,
}

impl SpansTile {
    /// From the narrowest to the widest, none where pages are not of slabs.
    pub fn all(form: Pages) -> impl Iterator<Item = SpansTile> {
        let widths = if form.has_slabs() { &[8, 16, 32, 64][..] } else { &[] };
        let fits = move |columns: &usize| form.slabs() / form.groups() * columns / 2 <= HELD_SUMS_MAX;
        widths.iter().copied().filter(fits).map(move |columns| {
            let resident = if columns <= RESIDENT_COLUMNS { 2 } else { 1 };
            SpansTile::with_ring(form, columns, resident)
        })
    }

    /// All of them, and the same in clusters where processors have several blocks.
    pub fn variants(form: Pages) -> impl Iterator<Item = SpansTile> {
        let clustered = SpansTile::all(form).filter(|tile| tile.resident > 1).map(SpansTile::clustered);
        SpansTile::all(form).chain(clustered)
    }

    pub(super) fn clustered(self) -> SpansTile {
        SpansTile { is_clustered: true, ..self }
    }

    /// Clusters of so many blocks that are on a card at once, with room to spare; none where blocks have a processor each.
    pub(super) fn clusters(self, processors: usize, blocks: usize) -> usize {
        let (least, most) = PART_PROCESSORS;
        if self.resident == 1 || blocks > CLUSTER_MAX {
            return 0;
        }
        processors.div_ceil(most) * (processors.min(least) * self.resident / blocks)
    }

    /// With as many slabs as there is room for.
    pub fn with_ring(form: Pages, columns: usize, resident: usize) -> SpansTile {
        let none = SpansTile { columns, resident, stages: 0, is_capped: false, is_clustered: false };
        let left = PROCESSOR_SHARED_BYTES / resident - none.shared_bytes(form);
        let stages = (left / (form.slab_bytes() + 16)).min(STAGES_MAX);
        SpansTile { stages: stages / BRINGERS * BRINGERS, ..none }
    }

    /// The narrowest that is enough, or the widest.
    pub(super) fn narrowest(form: Pages, is_enough: impl Fn(&SpansTile) -> bool) -> Option<SpansTile> {
        SpansTile::all(form).find(is_enough).or(SpansTile::all(form).last())
    }

    pub(super) fn shared_bytes(self, form: Pages) -> usize {
        let (queries, weights) = (form.slabs() * self.columns * 128, form.groups() * self.columns * 128);
        let expanded = if form.format == KvFormat::Q8_0 { form.groups() * 2 * OPERAND_BYTES } else { 0 };
        let ring = self.stages * (form.slab_bytes() + 16);
        1024 + queries
            + weights
            + expanded
            + ring
            + form.groups() * 4 * self.columns * 8
            + self.columns * 16
            + TICKET_BYTES
    }

    /// Warpgroups that multiply, and one that copies.
    pub(super) fn threads(form: Pages) -> usize {
        (form.groups() + 1) * 4 * WARP
    }

    pub(crate) fn constants(self, form: Pages) -> Vec<(&'static str, usize)> {
        vec![
            ("CAPPED", self.is_capped.into()),
            ("CLUSTERED", self.is_clustered.into()),
            ("COLUMNS", self.columns),
            ("RESIDENT", self.resident),
            ("STAGES", self.stages),
            ("THREADS", SpansTile::threads(form)),
            ("SHARED_BYTES", self.shared_bytes(form)),
        ]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::HEAD_DIM_MAX, *};

    pub(in crate::attention) fn forms() -> impl Iterator<Item = Pages> {
        let heads = (1..=HEAD_DIM_MAX / 16).map(|n| n * 16);
        KvFormat::ALL.into_iter().flat_map(move |format| heads.clone().map(move |head_dim| Pages { head_dim, format }))
    }

    /// Enough slabs for a page of each warpgroup to be multiplied while others come, in no more than a processor has.
    #[test]
    fn rings_fit_into_shared_memory() {
        for form in forms() {
            for tile in SpansTile::all(form) {
                assert!(tile.shared_bytes(form) * tile.resident <= PROCESSOR_SHARED_BYTES, "{form:?} {tile:?}");
                assert!(tile.stages >= 8 && tile.stages.is_multiple_of(BRINGERS), "{form:?} {tile:?}");
            }
        }
    }

    #[test]
    fn clusters_are_few_enough_to_be_on_a_card_at_once() {
        let tile = |columns| SpansTile::with_ring(Pages { head_dim: 128, format: KvFormat::F16 }, columns, 2);
        let clusters = |processors| [1, 2, 3, 8, 9].map(|blocks| tile(8).clusters(processors, blocks));
        // Eight sequences of eight heads of keys and values have room with three spans.
        assert_eq!((clusters(132), clusters(4)), ([224, 112, 72, 24, 0], [8, 4, 2, 1, 0]));
        for blocks in 1..=CLUSTER_MAX {
            assert_eq!(SpansTile { resident: 1, ..tile(32) }.clusters(132, blocks), 0);
        }
    }
}
