//! Written GGUF files read back as what was written; wrong ones are never begun.

use proptest::{collection::vec, prelude::*};
use tessera_formats::{
    Bytes, DType, FormatError, Gguf, GgufWriter, Tensor,
    gguf::{Array, Value},
};

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        array().prop_map(Value::Array),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let len = 0..5;
    prop_oneof![
        vec(any::<u8>(), len.clone()).prop_map(Array::U8),
        vec(any::<i8>(), len.clone()).prop_map(Array::I8),
        vec(any::<u16>(), len.clone()).prop_map(Array::U16),
        vec(any::<i16>(), len.clone()).prop_map(Array::I16),
        vec(any::<u32>(), len.clone()).prop_map(Array::U32),
        vec(any::<i32>(), len.clone()).prop_map(Array::I32),
        vec(any::<u64>(), len.clone()).prop_map(Array::U64),
        vec(any::<i64>(), len.clone()).prop_map(Array::I64),
        vec(any::<f32>(), len.clone()).prop_map(Array::F32),
        vec(any::<f64>(), len.clone()).prop_map(Array::F64),
        vec(any::<bool>(), len.clone()).prop_map(Array::Bools),
        vec(any::<String>(), len).prop_map(Array::Strings),
    ]
}

/// A format, a shape of whole blocks and bytes to fill it.
fn tensor() -> impl Strategy<Value = (DType, Vec<usize>, Vec<u8>)> {
    let formats: Vec<DType> = (0..50).filter_map(DType::from_ggml_id).collect();
    (proptest::sample::select(formats), vec(1usize..4, 1..=4)).prop_flat_map(|(dtype, mut shape)| {
        shape[0] *= dtype.block_len();
        let len = dtype.row_bytes(shape[0]).unwrap() * shape[1..].iter().product::<usize>();
        (Just(dtype), Just(shape), vec(any::<u8>(), len))
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        metadata in proptest::collection::btree_map("[a-z]{1,8}", value(), 0..8),
        tensors in proptest::collection::btree_map("[a-z.0-9]{1,12}", tensor(), 0..6),
        alignment in proptest::option::of(3u32..12),
    ) {
        let mut writer = GgufWriter::new();
        for (key, value) in &metadata {
            writer = writer.set(key, value.clone());
        }
        if let Some(power) = alignment {
            writer = writer.set("general.alignment", 1u32 << power);
        }
        for (i, (name, (dtype, shape, bytes))) in tensors.iter().enumerate() {
            writer = match i % 2 {
                0 => writer.tensor(name, *dtype, shape.clone(), bytes.clone()),
                _ => writer.produced_tensor(name, *dtype, shape.clone(), |out| out.write_all(bytes)),
            };
        }
        let mut file = Vec::new();
        writer.write_to(&mut file).unwrap();
        let read = Gguf::parse("out", Bytes::new(file)).unwrap();
        prop_assert_eq!(read.version(), 3);
        // NaNs are compared as text.
        let entries = read.metadata().filter(|(k, _)| *k != "general.alignment");
        prop_assert_eq!(
            format!("{:?}", entries.collect::<Vec<_>>()),
            format!("{:?}", metadata.iter().map(|(k, v)| (&k[..], v)).collect::<Vec<_>>())
        );
        prop_assert_eq!(read.tensors().len(), tensors.len());
        for (tensor, (name, (dtype, shape, bytes))) in read.tensors().iter().zip(&tensors) {
            prop_assert_eq!((&tensor.name, tensor.dtype, &tensor.shape), (name, *dtype, shape));
            prop_assert_eq!(&*tensor.bytes, &bytes[..]);
        }
    }
}

#[test]
fn a_key_set_twice_keeps_the_last_value() {
    let mut file = Vec::new();
    GgufWriter::new().set("a", 1u32).set("b", 2u32).set("a", "three").write_to(&mut file).unwrap();
    let read = Gguf::parse("out", Bytes::new(file)).unwrap();
    assert!(read.metadata().eq([("a", &Value::from("three")), ("b", &Value::U32(2))]));
}

/// Writes and expects an error with `want`; returns what was written until then.
fn refused(writer: GgufWriter<'_>, want: &str) -> Vec<u8> {
    let mut file = Vec::new();
    let error = writer.write_to(&mut file).unwrap_err().to_string();
    assert!(error.contains(want) && error.starts_with("the GGUF file to be written: "), "{error}");
    file
}

#[test]
fn wrong_parts_write_nothing() {
    let zeros = |n| vec![0u8; n];
    let new = GgufWriter::new;
    let cases = [
        (new().tensor("t", DType::F32, [2], zeros(9)), "`t`: has 9 bytes, and its shape asks for 8"),
        (new().tensor("t", DType::Q4_K, [255], zeros(144)), "Q4_K blocks"),
        (new().tensor("t", DType::F32, [], zeros(4)), "0 dimensions"),
        (new().tensor("t", DType::F32, [0], zeros(0)), "dimension of zero"),
        (new().tensor("t", DType::MLX4_G32, [32], zeros(24)), "no GGUF type"),
        (new().tensor("t", DType::I8, [1], zeros(1)).tensor("t", DType::I8, [1], zeros(1)), "twice"),
        (new().set("general.alignment", 12u32), "`general.alignment`"),
        (new().produced_tensor("t", DType::F32, [usize::MAX], |_| Ok(())), "too large"),
    ];
    for (writer, want) in cases {
        assert!(refused(writer, want).is_empty(), "{want}: a part of the file was written");
    }
}

#[test]
fn produced_bytes_must_fill_the_shape() {
    for len in [7, 9] {
        let writer = GgufWriter::new().produced_tensor("t", DType::F32, [2], move |out| out.write_all(&vec![0; len]));
        refused(writer, &format!("{len} bytes were written, and its shape asks for 8"));
    }
}

#[test]
fn a_full_disk_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(GgufWriter::new().write_to(&mut Full), Err(FormatError::Io { .. })));
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let names = || std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    let failing = GgufWriter::new().produced_tensor("a", DType::F32, [2], |_| Err(std::io::Error::other("no more")));
    let error = failing.write_file(&path).unwrap_err().to_string();
    assert!(error.contains("a.gguf") && error.contains("no more"), "{error}");
    assert!(names().is_empty(), "{:?}", names());
    for value in [1.0f32, 2.0] {
        let bytes = value.to_le_bytes().to_vec();
        GgufWriter::new().tensor("a", DType::F32, [1], bytes).write_file(&path).unwrap();
        assert_eq!(
            Gguf::open(&path).unwrap().tensor("a").unwrap().decode(),
            [value],
            "a file that is there is replaced"
        );
        assert_eq!(names(), ["a.gguf"]);
    }
    let nowhere = folder.path().join("missing/a.gguf");
    assert!(GgufWriter::new().write_file(&nowhere).unwrap_err().to_string().contains("missing/a.gguf"));
}

