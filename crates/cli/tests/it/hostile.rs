//! Models that open and cannot run: one clear error each, before any text.

use crate::support::{Home, Parts, fixture};

/// A broken model and what its error must say.
type Case = (&'static str, Parts, &'static [&'static str]);

fn cases() -> Vec<Case> {
    let zeros = |len: usize| vec![0; 4 * len];
    let with_nan = |len: usize| {
        let mut bytes = zeros(len);
        bytes[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    // Q8_0: 2 bytes of scale, 32 codes; the scale is a NaN.
    let nan_scale = [&0x7e00u16.to_le_bytes()[..], &[1; 32]].concat().repeat(64 * 96 / 32);
    vec![
        ("architecture", Parts::of("llama").set("general.architecture", "alien"), &["alien", "llama"]),
        ("no-architecture", Parts::of("llama").without_key("general.architecture"), &["general.architecture"]),
        ("split", Parts::of("llama").set("split.count", 3u16), &["one of 3 files"]),
        ("no-layers", Parts::of("llama").without_key("llama.block_count"), &["llama.block_count"]),
        ("many-layers", Parts::of("llama").set("llama.block_count", u32::MAX), &["llama.block_count"]),
        ("zero-heads", Parts::of("llama").set("llama.attention.head_count", 0u32), &["head"]),
        ("odd-heads", Parts::of("llama").set("llama.attention.head_count_kv", 3u32), &["head_count_kv"]),
        ("text-for-number", Parts::of("llama").set("llama.block_count", "three"), &["llama.block_count"]),
        ("missing-tensor", Parts::of("llama").without_tensor("blk.1.ffn_up.weight"), &["blk.1.ffn_up.weight"]),
        ("missing-norm", Parts::of("qwen3").without_tensor("output_norm.weight"), &["output_norm.weight"]),
        ("missing-embedding", Parts::of("qwen2").without_tensor("token_embd.weight"), &["token_embd.weight"]),
        (
            "wrong-shape",
            Parts::of("llama").with_tensor("blk.0.ffn_down.weight", "F32", &[64, 96], zeros(64 * 96)),
            &["blk.0.ffn_down.weight", "96"],
        ),
        (
            "short-norm",
            Parts::of("llama").with_tensor("blk.2.attn_norm.weight", "F32", &[32], zeros(32)),
            &["blk.2.attn_norm.weight"],
        ),
        (
            "nan-weight",
            Parts::of("llama").with_tensor("blk.0.ffn_up.weight", "F32", &[64, 96], with_nan(64 * 96)),
            &["blk.0.ffn_up.weight"],
        ),
        (
            "nan-scale",
            Parts::of("llama").with_tensor("blk.0.ffn_up.weight", "Q8_0", &[64, 96], nan_scale),
            &["blk.0.ffn_up.weight"],
        ),
        ("no-tokens", Parts::of("llama").without_key("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens"]),
        ("tokenizer", Parts::of("llama").set("tokenizer.ggml.model", "runes"), &["runes"]),
        ("pre-tokenizer", Parts::of("llama").set("tokenizer.ggml.pre", "scissors"), &["scissors"]),
    ]
}

#[test]
fn broken_models_end_in_one_clear_error() {
    let home = Home::new();
    for (name, parts, words) in cases() {
        let path = parts.write(&home, name);
        let file = format!("{name}.gguf");
        home.run(&["run", &path, "a", "--raw", "-n", "4", "-t", "0"]).bad(&[&[file.as_str()], words].concat());
    }
}

#[test]
fn a_broken_template_is_named() {
    let home = Home::new();
    let cases = [
        ("syntax", "{% for m in messages %}{{ m.content }"),
        ("name", "{{ nonsense(messages) }}"),
        ("raises", "{{ raise_exception('only cats may talk') }}"),
    ];
    for (name, template) in cases {
        let path = Parts::of("llama").set("tokenizer.chat_template", template).write(&home, name);
        home.run(&["run", &path, "a"]).bad(&["template"]);
        // Which `--raw` does not need.
        home.run(&["run", &path, "a", "--raw", "-n", "1"]).good();
    }
    // A loop that would not end in a life must end in an error.
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x\
                   {% endfor %}{% endfor %}{% endfor %}";
    let path = Parts::of("llama").set("tokenizer.chat_template", endless).write(&home, "endless");
    home.run(&["run", &path, "a"]).bad(&["template"]);
}

#[test]
fn files_that_are_no_models_are_named() {
    let home = Home::new();
    let text = home.file("notes.txt", b"Just some notes.");
    home.run(&["run", text.to_str().unwrap(), "a"]).bad(&["notes.txt", "not a GGUF file"]);
    let cut = std::fs::read(fixture("llama")).unwrap();
    let cut = home.file("cut.gguf", &cut[..cut.len() / 2]);
    for command in ["run", "tokenize"] {
        home.run(&[command, cut.to_str().unwrap(), "a"]).bad(&["cut.gguf", "download it again"]);
    }
    home.run(&["run", home.path().to_str().unwrap(), "a"]).bad(&["config.json"]);
    home.run(&["run", "gone.gguf", "a"]).bad(&["there is no file gone.gguf"]);
}
