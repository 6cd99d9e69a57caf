//! `tessera bench speculate`: a model with a layer that drafts for itself, beside the same tokens without drafts, in one run. What it
//! says must be the same to the last bit of the logits; so the only question is what it takes, and what takes it.

mod passes;
mod report;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tessera_engine::{Ahead, Part, SequenceId, Sequences, Snapshot};
use tessera_ops::{Device, Profiled, Role};

use super::{
    args::Speculate,
    batch::likeliest,
    subject::Subject,
    times::{self, Hash, Times},
};
use crate::{args::Placement, device, ui::Failure};
use passes::Passes;
use report::{Drafted, Plain, Report};

/// Measures and prints.
pub(super) fn main(args: &Speculate) -> Result<()> {
    let subject = Subject::open(&args.common, &Placement::default())?.drafting(&args.mtp)?;
    match device::profiled_card(&args.placement)? {
        Some(card) => measure(args, subject, card, true),
        None => measure(args, subject, device::profiled(&args.common.compute)?, false),
    }
}

fn measure<D: Device>(args: &Speculate, subject: Subject, device: Arc<Profiled<D>>, is_card: bool) -> Result<()> {
    let name = device.name();
    let mut facts = subject.facts();
    if is_card {
        facts.machine = format!("{}, {name}", facts.machine);
    }
    let deepest = args.drafts.iter().copied().max().unwrap_or(1);
    let mut sequences = subject.load_on(device.clone(), [args.prompt + args.tokens + deepest + 1])?;
    if !sequences.predicts() {
        let message = format!("{} has no layer that drafts", args.common.model);
        return Err(Failure::new(message, "name one in a file of its own with --mtp, or another model").into());
    }
    device.pause(true);
    let start = Start::new(&mut sequences, &subject.tokens(0, args.prompt), args.common.chunk)?;
    let mut run = Run { device, sequences, start, args, told: Vec::new() };
    let (plain, hash) = run.plain()?;
    let drafted: Result<Vec<_>> = args.drafts.iter().map(|depth| run.drafted(*depth, &plain, &hash)).collect();
    let report = Report {
        forced: device::forced(&subject.device),
        facts,
        test: "speculate",
        prompt: args.prompt,
        tokens: args.tokens,
        repeats: args.common.output.repeat,
        right: args.right,
        plain,
        drafted: drafted?,
        hash: hash.to_string(),
    };
    report.print(&args.common.output)
}

/// Where every run begins: behind a prompt whose rows the layer that drafts has seen too.
struct Start {
    sequence: SequenceId,
    saved: Snapshot,
    /// The token that the prompt makes the likeliest.
    first: u32,
}

impl Start {
    fn new(sequences: &mut Sequences, prompt: &[u32], chunk: usize) -> Result<Start> {
        let sequence = sequences.open();
        let (mut at, mut first) = (0, 0);
        for tokens in prompt.chunks(chunk.min(sequences.rows_max())) {
            let end = at + tokens.len();
            let logits = usize::from(end == prompt.len());
            let logits = sequences.step(&[Part { sequence, tokens, role: Role::Prefill, logits }])?;
            let mut after = prompt[at + 1..prompt.len().min(end + 1)].to_vec();
            if end == prompt.len() {
                first = likeliest(logits);
                after.push(first);
            }
            sequences.predict(&[Ahead { sequence, tokens: &after, logits: false }])?;
            at = end;
        }
        Ok(Start { sequence, saved: sequences.snapshot(sequence)?, first })
    }
}

struct Run<'a, D: Device> {
    device: Arc<Profiled<D>>,
    sequences: Sequences,
    start: Start,
    args: &'a Speculate,
    /// What is said without drafts, from the first token on.
    told: Vec<u32>,
}

