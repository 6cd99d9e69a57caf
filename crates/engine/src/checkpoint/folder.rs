//! A folder of safetensors as MLX and Hugging Face lay it out, told in GGUF's vocabulary.
//!
//! `config.json` becomes metadata and tensor names are mapped by a table, so that models and their configuration
//! have one source. Weights stay as they are; what a GGUF converter would change in them (row order of rotated heads,
//! norm offsets) the checkpoint tells instead.

use std::{collections::HashMap, path::Path};

use serde_json::Value as Json;
use tessera_formats::{Bytes, Checkpoint as Files, FormatError, Tensor, gguf::Value};

use super::Metadata;
use crate::Error;

/// What `config.json` calls the architectures, and what GGUF does.
const MODEL_TYPES: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("gemma3_text", "gemma3"),
    ("gemma3", "gemma3"),
    ("glm4_moe", "glm4moe"),
];

/// `config.json`'s names for numbers, and GGUF's without the architecture.
const NUMBERS: [(&str, &str); 21] = [
    ("num_hidden_layers", "block_count"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.local.freq_base"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("n_routed_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("n_shared_experts", "expert_shared_count"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("n_group", "expert_group_count"),
    ("topk_group", "expert_group_used_count"),
    ("routed_scaling_factor", "expert_weights_scale"),
];

/// `config.json`'s names for what is so or not.
const FLAGS: [(&str, &str); 1] = [("norm_topk_prob", "expert_weights_norm")];

/// `rope_parameters`' names (`rope_scaling`'s in older files), and GGUF's.
const ROPE: [(&str, &str); 7] = [
    ("rope_theta", "rope.freq_base"),
    ("factor", "rope.scaling.factor"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("low_freq_factor", "rope.scaling.low_freq_factor"),
    ("high_freq_factor", "rope.scaling.high_freq_factor"),
    ("beta_fast", "rope.scaling.yarn_beta_fast"),
    ("beta_slow", "rope.scaling.yarn_beta_slow"),
];

/// Tensor names after `model.`, outside of layers.
const TOP: [(&str, &str); 3] = [
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules' names after `model.layers.N.`; what an architecture names differently is in [`OWN_NAMES`]. Experts lie in stacks, as
/// MLX writes them.
const LAYER: [(&str, &str); 18] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.switch_mlp.gate_proj", "ffn_gate_exps"),
    ("mlp.switch_mlp.up_proj", "ffn_up_exps"),
    ("mlp.switch_mlp.down_proj", "ffn_down_exps"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// Tensors of a layer whose last word is no part of a module.
const WHOLE: [(&str, &str); 1] = [("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")];

/// Modules that an architecture names differently.
const OWN_NAMES: [(&str, &[(&str, &str)]); 2] = [
    (
        "gemma3",
        &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
    ),
    ("glm4moe", &[("post_attention_layernorm", "post_attention_norm")]),
];

/// Architectures whose published norm weights are offsets from one.
const NORM_OFFSETS: [&str; 1] = ["gemma3"];

/// An opened folder.
pub(super) struct Folder {
    files: Files,
    pub(super) metadata: Metadata,
    norms_are_offsets: bool,
    /// GGUF's name to the index of the tensor.
    names: HashMap<String, usize>,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Folder, Error> {
        let files = Files::open(path)?;
        let config_file = path.join("config.json").display().to_string();
        let metadata = metadata(&config_file, files.config())?;
        let architecture = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
        let norms_are_offsets = NORM_OFFSETS.contains(&architecture);
        let known = files.tensors().iter().enumerate();
        let names = known.filter_map(|(i, t)| Some((gguf_name(&t.name, architecture)?, i))).collect();
        Ok(Folder { files, metadata, norms_are_offsets, names })
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.names.get(name).map(|i| &self.files.tensors()[*i])
    }

    pub(super) fn tensors(&self) -> &[Tensor] {
        self.files.tensors()
    }

    pub(super) fn norms_are_offsets(&self) -> bool {
        self.norms_are_offsets
    }

    pub(super) fn tokenizer(&self) -> Result<(Bytes, Option<Bytes>), Error> {
        let config = "tokenizer_config.json";
        let config = if self.files.has_file(config) { Some(self.files.file(config)?) } else { None };
        Ok((self.files.file("tokenizer.json")?, config))
    }

    pub(super) fn chat_template(&self) -> Result<Option<String>, Error> {
        if self.files.has_file("chat_template.jinja") {
            let bytes = self.files.file("chat_template.jinja")?;
            return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
        }
        if !self.files.has_file("tokenizer_config.json") {
            return Ok(None);
        }
        let bytes = self.files.file("tokenizer_config.json")?;
        let config: Json = serde_json::from_slice(&bytes).unwrap_or(Json::Null);
        Ok(config.get("chat_template").and_then(Json::as_str).map(str::to_owned))
    }
}

fn metadata(file: &str, config: &Json) -> Result<Metadata, Error> {
    // Some checkpoints keep the text model's numbers one level down.
    let text = config.get("text_config").unwrap_or(config);
    let model_type = text.get("model_type").or_else(|| config.get("model_type")).and_then(Json::as_str);
    let Some(model_type) = model_type else {
        return Err(Error::MissingKey { file: file.to_owned(), key: "model_type".to_owned() });
    };
    let named = MODEL_TYPES.iter().find(|(theirs, _)| *theirs == model_type);
    // An unknown name is kept: the registry of models says which are known.
    let architecture = named.map_or(model_type, |(_, ours)| *ours).to_owned();
    let mut out = Metadata::new();
    let mut put = |key: &str, value: Value| out.insert(format!("{architecture}.{key}"), value);
    for (theirs, ours) in NUMBERS {
        if let Some(v) = text.get(theirs).filter(|v| !v.is_null()) {
            put(ours, number(file, theirs, v)?);
        }
    }
    for (theirs, ours) in FLAGS {
        if let Some(v) = text.get(theirs).and_then(Json::as_bool) {
            put(ours, Value::Bool(v));
        }
    }
    // Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`, perhaps for two kinds of layers.
    let rope = text.get("rope_parameters").or_else(|| text.get("rope_scaling"));
    if let Some(local) = rope.and_then(|r| r.get("sliding_attention")?.get("rope_theta")) {
        put("rope.local.freq_base", number(file, "rope_theta", local)?);
    }
    if let Some(rope) = rope.and_then(|r| r.get("full_attention").unwrap_or(r).as_object()) {
        if let Some(kind) = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str) {
            put("rope.scaling.type", Value::String(if kind == "default" { "none" } else { kind }.to_owned()));
        }
        for (theirs, ours) in ROPE {
            if let Some(v) = rope.get(theirs) {
                put(ours, number(file, theirs, v)?);
            }
        }
    }
    let part = text.get("partial_rotary_factor").or_else(|| rope?.get("partial_rotary_factor")).and_then(Json::as_f64);
    if let (Some(part), Some(head_dim)) = (part, text.get("head_dim").and_then(Json::as_u64)) {
        put("rope.dimension_count", Value::U64((part * head_dim as f64) as u64));
    }
    if let Some(cap) = text.get("final_logit_softcapping").filter(|v| !v.is_null()) {
        put("final_logit_softcapping", number(file, "final_logit_softcapping", cap)?);
    }
    out.insert("general.architecture".to_owned(), Value::String(architecture));
    Ok(out)
}

fn number(file: &str, key: &str, value: &Json) -> Result<Value, Error> {
    let whole = value.as_u64().map(Value::U64);
    whole.or_else(|| value.as_f64().map(Value::F64)).ok_or_else(|| {
        let problem = format!("config.json: `{key}` is {value}, not a number");
        Error::Format(FormatError::Checkpoint { file: file.to_owned(), problem })
    })
}

/// GGUF's name of a published tensor; none for what no known model uses.
fn gguf_name(name: &str, architecture: &str) -> Option<String> {
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    if let Some((_, ours)) = TOP.iter().find(|(theirs, _)| *theirs == name) {
        return Some((*ours).to_owned());
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    if let Some((_, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == rest) {
        return Some(format!("blk.{layer}.{ours}"));
    }
    let (module, part) = rest.rsplit_once('.')?;
    let own = OWN_NAMES.iter().find(|(name, _)| *name == architecture).map_or(&[][..], |(_, names)| names);
    let (_, ours) = own.iter().chain(&LAYER).find(|(theirs, _)| *theirs == module)?;
    Some(format!("blk.{layer}.{ours}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_in_ggufs_words() {
        let name = |n: &str, architecture| gguf_name(n, architecture).unwrap_or_default();
        assert_eq!(name("model.embed_tokens.weight", "llama"), "token_embd.weight");
        assert_eq!(name("lm_head.weight", "llama"), "output.weight");
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias", "qwen2"), "blk.12.attn_q.bias");
        let norm = "model.layers.0.post_attention_layernorm.weight";
        assert_eq!(name(norm, "llama"), "blk.0.ffn_norm.weight");
        assert_eq!(name(norm, "gemma3"), "blk.0.post_attention_norm.weight");
        assert_eq!(name(norm, "glm4moe"), "blk.0.post_attention_norm.weight");
        assert_eq!(name("model.layers.0.pre_feedforward_layernorm.weight", "gemma3"), "blk.0.ffn_norm.weight");
        assert_eq!(name("language_model.model.layers.3.mlp.up_proj.weight", "gemma3"), "blk.3.ffn_up.weight");
        assert_eq!(name("model.layers.1.mlp.gate.e_score_correction_bias", "glm4moe"), "blk.1.exp_probs_b.bias");
        assert_eq!(name("model.layers.1.mlp.switch_mlp.up_proj.scales", "qwen3moe"), "blk.1.ffn_up_exps.scales");
        assert_eq!(gguf_name("vision_tower.x.weight", "gemma3"), None);
    }
}
