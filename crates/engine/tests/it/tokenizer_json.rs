//! `tokenizer.json`: the same vocabulary once from GGUF and once as JSON must give the same ids.

use serde_json::{Value, json};
use tessera_engine::{Special, Tokenizer};
use tessera_formats::Gguf;

use crate::support;

/// The tiny llama fixture's tokenizer as transformers would write it.
pub(crate) fn as_json(gguf: &Gguf) -> Value {
    let strings = |key: &str| gguf.get(key).unwrap().as_array().unwrap().as_strings().unwrap().to_vec();
    let tokens = strings("tokenizer.ggml.tokens");
    let kinds = gguf.get("tokenizer.ggml.token_type").unwrap().as_array().unwrap().to_i64s().unwrap();
    let vocab: serde_json::Map<String, Value> = tokens.iter().cloned().zip((0u32..).map(Value::from)).collect();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|i| kinds[*i] == 3)
        .map(|i| {
            json!({"id": i, "content": tokens[i], "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": strings("tokenizer.ggml.merges"), "dropout": null,
                  "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
                  "byte_fallback": false, "ignore_merges": false},
    })
}

#[test]
fn gguf_and_json_agree() {
    let gguf = Gguf::open(&support::path("fixtures/llama/model.gguf")).unwrap();
    let config = json!({"bos_token": null, "eos_token": {"content": "<|im_end|>"}}).to_string();
    let from_json = Tokenizer::from_json(as_json(&gguf).to_string().as_bytes(), Some(config.as_bytes())).unwrap();
    let from_gguf = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(from_json.vocab_len(), from_gguf.vocab_len());
    for id in 0..from_gguf.vocab_len() as u32 {
        assert_eq!(from_json.token_bytes(id), from_gguf.token_bytes(id), "token {id}");
        assert_eq!(from_json.is_control(id), from_gguf.is_control(id), "token {id}");
    }
    assert_eq!(from_json.eos(), from_json.token_id("<|im_end|>"));
    assert!(from_json.is_end_of_generation(from_json.eos().unwrap()));
    let spaces = " ".repeat(10_000);
    let texts = support::json("data/tokenizer/texts.json");
    let texts = texts["texts"].as_array().unwrap().iter().filter_map(Value::as_str).chain([spaces.as_str()]);
    // Long s folds to s in a case-blind pattern, and not in llama.cpp.
    for text in texts.filter(|t| !t.contains("'ſ")) {
        for special in [Special::Plain, Special::Parse] {
            let (json, gguf) = (from_json.encode(text, special, true), from_gguf.encode(text, special, true));
            assert_eq!(json.unwrap(), gguf.unwrap(), "{text:?} {special:?}");
        }
    }
}

#[test]
fn byte_tokens_and_escaped_spaces_are_decoded() {
    let vocab = json!({"<unk>": 0, "<s>": 1, "\u{2581}": 2, "a": 3, "<0xC3>": 4, "<0xA9>": 5, "\u{2581}a": 6});
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["\u{2581} a"], "unk_token": "<unk>", "fuse_unk": true,
                  "byte_fallback": true},
    });
    let config = br#"{"bos_token": "<s>", "eos_token": null}"#;
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Some(config)).unwrap();
    assert!(tokenizer.adds_bos() && tokenizer.adds_space());
    let ids = tokenizer.encode("a é", Special::Plain, true).unwrap();
    assert_eq!(ids, [1, 6, 2, 4, 5]);
    assert_eq!(tokenizer.decode(&ids), "a é".as_bytes());
}

#[test]
fn bad_files_are_named() {
    for (json, config, word) in
        [(&b"{"[..], None, "tokenizer.json"), (b"{}", None, "tokenizer.json"), (b"\xff\xfe", None, "tokenizer.json")]
    {
        let error = Tokenizer::from_json(json, config).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let gguf = Gguf::open(&support::path("fixtures/llama/model.gguf")).unwrap();
    let good = as_json(&gguf);
    let error = Tokenizer::from_json(good.to_string().as_bytes(), Some(b"[")).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
    let mut far = good;
    far["model"]["vocab"]["far"] = json!(4_000_000_000u32);
    let error = Tokenizer::from_json(far.to_string().as_bytes(), None).unwrap_err().to_string();
    assert!(error.contains("4000000001"), "{error}");
}
