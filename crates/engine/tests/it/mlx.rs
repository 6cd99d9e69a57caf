//! Folders of safetensors, as MLX and Hugging Face lay them out: the tiny models of the GGUF fixtures with published
//! tensor names, plain and quantized in groups, against the same reference logits.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use half::f16;
use serde_json::{Value, json};
use tessera_cpu::CpuDevice;
use tessera_engine::{Checkpoint, Error, LoadOptions, Session, models};
use tessera_formats::{Gguf, safetensors};
use tessera_ops::KvFormat;

use crate::{support, tokenizer_json};

const LAYER: [(&str, &str); 18] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// The published name of a GGUF tensor; none for what only GGUF has.
fn published(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        "rope_freqs.weight" => return None,
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let (module, part) = rest.rsplit_once('.').unwrap();
    match module {
        "exp_probs_b" => return Some(format!("model.layers.{layer}.mlp.gate.e_score_correction_bias")),
        // GLM's second norm.
        "post_attention_norm" => return Some(format!("model.layers.{layer}.post_attention_layernorm.{part}")),
        _ => {}
    }
    let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == module).unwrap();
    Some(format!("model.layers.{layer}.{theirs}.{part}"))
}

/// Undoes what GGUF's converter does to rotated rows of the llama architecture: pairs (2i, 2i + 1) become (i, i + half).
fn published_rows(weights: &[f32], depth: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let rows: Vec<&[f32]> = weights.chunks(depth).collect();
    let source = |row: usize| {
        let (head, i) = (row / head_dim * head_dim, row % head_dim);
        head + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    };
    (0..rows.len()).flat_map(|row| rows[source(row)]).copied().collect()
}

