//! `tessera bench decode`: sequences of the same depth in lock-step, one token of each a step, all tokens given beforehand.
//! Logits of every sequence are computed at every step.

use std::time::{Duration, Instant};

use anyhow::Result;
use tessera_engine::{Part, SequenceId, Sequences};
use tessera_ops::Role;

use super::{
    args::Decode,
    report::{self, Report},
    row::Row,
    subject::Subject,
    times::{self, Hash},
};
use crate::device;

/// Measures and prints.
pub(super) fn main(args: &Decode) -> Result<()> {
    let subject = Subject::open(&args.common, &args.placement)?;
    let widest = args.width.iter().copied().max().unwrap_or(1);
    let lengths = vec![args.depth + args.tokens; widest];
    let mut sequences = subject.load(lengths)?;
    let mut report = Report::new(&args.common.output, subject.facts(), report::MODEL);
    let tokens: Vec<_> = (0..widest).map(|i| subject.tokens(i, args.depth + args.tokens)).collect();
    let ids: Vec<_> = tokens.iter().map(|_| sequences.open()).collect();
    for (id, tokens) in ids.iter().zip(&tokens) {
        sequences.prefill(*id, &tokens[..args.depth], args.common.chunk)?;
    }
    let slots: Vec<_> = ids.into_iter().zip(tokens).collect();
    let alone = slots.iter().map(|slot| alone(&mut sequences, slot, args)).collect::<Result<Vec<_>>>()?;
    for &width in &args.width {
        let hash = Hash::of_parts(&alone[..width]);
        let what = format!("{width} sequences together");
        let mut run = || lock_step(&mut sequences, &slots[..width], args);
        // The first run warms up.
        times::check(&what, &hash, &run()?.1)?;
        let times = times::repeat(args.common.output.repeat, &what, &hash, run)?;
        let row = Row {
            test: "decode",
            phase: "decode",
            width: Some(width),
            depth: Some(args.depth),
            sequences: Some(width),
            variants: subject.variants(width),
            forced: device::forced(&subject.device),
            ..Row::default()
        };
        report.row(&row.measured(width * args.tokens, &times, &hash))?;
    }
    Ok(())
}

/// A sequence and all its tokens.
type Slot = (SequenceId, Vec<u32>);

/// The last logits of a sequence whose tokens are computed alone, all in one step.
fn alone(sequences: &mut Sequences, (sequence, tokens): &Slot, args: &Decode) -> Result<Hash> {
    sequences.rewind(*sequence, args.depth);
    let part = Part { sequence: *sequence, tokens: &tokens[args.depth..], role: Role::Decode, logits: 1 };
    Ok(Hash::of_floats([sequences.step(&[part])?]))
}

/// All steps of these sequences together, and their last logits.
fn lock_step(sequences: &mut Sequences, slots: &[Slot], args: &Decode) -> Result<(Duration, Hash)> {
    slots.iter().for_each(|(id, _)| sequences.rewind(*id, args.depth));
    let vocabulary = sequences.config().vocabulary;
    let mut parts = Vec::with_capacity(slots.len());
    let start = Instant::now();
    let mut logits = &[][..];
    for at in args.depth..args.depth + args.tokens {
        parts.clear();
        parts.extend(slots.iter().map(|(sequence, tokens)| Part {
            sequence: *sequence,
            tokens: &tokens[at..=at],
            role: Role::Decode,
            logits: 1,
        }));
        logits = sequences.step(&parts)?;
    }
    let time = start.elapsed();
    let each: Vec<_> = logits.chunks_exact(vocabulary).map(|logits| Hash::of_floats([logits])).collect();
    Ok((time, Hash::of_parts(&each)))
}
