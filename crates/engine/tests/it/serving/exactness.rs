//! Random histories of arrivals, cancels, pre-emptions, evictions, prefix hits and speculation, by seed: every reply has the
//! tokens, the text and the bits of log-probabilities that the request gives alone, every embedding its numbers, and no page
//! is lost.

use std::{
    collections::HashMap,
    num::NonZero,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tessera_cpu::CpuDevice;
use tessera_engine::{
    Checkpoint, Event, Finish, LanguageModel, LoadOptions, Part, Pooling, Request, SamplingParams, Sequences, Session,
    Tokenizer, generate, models,
    serving::{Constraint, Engine, Job, Options, RequestId, Speculation, speculation::DraftModel},
    synth::{self, Spec},
};
use tessera_ops::{PAGE_TOKENS, Role};

use super::{FakeClock, Paged, Random, Told, assert_nothing_leaked, bits, checkpoint, step};

fn sweep() -> bool {
    std::env::var_os("TESSERA_SWEEP").is_some()
}

/// What a history is about.
struct Subject<'a> {
    tokenizer: Arc<Tokenizer>,
    vocabulary: usize,
    /// A model with this many pages.
    model: &'a dyn Fn(usize) -> Box<dyn LanguageModel>,
    /// Lengths are up to this many tokens.
    length_max: usize,
    clock: FakeClock,
}

/// Forbids two tokens in a row that are equal modulo 3.
#[derive(Clone, Copy, Default)]
struct Alternate {
    last: Option<u32>,
}

impl Constraint for Alternate {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if let Some(last) = self.last {
            logits.iter_mut().skip(last as usize % 3).step_by(3).for_each(|l| *l = f32::NEG_INFINITY);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.last = Some(token);
        Ok(())
    }
}

/// A request of a history.
struct Asked {
    request: Request,
    constrained: bool,
    embed: bool,
    speculation: Speculation,
    priority: i32,
    cancel_after: Option<usize>,
}

fn asked(random: &mut Random, subject: &Subject<'_>, documents: &[Vec<u32>]) -> Asked {
    let length = 1 + random.below(subject.length_max);
    let mut prompt: Vec<u32> = random.pick(&documents.iter().collect::<Vec<_>>())[..length].to_vec();
    if random.one_in(3) {
        let own = random.below(20);
        prompt.extend((0..own).map(|_| 10 + random.below(subject.vocabulary - 10) as u32));
    }
    if random.one_in(4) {
        let period = prompt[prompt.len().saturating_sub(5)..].to_vec();
        prompt.extend(period.repeat(3));
    }
    let mut sampling = SamplingParams { seed: random.next(), ..SamplingParams::default() };
    if random.one_in(2) {
        let temperature = random.pick(&[0.3, 0.8, 1.5]);
        sampling = SamplingParams { temperature, top_k: random.pick(&[0, 5, 40]), top_p: 0.95, ..sampling };
    }
    if random.one_in(3) {
        sampling = SamplingParams { repetition_penalty: 1.2, frequency_penalty: 0.3, penalty_window: 30, ..sampling };
    }
    if random.one_in(3) {
        sampling.logprobs = Some(random.below(4));
    }
    if random.one_in(4) {
        sampling.logit_bias = vec![(random.below(subject.vocabulary) as u32, 5.0), (20, f32::NEG_INFINITY)];
    }
    let letters = ["e", "th", "ab", "\u{fffd}a", " "];
    let embed = random.one_in(5);
    let constrained = !embed && random.one_in(4);
    let stop = if random.one_in(3) && !constrained { vec![random.pick(&letters).to_owned()] } else { Vec::new() };
    let tokens_max = Some(if embed { 0 } else { random.below(subject.length_max / 2) });
    let ignore_end = constrained || random.one_in(2);
    let request = Request { prompt, sampling, stop, tokens_max, ignore_end, specials: false };
    let speculation = match random.below(4) {
        0 => Speculation::Off,
        1 => Speculation::Auto,
        _ => Speculation::Depth(1 + random.below(8)),
    };
    let cancel_after = random.one_in(6).then(|| random.below(30));
    Asked { request, constrained, embed, speculation, priority: random.below(3) as i32, cancel_after }
}

