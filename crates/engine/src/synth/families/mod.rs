//! The table of architectures that can be made: sizes with their defaults, tensors of a layer, further metadata.
//! Another architecture is another row.

mod deepseek4;
mod named;
mod sizes;

use tessera_formats::gguf::{Array, Value};

use crate::config::full_attention_every;

pub(super) use named::NAMED;
pub(super) use sizes::{Dim, Size, Sizes};

/// What a tensor is for, which decides its name's suffix, its format and how large its numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A projection, in a format of choice.
    Matrix,
    /// A projection that files keep in F32: a router.
    Router,
    /// Weights of a norm: F32, around one.
    Norm,
    /// F32, around one, by the name of `scale`.
    Scale,
    /// F32, around zero.
    Bias,
    /// F32, around zero, by the name of `weight`.
    Sinks,
    /// A projection or a table that files keep in F16.
    Half,
    /// The experts of each token: I32, a row of different ones.
    Table,
    /// What frequencies are divided by: F32, one for the first quarter, and for the rest so much that it does not turn.
    RopeFactors,
}

impl Kind {
    /// The end of a tensor's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Kind::Bias => "bias",
            Kind::Scale => "scale",
            Kind::Matrix | Kind::Router | Kind::Norm | Kind::Sinks | Kind::Half | Kind::Table | Kind::RopeFactors => {
                "weight"
            }
        }
    }
}

/// The layers that have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    Everywhere,
    /// In layers that write keys and values.
    OwnKeys,
    /// In those, but not where keys are the values as well: without a window, in models without per-layer embeddings.
    OwnValues,
    /// Before the first layer with experts.
    Dense,
    /// In layers with experts.
    Sparse,
    /// Where each token has numbers for each layer.
    PerLayer,
    /// In layers with compressed rows: all, those whose rows an indexer selects, and the others.
    Compressed,
    Selected,
    Wide,
    /// In layers whose experts a table gives, and in the others.
    Table,
    Chosen,
    /// In layers that draft.
    Draft,
}

/// One tensor of a layer: `blk.N.` and the name, and the suffix of its kind. Or one of the whole model.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// In GGUF's order: row length first.
    pub(super) shape: &'static [Dim],
    pub(super) place: Where,
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
    /// Tensors beside layers, embedding and head.
    pub(super) model: &'static [Part],
    /// Every so many layers one has no window, where metadata says so and not the architecture.
    pub(super) full_every: Option<usize>,
    /// Metadata beyond what all have, without the architecture's name.
    pub(super) keys: fn(&Sizes) -> Vec<(&'static str, Value)>,
}

impl Family {
    /// Whether a layer has a window.
    pub(super) fn is_windowed(&self, layer: usize) -> bool {
        full_attention_every(self.name).or(self.full_every).is_some_and(|every| !(layer + 1).is_multiple_of(every))
    }

    /// The layer whose keys and values a layer reads: itself, or the last before the sharing ones that is of its kind.
    pub(super) fn keys_from(&self, sizes: &Sizes, layer: usize) -> Option<usize> {
        let writers = sizes.get(Size::Layers).saturating_sub(sizes.or_zero(Size::SharedKvLayers));
        match layer < writers {
            true => Some(layer),
            false => (0..writers).rev().find(|writer| self.is_windowed(*writer) == self.is_windowed(layer)),
        }
    }

    /// Whether a layer has the tensors of a place.
    pub(super) fn has(&self, sizes: &Sizes, layer: usize, place: Where) -> bool {
        let sparse = sizes.or_zero(Size::Experts) > 0 && layer >= sizes.or_zero(Size::DenseLayers);
        let writes = self.keys_from(sizes, layer) == Some(layer);
        let drafts = layer >= sizes.get(Size::Layers);
        let ratio = if drafts { 0 } else { deepseek4::ratio(layer) };
        match place {
            Where::Everywhere => true,
            Where::OwnKeys => writes,
            Where::OwnValues => writes && (self.is_windowed(layer) || sizes.get(Size::PerLayer) > 0),
            Where::Dense => !sparse,
            Where::Sparse => sparse,
            Where::PerLayer => sizes.get(Size::PerLayer) > 0,
            Where::Compressed => ratio > 0,
            Where::Selected => ratio == 4,
            Where::Wide => ratio == 128,
            Where::Table => layer < sizes.get(Size::TableLayers),
            Where::Chosen => layer >= sizes.get(Size::TableLayers),
            Where::Draft => drafts,
        }
    }

    /// Whether there is no such model without experts.
    pub(super) fn needs_experts(&self) -> bool {
        let everywhere = |part: &Part| part.place == Where::Everywhere && part.name == "ffn_gate";
        !self.parts().any(everywhere)
    }

