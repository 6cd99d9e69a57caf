//! `tessera profile`: where the time of a step goes, stage by stage and layer by layer.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, builder::RangedU64ValueParser};
use serde::Serialize;
use tessera_cuda::Turn;
use tessera_engine::{Part, Sampler, SamplingParams, SequenceId, Sequences};
use tessera_ops::{
    Device, Profiled, Role,
    profile::{Entry, Label},
};

use super::{args::Common, batch::step_ranked, row::Facts, subject::Subject, times::Times};
use crate::{
    args::Placement,
    device::{self, Card},
};

/// Show where the time of a step goes: its stages, in sum and in each layer.
#[derive(Debug, Args)]
#[command(
    after_help = "Times are medians over --repeat measurements, and those of one step: the whole prompt, or one token of each sequence. \
Bytes are read or written once: weights as the file holds them, activations in f32, keys and values as they are cached. \
Operations are those of projections and attention. `rest` is what lies between the ops.
On a card, stages are timed by its own clock and launch by launch, and `rest` is what a step takes beside them. What becomes one launch \
with the stage before it counts there. Steps as a whole are timed as they are, with graphs. \
Kernels are listed by the blocks of a launch, with the time from their turn in such a step to the next one's; and when half of the blocks \
had begun, which is before the turn where launches start early, when half and when all had ended: medians of launches, microseconds from \
the turn on. `host` is what the card waits for between steps.

Examples:
  tessera profile smollm2:135m
  tessera profile gemma3:270m --prompt 2048 --width 8 --depth 512
  tessera profile synth:qwen3,layers=8,width=1024 --threads 1 --json"
)]
pub(crate) struct Profile {
    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    prompt: usize,
    /// Sequences that decode together
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    width: usize,
    /// Tokens of each before the first step
    #[arg(long, value_name = "TOKENS", default_value_t = 128,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    depth: usize,
    /// Steps of a measurement
    #[arg(long, value_name = "STEPS", default_value_t = 16,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 16))]
    tokens: usize,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    placement: Placement,
}

/// What is between the ops.
const REST: Label = Label { layer: None, stage: "rest" };
const SAMPLING: Label = Label { layer: None, stage: "sampling" };

/// Measures and prints.
pub(crate) fn main(args: &Profile) -> Result<()> {
    let subject = Subject::open(&args.common, &Placement::default())?;
    match device::noting_card(&args.placement)? {
        Some(card) => profile(args, subject, card.clone(), Some(card)),
        None => {
            subject.check_memory()?;
            profile(args, subject, device::profiled(&args.common.compute)?, None)
        }
    }
}

fn profile<D: Device>(
    args: &Profile,
    subject: Subject,
    device: Arc<Profiled<D>>,
    card: Option<Arc<Profiled<Card>>>,
) -> Result<()> {
    let lengths = vec![args.depth + args.tokens; args.width];
    let sequences = subject.load_on(device.clone(), lengths.into_iter().chain([args.prompt]))?;
    let repeats = args.common.output.repeat;
    let name = device.name();
    let mut run = Run { subject, device, card, sequences, sampler: Sampler::new(SamplingParams::default())?, repeats };
    let phases = [run.prefill(args)?, run.decode(args)?];
    let mut facts = run.subject.facts();
    if run.card.is_some() {
        facts.machine = format!("{}, {name}", facts.machine);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.common.output.json {
        let forced = device::forced(&run.subject.device);
        writeln!(out, "{}", serde_json::to_string(&Report { facts: &facts, forced, phases: &phases })?)?;
    } else if args.common.output.csv {
        writeln!(out, "phase,layer,stage,seconds,bytes,operations")?;
        for (phase, s) in phases.iter().flat_map(|phase| phase.stages.iter().map(move |s| (phase, s))) {
            let layer = s.layer.map_or_else(String::new, |layer| layer.to_string());
            writeln!(out, "{},{layer},{},{},{},{}", phase.phase, s.stage, s.seconds, s.bytes, s.operations)?;
        }
    } else {
        writeln!(out, "{}", facts.heading(&device::forced(&run.subject.device)))?;
        phases.iter().try_for_each(|phase| phase.print(&mut out))?;
    }
    Ok(out.flush()?)
}

/// All of it, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    forced: String,
    phases: &'a [Phase],
}

