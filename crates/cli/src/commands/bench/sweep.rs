//! `tessera bench sweep`: speed along a growing context. Between two frontiers the prompt is computed on from where it was; at
//! each frontier the sequence is copied out of the cache, generates, and is put back as it was.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use tessera_engine::{Part, SequenceId, Sequences, Snapshot};
use tessera_ops::Role;

use super::{
    args::Sweep,
    batch::step_likeliest,
    plot::{self, Series},
    prefill::other_chunk,
    report::{self, Report},
    row::Row,
    subject::Subject,
    times::{self, Hash},
};
use crate::{device, ui::Failure};

/// Measures and prints.
pub(super) fn main(args: &Sweep) -> Result<()> {
    let frontiers = frontiers(args)?;
    let subject = Subject::open(&args.common, &args.placement)?;
    let (chunk, repeat) = (args.common.chunk, args.common.output.repeat);
    let length = frontiers[frontiers.len() - 1] + args.generate;
    let mut sequences = subject.load([length.max(args.room.unwrap_or(0))])?;
    let mut report = Report::new(&args.common.output, subject.facts(), report::MODEL);
    let tokens = subject.tokens(0, frontiers[frontiers.len() - 1]);
    let id = sequences.open();
    sequences.prefill(id, &tokens[..chunk.min(frontiers[0])], chunk)?; // warms up
    let (mut prefill, mut decode) = (Series::new("prefill"), Series::new("decode"));
    sequences.rewind(id, 0);
    let (mut before, mut saved) = (0, sequences.snapshot(id)?);
    for &frontier in &frontiers {
        let row = |phase, width| Row {
            test: "sweep",
            phase,
            width: Some(width),
            sequences: Some(1),
            chunk: Some(chunk),
            variants: subject.variants(width),
            forced: device::forced(&subject.device),
            ..Row::default()
        };
        let new = &tokens[before..frontier];
        let what = format!("prompt up to {frontier}");
        let hash = extend_otherwise(&mut sequences, id, &saved, new, chunk)?;
        let times = times::repeat(repeat, &what, &hash, || extend(&mut sequences, id, &saved, new, chunk))?;
        let extended = Row { depth: Some(before), ..row("prefill", chunk.min(new.len())) };
        let extended = extended.measured(new.len(), &times, &hash);
        report.row(&extended)?;
        prefill.push(frontier, &extended);

        saved = sequences.snapshot(id)?;
        let mut replies = Vec::with_capacity(args.generate + 1);
        let mut generate = || {
            replies.clear();
            replies.push(tokens[frontier - 1]);
            generate(&mut sequences, id, &saved, &mut replies, args.generate)
        };
        let (_, hash) = generate()?;
        let times = times::repeat(repeat, &format!("reply at {frontier}"), &hash, generate)?;
        sequences.restore(id, &saved)?;
        let at_once = sequences.decode_at_once(id, &replies[..args.generate])?;
        let at_once = Hash::of_tokens(&replies, &Hash::of_floats([at_once]));
        times::check(&format!("reply at {frontier}, computed at once"), &hash, &at_once)?;
        sequences.restore(id, &saved)?;
        let generated = Row { depth: Some(frontier), snapshot_bytes: Some(saved.bytes()), ..row("decode", 1) };
        let generated = generated.measured(args.generate, &times, &hash);
        report.row(&generated)?;
        decode.push(frontier, &generated);
        before = frontier;
    }
    match &args.svg {
        Some(path) => draw(path, &subject, &[prefill, decode]),
        None => Ok(()),
    }
}

/// From the first to the last, by steps or by a factor.
fn frontiers(args: &Sweep) -> Result<Vec<usize>> {
    if args.from > args.to {
        let message = format!("the context cannot grow from {} to {}", args.from, args.to);
        return Err(Failure::new(message, "give a --to that is not below --from").into());
    }
    let next = |at: &usize| {
        let next = match args.factor {
            Some(factor) => ((*at as f64 * factor) as usize).max(at + 1),
            None => at + args.step,
        };
        // The last is measured too, if a step would pass it.
        (*at < args.to).then(|| next.min(args.to))
    };
    Ok(std::iter::successors(Some(args.from), next).collect())
}

/// Computes the tokens after those of a snapshot. Going back would not do: what a ring held before is gone.
fn extend(
    sequences: &mut Sequences,
    id: SequenceId,
    saved: &Snapshot,
    new: &[u32],
    chunk: usize,
) -> Result<(Duration, Hash)> {
    sequences.restore(id, saved)?;
    let start = Instant::now();
    let logits = sequences.prefill(id, new, chunk)?;
    Ok((start.elapsed(), Hash::of_floats([logits])))
}

/// The same cut in another way: by half, and the last tokens into a few narrow steps. In narrow steps alone a long prompt would take many
/// times as long as what is measured.
fn extend_otherwise(
    sequences: &mut Sequences,
    id: SequenceId,
    saved: &Snapshot,
    new: &[u32],
    chunk: usize,
) -> Result<Hash> {
    const NARROW_STEPS: usize = 8;
    let narrow = other_chunk(chunk.min(new.len()));
    let (first, last) = new.split_at(new.len() - (NARROW_STEPS * narrow).min(new.len()));
    sequences.restore(id, saved)?;
    if !first.is_empty() {
        sequences.prefill(id, first, chunk / 2 + 1)?;
    }
    Ok(Hash::of_floats([sequences.prefill(id, last, narrow)?]))
}

/// Adds `count` tokens to `tokens` from a snapshot on: each is the likeliest after those before it.
fn generate(
    sequences: &mut Sequences,
    sequence: SequenceId,
    saved: &Snapshot,
    tokens: &mut Vec<u32>,
    count: usize,
) -> Result<(Duration, Hash)> {
    sequences.restore(sequence, saved)?;
    let start = Instant::now();
    let mut logits = &[][..];
    for i in 1..=count {
        let part = Part { sequence, tokens: &tokens[tokens.len() - 1..], role: Role::Decode, logits: 1 };
        let (likeliest, all) = step_likeliest(sequences, &[part], i == count)?;
        tokens.extend(likeliest);
        logits = all;
    }
    let time = start.elapsed();
    Ok((time, Hash::of_tokens(tokens, &Hash::of_floats([logits]))))
}

fn draw(path: &Path, subject: &Subject, series: &[Series]) -> Result<()> {
    let svg = plot::svg(&subject.facts().model, series)?;
    std::fs::write(path, svg).map_err(|error| {
        let message = format!("cannot write {}", path.display());
        Failure::new(message, "give --svg a file in a folder that exists").caused_by(error).into()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sweep: Sweep,
    }

    fn of(line: &str) -> Result<Vec<usize>> {
        frontiers(&Line::try_parse_from(["sweep"].into_iter().chain(line.split(' '))).unwrap().sweep)
    }

    #[test]
    fn frontiers_begin_and_end_where_they_are_told() {
        let cases: [(&str, &[usize]); 6] = [
            ("--from=10 --to=40 --step=10", &[10, 20, 30, 40]),
            ("--from=10 --to=35 --step=10", &[10, 20, 30, 35]),
            ("--from=7 --to=7 --step=10", &[7]),
            ("--from=64 --to=512 --factor=2", &[64, 128, 256, 512]),
            ("--from=3 --to=6 --factor=1.1", &[3, 4, 5, 6]),
            ("--from=100 --to=300 --factor=1.5", &[100, 150, 225, 300]),
        ];
        for (line, want) in cases {
            assert_eq!(of(line).unwrap(), want, "{line}");
        }
        assert!(of("--from=5 --to=4 --step=1").is_err());
    }
}
