//! Bad tokenizer metadata: one clear error each, that names the key.

use tessera_engine::{Special, Tokenizer};
use tessera_formats::{
    Bytes, Gguf, GgufWriter,
    gguf::{Array, Value},
};

/// Keys and their values; none leaves the key out.
type Changes<'a> = &'a [(&'a str, Option<Value>)];

const GOOD: [(&str, &[&str]); 2] = [("tokens", &["a", "b", "ab", "<x>"]), ("merges", &["a b"])];

fn strings(all: &[&str]) -> Value {
    Value::from(all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

/// A sound tiny tokenizer with some keys replaced, or left out where there is no value.
fn with(changes: Changes<'_>) -> Result<Tokenizer, String> {
    let mut keys = vec![("model", Value::from("gpt2")), ("pre", Value::from("gpt-2"))];
    keys.extend(GOOD.iter().map(|(key, all)| (*key, strings(all))));
    keys.extend([("token_type", Value::from(vec![1i32, 1, 1, 3])), ("eos_token_id", Value::from(3u32))]);
    keys.retain(|(key, _)| changes.iter().all(|(changed, _)| changed != key));
    let changed = changes.iter().filter_map(|(key, value)| value.clone().map(|v| (*key, v)));
    let mut writer = GgufWriter::new();
    for (key, value) in keys.into_iter().chain(changed) {
        writer = writer.set(format!("tokenizer.ggml.{key}"), value);
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    let gguf = Gguf::parse("test.gguf", Bytes::from(bytes)).unwrap();
    Tokenizer::from_gguf(&gguf).map_err(|e| e.to_string())
}

#[test]
fn a_sound_one_works() {
    let tokenizer = with(&[]).unwrap();
    assert_eq!(tokenizer.encode("abba", Special::Plain, true).unwrap(), [2, 1, 0]);
    assert_eq!((tokenizer.eos(), tokenizer.bos(), tokenizer.is_end_of_generation(3)), (Some(3), None, true));
    assert_eq!((tokenizer.token_bytes(4), tokenizer.token_text(4)), (&b""[..], None));
    // Unsaid keys have defaults; -1 means "none", however it is written.
    let none = [Value::from(-1i32), Value::from(u32::MAX)];
    for value in none {
        assert_eq!(with(&[("eos_token_id", Some(value)), ("token_type", None)]).unwrap().eos(), None);
    }
}

#[test]
fn bad_metadata_is_named() {
    let spm = || ("model", Some(Value::from("llama")));
    let cases: [(Changes<'_>, &[&str]); 17] = [
        (&[("model", None)], &["tokenizer.ggml.model", "missing"]),
        (&[("model", Some(Value::from(1u32)))], &["tokenizer.ggml.model", "string"]),
        (&[("model", Some(Value::from("bert")))], &["`bert`", "gpt2, llama and gemma4"]),
        (&[("pre", Some(Value::from("nonesuch")))], &["`nonesuch`", "tokenizer.ggml.pre", "llama-bpe"]),
        (&[("tokens", None)], &["tokenizer.ggml.tokens", "missing"]),
        (&[("tokens", Some(Value::from("a")))], &["tokenizer.ggml.tokens", "array"]),
        (&[("tokens", Some(Value::from(vec![1u32])))], &["tokenizer.ggml.tokens", "array of strings"]),
        (&[("tokens", Some(strings(&["a", "b", "ab", "a"])))], &["tokens 0 and 3", "\"a\""]),
        (&[("token_type", Some(Value::from(vec![1i32])))], &["token_type", "1 entries", "4 tokens"]),
        (&[("token_type", Some(strings(&["a"])))], &["token_type", "array of whole numbers"]),
        (&[("merges", None)], &["tokenizer.ggml.merges", "missing"]),
        (&[("merges", Some(strings(&["ab"])))], &["merges", "\"ab\""]),
        (&[("merges", Some(strings(&["b a"])))], &["merges", "ba"]),
        (&[("eos_token_id", Some(Value::from(4u32)))], &["eos_token_id", "4"]),
        (&[("add_bos_token", Some(Value::from(1u8)))], &["add_bos_token", "boolean"]),
        (&[spm(), ("scores", Some(Value::from(vec![1.0f32])))], &["scores", "1 entries"]),
        (&[spm(), ("eos_token_id", None), ("tokens", Some(Value::Array(Array::Strings(vec![]))))], &["0x00", "byte"]),
    ];
    for (changes, words) in cases {
        let error = with(changes).err().unwrap_or_else(|| panic!("{changes:?} was taken"));
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }
}

#[test]
fn an_empty_merge_is_no_panic() {
    for merge in ["", " ", "a ", " b", "é", "  "] {
        let error = with(&[("merges", Some(strings(&[merge])))]).expect_err("a merge of nothing was taken");
        assert!(error.contains("merges"), "{error}");
    }
}

#[test]
fn scores_that_are_no_numbers_do_no_harm() {
    let mut tokens: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
    tokens.extend(["a", "aa", "aaa", "b"].map(str::to_owned));
    let mut kinds = vec![6i32; 256];
    kinds.extend([1; 4]);
    let mut scores = vec![0.0f32; 256];
    scores.extend([f32::NAN, f32::NAN, f32::INFINITY, -0.0]);
    let tokenizer = with(&[
        ("model", Some(Value::from("llama"))),
        ("tokens", Some(Value::from(tokens))),
        ("token_type", Some(Value::from(kinds))),
        ("scores", Some(Value::from(scores))),
        ("add_space_prefix", Some(Value::from(false))),
    ])
    .unwrap();
    let ids = tokenizer.encode("aaaab\u{ff}", Special::Plain, false).unwrap();
    assert_eq!(tokenizer.decode(&ids), "aaaab\u{ff}".as_bytes());
}