/// A prompt, or a step of decode.
#[derive(Serialize)]
struct Phase {
    phase: &'static str,
    /// Tokens of the step.
    width: usize,
    /// Tokens of a sequence before it.
    depth: usize,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    /// In the order in which they come first.
    stages: Vec<Stage>,
    /// Of a step on a card.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<Kernel>,
}

/// A kernel of a card.
#[derive(Serialize)]
struct Kernel {
    kernel: String,
    /// Of each launch; of all kernels together none.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Blocks>,
    /// In a step.
    launches: usize,
    /// Of all of them, from their turn to the next kernel's.
    seconds: f64,
}

/// Blocks of a launch. Times are medians of launches, from the turn on.
#[derive(Serialize)]
struct Blocks {
    count: usize,
    /// When half of them had begun.
    begun_seconds: f64,
    /// When half of them had ended.
    half_ended_seconds: f64,
    ended_seconds: f64,
}

/// A stage of a layer, or of none.
#[derive(Serialize)]
struct Stage {
    layer: Option<usize>,
    stage: &'static str,
    seconds: f64,
    bytes: f64,
    operations: f64,
}

struct Run<D: Device> {
    subject: Subject,
    device: Arc<Profiled<D>>,
    /// The same, where it is a card.
    card: Option<Arc<Profiled<Card>>>,
    sequences: Sequences,
    sampler: Sampler,
    repeats: usize,
}

impl<D: Device> Run<D> {
    fn prefill(&mut self, args: &Profile) -> Result<Phase> {
        let (id, tokens) = (self.sequences.open(), self.subject.tokens(0, args.prompt));
        let phase = self.measure("prefill", args.prompt, 0, 1, |run| {
            run.sequences.rewind(id, 0);
            let start = Instant::now();
            let mut logits = run.sequences.prefill(id, &tokens, args.common.chunk)?.to_vec();
            Ok((start.elapsed(), sample(&mut run.sampler, &mut logits, run.subject.config.vocabulary, &tokens)?))
        });
        self.sequences.close(id);
        phase
    }

    fn decode(&mut self, args: &Profile) -> Result<Phase> {
        let mut slots: Vec<(SequenceId, Vec<u32>)> = Vec::new();
        for i in 0..args.width {
            let (id, tokens) = (self.sequences.open(), self.subject.tokens(i, args.depth + args.tokens));
            self.sequences.prefill(id, &tokens[..args.depth], args.common.chunk)?;
            slots.push((id, tokens));
        }
        self.measure("decode", args.width, args.depth, args.tokens, |run| {
            slots.iter().for_each(|(id, _)| run.sequences.rewind(*id, args.depth));
            let (mut time, mut sampling) = (Duration::ZERO, Duration::ZERO);
            for at in args.depth..args.depth + args.tokens {
                let parts = slots.iter().map(|(sequence, tokens)| Part {
                    sequence: *sequence,
                    tokens: &tokens[at..=at],
                    role: Role::Decode,
                    logits: 1,
                });
                let parts: Vec<_> = parts.collect();
                let [of_step, of_sampling] = run.step(&parts, &slots[0].1[..at])?;
                time += of_step;
                sampling += of_sampling;
            }
            Ok((time, sampling))
        })
    }