/// Tensors of a safetensors file: name, type, shape, bytes.
#[derive(Default)]
struct Files(HashMap<String, (&'static str, Vec<usize>, Vec<u8>)>);

impl Files {
    fn floats(&mut self, name: &str, shape: &[usize], weights: &[f32]) {
        let bytes = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.0.insert(name.into(), ("F32", shape.to_vec(), bytes));
    }

    /// Groups as MLX makes them: the smallest weight is the bias, the range is cut evenly.
    fn groups(&mut self, name: &str, shape: &[usize], weights: &[f32], bits: u32, group: usize) {
        let module = name.strip_suffix(".weight").unwrap();
        let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for group in weights.chunks(group) {
            let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(l, h), w| (l.min(*w), h.max(*w)));
            let steps = ((1u32 << bits) - 1) as f32;
            let scale = f16::from_f32(((high - low) / steps).max(1e-4));
            let bias = f16::from_f32(low);
            let code = |w: f32| ((w - bias.to_f32()) / scale.to_f32()).round().clamp(0.0, steps) as u32;
            for part in group.chunks(32 / bits as usize) {
                let word = part.iter().rev().fold(0u32, |word, w| word << (bits % 32) | code(*w));
                words.extend_from_slice(&word.to_le_bytes());
            }
            scales.extend_from_slice(&scale.to_le_bytes());
            biases.extend_from_slice(&bias.to_le_bytes());
        }
        let (depth, rows) = shape.split_last().unwrap();
        let with = |len: usize| [rows, &[len]].concat();
        self.0.insert(name.into(), ("U32", with(depth * bits as usize / 32), words));
        self.0.insert(format!("{module}.scales"), ("F16", with(depth / group), scales));
        self.0.insert(format!("{module}.biases"), ("F16", with(depth / group), biases));
    }

    /// One file: the header's length, the header, the bytes (safetensors' own format).
    fn write(&self, path: &Path) {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let mut names: Vec<_> = self.0.iter().collect();
        names.sort_by_key(|(name, _)| name.as_str());
        for (name, (dtype, shape, bytes)) in names {
            let start = data.len();
            data.extend_from_slice(bytes);
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let all = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(path, all).unwrap();
    }
}

/// A fixture as a folder; with `quantization` (bits, group), matrices whose rows divide are in groups.
fn folder(name: &str, quantization: Option<(u32, usize)>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixture = support::path("fixtures").join(name);
    let gguf = Gguf::open(&fixture.join("model.gguf")).unwrap();
    let mut config = support::json(&format!("fixtures/{name}/manifest.json"))["config"].clone();
    let head_dim = config["head_dim"].as_u64().unwrap_or(16) as usize;
    let mut files = Files::default();
    let mut table = json!({});
    for tensor in gguf.tensors() {
        let Some(theirs) = published(&tensor.name) else { continue };
        let shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        let mut weights = tensor.decode();
        if name == "llama" && (tensor.name.contains("attn_q.") || tensor.name.contains("attn_k.")) {
            weights = published_rows(&weights, tensor.depth(), head_dim);
        }
        match quantization {
            Some((bits, group)) if shape.len() >= 2 && tensor.depth().is_multiple_of(group) => {
                files.groups(&theirs, &shape, &weights, bits, group);
            }
            _ => {
                if quantization.is_some() && shape.len() >= 2 {
                    table[theirs.strip_suffix(".weight").unwrap()] = json!(false);
                }
                files.floats(&theirs, &shape, &weights);
            }
        }
    }
    if let Some((bits, group)) = quantization {
        (table["bits"], table["group_size"]) = (json!(bits), json!(group));
        config["quantization"] = table;
    }
    files.write(&folder.path().join("model.safetensors"));
    let write = |file: &str, value: Value| fs::write(folder.path().join(file), value.to_string()).unwrap();
    write("config.json", config);
    write("tokenizer.json", tokenizer_json::as_json(&gguf));
    write("tokenizer_config.json", json!({ "eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}!" }));
    folder
}

fn logits(folder: &Path, tokens: &[u32], chunk: usize) -> Result<Vec<f32>, Error> {
    let options = LoadOptions { context: Some(192), kv_format: KvFormat::F32, ..LoadOptions::default() };
    let device = Arc::new(CpuDevice::new(None, None).unwrap());
    let model = models::load(&Checkpoint::open(folder)?, device, &options, &mut |_| {})?;
    let mut all = Vec::new();
    Session::new(model, chunk).score(tokens, &mut |_, logits| all.extend_from_slice(logits))?;
    Ok(all)
}

/// Tokens and reference logits of a fixture's prompt.
fn reference(name: &str, len: usize) -> (Vec<u32>, Vec<f32>) {
    let stored = safetensors::open(&support::path("fixtures").join(name).join("logits.safetensors")).unwrap();
    let words = |key: String| {
        let bytes = stored.iter().find(|t| t.name == key).unwrap().bytes.clone();
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<u32>>()
    };
    (words(format!("tokens.{len}")), words(format!("logits.{len}")).into_iter().map(f32::from_bits).collect())
}

/// The error's size relative to the logits', both as root mean squares.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |v: f64| v * v;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(g - w))).sum();
    (error / want.iter().map(|w| square(f64::from(*w))).sum::<f64>()).sqrt()
}

#[test]
fn plain_folders_give_the_reference_logits() {
    for name in ["llama", "qwen2", "qwen3", "qwen3_moe", "glm4_moe"] {
        let folder = folder(name, None);
        for len in [1, 33, 130] {
            let (tokens, want) = reference(name, len);
            let error = relative_error(&logits(folder.path(), &tokens, 64).unwrap(), &want);
            assert!(error < 1e-4, "{name}, {len} tokens: {error}");
        }
    }
}

#[test]
fn groups_of_codes_give_nearly_the_reference_logits() {
    for (bits, group, error_max) in
        [(8, 32, 0.06), (8, 64, 0.06), (8, 128, 0.06), (4, 32, 0.7), (4, 64, 0.7), (4, 128, 0.7)]
    {
        for name in ["llama", "qwen2", "qwen3"] {
            let folder = folder(name, Some((bits, group)));
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let quantized = checkpoint.tensors().iter().filter(|t| t.dtype.name().starts_with("MLX")).count();
            assert!(quantized >= 3 || group == 128, "{name}: {quantized} tensors in groups of {group}");
            let (tokens, want) = reference(name, 33);
            let got = logits(folder.path(), &tokens, 64).unwrap();
            let error = relative_error(&got, &want);
            assert!(error < error_max, "{name}, {bits} bits in groups of {group}: {error}");
            assert_eq!(got, logits(folder.path(), &tokens, 7).unwrap(), "{name}: chunks change bits");
        }
    }
}

#[test]
fn a_folder_has_tokenizer_and_template() {
    let folder = folder("llama", Some((4, 64)));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(
        tokenizer.decode(&tokenizer.encode("Hello world", tessera_engine::Special::Plain, true).unwrap()),
        b"Hello world"
    );
    assert_eq!(checkpoint.chat_template().unwrap().as_deref(), Some("{{ messages[0].content }}!"));
    assert!(tokenizer.is_end_of_generation(tokenizer.token_id("<|im_end|>").unwrap()));
}

#[test]
fn damaged_folders_are_named() {
    let (tokens, _) = reference("llama", 1);
    let spoiled = |spoil: &dyn Fn(&Path)| {
        let folder = folder("llama", Some((4, 64)));
        spoil(folder.path());
        logits(folder.path(), &tokens, 64).unwrap_err().to_string()
    };
    let config = |change: &dyn Fn(&mut Value)| {
        spoiled(&|path| {
            let file = path.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            change(&mut config);
            fs::write(file, config.to_string()).unwrap();
        })
    };
    let cases = [
        (spoiled(&|p| fs::remove_file(p.join("config.json")).unwrap()), "config.json"),
        (spoiled(&|p| fs::remove_file(p.join("model.safetensors")).unwrap()), "safetensors"),
        (spoiled(&|p| fs::write(p.join("config.json"), "{").unwrap()), "config.json"),
        (spoiled(&|p| fs::write(p.join("model.safetensors"), [255; 64]).unwrap()), "model.safetensors"),
        (config(&|c| c["model_type"] = json!("alien")), "alien"),
        (config(&|c| c["quantization"]["bits"] = json!(3)), "quantization"),
        (config(&|c| c["hidden_size"] = json!(128)), "128"),
        (config(&|c| c["num_hidden_layers"] = json!(4)), "blk.3"),
        (config(&|c| c["num_attention_heads"] = json!("four")), "num_attention_heads"),
        (config(&|c| c["rope_parameters"]["rope_type"] = json!("spiral")), "spiral"),
    ];
    for (message, expect) in cases {
        assert!(message.contains(expect), "no `{expect}` in {message}");
    }
}
