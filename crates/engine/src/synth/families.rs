//! The table of architectures that can be made: sizes with their defaults, tensors of a layer, further metadata.
//! Another architecture is another row.

use std::ops::RangeInclusive;

use tessera_formats::gguf::Value;

use super::metadata::FIRST_WORD;

/// A size that a line may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
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
}

pub(super) const SIZE_COUNT: usize = 9;

impl Size {
    /// As a line has it.
    pub(super) fn key(self) -> &'static str {
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
        }
    }

    /// Larger than any model has, and small enough that no product of a shape overflows.
    pub(super) fn range(self) -> RangeInclusive<usize> {
        match self {
            Size::Layers => 1..=1024,
            Size::Width => 1..=1 << 16,
            Size::HeadDim => 2..=1 << 12,
            Size::Heads | Size::KvHeads => 1..=1 << 10,
            Size::FeedForward => 1..=1 << 19,
            Size::Vocabulary => FIRST_WORD..=1 << 20,
            Size::Context | Size::Window => 1..=1 << 24,
        }
    }
}

/// Sizes as they become known: first those of the line, then defaults in the order of the family's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes([Option<usize>; SIZE_COUNT]);

impl Sizes {
    pub(super) fn find(&self, size: Size) -> Option<usize> {
        self.0[size as usize]
    }

    pub(super) fn set(&mut self, size: Size, value: usize) {
        self.0[size as usize] = Some(value);
    }

    /// A size that the family lists.
    pub(super) fn get(&self, size: Size) -> usize {
        self.find(size).expect("a family lists a size before it uses it")
    }
}

/// A dimension of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dim {
    Size(Size),
    /// All query heads.
    Queries,
    /// All heads of keys, or of values.
    Keys,
}

impl Dim {
    pub(super) fn of(self, sizes: &Sizes) -> usize {
        match self {
            Dim::Size(size) => sizes.get(size),
            Dim::Queries => sizes.get(Size::Heads) * sizes.get(Size::HeadDim),
            Dim::Keys => sizes.get(Size::KvHeads) * sizes.get(Size::HeadDim),
        }
    }
}

/// What a tensor is for, which decides its format and how large its numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A projection, in a format of choice.
    Matrix,
    /// Weights of a norm: F32, around one.
    Norm,
    /// F32, around zero.
    Bias,
}

/// One tensor of every layer: `blk.N.` and the name, and the suffix of its kind.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// In GGUF's order: row length first.
    pub(super) shape: &'static [Dim],
}

/// A size, and its default by those before it.
pub(super) type SizeRule = (Size, fn(&Sizes) -> usize);

/// One architecture.
pub(super) struct Family {
    pub(super) name: &'static str,
    /// In the order in which defaults become known.
    pub(super) sizes: &'static [SizeRule],
    /// Whether the output head is the embedding, unless the line says otherwise.
    pub(super) tied: bool,
    pub(super) layer: &'static [&'static [Part]],
    /// Metadata beyond what all have, without the architecture's name.
    pub(super) keys: fn(&Sizes) -> Vec<(&'static str, Value)>,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The names of all architectures that can be made.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.name)
}

const WIDTH: Dim = Dim::Size(Size::Width);
const FEED_FORWARD: Dim = Dim::Size(Size::FeedForward);

const fn part(name: &'static str, kind: Kind, shape: &'static [Dim]) -> Part {
    Part { name, kind, shape }
}

const PRE_NORMS: &[Part] = &[part("attn_norm", Kind::Norm, &[WIDTH]), part("ffn_norm", Kind::Norm, &[WIDTH])];
const POST_NORMS: &[Part] =
    &[part("post_attention_norm", Kind::Norm, &[WIDTH]), part("post_ffw_norm", Kind::Norm, &[WIDTH])];