/// What is watched of a run, beside its time.
enum Watch<'a> {
    Nothing,
    /// The logits that each token is drawn from.
    Logits(&'a mut Vec<Hash>),
    /// Seconds of each stage, in a step or verification and in drafts, and of how many of these.
    Stages(&'a mut BTreeMap<&'static str, [f64; 2]>, &'a mut usize),
}

impl<D: Device> Run<'_, D> {
    /// The speed without drafts; and the hash of what is said, with the logits of each token.
    fn plain(&mut self) -> Result<(Plain, Hash)> {
        let mut seen = Vec::new();
        let (_, told) = self.plain_run(&mut Watch::Logits(&mut seen))?;
        let hash = Hash::of_tokens(&told, &Hash::of_parts(&seen));
        self.told = told;
        let mut whole = Times::default();
        for _ in 0..self.args.common.output.repeat {
            whole.push(self.plain_run(&mut Watch::Nothing)?.0);
        }
        let (mut stages, mut steps) = (BTreeMap::new(), 0);
        self.staged(|run| run.plain_run(&mut Watch::Stages(&mut stages, &mut steps)).map(drop))?;
        let stages = stages.into_iter().map(|(stage, [seconds, _])| (stage, seconds / steps as f64)).collect();
        Ok((Plain::new(self.args.tokens, &whole, stages), hash))
    }

    fn plain_run(&mut self, watch: &mut Watch<'_>) -> Result<(Duration, Vec<u32>)> {
        let sequence = self.start.sequence;
        self.sequences.restore(sequence, &self.start.saved)?;
        let mut told = vec![self.start.first];
        let start = Instant::now();
        while told.len() <= self.args.tokens {
            let part = Part { sequence, tokens: &told[told.len() - 1..], role: Role::Decode, logits: 1 };
            let logits = self.sequences.step(&[part])?;
            told.push(likeliest(logits));
            match watch {
                Watch::Nothing => {}
                Watch::Logits(seen) => seen.push(Hash::of_floats([logits])),
                Watch::Stages(stages, steps) => {
                    **steps += 1;
                    add_stages(&self.device, stages, 0, true)?;
                }
            }
        }
        Ok((start.elapsed(), told))
    }

    /// The speed with so many drafts a pass.
    fn drafted(&mut self, depth: usize, plain: &Plain, hash: &Hash) -> Result<Drafted> {
        let what = format!("{} tokens with {depth} drafts a pass", self.args.tokens);
        let mut seen = Vec::new();
        let passes = self.passes(depth, &mut Watch::Logits(&mut seen))?;
        times::check(&what, hash, &Hash::of_tokens(&passes.told, &Hash::of_parts(&seen)))?;
        let mut measured = Vec::new();
        for i in 0..self.args.common.output.repeat {
            let passes = self.passes(depth, &mut Watch::Nothing)?;
            let of = |told: &[u32]| Hash::of_tokens(told, &Hash::default());
            times::check(&format!("{what}, repeat {}", i + 1), &of(&self.told), &of(&passes.told))?;
            measured.push(passes);
        }
        let (mut stages, mut whole) = (BTreeMap::new(), 0);
        self.staged(|run| run.passes(depth, &mut Watch::Stages(&mut stages, &mut whole)).map(drop))?;
        let each = |seconds: f64| if whole == 0 { 0.0 } else { seconds / whole as f64 };
        let stages = stages.into_iter().map(|(stage, seconds)| (stage, seconds.map(each))).collect();
        Ok(Drafted::new(depth, &measured, plain, stages))
    }

    /// Runs with stages timed.
    fn staged(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.device.pause(false);
        self.device.take()?;
        let done = run(self);
        self.device.pause(true);
        done
    }

    /// All tokens, in passes of at most so many drafts.
    fn passes(&mut self, depth: usize, watch: &mut Watch<'_>) -> Result<Passes> {
        let sequence = self.start.sequence;
        self.sequences.restore(sequence, &self.start.saved)?;
        let (goal, vocabulary) = (self.args.tokens + 1, self.sequences.config().vocabulary);
        let mut passes = Passes::new(depth, self.start.first);
        let mut drafts: Vec<u32> = Vec::new();
        while passes.told.len() < goal {
            let before = self.sequences.tokens(sequence).len();
            let rows: Vec<u32> = passes.told.last().into_iter().chain(&drafts).copied().collect();
            let start = Instant::now();
            let part = Part { sequence, tokens: &rows, role: Role::Decode, logits: rows.len() };
            let logits = self.sequences.step(&[part])?;
            let drawn: Vec<u32> = logits.chunks_exact(vocabulary).map(likeliest).collect();
            let right = drafts.iter().zip(&drawn).take_while(|(draft, drawn)| draft == drawn).count();
            let verify = start.elapsed();
            if let Watch::Logits(seen) = watch {
                seen.extend(logits.chunks_exact(vocabulary).take(right + 1).map(|row| Hash::of_floats([row])));
            }
            let is_whole = drafts.len() == depth;
            self.watch_stages(watch, 0, is_whole)?;

            let start = Instant::now();
            self.sequences.rewind(sequence, before + right + 1);
            let state = start.elapsed();

            let told = passes.told.len() + right + 1;
            let start = Instant::now();
            let next = match depth.min((goal - told).saturating_sub(1)) {
                0 => Vec::new(),
                most => self.guess(&drawn[..=right], most, told)?,
            };
            let draft = start.elapsed();
            self.watch_stages(watch, 1, is_whole)?;
            passes.add(&drawn[..=right], drafts.len(), [verify, draft, state]);
            drafts = next;
        }
        Ok(passes)
    }

    /// So many drafts of what comes after `tokens`, which the rows of the last step were followed by; `at` tokens are told then.
    fn guess(&mut self, tokens: &[u32], most: usize, at: usize) -> Result<Vec<u32>> {
        let sequence = self.start.sequence;
        self.sequences.predict(&[Ahead { sequence, tokens, logits: true }])?;
        let mut drafts = Vec::with_capacity(most);
        loop {
            let guess = self.sequences.predicted(sequence).map_or(0, likeliest);
            drafts.push(self.chance(guess, at + drafts.len()));
            if drafts.len() == most {
                return Ok(drafts);
            }
            self.sequences.predict_on(&[(sequence, drafts[drafts.len() - 1])])?;
        }
    }

    /// A guess of token `at`; or, where a chance is given, the right token with that chance, else a wrong one.
    fn chance(&self, guess: u32, at: usize) -> u32 {
        let (Some(chance), Some(right)) = (self.args.right, self.told.get(at)) else { return guess };
        // The golden ratio's multiples are spread evenly, in any run alike.
        let drawn = (at as f64 * 0.618_033_988_749_894_9).fract();
        let wrong = (right + 1) % self.sequences.config().vocabulary as u32;
        if drawn < chance { *right } else { wrong }
    }

    /// Counts the stages since the last time, if they are watched; those of a pass with fewer drafts are left out.
    fn watch_stages(&self, watch: &mut Watch<'_>, which: usize, counts: bool) -> Result<()> {
        let Watch::Stages(stages, whole) = watch else { return Ok(()) };
        **whole += usize::from(counts && which == 0);
        add_stages(&self.device, stages, which, counts)
    }
}

fn add_stages<D: Device>(
    device: &Profiled<D>,
    stages: &mut BTreeMap<&'static str, [f64; 2]>,
    which: usize,
    counts: bool,
) -> Result<()> {
    for entry in device.take()? {
        let seconds = if counts { entry.time.as_secs_f64() } else { 0.0 };
        stages.entry(entry.label.stage).or_default()[which] += seconds;
    }
    Ok(())
}
