//! `tessera bench decode`: sequences of the same depth in lock-step, one token of each a step, all tokens given beforehand.
//! Logits of every sequence are computed at every step. A device that ranks them finds the likeliest token, as for a server, and those of
//! the last step alone are read.

use std::time::{Duration, Instant};

use anyhow::Result;
use tessera_engine::{Part, SequenceId, Sequences, Snapshot};
use tessera_ops::Role;

use super::{
    args::Decode,
    batch::step_ranked,
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
    // Rings keep what so many steps back saw, and no more.
    let is_far = args.tokens > sequences.rows_max();
    let slots = ids.into_iter().zip(tokens).map(|(id, tokens)| {
        let saved = if is_far { Some(sequences.snapshot(id)?) } else { None };
        Ok(Slot { id, tokens, saved })
    });
    let slots = slots.collect::<Result<Vec<_>>>()?;
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

/// A sequence, all its tokens, and where it is before the first step, if it cannot be rewound to that.
struct Slot {
    id: SequenceId,
    tokens: Vec<u32>,
    saved: Option<Snapshot>,
}

impl Slot {
    /// Puts the sequence back before the first step.
    fn begin(&self, sequences: &mut Sequences, depth: usize) -> Result<()> {
        match &self.saved {
            Some(saved) => sequences.restore(self.id, saved)?,
            None => sequences.rewind(self.id, depth),
        }
        Ok(())
    }
}

/// The last logits of a sequence whose tokens are computed alone, as many in a step as can be.
fn alone(sequences: &mut Sequences, slot: &Slot, args: &Decode) -> Result<Hash> {
    slot.begin(sequences, args.depth)?;
    Ok(Hash::of_floats([sequences.decode_at_once(slot.id, &slot.tokens[args.depth..])?]))
}

/// All steps of these sequences together, and their last logits.
fn lock_step(sequences: &mut Sequences, slots: &[Slot], args: &Decode) -> Result<(Duration, Hash)> {
    slots.iter().try_for_each(|slot| slot.begin(sequences, args.depth))?;
    let vocabulary = sequences.config().vocabulary;
    let mut parts = Vec::with_capacity(slots.len());
    let start = Instant::now();
    let end = args.depth + args.tokens;
    for at in args.depth..end {
        parts.clear();
        parts.extend(slots.iter().map(|slot| Part {
            sequence: slot.id,
            tokens: &slot.tokens[at..=at],
            role: Role::Decode,
            logits: 1,
        }));
        step_ranked(sequences, &parts, at + 1 == end)?;
    }
    let time = start.elapsed();
    let each: Vec<_> = sequences.logits().chunks_exact(vocabulary).map(|logits| Hash::of_floats([logits])).collect();
    Ok((time, Hash::of_parts(&each)))
}
