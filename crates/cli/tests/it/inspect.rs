//! `inspect`: the facts of a good file, and one clear error for each kind of bad one.

use std::fs;

use tessera_formats::{DType, GgufWriter, gguf::Value};

use crate::support::{Home, fixture};

#[test]
fn the_facts_of_a_tiny_model() {
    let home = Home::new();
    let path = fixture("llama");
    let facts = home.run(&["inspect", path.to_str().unwrap(), "--json"]).json();
    assert_eq!(facts["architecture"], "llama");
    assert_eq!(facts["container"], "GGUF version 3");
    let tensors = facts["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(facts["memory"]["weight_bytes"], bytes);
    assert_eq!(facts["weights"], bytes / 4, "all of it is F32");
    assert_eq!(facts["formats"]["F32"]["tensors"], tensors.len());
    // 1024 tokens, keys and values, 2 bytes each.
    let meta = |key: &str| facts["metadata"][format!("llama.{key}")].as_u64().unwrap();
    let expect = 1024 * 2 * 2 * meta("block_count") * meta("attention.head_count_kv") * meta("attention.key_length");
    assert_eq!(facts["memory"]["cache_bytes_per_1024_tokens"], expect);

    let text = home.run(&["inspect", path.to_str().unwrap(), "--tensors"]).good();
    for word in ["architecture  llama", "token_embd.weight", "general.architecture", "tokens", "F32"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let short = home.run(&["inspect", path.to_str().unwrap()]).good();
    assert!(!short.contains("token_embd.weight"), "{short}");
}

#[test]
fn a_model_that_cannot_run_can_be_inspected() {
    let home = Home::new();
    let path = home.path().join("alien.gguf");
    let mut file = fs::File::create(&path).unwrap();
    let bytes = vec![0; 2 * 34];
    GgufWriter::new()
        .set("general.architecture", Value::String("alien\x1b[2J".into()))
        .tensor("odd\x07name", DType::from_name("Q8_0").unwrap(), [32, 2], bytes)
        .write_to(&mut file)
        .unwrap();
    let path = path.to_str().unwrap();
    let text = home.run(&["inspect", path, "--tensors"]).good();
    assert!(text.contains("alien") && text.contains("32 x 2") && text.contains("unknown"), "{text}");
    assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
    let facts = home.run(&["inspect", path, "--json"]).json();
    assert_eq!(facts["memory"]["cache_bytes_per_1024_tokens"], serde_json::Value::Null);
    assert_eq!(facts["formats"]["Q8_0"]["weights"], 64);
}

/// A header of version 3 with `tensors` tensors and `entries` metadata entries, and what follows.
fn header(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), entries.to_le_bytes()].concat();
    [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, rest].concat()
}

/// One row of the tensor table: name, F32, one dimension.
fn row(name: &str, len: u64, offset: u64) -> Vec<u8> {
    let name_len = (name.len() as u64).to_le_bytes();
    let (rank, kind) = (1u32.to_le_bytes(), 0u32.to_le_bytes());
    [&name_len[..], name.as_bytes(), &rank, &len.to_le_bytes(), &kind, &offset.to_le_bytes()].concat()
}

