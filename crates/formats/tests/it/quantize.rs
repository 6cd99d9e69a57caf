//! Whole files quantized: which tensor gets which format, that bytes are those of the encoders, and that failures
//! leave nothing behind.

use std::path::Path;

use tessera_formats::{
    Bytes, DType, Gguf, GgufWriter,
    codec::{self, EncodeError},
    gguf::Value,
    quantize::{Note, QuantizeError, QuantizePlan, Summary, quantize},
};

use crate::decode::random_bytes;

fn weights(seed: u64, len: usize) -> Vec<f32> {
    random_bytes(seed, len).iter().map(|b| (f32::from(*b) - 127.0) / 512.0).collect()
}

fn encoded(dtype: DType, weights: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode(dtype, weights, &mut out).unwrap();
    out
}

/// A file with a tensor of each kind; every one has its own weights.
const TENSORS: [(&str, DType, &[usize]); 12] = [
    ("token_embd.weight", DType::F16, &[256, 40]),
    ("output_norm.weight", DType::F32, &[256]),
    ("output.weight", DType::BF16, &[256, 40]),
    ("rope_freqs.weight", DType::F32, &[64]),
    ("blk.0.attn_q.weight", DType::F32, &[512, 3000]),
    ("blk.0.attn_q.bias", DType::F16, &[512]),
    ("blk.0.ffn_up_exps.weight", DType::F32, &[256, 3, 2]),
    ("blk.0.ffn_gate_inp.weight", DType::F32, &[256, 2]),
    ("blk.0.ffn_down.weight", DType::F32, &[96, 5]),
    ("blk.0.odd.weight", DType::F32, &[100, 5]),
    ("blk.0.attn_k.weight", DType::Q8_0, &[256, 7]),
    ("token_map", DType::I32, &[256, 2]),
];

