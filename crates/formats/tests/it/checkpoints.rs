//! Checkpoints of safetensors files, plain and quantized by MLX, made by hand.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use tessera_formats::{Checkpoint, DType, codec, safetensors};

use crate::decode::random_bytes;

/// A tensor to be stored: type, shape (row length last), bytes.
type Part = (&'static str, Vec<usize>, Vec<u8>);

fn safetensors_bytes(tensors: &BTreeMap<String, Part>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "mlx"}));
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn write(dir: &Path, file: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(file), bytes).unwrap();
}

/// A module of 3 rows of two groups with scale (g + 1) / 8 and bias -g / 4 for group g.
fn module(name: &str, bits: usize, group: usize, dtype: &'static str) -> BTreeMap<String, Part> {
    let words = 2 * group * bits / 32;
    let float = |x: f32| match dtype {
        "F32" => x.to_le_bytes().to_vec(),
        "F16" => half::f16::from_f32(x).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    let floats = |f: fn(f32) -> f32| (dtype, vec![3, 2], (0..6).flat_map(|g| float(f(g as f32))).collect());
    BTreeMap::from([
        (format!("{name}.weight"), ("U32", vec![3, words], random_bytes(bits as u64, 3 * words * 4))),
        (format!("{name}.scales"), floats(|g| (g + 1.0) / 8.0)),
        (format!("{name}.biases"), floats(|g| -g / 4.0)),
    ])
}

fn checkpoint(config: Value, tensors: &BTreeMap<String, Part>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", config.to_string());
    write(dir.path(), "model.safetensors", safetensors_bytes(tensors));
    dir
}

/// What MLX's definition gives for one weight: code k of a row is in word k * bits / 32, low bits first.
fn expected(words: &[u8], row_words: usize, bits: usize, group: usize, row: usize, k: usize) -> f32 {
    let at = 4 * (row * row_words + k * bits / 32);
    let word = u32::from_le_bytes(words[at..at + 4].try_into().unwrap());
    let code = (word >> (k * bits % 32)) & ((1 << bits) - 1);
    let g = (row * 2 + k / group) as f32;
    (g + 1.0) / 8.0 * code as f32 - g / 4.0
}

#[test]
fn every_group_format_is_assembled() {
    for (bits, group) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
        for dtype in ["F32", "F16", "BF16"] {
            let parts = module("m", bits, group, dtype);
            let dir = checkpoint(json!({"quantization": {"bits": bits, "group_size": group}}), &parts);
            let opened = Checkpoint::open(dir.path()).unwrap();
            let tensor = opened.tensor("m.weight").unwrap();
            assert_eq!(tensor.dtype.name(), format!("MLX{bits}_G{group}"));
            assert_eq!(tensor.shape, [2 * group, 3]);
            let words = &parts["m.weight"].2;
            let decoded = tensor.decode();
            for (i, &weight) in decoded.iter().enumerate() {
                let (row, k) = (i / (2 * group), i % (2 * group));
                let want = expected(words, 2 * group * bits / 32, bits, group, row, k);
                assert_eq!(weight, want, "{bits} bits, groups of {group}, row {row}, weight {k}");
            }
            assert_eq!(opened.tensors().len(), 1);
        }
    }
}

#[test]
fn single_modules_may_differ() {
    let mut parts = module("a", 4, 64, "F16");
    parts.extend(module("b", 8, 32, "F16"));
    parts.extend(module("c", 8, 64, "F16"));
    parts.insert("d.weight".into(), ("BF16", vec![2, 1], vec![0x80, 0x3f, 0x00, 0xc0]));
    parts.insert("scalar".into(), ("F32", vec![], 2f32.to_le_bytes().to_vec()));
    let config = json!({"quantization": {
        "group_size": 64, "bits": 4, "b": {"group_size": 32, "bits": 8}, "c": {"bits": 8}, "d": false, "a": true,
    }});
    let dir = checkpoint(config, &parts);
    let opened = Checkpoint::open(dir.path()).unwrap();
    let format = |name| opened.tensor(name).unwrap().dtype;
    assert_eq!(
        ["a.weight", "b.weight", "c.weight", "d.weight"].map(format),
        [DType::MLX4_G64, DType::MLX8_G32, DType::MLX8_G64, DType::BF16]
    );
    let d = opened.tensor("d.weight").unwrap();
    assert_eq!((d.shape.clone(), d.decode()), (vec![1, 2], vec![1.0, -2.0]));
    assert_eq!(opened.tensor("scalar").unwrap().shape, [1]);
    assert_eq!(opened.config()["quantization"]["bits"], 4);
}