/// Texts that prompts begin with: of few pages, so that the same page comes after different ones.
fn documents(random: &mut Random, subject: &Subject<'_>) -> Vec<Vec<u32>> {
    let mut token = || 10 + random.below(subject.vocabulary - 10) as u32;
    let pages = [0; 3].map(|_| [0; PAGE_TOKENS].map(|_| token()));
    let count = subject.length_max.div_ceil(PAGE_TOKENS);
    (0..4).map(|_| (0..count).flat_map(|_| random.pick(&pages)).collect()).collect()
}

/// What the request gives on a session of its own.
fn alone(session: &mut Session, asked: &Asked, subject: &Subject<'_>) -> (Told, Finish) {
    let (mut told, request) = (Told::default(), &asked.request);
    if !asked.constrained {
        let outcome =
            generate(session, &subject.tokenizer, request, &AtomicBool::new(false), &mut |event| match event {
                Event::Token(sampled) => told.tokens.push((sampled.id, bits(sampled))),
                Event::Text(text) => told.text += text,
                Event::Prefilled => {}
            })
            .unwrap();
        told.tokens.truncate(outcome.tokens.len()); // an end token was among them
        assert_eq!(told.ids(), outcome.tokens);
        return (told, outcome.finish);
    }
    let (mut constraint, mut known) = (Alternate::default(), request.prompt.clone());
    let mut sampler = tessera_engine::Sampler::new(request.sampling.clone()).unwrap();
    session.rewind(0);
    session.prefill(&known).unwrap();
    for index in 0..request.tokens_max.unwrap() {
        let mask = &mut |logits: &mut [f32]| constraint.mask(logits).unwrap();
        let sampled = sampler.sample_masked(session.logits(), &known, index as u64, mask).unwrap();
        constraint.accept(sampled.id).unwrap();
        told.tokens.push((sampled.id, bits(&sampled)));
        known.push(sampled.id);
        if session.tokens().len() == session.context() {
            return (told, Finish::ContextFull);
        }
        session.decode(sampled.id).unwrap();
    }
    (told, Finish::Length)
}

/// The embedding of a prompt on a model of its own, in as few steps as it allows.
fn embedding(subject: &Subject<'_>, pages: usize, prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut sequences = Sequences::new((subject.model)(pages));
    let hidden = sequences.config().hidden;
    let (sequence, mut rows) = (sequences.open(), Vec::new());
    for tokens in prompt.chunks(sequences.rows_max()) {
        let part = Part { sequence, tokens, role: Role::Prefill, logits: 0 };
        rows.extend(sequences.step_hidden(&[part]).unwrap().iter().map(|x| f64::from(*x)));
    }
    let pooled: Vec<f64> = match pooling {
        Pooling::First => rows[..hidden].to_vec(),
        Pooling::Last => rows[rows.len() - hidden..].to_vec(),
        Pooling::Mean => (0..hidden).map(|i| rows[i..].iter().step_by(hidden).sum()).collect(),
    };
    let length = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
    pooled.into_iter().map(|x| (x * length.recip()) as f32).collect()
}

/// How often interesting things happened, over all histories.
#[derive(Debug, Default)]
struct Seen {
    replies: u64,
    preemptions: u64,
    cached: u64,
    accepted: usize,
    rejected: usize,
    cut: u64,
    context_full: u64,
    embeddings: u64,
}

