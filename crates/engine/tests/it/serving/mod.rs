//! The serving engine: whatever is scheduled, a reply is what the request alone makes it.

mod exactness;
mod handle;
mod paged;
mod prefixes;
mod scheduling;
mod speculation;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tessera_engine::{
    Checkpoint, Finish, LanguageModel, Request, SamplingParams, Sequences, Tokenizer,
    serving::{Clock, Engine, Event, Job, Options, Outcome, RequestId},
};

use paged::Paged;

/// A clock that moves when it is told to.
#[derive(Clone, Default)]
struct FakeClock(Arc<AtomicU64>);

impl FakeClock {
    fn advance(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn checkpoint(fixture: &str) -> Checkpoint {
    Checkpoint::open(&crate::support::path(&format!("fixtures/{fixture}/model.gguf"))).unwrap()
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(checkpoint("llama").tokenizer().unwrap())
}

/// An engine on a model of this many pages that computes nothing but takes `cost(rows)` microseconds.
fn engine(pages: usize, options: Options, cost: fn(usize) -> u64) -> (Engine, FakeClock) {
    let clock = FakeClock::default();
    let model = Paged::new(pages, clock.clone(), cost);
    let sequences = Sequences::new(Box::new(model) as Box<dyn LanguageModel>);
    (Engine::new(sequences, tokenizer(), options, Box::new(clock.clone())), clock)
}

/// A greedy request.
fn request(prompt: Vec<u32>, tokens_max: usize) -> Request {
    let sampling = SamplingParams::default();
    Request { prompt, sampling, stop: Vec::new(), tokens_max: Some(tokens_max), ignore_end: true, specials: false }
}

fn job(prompt: Vec<u32>, tokens_max: usize) -> Job {
    Job::new(request(prompt, tokens_max))
}

/// `count` tokens that depend on `which` and nothing else, and hardly repeat.
fn tokens(which: usize, count: usize) -> Vec<u32> {
    let mut random = Random(which as u64 + 1);
    (0..count).map(|_| 10 + random.below(250) as u32).collect()
}

/// What came of one request.
#[derive(Debug, Default)]
struct Told {
    /// Tokens with the bits of all log-probabilities.
    tokens: Vec<(u32, Vec<u32>)>,
    text: String,
    started: Option<(usize, usize)>,
    embedding: Option<Vec<f32>>,
    outcome: Option<Outcome>,
    failed: Option<String>,
}

impl Told {
    fn take(&mut self, event: Event) {
        assert!(self.outcome.is_none() && self.failed.is_none(), "nothing comes after the end: {event:?}");
        match event {
            Event::Started { prompt_tokens, cached_tokens } => {
                assert!(self.started.replace((prompt_tokens, cached_tokens)).is_none(), "it starts once");
            }
            Event::Token { sampled, text, .. } => {
                assert!(self.started.is_some(), "tokens come after the start");
                self.tokens.push((sampled.id, bits(&sampled)));
                self.text += &text;
            }
            Event::Embedded(embedding) => {
                assert!(self.started.is_some() && self.tokens.is_empty(), "it comes in the place of tokens");
                assert!(self.embedding.replace(embedding).is_none(), "it comes once");
            }
            Event::Finished(outcome) => {
                self.text += &outcome.text;
                assert_eq!(outcome.usage.reply_tokens, self.tokens.len());
                self.outcome = Some(*outcome);
            }
            Event::Failed(error) => self.failed = Some(error.to_string()),
        }
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|(id, _)| *id).collect()
    }

    fn finish(&self) -> Finish {
        self.outcome.as_ref().unwrap_or_else(|| panic!("it has not ended: {self:?}")).finish
    }
}

fn bits(sampled: &tessera_engine::Sampled) -> Vec<u32> {
    let top = sampled.top.iter().flat_map(|(id, logprob)| [*id, logprob.to_bits()]);
    sampled.logprob.map(f32::to_bits).into_iter().chain(top).collect()
}

/// Steps until nothing is left, and sorts events by request.
fn drain(engine: &mut Engine) -> HashMap<RequestId, Told> {
    let mut told = HashMap::new();
    while step(engine, &mut told) {}
    told
}

fn step(engine: &mut Engine, told: &mut HashMap<RequestId, Told>) -> bool {
    let mut events = Vec::new();
    let busy = engine.step(&mut events);
    for (id, event) in events {
        told.entry(id).or_default().take(event);
    }
    busy
}

/// All pages are free, or cached with nobody holding them.
fn assert_nothing_leaked(engine: &Engine) {
    let gauges = engine.gauges();
    assert!(engine.is_idle());
    assert_eq!((gauges.running, gauges.waiting, gauges.pages_held), (0, 0, 0), "{gauges:?}");
    assert_eq!(engine.sequences().free_pages(), engine.sequences().total_pages());
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `most`, which is small.
    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
