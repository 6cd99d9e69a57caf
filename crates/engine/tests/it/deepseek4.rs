//! DeepSeek V4 beside its references: rounded rows, files of other making, files that are wrong, and the layer that drafts.

use std::{path::PathBuf, sync::Arc};

use tessera_engine::{Checkpoint, DraftFrom, Error, LanguageModel, LoadOptions, Session, models, synth};
use tessera_formats::{Bytes, DType, Gguf, Tensor, gguf::Value, safetensors};
use tessera_ops::{Batch, KvFormat, Role, reference::ReferenceDevice};

const TOKENS: [u32; 12] = [3, 77, 299, 5, 5, 120, 281, 9, 41, 200, 8, 3];

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/deepseek4")
}

/// A model's parts, to be changed.
pub(crate) struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Parts {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Parts {
        let gguf = checkpoint.gguf().unwrap();
        let metadata = gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        Parts { metadata, tensors: gguf.tensors().to_vec() }
    }

    pub(crate) fn fixture() -> Parts {
        Parts::of(&Checkpoint::open(&folder().join("model.gguf")).unwrap())
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Parts {
        let key = format!("deepseek4.{key}");
        self.metadata.retain(|(k, _)| *k != key);
        self.metadata.push((key, value.into()));
        self
    }

    fn remove(&mut self, key: &str) -> &mut Parts {
        self.metadata.retain(|(k, _)| *k != format!("deepseek4.{key}"));
        self
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"))
    }

    fn numbers(&mut self, name: &str) -> Vec<f32> {
        self.tensor(name).decode()
    }

    /// Puts a tensor of F32 in place of one of this name, if there is one.
    fn put(&mut self, name: &str, shape: &[usize], numbers: &[f32]) -> &mut Parts {
        assert_eq!(numbers.len(), shape.iter().product::<usize>(), "{name}");
        self.tensors.retain(|t| t.name != name);
        let bytes = Bytes::new(numbers.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        self.tensors.push(Tensor { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), bytes });
        self
    }

    fn zero(&mut self, name: &str) -> &mut Parts {
        let (shape, len) = (self.tensor(name).shape.clone(), self.numbers(name).len());
        self.put(name, &shape, &vec![0.0; len])
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let gguf = Gguf::from_parts("parts", self.metadata.clone(), self.tensors.clone()).unwrap();
        Checkpoint::from_gguf("parts", gguf)
    }

    fn load(&self, rounded: bool) -> Result<Box<dyn LanguageModel>, Error> {
        let options = LoadOptions {
            context: Some(320),
            kv_format: KvFormat::F32,
            latent_rounding: rounded,
            ..LoadOptions::default()
        };
        models::load(&self.checkpoint(), Arc::new(ReferenceDevice), &options, &mut |_| {})
    }

    fn scores(&self, tokens: &[u32], chunk: usize, rounded: bool) -> Vec<f32> {
        let mut session = Session::new(self.load(rounded).unwrap(), chunk);
        let mut all = vec![];
        session.score(tokens, &mut |_, logits| all.extend_from_slice(logits)).unwrap();
        all
    }
}

fn recorded(name: &str) -> Bytes {
    let all = safetensors::open(&folder().join("logits.safetensors")).unwrap();
    all.iter().find(|t| t.name == name).unwrap().bytes.clone()
}

pub(crate) fn prompt(len: usize) -> Vec<u32> {
    recorded(&format!("tokens.{len}")).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = logits.iter().map(|l| f64::from(l - highest).exp()).collect();
    let total: f64 = e.iter().sum();
    e.into_iter().map(|e| e / total).collect()
}

/// Mean over rows of what knowing `got` instead of `want` costs.
fn mean_divergence(got: &[f32], want: &[f32], vocabulary: usize) -> f64 {
    let rows = got.chunks(vocabulary).zip(want.chunks(vocabulary));
    let one = |(got, want): (&[f32], &[f32])| -> f64 {
        softmax(want).iter().zip(softmax(got)).map(|(w, g)| w * (w / g).ln()).sum()
    };
    rows.clone().map(one).sum::<f64>() / rows.count() as f64
}

#[test]
fn rounded_rows_change_little_and_not_with_the_chunk() {
    let (parts, tokens) = (Parts::fixture(), prompt(130));
    let (rounded, exact) = (parts.scores(&tokens, 512, true), parts.scores(&tokens, 512, false));
    let divergence = mean_divergence(&rounded, &exact, 384);
    // A few choices of rows flip, so single rows differ; none is lost.
    assert!(divergence > 1e-7 && divergence < 0.3, "{divergence}");
    for chunk in [1, 7, 64] {
        assert_eq!(bits(&parts.scores(&tokens, chunk, true)), bits(&rounded), "chunks of {chunk}");
    }
    let mut session = Session::new(parts.load(true).unwrap(), 64);
    session.prefill(&tokens[..100]).unwrap();
    tokens[100..].iter().for_each(|t| session.decode(*t).unwrap());
    assert_eq!(bits(session.logits()), bits(&rounded[129 * 384..]), "decoded");
}

#[test]
fn experts_of_four_bits_are_near() {
    let parts = Parts::of(&Checkpoint::open(&folder().join("model-mxfp4.gguf")).unwrap());
    let want: Vec<f32> = recorded("logits.33").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let divergence = mean_divergence(&parts.scores(&prompt(33), 512, false), &want, 384);
    // The weights are the same numbers; activations of experts have eight bits.
    assert!(divergence < 0.1, "{divergence}");
}

#[test]
fn files_of_other_making_are_the_same_model() {
    let tokens = prompt(33);
    let want = bits(&Parts::fixture().scores(&tokens, 512, false));
    type Change = fn(&mut Parts);
    let changes: [(&str, Change); 8] = [
        ("unsigned ratios, one more for a layer that drafts", |p| {
            p.set("attention.compress_ratios", vec![0u32, 4, 128, 4, 0]);
        }),
        ("ratios of eight bytes", |p| {
            p.set("attention.compress_ratios", vec![0i64, 4, 128, 4]);
        }),
        ("no gating function", |p| {
            p.remove("expert_gating_func");
        }),
        ("one limit for all", |p| {
            p.set("swiglu_clamp_exp", 2f32).remove("swiglu_clamp_shexp");
        }),
        ("more limits than layers", |p| {
            p.set("swiglu_clamp_shexp", vec![2f32; 5]);
        }),
        ("no name of the scaling, and a layer that drafts which is not there", |p| {
            p.remove("rope.scaling.type").set("nextn_predict_layers", 1u32);
        }),
        ("a context of eight bytes", |p| {
            p.set("context_length", 16_384u64).set("rope.scaling.original_context_length", 1024u64);
        }),
        ("an output of three dimensions", |p| {
            for layer in 0..4 {
                p.tensor(&format!("blk.{layer}.attn_output_a.weight")).shape = vec![256, 16, 2];
            }
        }),
    ];
    for (what, change) in changes {
        let mut parts = Parts::fixture();
        change(&mut parts);
        assert_eq!(bits(&parts.scores(&tokens, 512, false)), want, "{what}");
    }
    // Inputs of compressors in two formats: the same numbers, and F32 holds both.
    let mut parts = Parts::fixture();
    let halves = parts.tensor("blk.1.attn_compressor_kv.weight");
    let rounded: Vec<u8> = halves.decode().iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    (halves.dtype, halves.bytes) = (DType::BF16, Bytes::new(rounded));
    assert_eq!(bits(&parts.scores(&tokens, 512, false)), want, "two formats");
}

fn refused(parts: &Parts) -> String {
    match parts.load(true) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn wrong_metadata_is_refused_with_a_reason() {
    let limits = Value::from(vec![2f32, 2.0, -1.0, 2.0]);
    let cases = [
        ("attention.compress_ratios", Some(Value::from(vec![0i32, 4, 64, 4])), "0, 4 or 128"),
        ("attention.compress_ratios", Some(Value::from(vec![0i32, 4])), "each of 4 layers"),
        ("attention.compress_ratios", None, "compress_ratios` is missing"),
        ("attention.output_group_count", Some(Value::from(3u32)), "divisor of the 4 heads"),
        ("attention.head_count_kv", Some(Value::from(2u32)), "must be 1"),
        ("hyper_connection.count", Some(Value::from(5u32)), "from 1 to 4"),
        ("hyper_connection.sinkhorn_iterations", Some(Value::from(0u32)), "from 1 to"),
        ("swiglu_clamp_exp", Some(limits), "above 0"),
        ("attention.indexer.key_length", Some(Value::from(48u32)), "power of two"),
        ("rope.dimension_count", Some(Value::from(96u32)), "a head of queries or of the indexer"),
    ];
    for (key, value, part) in cases {
        let mut parts = Parts::fixture();
        parts.remove(key);
        if let Some(value) = value {
            parts.set(key, value);
        }
        let error = refused(&parts);
        assert!(error.contains(part), "{error} does not say {part}");
    }
}

#[test]
fn wrong_tensors_are_refused_with_a_reason() {
    let mut parts = Parts::fixture();
    parts.tensors.retain(|t| t.name != "blk.3.indexer.proj.weight");
    assert!(refused(&parts).contains("blk.3.indexer.proj.weight` is missing"));
    let mut parts = Parts::fixture();
    parts.tensor("blk.0.ffn_gate_tid2eid.weight").dtype = DType::F32;
    assert!(refused(&parts).contains("must hold whole numbers"));
    for value in [6, -1, i32::MAX] {
        let mut parts = Parts::fixture();
        let table = parts.tensor("blk.1.ffn_gate_tid2eid.weight");
        let mut bytes = table.bytes.to_vec();
        bytes[40..44].copy_from_slice(&value.to_le_bytes());
        table.bytes = Bytes::new(bytes);
        let error = refused(&parts);
        assert!(error.contains(&format!("holds {value}")) && error.contains("below 6"), "{error}");
    }
}

#[test]
fn steps_beyond_the_rings_are_refused() {
    let mut model = Parts::fixture().load(true).unwrap();
    let rings = model.rings().unwrap();
    let mut batch = Batch::default();
    let tokens = vec![1; rings.rows_max + 1];
    batch.push(&tokens, 0, &(0..9).collect::<Vec<_>>(), Role::Prefill, 1);
    let error = model.forward(&batch, &mut vec![]).unwrap_err();
    assert!(matches!(error, Error::StepRows { rows: 513, most: 512 }), "{error}");
    let mut batch = Batch::default();
    batch.push(&[1], 0, &[0], Role::Prefill, 1);
    batch.rings = vec![1];
    let error = model.forward(&batch, &mut vec![]).unwrap_err();
    assert!(matches!(error, Error::RingsFull { rings: 1 }), "{error}");
}

/// A trunk of one layer without compressed rows.
fn trunk() -> Parts {
    let line = "synth:deepseek4,layers=1,width=64,head_dim=32,heads=4,output_groups=2,experts=4,experts_used=2,\
                expert_feed_forward=32,vocabulary=300,query_rank=32,output_rank=16,table_layers=0,window=5,format=F32";
    Parts::of(&synth::checkpoint(&synth::Spec::parse(line).unwrap(), 1).unwrap())
}

/// Numbers that look random.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * 0.3).collect()
}

/// The trunk's own layer, of another making, as a layer that drafts; what joins its inputs: (token, previous).
fn with_draft(trunk: &Parts, joining: (&[f32], &[f32]), is_joined: bool) -> Parts {
    let mut parts = Parts { metadata: trunk.metadata.clone(), tensors: trunk.tensors.clone() };
    let (block, beside) = if is_joined { ("blk.1.", "blk.1.nextn.") } else { ("mtp.0.", "mtp.0.") };
    let of_block: Vec<Tensor> = trunk.tensors.iter().filter(|t| t.name.starts_with("blk.0.")).cloned().collect();
    parts.tensors.extend(of_block.into_iter().map(|t| Tensor { name: t.name.replace("blk.0.", block), ..t }));
    let around = |seed: u64| random(seed, 64).iter().map(|v| 1.0 + v).collect::<Vec<_>>();
    let name = |part: &str| format!("{beside}{part}.weight");
    parts.put(&name("enorm"), &[64], &around(1)).put(&name("hnorm"), &[64], &around(2));
    parts.put(&name(if is_joined { "shared_head_norm" } else { "norm" }), &[64], &around(3));
    parts.put(&name("hc_head_fn"), &[256, 4], &random(4, 1024)).put(&name("hc_head_scale"), &[1], &[0.7]);
    parts.put(&name("hc_head_base"), &[4], &random(5, 4));
    if is_joined {
        let rows = joining.0.chunks(64).zip(joining.1.chunks(64)).flat_map(|(e, h)| [e, h].concat());
        parts.put(&name("eh_proj"), &[128, 64], &rows.collect::<Vec<_>>());
        parts.set("nextn_predict_layers", 1u32).set("block_count", 2u32);
    } else {
        parts.put(&name("e_proj"), &[64, 64], joining.0).put(&name("h_proj"), &[64, 64], joining.1);
    }
    parts
}

/// A small model that drafts for itself, with compressed rows of both kinds; its drafts are right now and then.
pub(crate) fn drafting() -> Checkpoint {
    let line = "synth:deepseek4,layers=4,width=64,head_dim=32,heads=4,output_groups=2,experts=4,experts_used=2,\
                expert_feed_forward=32,vocabulary=300,query_rank=32,output_rank=16,indexer_heads=2,indexer_dim=32,top_k=4,\
                table_layers=0,window=20,format=F32";
    let trunk = Parts::of(&synth::checkpoint(&synth::Spec::parse(line).unwrap(), 1).unwrap());
    with_draft(&trunk, (&random(6, 4096), &random(7, 4096)), false).checkpoint()
}

/// Logits of drafts at every position, from steps of `chunk` rows.
fn drafts(parts: &Parts, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut model = parts.load(false).unwrap();
    assert!(model.drafts());
    let (mut logits, mut all) = (vec![], vec![]);
    let last = tokens.len() - 1;
    for first in (0..last).step_by(chunk) {
        let end = last.min(first + chunk);
        let mut batch = Batch::default();
        batch.push(&tokens[first..end], first, &[0], Role::Prefill, 1);
        model.forward(&batch, &mut logits).unwrap();
        let mut next = Batch::default();
        next.push(&tokens[first + 1..=end], first, &[0], Role::Prefill, end - first);
        let rows: Vec<u32> = (0..(end - first) as u32).collect();
        model.draft(DraftFrom::Step, &rows, &next, &mut logits).unwrap();
        all.extend_from_slice(&logits);
    }
    all
}

/// What the layer computes as a trunk of its own whose embedding is what it is given.
fn alone(parts: &Parts, embedding: &[f32], tokens: &[u32]) -> Vec<f32> {
    let mut own = Parts { metadata: parts.metadata.clone(), tensors: parts.tensors.clone() };
    own.tensors.retain(|t| !t.name.starts_with("mtp.") && t.name != "token_embd.weight");
    for (of_layer, of_model) in [
        ("norm", "output_norm"),
        ("hc_head_fn", "output_hc_fn"),
        ("hc_head_scale", "output_hc_scale"),
        ("hc_head_base", "output_hc_base"),
    ] {
        let tensor = parts.tensors.iter().find(|t| t.name == format!("mtp.0.{of_layer}.weight")).unwrap();
        own.put(&format!("{of_model}.weight"), &tensor.shape, &tensor.decode());
    }
    for tensor in parts.tensors.iter().filter(|t| t.name.starts_with("mtp.0.")) {
        let name = tensor.name.replace("mtp.0.", "blk.0.");
        if own.tensors.iter().any(|t| t.name == name) {
            own.put(&name, &tensor.shape, &tensor.decode());
        }
    }
    own.put("token_embd.weight", &[64, 300], embedding);
    own.scores(tokens, 512, false)
}

/// Each row of 64 normed, with weights.
fn normed(rows: &[f32], weight: &[f32]) -> Vec<f32> {
    let one = |row: &[f32]| {
        let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 64.0;
        let root = (mean + 1e-6).sqrt() as f32;
        row.iter().zip(weight).map(|(v, w)| v / root * w).collect::<Vec<_>>()
    };
    rows.chunks(64).flat_map(one).collect()
}

#[track_caller]
fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "off by {worst}");
}

