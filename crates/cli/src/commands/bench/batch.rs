//! `tessera bench batch`: sequences that come and go. One prompt at a time is computed, a chunk between two steps of the
//! sequences that decode already; then it takes its slot. A sequence leaves when its reply is as long as it is to be.
//! Each step takes the likeliest token of every sequence.

use std::time::{Duration, Instant};

use anyhow::Result;
use tessera_engine::{Part, SequenceId, Sequences};
use tessera_ops::Role;

use super::{
    args::Batch,
    random::Random,
    report::{self, Report},
    row::Row,
    subject::Subject,
    times::{self, Hash, Times},
};
use crate::{device, ui::Failure};

/// Measures and prints.
pub(super) fn main(args: &Batch) -> Result<()> {
    let widest = args.batch.iter().copied().max().unwrap_or(1);
    let count = args.sequences.unwrap_or(2 * widest);
    if count < widest {
        let message = format!("{count} sequences never fill a batch of {widest}");
        return Err(Failure::new(message, "raise --sequences, or lower --batch").into());
    }
    let subject = Subject::open(&args.common, &args.placement)?;
    let mut sequences = subject.load(vec![args.prompt + args.tokens; widest])?;
    let mut report = Report::new(&args.common.output, subject.facts(), report::SLOTS);
    let requests = requests(&subject, args, count);
    // What each gives alone is known before the first row.
    let warm = run(&mut sequences, &requests[..1], 1, args.common.chunk)?;
    let mut expected = Vec::new();
    for &batch in &args.batch {
        let (mut prefill, mut decode, mut steps) = (Times::default(), Times::default(), 0);
        for repeat in 0..args.common.output.repeat {
            let done = run(&mut sequences, &requests, batch, args.common.chunk)?;
            if expected.is_empty() {
                let tokens: Vec<_> = done.replies.iter().map(|reply| reply.tokens.clone()).collect();
                expected = alone(&mut sequences, &requests, &tokens)?;
                times::check("a sequence alone", &expected[0], &warm.replies[0].hash())?;
            }
            for (i, (reply, expected)) in done.replies.iter().zip(&expected).enumerate() {
                let what = format!("sequence {i} in batches of {batch}, repeat {}", repeat + 1);
                times::check(&what, expected, &reply.hash())?;
            }
            prefill.push(done.prefill);
            decode.push(done.decode);
            steps = done.steps;
        }
        let hash = Hash::of_parts(&expected);
        let prompt_tokens = requests.iter().map(|r| r.prompt.len()).sum();
        let decoded: usize = requests.iter().map(|r| r.tokens - 1).sum();
        let row = |phase, width| Row {
            test: "batch",
            phase,
            width: Some(width),
            sequences: Some(count),
            chunk: Some(args.common.chunk),
            forced: device::forced(&subject.device),
            ..Row::default()
        };
        let chunk = args.common.chunk.min(args.prompt);
        let row_of_prompts = Row { variants: subject.variants(chunk), ..row("prefill", batch) };
        report.row(&row_of_prompts.measured(prompt_tokens, &prefill, &hash))?;
        let occupied = Some(decoded as f64 / steps.max(1) as f64);
        let row_of_steps = Row { variants: subject.variants(batch), occupied, ..row("decode", batch) };
        report.row(&row_of_steps.measured(decoded, &decode, &hash))?;
    }
    Ok(())
}

/// A prompt, and how long the reply is to be.
struct Request {
    prompt: Vec<u32>,
    tokens: usize,
}

/// Requests of different lengths: the longest first, the others down to a quarter of it.
fn requests(subject: &Subject, args: &Batch, count: usize) -> Vec<Request> {
    let mut random = Random(args.seed);
    let request = |i| {
        let mut length = |most: usize| if i == 0 { most } else { most - random.below(most - most.div_ceil(4) + 1) };
        let (prompt, tokens) = (length(args.prompt), length(args.tokens));
        Request { prompt: subject.tokens(random.below(subject.config.vocabulary), prompt), tokens }
    };
    (0..count).map(request).collect()
}

/// What came of a request.
#[derive(Clone, Debug, Default)]
struct Reply {
    tokens: Vec<u32>,
    /// Of the logits that gave its last token.
    logits: Hash,
}

impl Reply {
    fn hash(&self) -> Hash {
        Hash::of_tokens(&self.tokens, &self.logits)
    }

    /// Takes a token; says whether it was the last.
    fn take(&mut self, token: u32, tokens: usize) -> bool {
        self.tokens.push(token);
        self.tokens.len() == tokens
    }
}

/// What came of all requests.
struct Done {
    replies: Vec<Reply>,
    prefill: Duration,
    decode: Duration,
    /// Steps in which sequences decoded.
    steps: usize,
}

/// A sequence and the request that it serves.
struct Slot {
    sequence: SequenceId,
    request: usize,
}

/// Serves all requests with at most `batch` sequences at a time.
fn run(sequences: &mut Sequences, requests: &[Request], batch: usize, chunk: usize) -> Result<Done> {
    let mut queue = 0..requests.len();
    let mut pending: Option<Slot> = None;
    let mut slots: Vec<Slot> = Vec::with_capacity(batch);
    let replies = vec![Reply::default(); requests.len()];
    let mut done = Done { replies, prefill: Duration::ZERO, decode: Duration::ZERO, steps: 0 };
    loop {
        if pending.is_none() && slots.len() < batch {
            pending = queue.next().map(|request| Slot { sequence: sequences.open(), request });
        }
        if let Some(slot) = pending.take() {
            if !prefill_chunk(sequences, requests, &slot, chunk, &mut done)? {
                pending = Some(slot);
            } else if requests[slot.request].tokens == 1 {
                sequences.close(slot.sequence);
            } else {
                slots.push(slot);
            }
        }
        if !slots.is_empty() {
            decode_step(sequences, requests, &mut slots, &mut done)?;
        } else if pending.is_none() && queue.is_empty() {
            return Ok(done);
        }
    }
}