/// Two tensors of 32 bytes each at the given offsets, with `data` bytes of data.
fn two_tensors(first: u64, second: u64, data: usize) -> Vec<u8> {
    let mut bytes = header(2, 0, &[row("one", 8, first), row("two", 8, second)].concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

#[test]
fn bad_files_end_in_one_clear_error() {
    let home = Home::new();
    let good = fs::read(fixture("llama")).unwrap();
    let key = |key: &str, rest: &[u8]| [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), rest].concat();
    let huge = 1u64 << 60;
    let mut magic = good.clone();
    magic[0] = b'X';
    let mut version = good.clone();
    version[4] = 9;
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", Vec::new(), &["not a GGUF file"]),
        ("magic", magic, &["not a GGUF file", "check that the download"]),
        ("version", version, &["version 9", "convert"]),
        ("only-magic", b"GGUF".to_vec(), &["ends inside", "download it again"]),
        ("header-cut", good[..good.len() / 100].to_vec(), &["download it again"]),
        ("data-cut", good[..good.len() - 1].to_vec(), &["tensor `", "download it again"]),
        ("tensor-count", header(huge, 0, &[]), &["tensors", "damaged"]),
        ("entry-count", header(0, huge, &[]), &["metadata entries", "damaged"]),
        ("key-length", header(0, 1, &[&huge.to_le_bytes()[..], &[0; 64]].concat()), &["the key of metadata entry 0"]),
        (
            "string-length",
            header(0, 1, &key("a.b", &[&8u32.to_le_bytes()[..], &huge.to_le_bytes(), &[0; 64]].concat())),
            &["a.b"],
        ),
        (
            "array-length",
            header(0, 1, &key("a.b", &[&9u32.to_le_bytes()[..], &4u32.to_le_bytes(), &huge.to_le_bytes()].concat())),
            &["a.b"],
        ),
        ("value-type", header(0, 1, &key("a.b", &99u32.to_le_bytes())), &["`a.b`", "value type 99"]),
        ("shape", header(1, 0, &row("one", huge, 0)), &["tensor `one`"]),
        ("overlap", two_tensors(0, 0, 64), &["overlap", "tensor `"]),
        ("misaligned", two_tensors(0, 33, 128), &["tensor `two`", "multiple of the alignment"]),
        ("out-of-range", two_tensors(0, 32, 32), &["tensor `two`", "download it again"]),
        ("far-offset", two_tensors(0, huge, 64), &["tensor `two`"]),
        ("end-of-offset", two_tensors(0, u64::MAX - 31, 64), &["tensor `two`"]),
    ];
    for (name, bytes, words) in cases {
        let path = home.file(&format!("{name}.gguf"), &bytes);
        let ran = home.run(&["inspect", path.to_str().unwrap()]);
        ran.bad(&[&[path.file_name().unwrap().to_str().unwrap()], words].concat());
    }
    home.run(&["inspect", "."]).bad(&["config.json"]);
}

/// Claims of gigabytes are refused, not believed: with 512 MiB of address space the errors stay the same.
#[cfg(target_os = "linux")]
#[test]
fn memory_stays_bounded_on_hostile_counts() {
    use crate::support::Ran;
    let home = Home::new();
    let huge = 1u64 << 40;
    let entry = |count: u64| {
        let array = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &count.to_le_bytes()].concat();
        [&1u64.to_le_bytes()[..], b"a", &array, &[0; 1 << 16]].concat()
    };
    let cases = [
        ("tensors", header(huge, 0, &[0; 1 << 16]), "tensors"),
        ("entries", header(0, huge, &[0; 1 << 16]), "metadata"),
        ("strings", header(0, 1, &entry(huge)), "`a`"),
    ];
    for (name, bytes, word) in cases {
        let path = home.file(&format!("{name}.gguf"), &bytes);
        let line = format!("ulimit -v 524288; exec '{}' inspect '{}'", env!("CARGO_BIN_EXE_tessera"), path.display());
        let output = std::process::Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
        Ran::of(output).bad(&[word]);
    }
}

/// What a long context takes is told of both forms, where the model has rows that can be packed.
#[test]
fn a_million_tokens_are_told_as_halves_and_packed() {
    let home = Home::new();
    let line = "deepseek4,layers=4,width=64,head_dim=512,heads=2,output_groups=2,experts=4,experts_used=2,expert_feed_forward=32,\
                vocabulary=300,query_rank=32,output_rank=16,indexer_heads=2,indexer_dim=128,window=5,format=F32";
    home.run(&["synth", line, "v4.gguf"]).good();
    let memory = &home.run(&["inspect", "v4.gguf", "--json"]).json()["memory"];
    // A page: 16 rows of 512 and keys of 128 for four tokens each, and a row of 512 for 128.
    let (halves, packed) = (16 * (1024 + 256) + 1024, 16 * (584 + 68) + 584);
    assert_eq!(memory["cache_bytes_per_million_tokens"], 15_625 * halves);
    assert_eq!(memory["packed_cache_bytes_per_million_tokens"], 15_625 * packed);
    let text = home.run(&["inspect", "v4.gguf"]).good();
    assert!(
        text.contains(&format!("{} bytes a token (--cache-format packed)", (packed as f64 / 64.0).round())),
        "{text}"
    );
    assert!(text.contains("rings  "), "{text}");
    home.run(&["run", "v4.gguf", "x", "--raw", "--cache-format=packed", "--latent-rounding=false"]).bad(&[
        "packed rows are what a model rounds",
        "rounding is switched off",
        "use another cache format",
    ]);
    let llama = crate::support::fixture("llama").into_os_string().into_string().unwrap();
    home.run(&["run", &llama, "x", "--raw", "--cache-format=packed"]).bad(&["rounds none", "another cache format"]);
    assert!(home.run(&["inspect", &llama, "--json"]).json()["memory"]["packed_cache_bytes_per_1024_tokens"].is_null());
}