#[test]
fn drafts_are_the_same_from_either_form_of_file_and_in_any_chunks() {
    let (trunk, e, h) = (trunk(), random(6, 4096), random(7, 4096));
    let (own, joined) = (with_draft(&trunk, (&e, &h), false), with_draft(&trunk, (&e, &h), true));
    let want = drafts(&own, &TOKENS, 512);
    assert!(want.iter().all(|v| v.is_finite()) && want.len() == 11 * 300);
    assert_eq!(bits(&drafts(&joined, &TOKENS, 512)), bits(&want), "joined to the model's file");
    for chunk in [1, 4] {
        assert_eq!(bits(&drafts(&own, &TOKENS, chunk)), bits(&want), "chunks of {chunk}");
    }
    // A file of its own, in either form, brings the same tensors.
    for (parts, block) in [(&own, "mtp."), (&joined, "blk.1.")] {
        let of_layer = parts.tensors.iter().filter(|t| t.name.starts_with(block));
        let of_layer =
            of_layer.map(|t| Tensor { name: t.name.replace("blk.1.nextn.hc_head_", "output_hc_"), ..t.clone() });
        let file = Parts { metadata: trunk.metadata.clone(), tensors: of_layer.collect() }.checkpoint();
        let whole = Parts::of(&trunk.checkpoint().with_draft_layer(&file).unwrap());
        assert_eq!(bits(&drafts(&whole, &TOKENS, 512)), bits(&want), "{block}");
    }
    assert!(!trunk.load(true).unwrap().drafts());
}