    /// A step as a server does it: its time, and that of sampling.
    fn step(&mut self, parts: &[Part<'_>], history: &[u32]) -> Result<[Duration; 2]> {
        let start = Instant::now();
        let is_ranked = step_ranked(&mut self.sequences, parts, false)?;
        let time = start.elapsed();
        if !is_ranked {
            let mut logits = self.sequences.logits().to_vec();
            return Ok([time, sample(&mut self.sampler, &mut logits, self.subject.config.vocabulary, history)?]);
        }
        let start = Instant::now();
        for (i, best) in self.sequences.best().chunks_exact(1).enumerate() {
            self.sampler.sample_best(best, i as u64)?;
        }
        Ok([time, start.elapsed()])
    }

    /// Repeats a measurement of `steps` steps, which gives their time, and that of sampling.
    fn measure(
        &mut self,
        phase: &'static str,
        width: usize,
        depth: usize,
        steps: usize,
        mut run: impl FnMut(&mut Run<D>) -> Result<(Duration, Duration)>,
    ) -> Result<Phase> {
        run(self)?; // warms up
        self.device.take()?;
        let kernels = self.kernels(steps, &mut run)?;
        let (mut whole, mut order, mut stages) = (Times::default(), Vec::new(), BTreeMap::new());
        for _ in 0..self.repeats {
            // To time stages on a card makes steps slower, so they are timed as a whole by themselves.
            self.device.pause(true);
            let plain = self.card.is_some().then(|| run(self)).transpose();
            self.device.pause(false);
            let timed = run(self)?;
            let (time, sampling) = plain?.unwrap_or(timed);
            let mut entries = self.device.take()?;
            let rest = time.saturating_sub(entries.iter().map(|e| e.time).sum());
            let other = |label, time| Entry { label, time, bytes: 0, operations: 0 };
            entries.extend([other(SAMPLING, sampling), other(REST, rest)]);
            let mut sums: BTreeMap<Label, (Duration, u64, u64)> = BTreeMap::new();
            for entry in entries {
                let (time, bytes, operations) = sums.entry(entry.label).or_insert_with(|| {
                    if !order.contains(&entry.label) {
                        order.push(entry.label);
                    }
                    Default::default()
                });
                *time += entry.time;
                *bytes += entry.bytes;
                *operations += entry.operations;
            }
            for (label, (time, bytes, operations)) in sums {
                let stage = stages.entry(label).or_insert_with(|| (Times::default(), bytes, operations));
                stage.0.push(time);
            }
            whole.push(time + sampling);
        }
        let each = |number: f64| number / steps as f64;
        let stages = order.into_iter().filter_map(|label| {
            let (times, bytes, operations) = stages.get(&label)?;
            let (bytes, operations) = (each(*bytes as f64), each(*operations as f64));
            Some(Stage { layer: label.layer, stage: label.stage, seconds: each(times.median()), bytes, operations })
        });
        let (seconds, seconds_min, seconds_max) = (each(whole.median()), each(whole.least()), each(whole.greatest()));
        Ok(Phase { phase, width, depth, seconds, seconds_min, seconds_max, stages: stages.collect(), kernels })
    }

    /// The kernels of a step, where the device is a card.
    fn kernels(
        &mut self,
        steps: usize,
        run: &mut impl FnMut(&mut Run<D>) -> Result<(Duration, Duration)>,
    ) -> Result<Vec<Kernel>> {
        let Some(card) = self.card.clone() else { return Ok(vec![]) };
        self.device.pause(true);
        run(self)?; // warms up what is joined where nothing is timed
        let mut done = Ok((Duration::ZERO, Duration::ZERO));
        let turns = card.inner().turns(|| done = run(self));
        self.device.pause(false);
        done?;
        let mut launches: BTreeMap<(String, usize), Vec<Turn>> = BTreeMap::new();
        for turn in turns? {
            launches.entry((turn.kernel.clone(), turn.blocks)).or_default().push(turn);
        }
        let each = |((kernel, count), turns): ((String, usize), Vec<Turn>)| {
            let median = |nanos: fn(&Turn) -> i64| {
                let mut all: Vec<i64> = turns.iter().map(nanos).collect();
                all.sort_unstable();
                all[all.len() / 2] as f64 / 1e9
            };
            let begun_seconds = median(|t| t.begun_nanos);
            let (half_ended_seconds, ended_seconds) = (median(|t| t.half_ended_nanos), median(|t| t.ended_nanos));
            let seconds: f64 = turns.iter().map(|t| t.time.as_secs_f64()).sum();
            Kernel {
                kernel,
                blocks: Some(Blocks { count, begun_seconds, half_ended_seconds, ended_seconds }),
                launches: (turns.len() + steps / 2) / steps,
                seconds: seconds / steps as f64,
            }
        };
        let mut kernels: Vec<Kernel> = launches.into_iter().map(each).collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(kernels)
    }
}

/// Draws the likeliest token from each row of logits.
fn sample(sampler: &mut Sampler, logits: &mut [f32], vocabulary: usize, history: &[u32]) -> Result<Duration> {
    let start = Instant::now();
    for (i, row) in logits.chunks_exact_mut(vocabulary).enumerate() {
        sampler.sample(row, history, i as u64)?;
    }
    Ok(start.elapsed())
}

impl Phase {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Phase { phase, width, depth, .. } = self;
        let millis = [self.seconds, self.seconds_min, self.seconds_max].map(|s| s * 1e3);
        let rate = *width as f64 / self.seconds;
        let after = if *depth == 0 { String::new() } else { format!(" after {depth}") };
        writeln!(
            out,
            "\n{phase} of {width}{after}: {:.3} ms ({:.3} to {:.3}), {rate:.1} tokens a second",
            millis[0], millis[1], millis[2]
        )?;
        self.print_sums(out)?;
        self.print_kernels(out)?;
        self.print_layers(out)
    }