#[test]
fn parts_make_the_same_as_a_file_of_them() {
    let tensor = |name: &str, shape: &[usize], len: usize| Tensor {
        name: name.to_owned(),
        dtype: DType::Q8_0,
        shape: shape.to_vec(),
        bytes: Bytes::from(vec![1; len]),
    };
    let metadata = || vec![("k".to_owned(), Value::from(3u32)), ("l".to_owned(), Value::from("x"))];
    let parts = Gguf::from_parts("m", metadata(), vec![tensor("a", &[64, 2], 136), tensor("b", &[32], 34)]).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in parts.metadata() {
        writer = writer.set(key, value.clone());
    }
    for t in parts.tensors() {
        writer = writer.tensor(&t.name, t.dtype, &*t.shape, t.bytes.clone());
    }
    let mut out = Vec::new();
    writer.write_to(&mut out).unwrap();
    let read = Gguf::parse("m", Bytes::from(out)).unwrap();
    assert!(read.metadata().eq(parts.metadata()));
    for (a, b) in read.tensors().iter().zip(parts.tensors()) {
        assert_eq!((&a.name, a.dtype, &a.shape, &*a.bytes), (&b.name, b.dtype, &b.shape, &*b.bytes));
    }
    assert_eq!(parts.get("k"), read.get("k"));
    assert_eq!(parts.tensor("b").unwrap().shape, [32]);

    let wrong = [
        (vec![tensor("a", &[32], 34), tensor("a", &[32], 34)], "twice"),
        (vec![tensor("a", &[32], 33)], "33 bytes, and its shape asks for 34"),
        (vec![tensor("a", &[31], 34)], "31 values do not divide"),
        (vec![tensor("a", &[32, 0], 0)], "dimension of zero"),
        (vec![tensor("a", &[], 0)], "0 dimensions"),
        (vec![tensor("a", &[32, usize::MAX], 34)], "too large"),
    ];
    for (tensors, part) in wrong {
        let error = Gguf::from_parts("m", metadata(), tensors).unwrap_err().to_string();
        assert!(error.starts_with("m: tensor `a`") && error.contains(part), "{error}");
    }
    let twice = [metadata(), metadata()].concat();
    assert!(Gguf::from_parts("m", twice, vec![]).unwrap_err().to_string().contains("key `k`"));
}