#[test]
fn stacked_experts_keep_their_dimensions() {
    let mut parts = module("e", 4, 32, "F32");
    for part in parts.values_mut() {
        part.1.insert(0, 1);
    }
    let dir = checkpoint(json!({"quantization": {"bits": 4, "group_size": 32}}), &parts);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensor("e.weight").unwrap().shape, [64, 3, 1]);
}

#[test]
fn shards_are_joined_by_their_index_or_by_name() {
    let one = |x: f32| -> Part { ("F32", vec![1], x.to_le_bytes().to_vec()) };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", "{}");
    write(dir.path(), "model-1.safetensors", safetensors_bytes(&BTreeMap::from([("a".into(), one(1.0))])));
    write(dir.path(), "model-2.safetensors", safetensors_bytes(&BTreeMap::from([("b".into(), one(2.0))])));
    write(dir.path(), "extra.safetensors", safetensors_bytes(&BTreeMap::from([("c".into(), one(3.0))])));
    let names = || -> Result<Vec<String>, String> {
        let opened = Checkpoint::open(dir.path()).map_err(|e| e.to_string())?;
        Ok(opened.tensors().iter().map(|t| t.name.clone()).collect())
    };
    assert_eq!(names().unwrap(), ["a", "b"]);
    let index = |map: Value| write(dir.path(), "model.safetensors.index.json", json!({"weight_map": map}).to_string());
    index(json!({"a": "model-1.safetensors", "c": "extra.safetensors"}));
    assert_eq!(names().unwrap(), ["c", "a"]);
    for (map, want) in [
        (json!({"a": "model-3.safetensors"}), "model-3.safetensors: missing"),
        (json!({"z": "model-1.safetensors"}), "`z`"),
        (json!({"a": "../model-1.safetensors"}), "no `*.safetensors` beside it"),
        (json!({"a": "config.json"}), "no `*.safetensors` beside it"),
        (json!({"a": 7}), "`a`"),
        (json!(null), "weight_map"),
    ] {
        index(map);
        let error = names().unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    std::fs::copy(dir.path().join("model-1.safetensors"), dir.path().join("model-3.safetensors")).unwrap();
    assert!(names().unwrap_err().contains("`a`: appears twice"));
}

#[test]
fn other_files_are_mapped() {
    let dir = checkpoint(json!({}), &module("m", 4, 32, "F32"));
    assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("config.json does not say"));
    let dir = checkpoint(json!({}), &BTreeMap::from([("a".into(), ("I8", vec![2], vec![1, 255]))]));
    write(dir.path(), "tokenizer.json", "{}");
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(opened.tensor("a").unwrap().decode(), [1.0, -1.0]);
    assert!(opened.has_file("tokenizer.json") && !opened.has_file("chat_template.jinja"));
    assert_eq!(&*opened.file("tokenizer.json").unwrap(), b"{}");
    assert!(opened.file("absent.json").unwrap_err().to_string().contains("absent.json"));
}

/// Opens a checkpoint with one sound 4-bit module after `change` and expects an error with all of `wants`.
#[track_caller]
fn refused(change: impl FnOnce(&mut Value, &mut BTreeMap<String, Part>), wants: &[&str]) {
    let mut config = json!({"quantization": {"bits": 4, "group_size": 32}});
    let mut parts = module("m", 4, 32, "F16");
    change(&mut config, &mut parts);
    let dir = checkpoint(config, &parts);
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    for want in wants.iter().chain(&[dir.path().to_str().unwrap()]) {
        assert!(error.contains(want), "`{want}` is not in: {error}");
    }
}

#[test]
fn wrong_configurations() {
    for (key, value, want) in [
        ("bits", json!(3), "3 bits"),
        ("group_size", json!(16), "groups of 16"),
        ("bits", json!("four"), "not a number"),
        ("bits", json!(-4), "not a number"),
        ("group_size", Value::Null, "not a number"),
        ("mode", json!("mxfp4"), "mode \"mxfp4\""),
        ("m", json!({"bits": 6}), "module `m`: 6 bits"),
    ] {
        refused(|c, _| c["quantization"][key] = value, &["config.json", "`quantization`", want]);
    }
    refused(|c, _| c["quantization"] = json!([4]), &["config.json", "not a table"]);
    refused(|c, _| c["quantization"] = json!({"bits": 4}), &["config.json", "`group_size` is missing"]);
    refused(|c, _| c["quantization"]["m"] = json!(false), &["`m.weight`", "config.json does not say"]);
    refused(|c, _| c["quantization"]["bits"] = json!(8), &["`m.weight`", "`.scales` have shape [3, 2]", "[3, 1]"]);
    refused(|c, _| c["quantization"]["group_size"] = json!(128), &["`m.weight`", "do not divide into MLX4_G128"]);
}

