//! What is computed with a tensor, from its name: for the measured device of [`tessera_ops::profile`].

use tessera_ops::profile::Label;

/// The layer and the stage of a tensor. GGUF's names.
pub fn label(tensor: &str) -> Label {
    let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layer = layer.and_then(|(layer, part)| Some((layer.parse().ok()?, part)));
    // A layer that drafts, from a file of its own, has no index.
    let part = layer.map_or(name, |(_, part)| part);
    let part = part.strip_prefix("mtp.0.").unwrap_or(part);
    let stage = match part {
        "attn_q" | "attn_k" | "attn_v" | "attn_qkv" => "q/k/v",
        "attn_q_a" | "attn_q_b" | "attn_kv" => "q/k/v",
        "attn_output" | "attn_output_b" => "output",
        // The first of two projections, of each group of heads by itself.
        "attn_output_a" => "low_proj",
        "attn_compressor_kv" => "compressor",
        "indexer_compressor_kv" | "indexer.attn_q_b" | "indexer.proj" => "indexer",
        "hc_attn_fn" | "hc_ffn_fn" | "output_hc_fn" | "hc_head_fn" | "nextn.hc_head_fn" => "streams",
        "e_proj" | "h_proj" | "nextn.eh_proj" => "draft input",
        "ffn_gate_inp" => "router",
        "ffn_gate" | "ffn_up" | "ffn_gate_exps" | "ffn_up_exps" | "ffn_gate_up_exps" => "gate/up",
        "ffn_down" | "ffn_down_exps" => "down",
        "ffn_gate_shexp" | "ffn_up_shexp" | "ffn_down_shexp" => "shared expert",
        "inp_gate" | "proj" | "per_layer_model_proj" | "per_layer_token_embd" => "per-layer",
        // Tied weights serve as the head by the name of the embedding.
        "output" | "token_embd" => "head",
        _ => "other",
    };
    Label { layer: layer.map(|(layer, _)| layer), stage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_layer_and_stage() {
        let cases = [
            ("blk.0.attn_k.weight", Some(0), "q/k/v"),
            ("blk.31.attn_output.weight", Some(31), "output"),
            ("blk.2.ffn_gate_exps.weight", Some(2), "gate/up"),
            ("blk.2.ffn_gate_inp.weight", Some(2), "router"),
            ("blk.2.ffn_up_shexp.weight", Some(2), "shared expert"),
            ("blk.2.inp_gate.weight", Some(2), "per-layer"),
            ("blk.4.attn_output_a.weight", Some(4), "low_proj"),
            ("blk.4.indexer.proj.weight", Some(4), "indexer"),
            ("output_hc_fn.weight", None, "streams"),
            ("mtp.0.attn_output_a.weight", None, "low_proj"),
            ("mtp.0.h_proj.weight", None, "draft input"),
            ("blk.43.nextn.eh_proj.weight", Some(43), "draft input"),
            ("per_layer_model_proj.weight", None, "per-layer"),
            ("blk.2.ffn_down.weight", Some(2), "down"),
            ("output.weight", None, "head"),
            ("token_embd.weight", None, "head"),
            ("blk.x.ffn_down.weight", None, "other"),
            ("", None, "other"),
        ];
        for (name, layer, stage) in cases {
            assert_eq!(label(name), Label { layer, stage }, "{name}");
        }
    }
}
