//! Sound GGUF files read back as what was put in.

use tessera_formats::{
    Bytes, DType, Gguf,
    gguf::{Array, Value},
};

use crate::gguf_bytes::{Parts, entry};

#[test]
fn every_value_type_is_read() {
    let file = Gguf::parse("f", Bytes::new(Parts::sound().build())).unwrap();
    let want = [
        ("general.architecture", Value::from("llama")),
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-1)),
        ("u16", Value::U16(60000)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-3)),
        ("f32", Value::F32(1.5)),
        ("bool", Value::Bool(true)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(-4)),
        ("f64", Value::F64(0.25)),
        ("tokens", Value::Array(Array::Strings(vec!["a".into(), "\u{fffd}".into()]))),
        ("scores", Value::Array(Array::F32(vec![0.0, 0.0]))),
        ("flags", Value::Array(Array::Bools(vec![false, true, false]))),
    ];
    assert!(file.metadata().eq(want.iter().map(|(k, v)| (*k, v))));
    assert_eq!(file.get("u16"), Some(&Value::U16(60000)));
    assert_eq!(file.get("none"), None);
    assert_eq!(file.version(), 3);
}

#[test]
fn tensors_are_found_and_decoded() {
    let file = Gguf::parse("f", Bytes::new(Parts::sound().build())).unwrap();
    assert_eq!(file.tensors().iter().map(|t| &t.name[..]).collect::<Vec<_>>(), ["a", "b", "c"]);
    let a = file.tensor("a").unwrap();
    assert_eq!((a.dtype, &a.shape[..], a.depth(), a.rows(), a.len()), (DType::F32, &[4, 2][..], 4, 2, 8));
    assert_eq!(a.decode(), [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5]);
    let b = file.tensor("b").unwrap();
    assert_eq!((b.dtype, b.rows(), b.bytes.len()), (DType::Q8_0, 1, 34));
    assert_eq!(file.tensor("c").unwrap().decode(), [7.0, -8.0, 1048576.0]);
    assert!(file.tensor("d").is_none());
}

#[test]
fn version_2_and_other_alignments_are_read() {
    let mut parts = Parts { version: 2, alignment: 64, ..Parts::sound() };
    parts.entries.push(entry(b"general.alignment", 4, &64u32.to_le_bytes()));
    parts.tensors.truncate(1);
    let file = Gguf::parse("f", Bytes::new(parts.build())).unwrap();
    assert_eq!((file.version(), file.tensors()[0].decode()[0]), (2, -2.5));
}

#[test]
fn a_file_on_disk_is_mapped() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), Parts::sound().build()).unwrap();
    let opened = Gguf::open(file.path()).unwrap();
    let kept = opened.tensor("a").unwrap().clone();
    drop(opened);
    assert_eq!(kept.decode()[7], 4.5); // the tensor keeps the mapping alive
}

#[test]
fn unreadable_paths_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (path, want) in [(dir.path().join("absent.gguf"), "absent.gguf"), (dir.path().to_owned(), "regular file")] {
        let message = Gguf::open(&path).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(Gguf::open(&empty).unwrap_err().to_string().contains("not a GGUF file"));
}

#[test]
fn a_nan_scale_is_located() {
    let mut parts = Parts::sound();
    parts.data[16..20].copy_from_slice(&f32::NAN.to_le_bytes());
    parts.data[32..34].copy_from_slice(&[0x00, 0xfc]); // Q8_0 with scale minus infinity
    let file = Gguf::parse("f", Bytes::new(parts.build())).unwrap();
    let fault = |name: &str| file.tensor(name).unwrap().check_finite("f").unwrap_err().to_string();
    assert!(fault("a").contains("row 1") && fault("a").contains("value 0"), "{}", fault("a"));
    assert!(fault("b").starts_with("f: tensor `b`: row 0"), "{}", fault("b"));
    file.tensor("c").unwrap().check_finite("f").unwrap();
}
