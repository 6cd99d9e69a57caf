//! The sizes of a synthetic model, and the dimensions that follow from them.

use std::ops::RangeInclusive;

use tessera_ops::Selector;

use crate::synth::metadata::FIRST_WORD;

/// A size that a line may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::synth) enum Size {
    Layers,
    /// Of the residual stream.
    Width,
    HeadDim,
    Heads,
    KvHeads,
    FeedForward,
    Vocabulary,
    Context,
    Window,
    /// Of the layers without a window, where these have heads of their own.
    FullHeadDim,
    /// The last layers, which read the keys and values of earlier ones.
    SharedKvLayers,
    /// Numbers of a token for each layer.
    PerLayer,
    Experts,
    ExpertsUsed,
    ExpertFeedForward,
    /// The first layers, which have no experts.
    DenseLayers,
    /// Between the two projections of queries.
    QueryRank,
    /// What the first projection of attention's result leaves of each group of heads.
    OutputRank,
    OutputGroups,
    /// Features of a head that turn.
    Turning,
    IndexerHeads,
    IndexerDim,
    /// Compressed rows that an indexer selects.
    TopK,
    /// The first layers, whose experts a table gives.
    TableLayers,
    /// Layers behind the last that draft further tokens.
    DraftLayers,
}

pub(in crate::synth) const SIZE_COUNT: usize = 25;

impl Size {
    /// As a line has it.
    pub(in crate::synth) fn key(self) -> &'static str {
        match self {
            Size::Layers => "layers",
            Size::Width => "width",
            Size::HeadDim => "head_dim",
            Size::Heads => "heads",
            Size::KvHeads => "kv_heads",
            Size::FeedForward => "feed_forward",
            Size::Vocabulary => "vocabulary",
            Size::Context => "context",
            Size::Window => "window",
            Size::FullHeadDim => "full_head_dim",
            Size::SharedKvLayers => "shared_kv_layers",
            Size::PerLayer => "per_layer",
            Size::Experts => "experts",
            Size::ExpertsUsed => "experts_used",
            Size::ExpertFeedForward => "expert_feed_forward",
            Size::DenseLayers => "dense_layers",
            Size::QueryRank => "query_rank",
            Size::OutputRank => "output_rank",
            Size::OutputGroups => "output_groups",
            Size::Turning => "turning",
            Size::IndexerHeads => "indexer_heads",
            Size::IndexerDim => "indexer_dim",
            Size::TopK => "top_k",
            Size::TableLayers => "table_layers",
            Size::DraftLayers => "draft_layers",
        }
    }

    /// Larger than any model has, and small enough that no product of a shape overflows.
    pub(in crate::synth) fn range(self) -> RangeInclusive<usize> {
        match self {
            Size::Layers => 1..=1024,
            Size::Width | Size::QueryRank | Size::OutputRank => 1..=1 << 16,
            Size::HeadDim | Size::FullHeadDim | Size::Turning => 2..=1 << 12,
            Size::IndexerDim => 2..=1 << 10,
            Size::IndexerHeads => 1..=Selector::HEADS_MAX,
            Size::Heads | Size::KvHeads | Size::OutputGroups => 1..=1 << 10,
            Size::FeedForward | Size::ExpertFeedForward => 1..=1 << 19,
            Size::PerLayer => 0..=1 << 16,
            // What models of today have, and the engine runs.
            Size::DraftLayers => 0..=1,
            Size::SharedKvLayers | Size::DenseLayers | Size::TableLayers => 0..=1024,
            Size::Experts => 0..=1 << 12,
            Size::ExpertsUsed => 1..=1 << 12,
            Size::Vocabulary => FIRST_WORD..=1 << 20,
            Size::Context | Size::Window | Size::TopK => 1..=1 << 24,
        }
    }
}

/// Sizes as they become known: first those of the line, then defaults in the order of the family's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::synth) struct Sizes([Option<usize>; SIZE_COUNT]);

impl Sizes {
    pub(in crate::synth) fn find(&self, size: Size) -> Option<usize> {
        self.0[size as usize]
    }

    pub(in crate::synth) fn set(&mut self, size: Size, value: usize) {
        self.0[size as usize] = Some(value);
    }

    /// A size, or 0 where the family does not have it.
    pub(in crate::synth) fn or_zero(&self, size: Size) -> usize {
        self.find(size).unwrap_or(0)
    }

    /// A size that the family lists.
    pub(in crate::synth) fn get(&self, size: Size) -> usize {
        self.find(size).expect("a family lists a size before it uses it")
    }
}

/// A dimension of a tensor.
#[derive(Clone, Copy, Debug)]
pub(in crate::synth) enum Dim {
    One,
    Size(Size),
    /// A head of the layer's kind.
    Head,
    /// Half of a head of the layers without a window.
    FullPairs,
    /// All query heads of the layer.
    Queries,
    /// All heads of keys, or of values, of the layer.
    Keys,
    /// Gate and up of an expert.
    ExpertGateUp,
    /// The numbers of a token for all layers.
    AllPerLayer,
    /// The query heads of a group.
    GroupOfQueries,
    /// What all groups leave.
    Narrowed,
    /// All query heads of the indexer.
    IndexerQueries,
    /// A size, so many times.
    Times(usize, Size),
    /// A number that no line changes.
    Number(usize),
}

impl Dim {
    /// In a layer with a window, or without.
    pub(in crate::synth) fn of(self, sizes: &Sizes, windowed: bool) -> usize {
        let head = |windowed: bool| {
            let full = sizes.find(Size::FullHeadDim).filter(|_| !windowed);
            full.unwrap_or_else(|| sizes.get(Size::HeadDim))
        };
        match self {
            Dim::One => 1,
            Dim::Size(size) => sizes.get(size),
            Dim::Head => head(windowed),
            Dim::FullPairs => head(false) / 2,
            Dim::Queries => sizes.get(Size::Heads) * head(windowed),
            Dim::Keys => sizes.get(Size::KvHeads) * head(windowed),
            Dim::ExpertGateUp => 2 * sizes.get(Size::ExpertFeedForward),
            Dim::AllPerLayer => sizes.get(Size::Layers) * sizes.get(Size::PerLayer),
            Dim::GroupOfQueries => sizes.get(Size::Heads) * head(windowed) / sizes.get(Size::OutputGroups),
            Dim::Narrowed => sizes.get(Size::OutputGroups) * sizes.get(Size::OutputRank),
            Dim::IndexerQueries => sizes.get(Size::IndexerHeads) * sizes.get(Size::IndexerDim),
            Dim::Times(count, size) => count * sizes.get(size),
            Dim::Number(number) => number,
        }
    }

    /// What a line has to change for another dimension.
    pub(in crate::synth) fn source(self) -> &'static str {
        match self {
            Dim::One | Dim::Number(_) => "nothing",
            Dim::Size(size) | Dim::Times(_, size) => size.key(),
            Dim::Head | Dim::FullPairs => Size::HeadDim.key(),
            Dim::Queries => "heads × head_dim",
            Dim::Keys => "kv_heads × head_dim",
            Dim::ExpertGateUp => Size::ExpertFeedForward.key(),
            Dim::AllPerLayer => "layers × per_layer",
            Dim::GroupOfQueries => "heads × head_dim / output_groups",
            Dim::Narrowed => "output_groups × output_rank",
            Dim::IndexerQueries => "indexer_heads × indexer_dim",
        }
    }
}