const ATTENTION: &[Part] = &[
    part("attn_q", Kind::Matrix, &[WIDTH, Dim::Queries]),
    part("attn_k", Kind::Matrix, &[WIDTH, Dim::Keys]),
    part("attn_v", Kind::Matrix, &[WIDTH, Dim::Keys]),
    part("attn_output", Kind::Matrix, &[Dim::Queries, WIDTH]),
];
const HEAD_NORMS: &[Part] = &[
    part("attn_q_norm", Kind::Norm, &[Dim::Size(Size::HeadDim)]),
    part("attn_k_norm", Kind::Norm, &[Dim::Size(Size::HeadDim)]),
];
const BIASES: &[Part] = &[
    part("attn_q", Kind::Bias, &[Dim::Queries]),
    part("attn_k", Kind::Bias, &[Dim::Keys]),
    part("attn_v", Kind::Bias, &[Dim::Keys]),
];
const GATED_MLP: &[Part] = &[
    part("ffn_gate", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    part("ffn_up", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    part("ffn_down", Kind::Matrix, &[FEED_FORWARD, WIDTH]),
];

/// What most families have for their sizes, with a dimension of heads.
macro_rules! sizes {
    ($head_dim:expr, $($more:expr),*) => {
        &[
            (Size::Layers, |_| 4),
            (Size::Width, |_| 512),
            (Size::HeadDim, $head_dim),
            (Size::Heads, |s| (s.get(Size::Width) / s.get(Size::HeadDim)).max(1)),
            (Size::KvHeads, quarter_of_heads),
            (Size::FeedForward, wide_feed_forward),
            (Size::Vocabulary, |_| 32_000),
            (Size::Context, |_| 4096),
            $($more),*
        ]
    };
}

/// In the order of [`crate::models::ARCHITECTURES`], which a test holds.
pub(super) static FAMILIES: [Family; 4] = [
    Family {
        name: "llama",
        sizes: sizes!(share_of_width,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, GATED_MLP],
        keys: |_| vec![("rope.freq_base", Value::from(10_000f32))],
    },
    Family {
        name: "qwen2",
        sizes: sizes!(share_of_width,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, BIASES, GATED_MLP],
        keys: |_| vec![("rope.freq_base", Value::from(1_000_000f32))],
    },
    Family {
        name: "qwen3",
        sizes: sizes!(|_| 128,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, HEAD_NORMS, GATED_MLP],
        keys: |_| vec![("rope.freq_base", Value::from(1_000_000f32))],
    },
    Family {
        name: "gemma3",
        sizes: sizes!(|_| 256, (Size::Window, |_| 512)),
        tied: true,
        layer: &[PRE_NORMS, POST_NORMS, ATTENTION, HEAD_NORMS, GATED_MLP],
        keys: |s| {
            let window = s.get(Size::Window) as u32;
            vec![("rope.freq_base", Value::from(1_000_000f32)), ("attention.sliding_window", Value::from(window))]
        },
    },
];

/// The heads' equal share of the width where the line names their number and it divides; else 64.
fn share_of_width(sizes: &Sizes) -> usize {
    let width = sizes.get(Size::Width);
    let share = sizes.find(Size::Heads).filter(|h| width.is_multiple_of(2 * h)).map(|heads| width / heads);
    share.filter(|dim| Size::HeadDim.range().contains(dim)).unwrap_or(64)
}

/// One head of keys for four of queries, or as many as divide.
fn quarter_of_heads(sizes: &Sizes) -> usize {
    let heads = sizes.get(Size::Heads);
    (1..=(heads / 4).max(1)).rev().find(|n| heads.is_multiple_of(*n)).unwrap_or(1)
}

/// Eight thirds of the width, in whole blocks of every format.
fn wide_feed_forward(sizes: &Sizes) -> usize {
    (sizes.get(Size::Width) * 8 / 3).next_multiple_of(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_can_be_made() {
        assert!(architectures().eq(crate::models::ARCHITECTURES));
    }

    #[test]
    fn sizes_are_told_apart_by_key() {
        for family in &FAMILIES {
            let keys: std::collections::HashSet<_> = family.sizes.iter().map(|(size, _)| size.key()).collect();
            assert_eq!(keys.len(), family.sizes.len(), "{family:?}");
        }
    }
}