#[test]
fn a_draft_begins_with_both_inputs() {
    let (mut trunk, e) = (trunk(), random(6, 4096));
    let zeros = vec![0.0; 4096];
    // Nothing of the token before: a trunk whose embedding is the projected, normed one.
    let parts = with_draft(&trunk, (&e, &zeros), false);
    let mut own = Parts { metadata: parts.metadata.clone(), tensors: parts.tensors.clone() };
    let embedding = normed(&own.numbers("token_embd.weight"), &own.numbers("mtp.0.enorm.weight"));
    let projected: Vec<f32> = embedding
        .chunks(64)
        .flat_map(|row| e.chunks(64).map(|w| row.iter().zip(w).map(|(a, b)| a * b).sum::<f32>()).collect::<Vec<_>>())
        .collect();
    close(&drafts(&parts, &TOKENS, 512), &alone(&parts, &projected, &TOKENS[1..]), 5e-3);
    // Nothing of the token, and a trunk that leaves embeddings as they are: each stream by itself is normed.
    let identity: Vec<f32> = (0..4096).map(|i| if i % 65 == 0 { 1.0 } else { 0.0 }).collect();
    let mut parts = with_draft(&trunk, (&zeros, &identity), false);
    for part in ["attn_output_b", "ffn_down_exps", "ffn_down_shexp"] {
        parts.zero(&format!("blk.0.{part}.weight"));
    }
    let embedding = normed(&trunk.numbers("token_embd.weight"), &parts.numbers("mtp.0.hnorm.weight"));
    close(&drafts(&parts, &TOKENS, 512), &alone(&parts, &embedding, &TOKENS[..11]), 5e-3);
}