#[test]
fn wrong_parts() {
    fn remove(name: &str) -> impl FnOnce(&mut Value, &mut BTreeMap<String, Part>) {
        move |_, p| assert!(p.remove(name).is_some())
    }
    refused(remove("m.biases"), &["`m.weight`", "no `.biases`"]);
    refused(remove("m.scales"), &["`m.weight`", "no `.scales`"]);
    refused(remove("m.weight"), &["`m.scales`", "no `.weight`"]);
    refused(|_, p| drop((p.remove("m.scales"), p.remove("m.biases"))), &["`m.weight`", "U32"]);
    refused(|_, p| p.get_mut("m.weight").unwrap().0 = "I32", &["`m.weight`", "I32 instead of U32"]);
    refused(|_, p| p.get_mut("m.weight").unwrap().1 = vec![24], &["`m.weight`", "should have"]);
    refused(|_, p| p.get_mut("m.scales").unwrap().1 = vec![6], &["`m.weight`", "`.scales` have shape [6]"]);
    refused(|_, p| p.get_mut("m.biases").unwrap().1 = vec![2, 3], &["`m.weight`", "`.biases` have shape [2, 3]"]);
    refused(|_, p| p.get_mut("m.scales").unwrap().0 = "I16", &["`m.weight`", "`m.scales` is I16"]);
    refused(|_, p| drop(p.insert("f".into(), ("F8_E4M3", vec![1], vec![0]))), &["`f`", "F8_E4M3"]);
    refused(|_, p| drop(p.insert("f".into(), ("F32", vec![2, 0], vec![]))), &["`f`", "dimension of zero"]);
}

#[test]
fn wrong_directories() {
    let dir = tempfile::tempdir().unwrap();
    let error = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error().contains("config.json"));
    write(dir.path(), "config.json", "{");
    assert!(error().contains("not valid JSON"));
    write(dir.path(), "config.json", "[".repeat(100_000));
    assert!(error().contains("not valid JSON"));
    write(dir.path(), "config.json", "{}");
    assert!(error().contains("no model*.safetensors"));
}

#[test]
fn damaged_safetensors_are_refused() {
    let sound = safetensors_bytes(&module("m", 4, 32, "F16"));
    let parse = |bytes: Vec<u8>| safetensors::parse("x.safetensors", bytes.into());
    assert_eq!(parse(sound.clone()).unwrap().len(), 3);
    for len in 0..sound.len() {
        let error = parse(sound[..len].to_vec()).unwrap_err().to_string();
        assert!(error.starts_with("x.safetensors: "), "{error}");
    }
    let longer = [&sound[..], &[0]].concat();
    assert!(parse(longer).is_err());
    let with_header =
        |header: &str| parse([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat());
    for header in [
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#,
        r#"{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}"#,
        r#"{"a": {"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 18446744073709551615]}}"#,
        r#"{"a": {"dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}"#,
        r#"[]"#,
    ] {
        assert!(with_header(header).is_err(), "{header}");
    }
    assert!(parse([&u64::MAX.to_le_bytes()[..], &[0; 64]].concat()).is_err());
    // Tensors that follow each other to the end of what 64 bits address.
    let eighth = u64::MAX / 8;
    let tensors = (0..8).map(|i| {
        let (start, end) = (i * eighth, (i + 1) * eighth);
        format!(r#""t{i}": {{"dtype": "U8", "shape": [{eighth}], "data_offsets": [{start}, {end}]}}"#)
    });
    let error = with_header(&format!("{{{}}}", tensors.collect::<Vec<_>>().join(", "))).unwrap_err().to_string();
    assert!(error.contains("beyond the file"), "{error}");
}

#[test]
fn assembled_bytes_are_blocks_of_the_table() {
    let dir = checkpoint(json!({"quantization": {"bits": 8, "group_size": 128}}), &module("m", 8, 128, "BF16"));
    let opened = Checkpoint::open(dir.path()).unwrap();
    let tensor = opened.tensor("m.weight").unwrap();
    let row = tensor.dtype.row_bytes(tensor.depth()).unwrap();
    assert_eq!(tensor.bytes.len(), row * tensor.rows());
    let mut second = vec![0.0; tensor.depth()];
    codec::decode(tensor.dtype, &tensor.bytes[row..2 * row], &mut second);
    assert_eq!(second, tensor.decode()[tensor.depth()..2 * tensor.depth()]);
}
