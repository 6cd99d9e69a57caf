//! Tiny models against logits of the reference implementations (float32), whole, in chunks and token by token.

use std::{num::NonZero, path::PathBuf, sync::Arc};

use tessera_cpu::{CpuDevice, isa::Isa};
use tessera_engine::{Checkpoint, LoadOptions, Session, models};
use tessera_formats::{Bytes, Gguf, gguf::Value, safetensors};
use tessera_ops::{Device, KvFormat, reference::ReferenceDevice};

/// The lengths of the prompts that every fixture has.
const PROMPTS: [usize; 5] = [1, 7, 33, 130, 300];
/// Those of the fixture made with llama.cpp.
const SHORT_PROMPTS: [usize; 4] = [1, 7, 33, 130];

struct Fixture {
    folder: PathBuf,
    logits: Vec<safetensors::Stored>,
    /// Metadata that GGUF has no keys for.
    keys: Vec<(String, Value)>,
}

impl Fixture {
    fn open(name: &str) -> Fixture {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let logits = safetensors::open(&folder.join("logits.safetensors")).unwrap();
        // The release does not round where YaRN's blend begins and ends; this fixture does, as llama.cpp must.
        let truncate = ("gpt-oss.rope.scaling.yarn_truncate".to_owned(), Value::Bool(true));
        Fixture { folder, logits, keys: if name == "gpt_oss" { vec![truncate] } else { vec![] } }
    }

    fn bytes(&self, name: &str) -> Bytes {
        self.logits.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name} is recorded")).bytes.clone()
    }

    fn tokens(&self, len: usize) -> Vec<u32> {
        self.bytes(&format!("tokens.{len}")).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    fn expected(&self, len: usize) -> Vec<f32> {
        self.bytes(&format!("logits.{len}")).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn session<D: Device>(&self, device: &Arc<D>, chunk: usize) -> Session {
        let path = self.folder.join("model.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let metadata = gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone()));
        let metadata = metadata.chain(self.keys.iter().cloned()).collect();
        let file = path.display().to_string();
        let gguf = Gguf::from_parts(&file, metadata, gguf.tensors().to_vec()).unwrap();
        let checkpoint = Checkpoint::from_gguf(&file, gguf);
        // References do not round latent rows.
        let (context, kv_format, latent_rounding) = (Some(320), KvFormat::F32, false);
        let options = LoadOptions { context, kv_format, latent_rounding, ..LoadOptions::default() };
        Session::new(models::load(&checkpoint, device.clone(), &options, &mut |_| {}).unwrap(), chunk)
    }
}

fn scores(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    session.rewind(0);
    let mut all = Vec::new();
    session.score(tokens, &mut |_, logits| all.extend_from_slice(logits)).unwrap();
    all
}

fn worst_relative(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let scale = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt();
    got.iter().zip(want).map(|(g, w)| (g - w).abs() / w.abs().max(scale)).fold(0.0, f32::max)
}

/// Every prompt within `tolerance`, relative to the larger of a logit and the logits' root mean square; and the same
/// bits in chunks, and on the CPU with any instruction set and number of threads.
fn check(name: &str, prompts: &[usize], tolerance: f32) {
    let (fixture, device) = (Fixture::open(name), Arc::new(ReferenceDevice));
    let mut whole = fixture.session(&device, 512);
    let processors = processors();
    for &len in prompts {
        let tokens = fixture.tokens(len);
        let got = scores(&mut whole, &tokens);
        let worst = worst_relative(&got, &fixture.expected(len));
        assert!(worst <= tolerance, "{name}, {len} tokens: off by {worst}");
        let same = |other: &[f32], what: &str| {
            let same = got.len() == other.len() && got.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}, {len} tokens: {what} changes bits");
        };
        for chunk in [1, 7, 64] {
            same(&scores(&mut fixture.session(&device, chunk), &tokens), &format!("chunks of {chunk}"));
        }
        for processor in &processors {
            for chunk in [7, 512] {
                let what = format!("{}, chunks of {chunk}", processor.name());
                same(&scores(&mut fixture.session(processor, chunk), &tokens), &what);
            }
        }
    }
}

/// The CPU with every instruction set, alone and in company.
fn processors() -> Vec<Arc<CpuDevice>> {
    let threads = [1, 2].map(NonZero::new);
    let device = |threads, isa| Arc::new(CpuDevice::new(threads, Some(isa)).unwrap());
    Isa::available().into_iter().flat_map(|isa| threads.map(|t| device(t, isa))).collect()
}

#[test]
fn llama_agrees_with_its_reference() {
    check("llama", &PROMPTS, 1e-3);
}

#[test]
fn qwen2_agrees_with_its_reference() {
    check("qwen2", &PROMPTS, 1e-3);
}

#[test]
fn qwen3_agrees_with_its_reference() {
    check("qwen3", &PROMPTS, 1e-3);
}

#[test]
fn qwen3_moe_agrees_with_its_reference() {
    check("qwen3_moe", &PROMPTS, 1e-3);
}

#[test]
fn gemma4_agrees_with_its_reference() {
    check("gemma4", &PROMPTS, 1e-3);
}

#[test]
fn gemma4_with_experts_agrees_with_its_reference() {
    check("gemma4_moe", &PROMPTS, 1e-3);
}

#[test]
fn gemma4_with_per_layer_embeddings_agrees_with_its_reference() {
    check("gemma4_ple", &PROMPTS, 1e-3);
}

#[test]
fn glm4_moe_agrees_with_its_reference() {
    check("glm4_moe", &PROMPTS, 1e-3);
}

#[test]
fn deepseek4_agrees_with_its_reference() {
    check("deepseek4", &PROMPTS, 1e-3);
}

#[test]
fn deepseek4_with_heads_of_its_size_agrees_with_its_reference() {
    check("deepseek4_hd512", &PROMPTS, 1e-3);
}

#[test]
fn gpt_oss_agrees_with_its_reference() {
    check("gpt_oss", &PROMPTS, 1e-3);
}

#[test]
fn gemma3_agrees_with_its_reference() {
    // llama.cpp reads GELU from a table in half precision; see tools/make_gemma3_fixture.py.
    check("gemma3", &SHORT_PROMPTS, 1e-2);
}

#[test]
fn decoded_tokens_have_the_bits_of_prompt_tokens() {
    let (fixture, device) = (Fixture::open("qwen3"), Arc::new(ReferenceDevice));
    let tokens = fixture.tokens(130);
    let mut session = fixture.session(&device, 64);
    session.prefill(&tokens[..100]).unwrap();
    for t in &tokens[100..] {
        session.decode(*t).unwrap();
    }
    let decoded = session.logits().to_vec();
    session.rewind(0);
    session.prefill(&tokens).unwrap();
    assert_eq!(decoded, session.logits());
}
