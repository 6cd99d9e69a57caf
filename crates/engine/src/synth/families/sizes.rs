//! The sizes of a synthetic model, and the dimensions that follow from them.

use std::ops::RangeInclusive;

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
}

pub(in crate::synth) const SIZE_COUNT: usize = 16;

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
        }
    }

    /// Larger than any model has, and small enough that no product of a shape overflows.
    pub(in crate::synth) fn range(self) -> RangeInclusive<usize> {
        match self {
            Size::Layers => 1..=1024,
            Size::Width => 1..=1 << 16,
            Size::HeadDim | Size::FullHeadDim => 2..=1 << 12,
            Size::Heads | Size::KvHeads => 1..=1 << 10,
            Size::FeedForward | Size::ExpertFeedForward => 1..=1 << 19,
            Size::PerLayer => 0..=1 << 16,
            Size::SharedKvLayers | Size::DenseLayers => 0..=1024,
            Size::Experts => 0..=1 << 12,
            Size::ExpertsUsed => 1..=1 << 12,
            Size::Vocabulary => FIRST_WORD..=1 << 20,
            Size::Context | Size::Window => 1..=1 << 24,
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
        }
    }

    /// What a line has to change for another dimension.
    pub(in crate::synth) fn source(self) -> &'static str {
        match self {
            Dim::One => "nothing",
            Dim::Size(size) => size.key(),
            Dim::Head | Dim::FullPairs => Size::HeadDim.key(),
            Dim::Queries => "heads × head_dim",
            Dim::Keys => "kv_heads × head_dim",
            Dim::ExpertGateUp => Size::ExpertFeedForward.key(),
            Dim::AllPerLayer => "layers × per_layer",
        }
    }
}