    /// Layers, with those that draft behind them.
    pub(super) fn layers(&self, sizes: &Sizes) -> std::ops::Range<usize> {
        0..sizes.get(Size::Layers) + sizes.or_zero(Size::DraftLayers)
    }

    /// All parts of a layer.
    pub(super) fn parts(&self) -> impl Iterator<Item = &'static Part> + use<> {
        self.layer.iter().copied().flatten()
    }
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

const HEADS: Dim = Dim::Size(Size::Heads);
const EXPERTS: Dim = Dim::Size(Size::Experts);
const EXPERT: Dim = Dim::Size(Size::ExpertFeedForward);
const PER_LAYER: Dim = Dim::Size(Size::PerLayer);

const fn part(name: &'static str, kind: Kind, shape: &'static [Dim]) -> Part {
    Part { name, kind, shape, place: Where::Everywhere }
}

const fn at(place: Where, name: &'static str, kind: Kind, shape: &'static [Dim]) -> Part {
    Part { name, kind, shape, place }
}

const PRE_NORMS: &[Part] = &[part("attn_norm", Kind::Norm, &[WIDTH]), part("ffn_norm", Kind::Norm, &[WIDTH])];
/// The second norm by what it follows.
const NORMS: &[Part] = &[part("attn_norm", Kind::Norm, &[WIDTH]), part("post_attention_norm", Kind::Norm, &[WIDTH])];
const POST_NORMS: &[Part] =
    &[part("post_attention_norm", Kind::Norm, &[WIDTH]), part("post_ffw_norm", Kind::Norm, &[WIDTH])];
const ATTENTION: &[Part] = &[
    part("attn_q", Kind::Matrix, &[WIDTH, Dim::Queries]),
    part("attn_k", Kind::Matrix, &[WIDTH, Dim::Keys]),
    part("attn_v", Kind::Matrix, &[WIDTH, Dim::Keys]),
    part("attn_output", Kind::Matrix, &[Dim::Queries, WIDTH]),
];
/// Where keys are shared between layers, or are the values.
const SPARING_ATTENTION: &[Part] = &[
    part("attn_q", Kind::Matrix, &[WIDTH, Dim::Queries]),
    at(Where::OwnKeys, "attn_k", Kind::Matrix, &[WIDTH, Dim::Keys]),
    at(Where::OwnValues, "attn_v", Kind::Matrix, &[WIDTH, Dim::Keys]),
    part("attn_output", Kind::Matrix, &[Dim::Queries, WIDTH]),
    part("attn_q_norm", Kind::Norm, &[Dim::Head]),
    at(Where::OwnKeys, "attn_k_norm", Kind::Norm, &[Dim::Head]),
];
const HEAD_NORMS: &[Part] =
    &[part("attn_q_norm", Kind::Norm, &[Dim::Head]), part("attn_k_norm", Kind::Norm, &[Dim::Head])];
