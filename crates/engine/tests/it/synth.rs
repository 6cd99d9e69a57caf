//! Synthetic models: every architecture in every format runs, a line says all, and nothing but it decides the bits.

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use tessera_engine::{
    Checkpoint, LoadOptions, Session, Special,
    chat_template::{ChatTemplate, Message},
    models,
    synth::{self, Spec, SynthError},
};
use tessera_formats::DType;
use tessera_ops::reference::ReferenceDevice;

/// The least sizes that K-quants and gemma's alternating layers allow.
fn tiny(architecture: &str, more: &str) -> Spec {
    let sizes = "layers=1,width=256,heads=4,kv_heads=1,head_dim=64,feed_forward=256,vocabulary=300";
    let experts = match architecture {
        "qwen3moe" => "experts=4,experts_used=2,",
        "glm4moe" => "dense_layers=0,experts=4,experts_used=2,",
        "gpt-oss" => "experts=4,experts_used=2,expert_feed_forward=256,",
        "gemma4" => "experts=4,experts_used=2,per_layer=256,",
        "deepseek4" => "experts=4,experts_used=2,indexer_dim=64,top_k=2,",
        _ => "",
    };
    Spec::parse(&format!("synth:{architecture},{sizes},{experts}{more}")).unwrap()
}

fn memory(spec: &Spec) -> Checkpoint {
    synth::checkpoint(spec, 2).unwrap()
}

fn file(spec: &Spec, path: &Path, threads: usize) -> Checkpoint {
    synth::write(spec, path, threads, &mut |_| {}).unwrap();
    Checkpoint::open(path).unwrap()
}

fn session(checkpoint: &Checkpoint) -> Session {
    let options = LoadOptions { context: Some(64), ..LoadOptions::default() };
    let model = models::load(checkpoint, Arc::new(ReferenceDevice), &options, &mut |_| {}).unwrap();
    Session::new(model, 512)
}

/// Root of the mean square of the logits after a few tokens.
fn logits_size(checkpoint: &Checkpoint) -> f64 {
    let mut session = session(checkpoint);
    session.prefill(&[256, 72, 105, 270, 299]).unwrap();
    let logits = session.logits();
    assert!(logits.iter().all(|l| l.is_finite()));
    assert!(logits.iter().any(|l| *l != logits[0]));
    (logits.iter().map(|l| f64::from(*l).powi(2)).sum::<f64>() / logits.len() as f64).sqrt()
}

#[test]
fn every_architecture_runs_in_every_format_with_logits_of_size_one() {
    for architecture in synth::architectures() {
        for format in DType::all() {
            let size = logits_size(&memory(&tiny(architecture, &format!("format={format}"))));
            assert!((0.4..2.5).contains(&size), "{architecture} {format}: {size}");
        }
    }
}

#[test]
fn depth_neither_blows_up_nor_fades() {
    for architecture in synth::architectures() {
        for layers in [1, 12, 48] {
            let line = format!("{architecture},layers={layers},width=64,head_dim=32,vocabulary=300,format=Q8_0");
            let size = logits_size(&memory(&Spec::parse(&line).unwrap()));
            assert!((0.5..2.0).contains(&size), "{architecture} of {layers} layers: {size}");
        }
    }
}

#[test]
fn replies_wander() {
    for architecture in synth::architectures() {
        for tied in [true, false] {
            let mut session = session(&memory(&tiny(architecture, &format!("format=Q8_0,tied={tied}"))));
            session.prefill(&[256, 72, 105]).unwrap();
            let mut reply = std::collections::HashSet::new();
            for _ in 0..24 {
                let best = session.logits().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
                reply.insert(best);
                session.decode(best).unwrap();
            }
            assert!(reply.len() >= 4, "{architecture}, tied={tied}: {reply:?}");
        }
    }
}