/// Computes the next chunk of a prompt; whether it was the last, which gives the reply's first token.
fn prefill_chunk(
    sequences: &mut Sequences,
    requests: &[Request],
    slot: &Slot,
    chunk: usize,
    done: &mut Done,
) -> Result<bool> {
    let Request { prompt, tokens } = &requests[slot.request];
    let start = Instant::now();
    let from = sequences.tokens(slot.sequence).len();
    let to = prompt.len().min(from + chunk);
    let logits = usize::from(to == prompt.len());
    let part = Part { sequence: slot.sequence, tokens: &prompt[from..to], role: Role::Prefill, logits };
    let logits = sequences.step(&[part])?;
    let reply = &mut done.replies[slot.request];
    let last = to == prompt.len() && reply.take(likeliest(logits), *tokens);
    done.prefill += start.elapsed();
    if last {
        reply.logits = Hash::of_floats([logits]);
    }
    Ok(to == prompt.len())
}

/// Computes one token of every sequence; those that are done leave.
fn decode_step(sequences: &mut Sequences, requests: &[Request], slots: &mut Vec<Slot>, done: &mut Done) -> Result<()> {
    let start = Instant::now();
    let vocabulary = sequences.config().vocabulary;
    let parts = slots.iter().map(|slot| {
        let tokens = &done.replies[slot.request].tokens;
        Part { sequence: slot.sequence, tokens: &tokens[tokens.len() - 1..], role: Role::Decode, logits: 1 }
    });
    let is_last = slots.iter().any(|slot| done.replies[slot.request].tokens.len() + 1 == requests[slot.request].tokens);
    let (tokens, logits) = step_likeliest(sequences, &parts.collect::<Vec<_>>(), is_last)?;
    let last = slots.iter().zip(tokens);
    let last = last.map(|(slot, token)| done.replies[slot.request].take(token, requests[slot.request].tokens));
    let last: Vec<bool> = last.collect();
    done.decode += start.elapsed();
    done.steps += 1;
    for ((slot, row), _) in slots.iter().zip(logits.chunks_exact(vocabulary)).zip(&last).filter(|(_, last)| **last) {
        done.replies[slot.request].logits = Hash::of_floats([row]);
    }
    for i in (0..slots.len()).rev().filter(|i| last[*i]) {
        // The others keep their order.
        sequences.close(slots.remove(i).sequence);
    }
    Ok(())
}

/// What each request gives alone: its prompt and these tokens are computed in two steps, and every token must be the one
/// that the logits before it make the likeliest.
fn alone(sequences: &mut Sequences, requests: &[Request], tokens: &[Vec<u32>]) -> Result<Vec<Hash>> {
    let vocabulary = sequences.config().vocabulary;
    let mut hashes = Vec::with_capacity(requests.len());
    for (Request { prompt, .. }, tokens) in requests.iter().zip(tokens) {
        let sequence = sequences.open();
        let mut logits = sequences.prefill(sequence, prompt, prompt.len())?.to_vec();
        let rest = &tokens[..tokens.len() - 1];
        if !rest.is_empty() {
            let part = Part { sequence, tokens: rest, role: Role::Decode, logits: rest.len() };
            logits.extend_from_slice(sequences.step(&[part])?);
        }
        sequences.close(sequence);
        let tokens = logits.chunks_exact(vocabulary).map(likeliest).collect();
        let last = &logits[logits.len() - vocabulary..];
        hashes.push(Reply { tokens, logits: Hash::of_floats([last]) }.hash());
    }
    Ok(hashes)
}

/// Runs a step as a server does; whether the device ranked its logits, so that they were not read, and [`Sequences::best`] has the
/// likeliest. Where they are wanted, or no device ranks them, [`Sequences::logits`] has them.
pub(super) fn step_ranked(sequences: &mut Sequences, parts: &[Part<'_>], wants_logits: bool) -> Result<bool> {
    let is_ranked = !wants_logits && sequences.ranks();
    if is_ranked {
        sequences.step_best(parts, 1)?;
    } else {
        sequences.step(parts)?;
    }
    Ok(is_ranked)
}

/// The same, and gives the likeliest token of each wanted row, and the logits if they were read.
pub(super) fn step_likeliest<'a>(
    sequences: &'a mut Sequences,
    parts: &[Part<'_>],
    wants_logits: bool,
) -> Result<(Vec<u32>, &'a [f32])> {
    if step_ranked(sequences, parts, wants_logits)? {
        return Ok((sequences.best().iter().map(|best| best.id).collect(), &[]));
    }
    let vocabulary = sequences.config().vocabulary;
    let logits = &*sequences.logits();
    Ok((logits.chunks_exact(vocabulary).map(likeliest).collect(), logits))
}

/// The token of the highest logit, the first of several.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    // In lanes, so that a large vocabulary takes no time to speak of.
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        highest.iter_mut().zip(chunk).for_each(|(h, l)| *h = if *l > *h { *l } else { *h });
    }
    let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |h, l| h.max(*l));
    logits.iter().position(|l| *l == highest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_is_found_wherever_it_is() {
        for len in [1, 15, 16, 17, 100] {
            for at in 0..len {
                let mut logits = vec![-1.0; len];
                logits[at] = -0.5;
                logits[len - 1] = -0.5;
                assert_eq!(likeliest(&logits), at as u32);
            }
        }
        assert_eq!(likeliest(&[f32::NAN; 3]), 0);
    }
}
