//! DeepSeek V4's row of the table: streams, latent attention, compressors, an indexer, experts by table and by score.

use tessera_formats::gguf::Value;

use super::{Dim, Family, Kind, Part, Size, SizeRule, Sizes, Where, at, expert_keys, part, wide_feed_forward};

/// Residual streams.
const STREAMS: usize = 4;
/// Gates of a block: into it, out of it, and the matrix between streams.
const GATES: usize = STREAMS * (2 + STREAMS);
/// Tokens of a compressed row, where an indexer selects and where it does not.
const RATIOS: [usize; 2] = [4, 128];

/// What kernels take together along a row.
const WHOLE_BLOCK: usize = 256;

const WIDTH: Dim = Dim::Size(Size::Width);
const HEAD: Dim = Dim::Size(Size::HeadDim);
const QUERY_RANK: Dim = Dim::Size(Size::QueryRank);
const INDEXER_DIM: Dim = Dim::Size(Size::IndexerDim);
const EXPERTS: Dim = Dim::Size(Size::Experts);
const EXPERT: Dim = Dim::Size(Size::ExpertFeedForward);

const ATTENTION: &[Part] = &[
    part("attn_norm", Kind::Norm, &[WIDTH]),
    part("attn_q_a", Kind::Matrix, &[WIDTH, QUERY_RANK]),
    part("attn_q_a_norm", Kind::Norm, &[QUERY_RANK]),
    part("attn_q_b", Kind::Matrix, &[QUERY_RANK, Dim::Queries]),
    part("attn_kv", Kind::Matrix, &[WIDTH, HEAD]),
    part("attn_kv_a_norm", Kind::Norm, &[HEAD]),
    part("attn_sinks", Kind::Sinks, &[Dim::Size(Size::Heads)]),
    part("attn_output_a", Kind::Matrix, &[Dim::GroupOfQueries, Dim::Narrowed]),
    part("attn_output_b", Kind::Matrix, &[Dim::Narrowed, WIDTH]),
];

const STREAMS_OF_BLOCKS: &[Part] = &[
    part("hc_attn_fn", Kind::Half, &[Dim::Times(STREAMS, Size::Width), Dim::Number(GATES)]),
    part("hc_attn_scale", Kind::Norm, &[Dim::Number(3)]),
    part("hc_attn_base", Kind::Sinks, &[Dim::Number(GATES)]),
    part("hc_ffn_fn", Kind::Half, &[Dim::Times(STREAMS, Size::Width), Dim::Number(GATES)]),
    part("hc_ffn_scale", Kind::Norm, &[Dim::Number(3)]),
    part("hc_ffn_base", Kind::Sinks, &[Dim::Number(GATES)]),
];

const COMPRESSED: &[Part] = &[
    at(Where::Selected, "attn_compressor_kv", Kind::Half, &[WIDTH, Dim::Times(2, Size::HeadDim)]),
    at(Where::Selected, "attn_compressor_gate", Kind::Half, &[WIDTH, Dim::Times(2, Size::HeadDim)]),
    at(Where::Selected, "attn_compressor_ape", Kind::Half, &[Dim::Times(2, Size::HeadDim), Dim::Number(RATIOS[0])]),
    at(Where::Wide, "attn_compressor_kv", Kind::Half, &[WIDTH, HEAD]),
    at(Where::Wide, "attn_compressor_gate", Kind::Half, &[WIDTH, HEAD]),
    at(Where::Wide, "attn_compressor_ape", Kind::Half, &[HEAD, Dim::Number(RATIOS[1])]),
    at(Where::Compressed, "attn_compressor_norm", Kind::Norm, &[HEAD]),
    at(Where::Selected, "indexer.attn_q_b", Kind::Half, &[QUERY_RANK, Dim::IndexerQueries]),
    at(Where::Selected, "indexer.proj", Kind::Half, &[WIDTH, Dim::Size(Size::IndexerHeads)]),
    at(Where::Selected, "indexer_compressor_kv", Kind::Half, &[WIDTH, Dim::Times(2, Size::IndexerDim)]),
    at(Where::Selected, "indexer_compressor_gate", Kind::Half, &[WIDTH, Dim::Times(2, Size::IndexerDim)]),
    at(
        Where::Selected,
        "indexer_compressor_ape",
        Kind::Half,
        &[Dim::Times(2, Size::IndexerDim), Dim::Number(RATIOS[0])],
    ),
    at(Where::Selected, "indexer_compressor_norm", Kind::Norm, &[INDEXER_DIM]),
];