#[test]
fn drafts_go_on_from_drafts() {
    let (trunk, e, h) = (trunk(), random(6, 4096), random(7, 4096));
    let parts = with_draft(&trunk, (&e, &h), false);
    let mut model = parts.load(true).unwrap();
    let step = |model: &mut Box<dyn LanguageModel>, from, row: u32, token: u32, at: usize| {
        let (mut batch, mut logits) = (Batch::default(), vec![]);
        batch.push(&[token], at, &[0], Role::Decode, 1);
        model.draft(from, &[row], &batch, &mut logits).unwrap();
        logits
    };
    let mut batch = Batch::default();
    batch.push(&TOKENS[..3], 0, &[0], Role::Prefill, 1);
    model.forward(&batch, &mut vec![]).unwrap();
    // The layer keeps rows of its own, so it is run on every token, the drafted one last.
    let (mut all, mut whole) = (Batch::default(), vec![]);
    all.push(&[TOKENS[1], TOKENS[2], 50], 0, &[0], Role::Prefill, 1);
    model.draft(DraftFrom::Step, &[0, 1, 2], &all, &mut whole).unwrap();
    let second = step(&mut model, DraftFrom::Draft, 2, 51, 3);
    assert!(whole.iter().chain(&second).all(|v| v.is_finite()));
    // The same again, from what the step left: drafts change nothing of it.
    assert_eq!(bits(&step(&mut model, DraftFrom::Step, 2, 50, 2)), bits(&whole));
    assert_eq!(bits(&step(&mut model, DraftFrom::Draft, 0, 51, 3)), bits(&second));
    assert_ne!(bits(&step(&mut model, DraftFrom::Step, 1, 50, 2)), bits(&whole), "another row");
}