    /// Each stage in sum.
    fn print_sums(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:<12}{:>10}{:>8}{:>10}{:>8}{:>8}", "stage", "ms", "share", "MB", "GB/s", "GOPS")?;
        let total: f64 = self.stages.iter().map(|s| s.seconds).sum();
        for name in self.names(|_| true) {
            let stages = || self.stages.iter().filter(|s| s.stage == name);
            let sum = |value: fn(&Stage) -> f64| stages().map(value).sum::<f64>();
            let (seconds, bytes, operations) = (sum(|s| s.seconds), sum(|s| s.bytes), sum(|s| s.operations));
            let per_second = |amount: f64, digits: usize| {
                if amount == 0.0 { String::new() } else { format!("{:.digits$}", amount / seconds / 1e9) }
            };
            let line = format!(
                "{name:<12}{:>10.3}{:>7.1}%{:>10.2}{:>8}{:>8}",
                seconds * 1e3,
                100.0 * seconds / total,
                bytes / 1e6,
                per_second(bytes, 1),
                per_second(operations, 0),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Each kernel of a step on a card, and all of them.
    fn print_kernels(&self, out: &mut impl Write) -> io::Result<()> {
        if self.kernels.is_empty() {
            return Ok(());
        }
        let titles = ["blocks", "launches", "µs each", "ms", "begun", "half done", "done"];
        writeln!(out, "{:<16}{}  (µs)", "kernel", titles.map(|title| format!("{title:>10}")).concat())?;
        let launches = self.kernels.iter().map(|k| k.launches).sum();
        let seconds = self.kernels.iter().map(|k| k.seconds).sum();
        let all = Kernel { kernel: "all".to_owned(), blocks: None, launches, seconds };
        for Kernel { kernel, blocks, launches, seconds } in self.kernels.iter().chain([&all]) {
            let each = seconds * 1e6 / (*launches).max(1) as f64;
            let count = blocks.as_ref().map_or(String::new(), |b| b.count.to_string());
            write!(out, "{kernel:<16}{count:>10}{launches:>10}{each:>10.1}{:>10.3}", seconds * 1e3)?;
            for time in blocks.iter().flat_map(|b| [b.begun_seconds, b.half_ended_seconds, b.ended_seconds]) {
                write!(out, "{:>10.1}", time * 1e6)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Microseconds of each stage in each layer.
    fn print_layers(&self, out: &mut impl Write) -> io::Result<()> {
        let names = self.names(|s| s.layer.is_some());
        let titles: String = names.iter().map(|name| format!("{name:>11}")).collect();
        writeln!(out, "layer{titles}{:>11}  (µs)", "all")?;
        let layers = self.stages.iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1);
        for layer in 0..layers {
            let of_layer = || self.stages.iter().filter(|s| s.layer == Some(layer));
            let micros = |name: &str| of_layer().filter(|s| s.stage == name).map(|s| s.seconds * 1e6).sum::<f64>();
            let cells: String = names.iter().map(|name| format!("{:>11.1}", micros(name))).collect();
            let all = of_layer().map(|s| s.seconds * 1e6).sum::<f64>();
            writeln!(out, "{layer:>5}{cells}{all:>11.1}")?;
        }
        Ok(())
    }

    /// Names of stages, each once, in the order in which they come first.
    fn names(&self, which: impl Fn(&Stage) -> bool) -> Vec<&'static str> {
        let mut names = Vec::new();
        for stage in self.stages.iter().filter(|s| which(s)) {
            if !names.contains(&stage.stage) {
                names.push(stage.stage);
            }
        }
        names
    }
}