const EXPERTS_OF_LAYERS: &[Part] = &[
    part("ffn_norm", Kind::Norm, &[WIDTH]),
    part("ffn_gate_inp", Kind::Half, &[WIDTH, EXPERTS]),
    at(Where::Table, "ffn_gate_tid2eid", Kind::Table, &[Dim::Size(Size::ExpertsUsed), Dim::Size(Size::Vocabulary)]),
    at(Where::Chosen, "exp_probs_b", Kind::Bias, &[EXPERTS]),
    part("ffn_gate_exps", Kind::Matrix, &[WIDTH, EXPERT, EXPERTS]),
    part("ffn_up_exps", Kind::Matrix, &[WIDTH, EXPERT, EXPERTS]),
    part("ffn_down_exps", Kind::Matrix, &[EXPERT, WIDTH, EXPERTS]),
    part("ffn_gate_shexp", Kind::Matrix, &[WIDTH, EXPERT]),
    part("ffn_up_shexp", Kind::Matrix, &[WIDTH, EXPERT]),
    part("ffn_down_shexp", Kind::Matrix, &[EXPERT, WIDTH]),
];

/// What joins the inputs of a layer that drafts, and its own end.
const DRAFTS: &[Part] = &[
    at(Where::Draft, "nextn.eh_proj", Kind::Matrix, &[Dim::Times(2, Size::Width), WIDTH]),
    at(Where::Draft, "nextn.enorm", Kind::Norm, &[WIDTH]),
    at(Where::Draft, "nextn.hnorm", Kind::Norm, &[WIDTH]),
    at(Where::Draft, "nextn.hc_head_fn", Kind::Half, &[Dim::Times(STREAMS, Size::Width), Dim::Number(STREAMS)]),
    at(Where::Draft, "nextn.hc_head_scale", Kind::Norm, &[Dim::One]),
    at(Where::Draft, "nextn.hc_head_base", Kind::Sinks, &[Dim::Number(STREAMS)]),
    at(Where::Draft, "nextn.shared_head_norm", Kind::Norm, &[WIDTH]),
];

const END: &[Part] = &[
    part("output_hc_fn", Kind::Half, &[Dim::Times(STREAMS, Size::Width), Dim::Number(STREAMS)]),
    part("output_hc_scale", Kind::Norm, &[Dim::One]),
    part("output_hc_base", Kind::Sinks, &[Dim::Number(STREAMS)]),
];

const SIZES: &[SizeRule] = &[
    (Size::Layers, |_| 4),
    (Size::Width, |_| 512),
    (Size::HeadDim, |_| 512),
    // Heads are eight times as wide as the residual, as they are in the released models.
    (Size::Heads, |s| (8 * s.get(Size::Width) / s.get(Size::HeadDim)).max(1)),
    (Size::KvHeads, |_| 1),
    (Size::FeedForward, wide_feed_forward),
    (Size::Vocabulary, |_| 32_000),
    (Size::Context, |_| 4096),
    (Size::Window, |_| 128),
    (Size::Experts, |_| 16),
    (Size::ExpertsUsed, |s| s.get(Size::Experts).min(6)),
    (Size::ExpertFeedForward, |_| WHOLE_BLOCK),
    (Size::QueryRank, quarter_of_width),
    (Size::OutputRank, quarter_of_width),
    (Size::OutputGroups, output_groups),
    (Size::Turning, |s| (s.get(Size::HeadDim) / 8).next_multiple_of(2).clamp(2, 64)),
    (Size::IndexerHeads, |s| s.get(Size::Heads).min(64)),
    (Size::IndexerDim, |_| 128),
    (Size::TopK, |_| 512),
    (Size::TableLayers, |s| s.get(Size::Layers).min(3)),
    (Size::DraftLayers, |_| 0),
];