#[test]
fn memory_and_file_agree_to_the_bit_on_any_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("1.gguf"), folder.path().join("2.gguf"));
    for architecture in synth::architectures() {
        let formats = DType::all().filter(|d| d.ggml_id().is_some()).map(|d| format!("format={d}"));
        // Large enough to be shared among threads.
        let parts = if architecture == "deepseek4" { ["attn_output_a", "attn_kv"] } else { ["attn_output", "attn_v"] };
        let mixed = format!("vocabulary=9000,format=Q4_K,head=F32,{}=Q6_K,{}=IQ3_S", parts[0], parts[1]);
        for more in formats.chain([mixed.clone()]) {
            let spec = match more == mixed {
                true => Spec::parse(&format!("{architecture},layers=2,width=512,{more}")).unwrap(),
                false => tiny(architecture, &more),
            };
            let (memory, written) = (memory(&spec), file(&spec, &one, 1));
            assert_eq!(memory.metadata(), written.metadata(), "{spec}");
            assert_eq!(memory.tensors().len(), written.tensors().len(), "{spec}");
            for (a, b) in memory.tensors().iter().zip(written.tensors()) {
                assert_eq!((&a.name, a.dtype, &a.shape), (&b.name, b.dtype, &b.shape), "{spec}");
                assert!(*a.bytes == *b.bytes, "{spec}: {}", a.name);
            }
            file(&spec, &two, 2);
            assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(), "{spec}: one thread and two");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside the files");
}

#[test]
fn layers_can_be_alike() {
    for architecture in synth::architectures() {
        let of_three = |more: &str| {
            let line = tiny(architecture, more).to_string();
            Spec::parse(&line.replacen(",layers=1,", ",layers=3,", 1)).unwrap()
        };
        let (alike, apart) = (memory(&of_three("alike=true")), memory(&of_three("")));
        let names =
            |all: &Checkpoint| all.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<Vec<_>>();
        assert_eq!(names(&alike), names(&apart), "{architecture}: the same tensors");
        // Parts of a layer, by name, format and shape: the first of each kind.
        let mut kinds = std::collections::HashMap::new();
        let mut copies = 0;
        for t in alike.tensors() {
            let Some((_, part)) = t.name.strip_prefix("blk.").and_then(|name| name.split_once('.')) else { continue };
            let first = kinds.entry((part, t.dtype, t.shape.clone())).or_insert(t);
            assert!(*first.bytes == *t.bytes && first.bytes.are_made_alike(&t.bytes), "{architecture}: {}", t.name);
            copies += usize::from(first.name != t.name);
        }
        assert!(copies > 0 && kinds.len() > 1, "{architecture} has several layers");
        let first = kinds.values().next().unwrap();
        let other = kinds.values().find(|t| t.name != first.name && t.bytes.len() == first.bytes.len());
        assert!(other.is_none_or(|other| *other.bytes != *first.bytes), "{architecture}: parts differ");
    }
}

#[test]
fn the_seed_and_the_name_decide_the_bits() {
    let bytes = |line: &str| {
        let all = memory(&tiny("qwen2", line));
        let tensors = all.tensors().iter().map(|t| (t.name.clone(), t.bytes.to_vec()));
        tensors.collect::<std::collections::HashMap<_, _>>()
    };
    let first = bytes("seed=7");
    assert_eq!(first, bytes("seed=7"));
    let other = bytes("seed=8");
    assert!(first.iter().all(|(name, bytes)| other[name] != *bytes), "another seed changes every tensor");
    let distinct: std::collections::HashSet<_> = first.values().collect();
    assert_eq!(distinct.len(), first.len(), "no two tensors are alike");
    // More layers, another format or head elsewhere: what is the same tensor has the same bits.
    let wider = bytes("seed=7,ffn_down=Q6_K,tied=true");
    let same = first.iter().filter(|(name, bytes)| wider.get(*name) == Some(bytes)).count();
    assert_eq!(same, first.len() - 3, "all but ffn_down, the head and its norm");
}

#[test]
fn progress_reaches_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let spec = tiny("llama", "");
    let mut seen = Vec::new();
    synth::write(&spec, &folder.path().join("a.gguf"), 1, &mut |p| seen.push((p.bytes_done, p.bytes_total))).unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|(_, total)| *total == spec.weight_bytes()));
    assert_eq!(seen.last(), Some(&(spec.weight_bytes(), spec.weight_bytes())));
}

