//! Tokenizers against llama.cpp, on hostile texts (`tools/make_tokenizer_fixtures.py` recorded what it says).

use std::{path::Path, time::Instant};

use serde_json::Value;
use tessera_engine::{Special, Tokenizer};
use tessera_formats::Gguf;

use crate::support;

fn load(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap()
}

/// The hostile texts.
fn texts() -> Vec<Vec<u8>> {
    let file = support::json("data/tokenizer/texts.json");
    file["texts"].as_array().unwrap().iter().map(text).collect()
}

fn text(value: &Value) -> Vec<u8> {
    if let Some(text) = value.as_str() {
        return text.as_bytes().to_vec();
    }
    match value["hex"].as_str() {
        Some(hex) => hex.as_bytes().chunks(2).map(hex_byte).collect(),
        None => value["repeat"].as_str().unwrap().repeat(number(&value["times"]) as usize).into_bytes(),
    }
}

fn hex_byte(digits: &[u8]) -> u8 {
    u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

/// Ids, in which `[id, n]` stands for n times the same.
fn ids(value: &Value) -> Vec<u32> {
    let run = |v: &Value| match v.as_array() {
        Some(pair) => vec![number(&pair[0]); number(&pair[1]) as usize],
        None => vec![number(v)],
    };
    value.as_array().unwrap().iter().flat_map(run).collect()
}

/// Everything recorded of one model.
fn check(tokenizer: &Tokenizer, recorded: &str) {
    let recorded = support::json(&format!("data/tokenizer/{recorded}.json"));
    let mut wrong = Vec::new();
    for (mode, special) in [("plain", Special::Plain), ("parse", Special::Parse)] {
        let rows = recorded[mode].as_array().unwrap();
        let texts = texts();
        assert_eq!(rows.len(), texts.len(), "the recording is of other texts; make it again");
        for (text, row) in texts.iter().zip(rows) {
            let (got, expected) = (tokenizer.encode(text, special, false).unwrap(), ids(row));
            if got != expected {
                let at = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                let (got, expected) = (&got[at..got.len().min(at + 8)], &expected[at..expected.len().min(at + 8)]);
                let text = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
                wrong.push(format!("{mode} {text:?}: from token {at} {got:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(tokenizer.vocab_len(), number(&recorded["tokens"]) as usize);
    assert_eq!(tokenizer.encode("Hello", Special::Plain, true).unwrap(), ids(&recorded["with_bos"]));
    let hash = (0..tokenizer.vocab_len() as u32).fold(0xcbf2_9ce4_8422_2325, |hash, id| {
        let bytes = tokenizer.token_bytes(id).iter().chain(b"\xff\x00");
        bytes.fold(hash, |hash: u64, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
    });
    assert_eq!(format!("{hash:016x}"), recorded["bytes_hash"].as_str().unwrap(), "what some token stands for");
    let ends: Vec<u32> = tokenizer.ends_of_generation().collect();
    assert_eq!(ends, ids(&recorded["ends"]));
    assert!(ends.iter().all(|id| tokenizer.is_end_of_generation(*id)));
    for (key, id) in [("bos", tokenizer.bos()), ("eos", tokenizer.eos())] {
        assert_eq!(id, recorded[key].as_u64().map(|id| id as u32), "{key}");
    }
}

/// Valid texts come back from their tokens.
fn check_round_trip(tokenizer: &Tokenizer) {
    for text in texts().iter().filter(|t| std::str::from_utf8(t).is_ok()) {
        let ids = tokenizer.encode(text, Special::Plain, false).unwrap();
        let back = tokenizer.decode(&ids);
        assert_eq!(String::from_utf8_lossy(&back), String::from_utf8_lossy(text));
        let mut stream = tokenizer.text_stream();
        let mut streamed: String = ids.iter().map(|id| stream.push(tokenizer.token_bytes(*id))).collect();
        streamed += &stream.finish();
        assert_eq!(streamed.as_bytes(), text);
    }
}

#[test]
fn tiny_byte_level_models() {
    for name in ["llama", "qwen2", "qwen3"] {
        let tokenizer = load(&support::path(&format!("fixtures/{name}/model.gguf")));
        check(&tokenizer, "fixtures");
        check_round_trip(&tokenizer);
    }
}

#[test]
fn tiny_sentence_piece_models() {
    for name in ["spm", "spm_no_prefix"] {
        check(&load(&support::path(&format!("data/tokenizer/{name}.gguf"))), name);
    }
}

#[test]
fn a_tiny_gemma_4_model() {
    check(&load(&support::path("data/tokenizer/gemma4.gguf")), "gemma4");
}

#[test]
fn smollm2() {
    if let Some(path) = support::real_model("SmolLM2-135M-Instruct.Q4_1.gguf") {
        let tokenizer = load(&path);
        check(&tokenizer, "smollm2");
        check_round_trip(&tokenizer);
    }
}

#[test]
fn gemma_3() {
    if let Some(path) = support::real_model("gemma-3-270m-q4_k_m.gguf") {
        let tokenizer = load(&path);
        check(&tokenizer, "gemma3");
        let start = Instant::now();
        tokenizer.encode(" ".repeat(10_000), Special::Plain, false).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 2.0, "10,000 spaces took {seconds} s; they take milliseconds unless something is quadratic");
    }
}

#[test]
fn the_same_ids_as_the_tokenizers_crate_gave() {
    for name in ["llama", "qwen2", "qwen3"] {
        let tokenizer = load(&support::path(&format!("fixtures/{name}/model.gguf")));
        let manifest = support::json(&format!("fixtures/{name}/manifest.json"));
        for case in manifest["tokenizer_cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            // transformers composes letters and accents first (NFC); a GGUF file knows nothing of that.
            if text != "a\u{301}" {
                assert_eq!(tokenizer.encode(text, Special::Parse, false).unwrap(), ids(&case["ids"]), "{text:?}");
            }
        }
    }
}

#[test]
fn special_names_in_a_users_text_stay_text() {
    let tokenizer = load(&support::path("fixtures/llama/model.gguf"));
    let marked = "<|im_start|>user\nhi<|im_end|>";
    let parsed = tokenizer.encode(marked, Special::Parse, false).unwrap();
    let plain = tokenizer.encode(marked, Special::Plain, false).unwrap();
    assert!(parsed.iter().any(|id| tokenizer.is_control(*id)));
    assert!(!plain.iter().any(|id| tokenizer.is_control(*id)));
    assert_eq!(tokenizer.decode(&plain), marked.as_bytes());
    assert_eq!(tokenizer.decode(&parsed), b"user\nhi");
}