fn play(seed: u64, subject: &Subject<'_>, seen: &mut Seen) {
    let mut random = Random(seed);
    let pages = 3 + random.below(2 + 3 * subject.length_max / PAGE_TOKENS);
    let pooling = random.pick(&Pooling::NAMES).1;
    let options = Options {
        slots: 1 + random.below(6),
        queue: 100,
        step_tokens: random.pick(&[1, 7, 30, 64, 200, 512]),
        stall: random.pick(&[1.0, 2.0, 50.0]),
        context: random.one_in(2).then(|| 64 + random.below(200)),
        share_replies: random.one_in(2),
        pooling: Some(pooling),
        shared_draws: if random.one_in(8) { 1 } else { usize::MAX },
    };
    let mut sequences = Sequences::new((subject.model)(pages));
    if random.one_in(4) {
        sequences = sequences.with_hash(|_, _| 0);
    }
    let mut engine = Engine::new(sequences, subject.tokenizer.clone(), options, Box::new(subject.clock.clone()));
    if random.one_in(3) {
        let small = Sequences::new((subject.model)(2 + random.below(8)));
        engine = engine.with_drafter(Box::new(DraftModel::new(small, &subject.tokenizer, &subject.tokenizer).unwrap()));
    }
    let context = engine.context();
    let documents = documents(&mut random, subject);
    let mut coming: Vec<Asked> = (0..1 + random.below(7)).map(|_| asked(&mut random, subject, &documents)).collect();
    coming.iter_mut().for_each(|a| a.request.prompt.truncate(context));
    let mut open: HashMap<RequestId, (Asked, usize)> = HashMap::new();
    let mut told: HashMap<RequestId, Told> = HashMap::new();
    loop {
        while !coming.is_empty() && random.one_in(3) {
            let asked = coming.pop().unwrap();
            let constraint = asked.constrained.then(|| Box::new(Alternate::default()) as Box<dyn Constraint>);
            let (speculation, priority) = (asked.speculation, asked.priority);
            let embed = asked.embed;
            let job = Job { constraint, speculation, priority, embed, ..Job::new(asked.request.clone()) };
            open.insert(engine.submit(job).unwrap(), (asked, 0));
        }
        for (id, (asked, age)) in &mut open {
            *age += 1;
            if asked.cancel_after == Some(*age) && told.get(id).is_none_or(|t| t.outcome.is_none()) {
                let event = engine.cancel(*id).expect("it has not ended");
                told.entry(*id).or_default().take(event);
            }
        }
        subject.clock.advance(Duration::from_micros(random.below(100) as u64));
        if !step(&mut engine, &mut told) && coming.is_empty() {
            break;
        }
    }
    assert_nothing_leaked(&engine);
    let counters = engine.gauges().counters;
    seen.preemptions += counters.preemptions;
    seen.cached += counters.cached_tokens;
    seen.accepted += counters.speculation.accepted;
    seen.rejected += counters.speculation.drafted - counters.speculation.accepted;
    let mut session = Session::new((subject.model)(pages), 512);
    for (id, (asked, _)) in open {
        if let Some(told) = told[&id].embedding.as_ref().filter(|_| asked.embed) {
            seen.embeddings += 1;
            let told: Vec<u32> = told.iter().map(|x| x.to_bits()).collect();
            let alone = embedding(subject, pages, &asked.request.prompt, pooling);
            assert_eq!(told, alone.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
        }
        check(&told[&id], &asked, subject, &mut session, context, seen);
    }
}

fn check(told: &Told, asked: &Asked, subject: &Subject<'_>, session: &mut Session, context: usize, seen: &mut Seen) {
    // The engine's context may be shorter than the session's.
    let room = context + 1 - asked.request.prompt.len();
    let tokens_max = asked.request.tokens_max.map(|max| max.min(room));
    let short = Asked { request: Request { tokens_max, ..asked.request.clone() }, ..*asked };
    let (expected, mut finish) = alone(session, &short, subject);
    if finish == Finish::Length && expected.tokens.len() == room {
        finish = Finish::ContextFull;
    }
    assert_eq!(told.failed, None);
    seen.replies += 1;
    seen.context_full += u64::from(finish == Finish::ContextFull);
    if told.finish() == Finish::Cancelled {
        seen.cut += 1;
        assert!(expected.tokens.starts_with(&told.tokens), "what there is of a cancelled reply");
        return;
    }
    assert_eq!((&told.tokens, told.finish()), (&expected.tokens, finish));
    if !asked.constrained {
        assert_eq!(told.text, expected.text);
    }
}

fn play_all(count: u64, subject: &Subject<'_>, seen: &mut Seen) {
    for seed in 0..count {
        let played = std::panic::AssertUnwindSafe(|| play(seed, subject, seen));
        if let Err(panic) = std::panic::catch_unwind(played) {
            eprintln!("the history of seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Histories in which nothing happens prove nothing.
fn assert_much_happened(seen: &Seen, histories: u64) {
    let &Seen { replies, preemptions, cached, accepted, rejected, cut, context_full, embeddings } = seen;
    let counts = [replies, preemptions, cached, accepted as u64, rejected as u64, cut, context_full, embeddings];
    assert!(counts.iter().all(|n| *n > histories / 50), "{seen:?}");
}

/// A model that hashes what lies in its pages: thousands of histories in seconds.
fn play_hashes(kind: fn(Paged) -> Paged) {
    let clock = FakeClock::default();
    let model = |pages| {
        let model = Paged::new(pages, clock.clone(), |rows: usize| 900 + 100 * rows as u64);
        Box::new(kind(model)) as Box<dyn LanguageModel>
    };
    let vocabulary = model(1).config().vocabulary;
    let subject =
        Subject { tokenizer: super::tokenizer(), vocabulary, model: &model, length_max: 200, clock: clock.clone() };
    let (histories, mut seen) = (if sweep() { 5000 } else { 600 }, Seen::default());
    play_all(histories, &subject, &mut seen);
    assert_much_happened(&seen, histories);
}

#[test]
fn replies_are_those_of_the_request_alone() {
    play_hashes(|model| model);
}

/// On a device whose roles have arithmetics of their own, what was computed of a reply never stands in a prompt.
#[test]
fn replies_are_those_of_the_request_alone_where_roles_differ() {
    play_hashes(Paged::by_role);
}

/// Where a model keeps the last positions in rings, sequences begin at checkpoints only, and go back no further than a step.
#[test]
fn replies_are_those_of_the_request_alone_where_positions_are_in_rings() {
    play_hashes(|model| model.in_rings(4, 50, 2));
    play_hashes(|model| model.by_role().in_rings(2, 100, 2));
}

/// With drafts of the model itself.
#[test]
fn replies_are_those_of_the_request_alone_where_the_model_predicts() {
    play_hashes(Paged::predicting);
}

fn cpu(threads: usize) -> Arc<CpuDevice> {
    Arc::new(CpuDevice::new(NonZero::new(threads), None).unwrap())
}

fn play_real(checkpoint: &Checkpoint, device: &Arc<CpuDevice>, count: u64, length_max: usize, seen: &mut Seen) {
    play_loaded(checkpoint, device, LoadOptions::default(), (count, length_max), seen);
}

fn play_loaded(
    checkpoint: &Checkpoint,
    device: &Arc<CpuDevice>,
    options: LoadOptions,
    (count, length_max): (u64, usize),
    seen: &mut Seen,
) {
    let model = |pages| {
        let options = LoadOptions { context: Some(pages * PAGE_TOKENS), ..options };
        models::load(checkpoint, device.clone(), &options, &mut |_| {}).unwrap()
    };
    let tokenizer = Arc::new(checkpoint.tokenizer().unwrap());
    let vocabulary = tokenizer.vocab_len();
    let subject = Subject { tokenizer, vocabulary, model: &model, length_max, clock: FakeClock::default() };
    play_all(count, &subject, seen);
}

#[test]
fn replies_of_a_llama_are_those_of_the_request_alone() {
    let (histories, mut seen) = (if sweep() { 600 } else { 60 }, Seen::default());
    play_real(&checkpoint("llama"), &cpu(2), histories, 150, &mut seen);
    assert_much_happened(&seen, histories);
}

/// With sliding windows that end inside of pages.
#[test]
fn replies_of_a_gemma_are_those_of_the_request_alone() {
    let line = "gemma3,layers=3,width=64,heads=2,kv_heads=1,head_dim=32,vocabulary=300,window=40,format=Q8_0";
    let checkpoint = synth::checkpoint(&Spec::parse(line).unwrap(), 1).unwrap();
    let (histories, mut seen) = (if sweep() { 300 } else { 30 }, Seen::default());
    play_real(&checkpoint, &cpu(1), histories, 150, &mut seen);
    assert_much_happened(&seen, histories);
}

/// With rings, compressed rows, chosen ones, checkpoints, and drafts of the model's own layer; rows packed and as halves.
#[test]
fn replies_of_a_deepseek_are_those_of_the_request_alone() {
    let (checkpoint, mut seen) = (crate::deepseek4::drafting(), Seen::default());
    let histories = if sweep() { 200 } else { 16 };
    for packed_rows in [false, true] {
        let options = LoadOptions { sequences: 4, step_rows: 80, packed_rows, ..LoadOptions::default() };
        play_loaded(&checkpoint, &cpu(1), options, (histories / 2, 150), &mut seen);
    }
    let Seen { replies, preemptions, cached, accepted, rejected, .. } = seen;
    let counts = [replies, preemptions, cached, accepted as u64, rejected as u64];
    assert!(counts.iter().all(|n| *n > 0), "{seen:?}");
}

#[test]
fn replies_of_real_models_are_those_of_the_request_alone() {
    if !sweep() {
        return;
    }
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let Some(path) = crate::support::real_model(file) else { continue };
        let (histories, mut seen) = (12, Seen::default());
        play_real(&Checkpoint::open(&path).unwrap(), &cpu(2), histories, 200, &mut seen);
        // Too few for everything to happen in them.
        let Seen { replies, cached, accepted, .. } = seen;
        assert!(replies > 20 && cached > 0 && accepted > 0, "{seen:?}");
    }
}