fn file(keep: impl Fn(&str) -> bool, change: impl Fn(&str, &mut Vec<f32>)) -> Gguf {
    let mut writer = GgufWriter::new().set("general.name", "tiny".to_owned()).set("general.file_type", 0u32);
    for (i, (name, dtype, shape)) in TENSORS.into_iter().enumerate().filter(|(_, t)| keep(t.0)) {
        let len = shape.iter().product();
        let mut weights = weights(i as u64, len);
        change(name, &mut weights);
        let bytes = match dtype {
            DType::I32 => random_bytes(9, 4 * len),
            DType::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(), // NaN too, which `encode` refuses
            _ => encoded(dtype, &weights),
        };
        writer = writer.tensor(name, dtype, shape, bytes);
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    Gguf::parse("tiny", Bytes::from(bytes)).unwrap()
}

fn plan(dtype: DType) -> QuantizePlan {
    QuantizePlan { dtype, output: None, embedding: None, threads: 3 }
}

fn run(source: &Gguf, plan: &QuantizePlan, path: &Path) -> Result<Summary, QuantizeError> {
    quantize(source, plan, path, &mut |_| {})
}

#[test]
fn each_tensor_gets_its_format_and_the_encoders_bytes() {
    let (folder, source) = (tempfile::tempdir().unwrap(), file(|_| true, |_, _| {}));
    let path = folder.path().join("out.gguf");
    let plan = QuantizePlan { output: Some(DType::Q6_K), ..plan(DType::Q4_K) };
    let summary = run(&source, &plan, &path).unwrap();
    let result = Gguf::open(&path).unwrap();
    use DType::*;
    let want = [Q4_K, F32, Q6_K, F32, Q4_K, F32, Q4_K, F32, Q8_0, F16, Q4_K, I32];
    for ((old, new), want) in source.tensors().iter().zip(result.tensors()).zip(want) {
        assert_eq!((&old.name, &old.shape, want), (&new.name, &new.shape, new.dtype));
        match old.dtype == want {
            true => assert_eq!(*old.bytes, *new.bytes, "{}", old.name),
            false => assert!(*new.bytes == *encoded(want, &old.decode()), "{}", old.name),
        }
    }
    let notes: Vec<_> = summary.assignments.iter().map(|a| a.note).collect();
    assert_eq!(notes[8], Some(Note::Fallback { wanted: Q4_K, used: Q8_0, depth: 96 }));
    assert_eq!(notes[9], Some(Note::Fallback { wanted: Q4_K, used: F16, depth: 100 }));
    assert_eq!(notes[10], Some(Note::Requantized { from: Q8_0 }));
    assert_eq!(notes.iter().flatten().count(), 3);
    let again: Vec<_> = summary.assignments.iter().map(|a| a.requantized()).collect();
    assert_eq!(again.iter().position(|r| *r), Some(10));
    assert_eq!(again.iter().filter(|r| **r).count(), 1);
    let bytes = |g: &Gguf| g.tensors().iter().map(|t| t.bytes.len() as u64).sum::<u64>();
    assert_eq!((summary.bytes_before, summary.bytes_after), (bytes(&source), bytes(&result)));
}

#[test]
fn metadata_is_kept_and_names_the_new_format() {
    let (folder, source) = (tempfile::tempdir().unwrap(), file(|_| true, |_, _| {}));
    let path = folder.path().join("out.gguf");
    run(&source, &plan(DType::Q4_0), &path).unwrap();
    let result = Gguf::open(&path).unwrap();
    let metadata: Vec<_> = result.metadata().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let want = [
        ("general.name", Value::String("tiny".into())),
        ("general.file_type", Value::U32(2)),
        ("general.quantization_version", Value::U32(2)),
    ];
    assert_eq!(metadata, want.map(|(k, v)| (k.to_owned(), v)));
}

#[test]
fn embeddings_that_serve_as_output_take_its_format() {
    use DType::*;
    let cases = [
        // (file has an output matrix, output, embedding) and what the embedding becomes
        ((true, Some(Q6_K), None), Q4_0),
        ((true, None, Some(Q8_0)), Q8_0),
        ((false, Some(Q6_K), None), Q6_K),
        ((false, Some(Q6_K), Some(Q8_0)), Q8_0),
        ((false, None, None), Q4_0),
    ];
    for ((has_output, output, embedding), want) in cases {
        let source = file(|name| name != "output.weight" || has_output, |_, _| {});
        let assigned = QuantizePlan { output, embedding, ..plan(Q4_0) }.assign(&source).unwrap();
        assert_eq!(assigned[0].to, want, "{has_output} {output:?} {embedding:?}");
    }
}

#[test]
fn threads_change_nothing_and_progress_is_whole() {
    let (folder, source) = (tempfile::tempdir().unwrap(), file(|_| true, |_, _| {}));
    let total = source.tensors().iter().map(|t| t.len() as u64).sum::<u64>();
    let results = [0, 1, 2, 7].map(|threads| {
        let (path, mut done, mut last) = (folder.path().join("out.gguf"), 0, 0);
        let plan = QuantizePlan { threads, ..plan(DType::Q4_0) };
        quantize(&source, &plan, &path, &mut |p| {
            assert!(p.weights_done > done && p.index >= last && p.weights_total == total);
            assert_eq!(p.tensor, TENSORS[p.index].0);
            (done, last) = (p.weights_done, p.index);
        })
        .unwrap();
        assert_eq!((done, last), (total, TENSORS.len() - 1));
        std::fs::read(path).unwrap()
    });
    assert!(results.iter().all(|r| *r == results[0]));
}

#[test]
fn quantizing_to_the_same_format_copies() {
    let folder = tempfile::tempdir().unwrap();
    let [once, twice] = ["once.gguf", "twice.gguf"].map(|name| folder.path().join(name));
    run(&file(|_| true, |_, _| {}), &plan(DType::Q4_K), &once).unwrap();
    run(&Gguf::open(&once).unwrap(), &plan(DType::Q4_K), &twice).unwrap();
    assert!(std::fs::read(&once).unwrap() == std::fs::read(&twice).unwrap());
    // In place: the old file stays mapped until the new one takes its name.
    run(&Gguf::open(&once).unwrap(), &plan(DType::Q8_0), &once).unwrap();
    assert_eq!(Gguf::open(&once).unwrap().tensors()[0].dtype, DType::Q8_0);
}

#[test]
fn failures_name_the_tensor_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    // Far inside a matrix, so that another thread and a later slab meet it.
    let nan = file(
        |_| true,
        |name, w| {
            if name == "blk.0.attn_q.weight" {
                w[1_500_000] = f32::NAN
            }
        },
    );
    let large = file(
        |_| true,
        |name, w| {
            if name == "blk.0.odd.weight" {
                w[7] = 1e30
            }
        },
    );
    let refused = |source: &Gguf, plan: &QuantizePlan, want: &str| {
        let message = run(source, plan, &path).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{want}: a file was left");
    };
    refused(&nan, &plan(DType::Q4_0), "tensor `blk.0.attn_q.weight`: weight 1500000 is NaN");
    refused(&large, &plan(DType::Q4_0), "tensor `blk.0.odd.weight`: weight 7 is 1");
    refused(&large, &plan(DType::IQ4_XS), "IQ4_XS cannot be written");
    refused(&large, &QuantizePlan { embedding: Some(DType::MXFP4), ..plan(DType::F16) }, "MXFP4 cannot be written");

    std::fs::write(&path, "kept").unwrap();
    run(&large, &plan(DType::Q4_0), &path).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"kept", "a failure must not touch the old file");
    let nowhere = folder.path().join("missing/out.gguf");
    let failed = run(&file(|_| true, |_, _| {}), &plan(DType::Q4_0), &nowhere).unwrap_err();
    assert!(matches!(failed, QuantizeError::Write { .. }) && failed.to_string().contains("missing"), "{failed}");
    let none = QuantizeError::Format(EncodeError::NoEncoder { dtype: DType::TQ1_0 });
    assert!(none.to_string().contains("these can: F32, F16"), "{none}");
}