/// Greedy and drawn replies of two requests at once, however deep the model drafts for itself. The layer repeats its input's token,
/// and the trunk is made to do so too now and then, so that some drafts are right and some are not.
#[test]
fn a_model_that_drafts_for_itself_says_what_it_says_without() {
    use tessera_engine::{
        Request, SamplingParams, Sequences,
        serving::{Engine, Event, Job, MonotonicClock, Options, Speculation},
    };
    let (trunk, e, h) = (trunk(), random(6, 4096), random(7, 4096));
    let parts = with_draft(&trunk, (&e, &h), false);
    let tokenizer = Arc::new(parts.checkpoint().tokenizer().unwrap());
    let replies = |speculation: Speculation| {
        let options = LoadOptions { context: Some(640), sequences: 2, step_rows: 70, ..LoadOptions::default() };
        let model = models::load(&parts.checkpoint(), Arc::new(ReferenceDevice), &options, &mut |_| {}).unwrap();
        let options = Options { step_tokens: 64, ..Options::default() };
        let clock = Box::new(MonotonicClock::default());
        let mut engine = Engine::new(Sequences::new(model), tokenizer.clone(), options, clock);
        let mut told = std::collections::HashMap::new();
        for (which, temperature) in [0.0, 0.7].into_iter().enumerate() {
            let prompt = TOKENS.iter().map(|t| (t + which as u32) % 300).cycle().take(150).collect();
            // Tokens that the trunk likes whatever came before: the layer, which shares its end, likes them too.
            let logit_bias = vec![(7, 3.0), (8, 3.0)];
            let sampling = SamplingParams { temperature, seed: 5, logit_bias, ..SamplingParams::default() };
            let (stop, tokens_max) = (Vec::new(), Some(40));
            let request = Request { prompt, sampling, stop, tokens_max, ignore_end: true, specials: false };
            told.insert(engine.submit(Job { speculation, ..Job::new(request) }).unwrap(), Vec::new());
        }
        let mut events = Vec::new();
        while engine.step(&mut events) {}
        for (id, event) in events {
            match event {
                Event::Token { sampled, .. } => told.get_mut(&id).unwrap().push(sampled.id),
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        let mut replies: Vec<_> = told.into_iter().collect();
        replies.sort_by_key(|(id, _)| *id);
        (replies, engine.gauges().counters.speculation)
    };
    let (plain, _) = replies(Speculation::Off);
    assert!(plain.iter().all(|(_, tokens)| tokens.len() == 40));
    for depth in [1, 2, 4, 7] {
        let (drafted, counters) = replies(Speculation::Depth(depth));
        assert_eq!(drafted, plain, "drafts of {depth}");
        assert!(counters.drafted > counters.accepted && counters.accepted > 0, "drafts of {depth}: {counters:?}");
    }
}