pub(super) const FAMILY: Family = Family {
    name: "deepseek4",
    sizes: SIZES,
    tied: false,
    layer: &[STREAMS_OF_BLOCKS, ATTENTION, COMPRESSED, EXPERTS_OF_LAYERS, DRAFTS],
    model: END,
    full_every: None,
    keys,
};

/// Tokens of a compressed row of a layer: none in the first two, then four and 128 in turns.
pub(super) fn ratio(layer: usize) -> usize {
    if layer < 2 { 0 } else { RATIOS[layer % 2] }
}

fn quarter_of_width(sizes: &Sizes) -> usize {
    (sizes.get(Size::Width) / 4).next_multiple_of(WHOLE_BLOCK)
}

/// As many groups as divide the heads into whole blocks, at most eight.
fn output_groups(sizes: &Sizes) -> usize {
    let (heads, width) = (sizes.get(Size::Heads), sizes.get(Size::Heads) * sizes.get(Size::HeadDim));
    let fits = |n: &usize| heads.is_multiple_of(*n) && (width / n).is_multiple_of(WHOLE_BLOCK);
    (1..=8).rev().find(fits).unwrap_or(1)
}

fn keys(sizes: &Sizes) -> Vec<(&'static str, Value)> {
    let size = |size| Value::from(sizes.get(size) as u32);
    let layers = sizes.get(Size::Layers);
    let drafts = sizes.get(Size::DraftLayers);
    let ratios = (0..layers).map(|layer| ratio(layer) as i32).chain(std::iter::repeat_n(0, drafts));
    let ratios: Vec<i32> = ratios.collect();
    let mut keys = vec![
        // Those that draft are blocks too.
        ("block_count", Value::from((layers + drafts) as u32)),
        ("nextn_predict_layers", size(Size::DraftLayers)),
        ("attention.q_lora_rank", size(Size::QueryRank)),
        ("attention.output_lora_rank", size(Size::OutputRank)),
        ("attention.output_group_count", size(Size::OutputGroups)),
        ("attention.sliding_window", size(Size::Window)),
        ("attention.indexer.head_count", size(Size::IndexerHeads)),
        ("attention.indexer.key_length", size(Size::IndexerDim)),
        ("attention.indexer.top_k", size(Size::TopK)),
        ("attention.compress_ratios", Value::from(ratios)),
        ("attention.compress_rope_freq_base", Value::from(160_000f32)),
        ("rope.dimension_count", size(Size::Turning)),
        ("rope.freq_base", Value::from(10_000f32)),
        ("rope.scaling.type", Value::from("yarn")),
        ("rope.scaling.factor", Value::from(16f32)),
        ("rope.scaling.original_context_length", Value::from(65_536u32)),
        ("rope.scaling.yarn_beta_fast", Value::from(32f32)),
        ("rope.scaling.yarn_beta_slow", Value::from(1f32)),
        ("expert_shared_count", Value::from(1u32)),
        ("expert_weights_scale", Value::from(1.5f32)),
        ("expert_weights_norm", Value::from(true)),
        ("expert_gating_func", Value::from(4u32)),
        ("swiglu_clamp_exp", Value::from(vec![10f32; layers])),
        ("swiglu_clamp_shexp", Value::from(vec![10f32; layers])),
        ("hash_layer_count", size(Size::TableLayers)),
        ("hyper_connection.count", Value::from(STREAMS as u32)),
        ("hyper_connection.sinkhorn_iterations", Value::from(20u32)),
        ("hyper_connection.epsilon", Value::from(1e-6f32)),
        ("embedding_length_out", Value::from((STREAMS * sizes.get(Size::Width)) as u32)),
    ];
    keys.extend(expert_keys(sizes));
    keys
}