#[test]
fn the_tokenizer_says_any_text_and_knows_words() {
    let spec = Spec::parse("llama,vocabulary=20000").unwrap();
    let checkpoint = memory(&spec);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!((tokenizer.vocab_len(), tokenizer.adds_bos()), (20_000, true));
    for text in ["", "hello world", "ÄÖ\u{1f600}\0 \n\t", "<|im_end|>"] {
        let ids = tokenizer.encode(text, Special::Plain, false).unwrap();
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    }
    let ids = tokenizer.encode("hello world", Special::Plain, true).unwrap();
    assert!(ids.len() <= 7 && ids.iter().filter(|id| **id >= 260).count() >= 4, "{ids:?}");
    assert_eq!(tokenizer.encode("<|im_end|>", Special::Parse, false).unwrap(), [259]);
    assert!(tokenizer.is_end_of_generation(257) && tokenizer.is_end_of_generation(259));
    let source = checkpoint.chat_template().unwrap();
    let template = ChatTemplate::new("synth", source.as_deref(), &tokenizer).unwrap();
    let prompt = template.render(&[Message::new("user", "hi")], &Default::default()).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn defaults_make_a_model_of_every_architecture() {
    for architecture in synth::architectures() {
        let spec: Spec = format!("synth:{architecture}").parse().unwrap();
        assert_eq!(spec.architecture(), architecture);
        assert_eq!(spec, Spec::parse(&spec.to_string()).unwrap());
        let checkpoint = memory(&spec);
        assert_eq!(checkpoint.file(), spec.to_string());
        let config = tessera_engine::Config::read(&checkpoint).unwrap();
        assert_eq!((config.layers.len(), config.hidden, config.vocabulary), (4, 512, 32_000));
        let window = config.layers.iter().find_map(|layer| layer.window);
        let windows = [("gemma3", 512), ("gemma4", 512), ("gpt-oss", 128)];
        assert_eq!(window, windows.into_iter().find(|(name, _)| *name == architecture).map(|(_, window)| window));
        assert_eq!(checkpoint.tensor("output.weight").is_none(), architecture.starts_with("gemma"));
    }
    let line = "synth:llama,layers=32,width=4096,heads=32,kv_heads=8,feed_forward=14336,vocabulary=128256,format=Q4_K";
    let spec = Spec::parse(line).unwrap();
    assert!((4_400_000_000..4_600_000_000).contains(&spec.weight_bytes()), "{}", spec.weight_bytes());
    assert!(spec.to_string().contains(",head_dim=128,"), "{spec}");
}

#[test]
fn a_name_stands_for_a_whole_model() {
    let flash = Spec::parse("deepseek4-flash").unwrap();
    assert_eq!((flash.architecture(), &Spec::parse(&flash.to_string()).unwrap()), ("deepseek4", &flash));
    assert!((80..82).contains(&(flash.weight_bytes() >> 30)), "{}", flash.weight_bytes());
    let small = Spec::parse("deepseek4-flash,layers=5,vocabulary=300,experts=8,seed=3").unwrap();
    let checkpoint = memory(&small);
    let shape = |name: &str| checkpoint.tensor(name).map(|t| (t.shape.clone(), t.dtype)).unwrap();
    let expected = [
        ("blk.2.attn_q_b.weight", vec![1024, 32768], DType::Q8_0),
        ("blk.0.attn_output_a.weight", vec![4096, 8192], DType::Q8_0),
        ("blk.4.attn_output_b.weight", vec![8192, 4096], DType::Q8_0),
        ("blk.3.attn_compressor_kv.weight", vec![4096, 512], DType::F16),
        ("blk.4.attn_compressor_ape.weight", vec![1024, 4], DType::F16),
        ("blk.4.indexer.attn_q_b.weight", vec![1024, 8192], DType::F16),
        ("blk.4.indexer_compressor_gate.weight", vec![4096, 256], DType::F16),
        ("blk.1.hc_ffn_fn.weight", vec![16384, 24], DType::F16),
        ("blk.2.ffn_gate_tid2eid.weight", vec![6, 300], DType::I32),
        ("blk.3.exp_probs_b.bias", vec![8], DType::F32),
        ("blk.3.ffn_up_exps.weight", vec![4096, 2048, 8], DType::IQ2_XXS),
        ("blk.3.ffn_down_exps.weight", vec![2048, 4096, 8], DType::Q2_K),
        ("token_embd.weight", vec![4096, 300], DType::F16),
        ("output.weight", vec![4096, 300], DType::Q8_0),
    ];
    for (name, dimensions, dtype) in expected {
        assert_eq!(shape(name), (dimensions, dtype), "{name}");
    }
    // A layer that drafts comes when it is asked for, and leaves the rest as it is.
    let drafting =
        memory(&Spec::parse("deepseek4-flash,layers=5,vocabulary=300,experts=8,seed=3,draft_layers=1").unwrap());
    let of_layer = |all: &Checkpoint| all.tensors().iter().filter(|t| t.name.starts_with("blk.5.")).count();
    assert_eq!(
        (of_layer(&checkpoint), of_layer(&drafting)),
        (0, checkpoint.tensors().iter().filter(|t| t.name.starts_with("blk.1.")).count() + 7)
    );
    for tensor in checkpoint.tensors() {
        let other = drafting.tensor(&tensor.name).unwrap();
        assert_eq!((other.dtype, &other.shape), (tensor.dtype, &tensor.shape), "{}", tensor.name);
    }
    let joint = drafting.tensor("blk.5.nextn.eh_proj.weight").unwrap();
    assert_eq!((joint.dtype, &joint.shape), (DType::Q8_0, &vec![8192, 4096]));
    let [plain, drafting] = [&checkpoint, &drafting].map(|c| tessera_engine::Config::read(c).unwrap());
    assert_eq!((plain.layers.len(), drafting.layers.len()), (5, 5));
    assert_eq!((plain.latent.unwrap().drafts, drafting.latent.unwrap().drafts), (false, true));
    let table = checkpoint.tensor("blk.0.ffn_gate_tid2eid.weight").unwrap().bytes.to_vec();
    let experts: Vec<i32> = table.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    for row in experts.chunks_exact(6) {
        let distinct: std::collections::HashSet<_> = row.iter().filter(|e| (0..8).contains(*e)).collect();
        assert_eq!(distinct.len(), 6, "{row:?}");
    }
    assert!(checkpoint.tensor("blk.0.attn_compressor_kv.weight").is_none());
    assert!(
        checkpoint.tensor("blk.3.indexer.proj.weight").is_none()
            && checkpoint.tensor("blk.3.ffn_gate_tid2eid.weight").is_none()
    );
}

#[test]
fn wrong_lines_say_what_to_write() {
    let cases = [
        ("", "llama, qwen2, qwen3, qwen3moe, gemma3, gemma4, gpt-oss, glm4moe, deepseek4"),
        ("synth:gpt5,layers=1", "`gpt5` is no architecture"),
        ("synth:llama,layer=1", "llama has no key `layer`; its keys are layers, width,"),
        ("synth:llama,window=1", "no key `window`"),
        ("synth:llama,layers", "`layers` is not of the form KEY=VALUE"),
        ("synth:llama,layers=1,layers=2", "`layers` appears twice"),
        ("synth:llama,seed=1,seed=1", "`seed` appears twice"),
        ("synth:llama,tied=true,tied=true", "`tied` appears twice"),
        ("synth:llama,format=F16,format=F16", "`format` appears twice"),
        ("synth:llama,layers=0", "layers=0 is no whole number from 1 to 1024"),
        ("synth:llama,layers=-1", "layers=-1 is no whole number"),
        ("synth:llama,width=99999999999999999999", "width=99999999999999999999 is no whole number"),
        ("synth:llama,vocabulary=259", "vocabulary=259 is no whole number from 260"),
        ("synth:llama,tied=maybe", "tied=maybe is neither true nor false"),
        ("synth:llama,format=Q4_K_M", "format=Q4_K_M names no format of weights; the formats are F32, F16"),
        ("synth:llama,format=I32", "format=I32 names no format of weights"),
        ("synth:llama,heads=6,kv_heads=4", "4 heads of keys do not divide 6 heads"),
        ("synth:llama,head_dim=63", "head_dim=63 is odd"),
        ("synth:llama,width=480", "rows of embedding have 480 weights"),
        ("synth:llama,width=480", "make width a multiple of 256, or set embedding=Q8_0"),
        ("synth:llama,width=500,format=Q8_0", "set embedding=F16"),
        ("synth:llama,heads=5", "make heads × head_dim a multiple of 256, or set attn_output=Q8_0"),
        ("synth:llama,feed_forward=300", "make feed_forward a multiple of 256, or set ffn_down=F16"),
        ("synth:qwen3moe,experts=4,experts_used=5", "a token cannot go to 5 of 4 experts"),
        ("synth:qwen3moe,experts=0", "of 0 experts"),
        (
            "synth:qwen3moe,expert_feed_forward=100",
            "make expert_feed_forward a multiple of 256, or set ffn_down_exps=F16",
        ),
        ("synth:llama,experts=4", "no key `experts`"),
        ("synth:gemma4,layers=4,shared_kv_layers=4", "4 of 4 layers cannot share keys and values"),
        ("synth:gemma4,layers=12,shared_kv_layers=7", "a layer of each kind must be left"),
        ("synth:gemma4,full_head_dim=63", "head_dim=63 is odd"),
        ("synth:deepseek4,heads=6,output_groups=4", "4 groups do not divide 6 heads"),
        ("synth:deepseek4-flash,layers=1,layers=2", "`layers` appears twice"),
        ("synth:gemma3,head=Q8_0,embedding=Q4_0", "head=Q8_0 and embedding=Q4_0 contradict"),
        ("synth:llama,layers=1024,width=65536,feed_forward=524288,format=F32", "1024.0 GiB is the most"),
    ];
    for (line, part) in cases {
        let error = Spec::parse(line).unwrap_err().to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    let endless = format!("synth:llama,{}=1", "k\u{1b}".repeat(10_000));
    let error = Spec::parse(&endless).unwrap_err().to_string();
    assert!(error.len() < 1000 && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn formats_without_a_place_in_gguf_stay_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let error = synth::write(&tiny("llama", "format=MLX4_G64"), &path, 1, &mut |_| {}).unwrap_err();
    assert!(matches!(error, tessera_engine::Error::Synth(SynthError::NoGguf { format: "MLX4_G64" })), "{error}");
    assert!(!path.exists());
}

fn any_line() -> impl Strategy<Value = String> {
    let architecture = proptest::sample::select(synth::architectures().collect::<Vec<_>>());
    let format = || proptest::sample::select(DType::all().collect::<Vec<_>>());
    let sizes = (1usize..40, 1usize..12, 0usize..4, 1usize..300, 260usize..70_000);
    let formats = (format(), proptest::option::of(format()), proptest::option::of(format()));
    (architecture, sizes, formats, any::<u64>(), any::<bool>()).prop_map(
        |(architecture, (layers, blocks, kv, window, vocabulary), (format, head, down), seed, tied)| {
            let mut line = format!("{architecture},layers={layers},width={},vocabulary={vocabulary}", 256 * blocks);
            line += &format!(",heads=8,kv_heads={},head_dim=64,format={format},tied={tied},seed={seed}", 1 << kv);
            match architecture {
                "gemma3" | "gpt-oss" => line += &format!(",window={window}"),
                "gemma4" => line += &format!(",window={window},experts={},per_layer=256", window % 9),
                _ => {}
            }
            line += &head.map(|head| format!(",head={head}")).unwrap_or_default();
            let output = if architecture == "deepseek4" { "attn_output_a" } else { "attn_output" };
            line + &down.map(|down| format!(" , {output} = {}", down.name().to_lowercase())).unwrap_or_default()
        },
    )
}

proptest! {
    #[test]
    fn the_line_of_a_model_makes_the_same_model(line in any_line()) {
        let spec = Spec::parse(&line).unwrap();
        prop_assert_eq!(Spec::parse(&spec.to_string()).unwrap(), spec);
    }

    #[test]
    fn no_line_panics(
        line in r"(synth:)?(llama|gemma3|x)(,(layers|width|heads|kv_heads|head_dim|feed_forward|format|seed|\PC{0,3})={0,2}(\PC{0,4}|[0-9]{1,21}|Q4_K|f16)){0,6}"
    ) {
        if let Ok(spec) = Spec::parse(&line) {
            prop_assert!(spec.weight_bytes() <= 1 << 40);
            prop_assert_eq!(Spec::parse(&spec.to_string()).unwrap(), spec);
        }
    }
}