const BIASES: &[Part] = &[
    part("attn_q", Kind::Bias, &[Dim::Queries]),
    part("attn_k", Kind::Bias, &[Dim::Keys]),
    part("attn_v", Kind::Bias, &[Dim::Keys]),
];
const SINKS: &[Part] = &[part("attn_output", Kind::Bias, &[WIDTH]), part("attn_sinks", Kind::Sinks, &[HEADS])];
const GATED_MLP: &[Part] = &[
    part("ffn_gate", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    part("ffn_up", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    part("ffn_down", Kind::Matrix, &[FEED_FORWARD, WIDTH]),
];
const DENSE_MLP: &[Part] = &[
    at(Where::Dense, "ffn_gate", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    at(Where::Dense, "ffn_up", Kind::Matrix, &[WIDTH, FEED_FORWARD]),
    at(Where::Dense, "ffn_down", Kind::Matrix, &[FEED_FORWARD, WIDTH]),
];
const MIXTURE: &[Part] = &[
    at(Where::Sparse, "ffn_gate_inp", Kind::Router, &[WIDTH, EXPERTS]),
    at(Where::Sparse, "ffn_gate_exps", Kind::Matrix, &[WIDTH, EXPERT, EXPERTS]),
    at(Where::Sparse, "ffn_up_exps", Kind::Matrix, &[WIDTH, EXPERT, EXPERTS]),
    at(Where::Sparse, "ffn_down_exps", Kind::Matrix, &[EXPERT, WIDTH, EXPERTS]),
];
const MIXTURE_BIASES: &[Part] = &[
    at(Where::Sparse, "ffn_gate_inp", Kind::Bias, &[EXPERTS]),
    at(Where::Sparse, "ffn_gate_exps", Kind::Bias, &[EXPERT, EXPERTS]),
    at(Where::Sparse, "ffn_up_exps", Kind::Bias, &[EXPERT, EXPERTS]),
    at(Where::Sparse, "ffn_down_exps", Kind::Bias, &[WIDTH, EXPERTS]),
];
const SHARED_EXPERT: &[Part] = &[
    at(Where::Sparse, "exp_probs_b", Kind::Bias, &[EXPERTS]),
    at(Where::Sparse, "ffn_gate_shexp", Kind::Matrix, &[WIDTH, EXPERT]),
    at(Where::Sparse, "ffn_up_shexp", Kind::Matrix, &[WIDTH, EXPERT]),
    at(Where::Sparse, "ffn_down_shexp", Kind::Matrix, &[EXPERT, WIDTH]),
];
/// Experts beside a dense layer.
const MIXTURE_BESIDE: &[Part] = &[
    at(Where::Sparse, "ffn_gate_inp", Kind::Scale, &[WIDTH]),
    at(Where::Sparse, "ffn_gate_inp", Kind::Router, &[WIDTH, EXPERTS]),
    at(Where::Sparse, "ffn_gate_up_exps", Kind::Matrix, &[WIDTH, Dim::ExpertGateUp, EXPERTS]),
    at(Where::Sparse, "ffn_down_exps", Kind::Matrix, &[EXPERT, WIDTH, EXPERTS]),
    at(Where::Sparse, "ffn_down_exps", Kind::Scale, &[EXPERTS]),
    at(Where::Sparse, "post_ffw_norm_1", Kind::Norm, &[WIDTH]),
    at(Where::Sparse, "pre_ffw_norm_2", Kind::Norm, &[WIDTH]),
    at(Where::Sparse, "post_ffw_norm_2", Kind::Norm, &[WIDTH]),
];
const PER_LAYER_BLOCK: &[Part] = &[
    at(Where::PerLayer, "inp_gate", Kind::Matrix, &[WIDTH, PER_LAYER]),
    at(Where::PerLayer, "proj", Kind::Matrix, &[PER_LAYER, WIDTH]),
    at(Where::PerLayer, "post_norm", Kind::Norm, &[WIDTH]),
    part("layer_output_scale", Kind::Norm, &[Dim::One]),
];
const PER_LAYER_TABLES: &[Part] = &[
    at(Where::PerLayer, "per_layer_token_embd", Kind::Matrix, &[Dim::AllPerLayer, Dim::Size(Size::Vocabulary)]),
    at(Where::PerLayer, "per_layer_model_proj", Kind::Matrix, &[WIDTH, Dim::AllPerLayer]),
    at(Where::PerLayer, "per_layer_proj_norm", Kind::Norm, &[PER_LAYER]),
    part("rope_freqs", Kind::RopeFactors, &[Dim::FullPairs]),
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
pub(super) static FAMILIES: [Family; 9] = [
    Family {
        name: "llama",
        sizes: sizes!(share_of_width,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, GATED_MLP],
        model: &[],
        full_every: None,
        keys: |_| vec![("rope.freq_base", Value::from(10_000f32))],
    },
    Family {
        name: "qwen2",
        sizes: sizes!(share_of_width,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, BIASES, GATED_MLP],
        model: &[],
        full_every: None,
        keys: |_| vec![("rope.freq_base", Value::from(1_000_000f32))],
    },
    Family {
        name: "qwen3",
        sizes: sizes!(|_| 128,),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, HEAD_NORMS, GATED_MLP],
        model: &[],
        full_every: None,
        keys: |_| vec![("rope.freq_base", Value::from(1_000_000f32))],
    },
    Family {
        name: "qwen3moe",
        sizes: sizes!(
            |_| 128,
            (Size::Experts, |_| 16),
            (Size::ExpertsUsed, up_to_eight),
            (Size::ExpertFeedForward, |_| 256)
        ),
        tied: false,
        layer: &[PRE_NORMS, ATTENTION, HEAD_NORMS, MIXTURE],
        model: &[],
        full_every: None,
        keys: |s| [vec![("rope.freq_base", Value::from(1_000_000f32))], expert_keys(s)].concat(),
    },
    Family {
        name: "gemma3",
        sizes: sizes!(|_| 256, (Size::Window, |_| 512)),
        tied: true,
        layer: &[PRE_NORMS, POST_NORMS, ATTENTION, HEAD_NORMS, GATED_MLP],
        model: &[],
        full_every: None,
        keys: |s| vec![("rope.freq_base", Value::from(1_000_000f32)), window(s)],
    },
    Family {
        name: "gemma4",
        sizes: sizes!(
            |_| 256,
            (Size::Window, |_| 512),
            (Size::FullHeadDim, |s| (2 * s.get(Size::HeadDim)).min(*Size::FullHeadDim.range().end())),
            (Size::SharedKvLayers, |_| 0),
            (Size::PerLayer, |_| 0),
            (Size::Experts, |_| 0),
            (Size::ExpertsUsed, up_to_eight),
            (Size::ExpertFeedForward, |_| 256)
        ),
        tied: true,
        layer: &[PRE_NORMS, POST_NORMS, SPARING_ATTENTION, GATED_MLP, MIXTURE_BESIDE, PER_LAYER_BLOCK],
        model: PER_LAYER_TABLES,
        full_every: Some(GEMMA4_FULL_EVERY),
        keys: gemma4_keys,
    },
    Family {
        name: "gpt-oss",
        sizes: sizes!(
            |_| 64,
            (Size::Window, |_| 128),
            (Size::Experts, |_| 16),
            (Size::ExpertsUsed, |s| s.get(Size::Experts).min(4)),
            (Size::ExpertFeedForward, |s| s.get(Size::Width))
        ),
        tied: false,
        layer: &[NORMS, ATTENTION, BIASES, SINKS, MIXTURE, MIXTURE_BIASES],
        model: &[],
        full_every: None,
        keys: |s| [vec![("rope.freq_base", Value::from(150_000f32)), window(s)], expert_keys(s)].concat(),
    },
    Family {
        name: "glm4moe",
        sizes: sizes!(
            |_| 128,
            (Size::Experts, |_| 16),
            (Size::ExpertsUsed, up_to_eight),
            (Size::ExpertFeedForward, |_| 256),
            (Size::DenseLayers, |_| 1)
        ),
        tied: false,
        layer: &[NORMS, ATTENTION, BIASES, HEAD_NORMS, DENSE_MLP, MIXTURE, SHARED_EXPERT],
        model: &[],
        full_every: None,
        keys: glm4_keys,
    },
    deepseek4::FAMILY,
];

/// Five layers with a window to one without.
const GEMMA4_FULL_EVERY: usize = 6;

fn window(sizes: &Sizes) -> (&'static str, Value) {
    ("attention.sliding_window", Value::from(sizes.get(Size::Window) as u32))
}

fn expert_keys(sizes: &Sizes) -> Vec<(&'static str, Value)> {
    let size = |size| Value::from(sizes.get(size) as u32);
    vec![
        ("expert_count", size(Size::Experts)),
        ("expert_used_count", size(Size::ExpertsUsed)),
        ("expert_feed_forward_length", size(Size::ExpertFeedForward)),
    ]
}

/// Heads of two widths, which layers have which, and what some sizes have.
fn gemma4_keys(sizes: &Sizes) -> Vec<(&'static str, Value)> {
    let size = |size| Value::from(sizes.get(size) as u32);
    let windowed = (1..=sizes.get(Size::Layers)).map(|layer| !layer.is_multiple_of(GEMMA4_FULL_EVERY)).collect();
    let mut keys = vec![
        ("rope.freq_base", Value::from(1_000_000f32)),
        ("rope.freq_base_swa", Value::from(10_000f32)),
        // These take the place of what all families have.
        ("attention.key_length", size(Size::FullHeadDim)),
        ("attention.value_length", size(Size::FullHeadDim)),
        ("attention.key_length_swa", size(Size::HeadDim)),
        ("attention.value_length_swa", size(Size::HeadDim)),
        ("rope.dimension_count", size(Size::FullHeadDim)),
        ("rope.dimension_count_swa", size(Size::HeadDim)),
        window(sizes),
        ("attention.sliding_window_pattern", Value::Array(Array::Bools(windowed))),
        ("attention.shared_kv_layers", size(Size::SharedKvLayers)),
        ("embedding_length_per_layer_input", size(Size::PerLayer)),
        ("final_logit_softcapping", Value::from(30f32)),
    ];
    if sizes.get(Size::Experts) > 0 {
        keys.extend(expert_keys(sizes));
    }
    keys
}

/// Sigmoid scores, normalised and scaled; half of a head turns.
fn glm4_keys(sizes: &Sizes) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("rope.freq_base", Value::from(1_000_000f32)),
        ("rope.dimension_count", Value::from((sizes.get(Size::HeadDim) / 2).next_multiple_of(2) as u32)),
        ("leading_dense_block_count", Value::from(sizes.get(Size::DenseLayers) as u32)),
        ("expert_shared_count", Value::from(1u32)),
        ("expert_gating_func", Value::from(2u32)),
        ("expert_weights_norm", Value::from(true)),
        ("expert_weights_scale", Value::from(1.5f32)),
        ("expert_group_count", Value::from(1u32)),
        ("expert_group_used_count", Value::from(1u32)),
        ("nextn_predict_layers", Value::from(0u32)),
    ];
    keys.extend(expert_keys(sizes));
    keys
}

fn up_to_eight(sizes: &Sizes) -> usize {
    sizes.get(Size::Experts).min(8)
}

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
