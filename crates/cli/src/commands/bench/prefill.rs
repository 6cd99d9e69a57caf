//! `tessera bench prefill`: time to compute a prompt. The cache is empty before each measurement; only the last token's
//! logits are computed.

use std::time::Instant;

use anyhow::Result;

use super::{
    args::Prefill,
    report::{self, Report},
    row::Row,
    subject::Subject,
    times::{self, Hash},
};
use crate::device;

/// Measures and prints.
pub(super) fn main(args: &Prefill) -> Result<()> {
    let (subject, chunk) = (Subject::open(&args.common, &args.placement)?, args.common.chunk);
    let longest = args.prompt.iter().copied().max().unwrap_or(1);
    let mut sequences = subject.load([longest])?;
    let mut report = Report::new(&args.common.output, subject.facts(), report::MODEL);
    let id = sequences.open();
    for &prompt in &args.prompt {
        let tokens = subject.tokens(0, prompt);
        let mut run = |chunk: usize| -> Result<_> {
            sequences.rewind(id, 0);
            let start = Instant::now();
            let logits = sequences.prefill(id, &tokens, chunk)?;
            Ok((start.elapsed(), Hash::of_floats([logits])))
        };
        // The first run warms up, and says what the result must be, however the prompt is cut.
        let (_, hash) = run(chunk)?;
        let other = other_chunk(chunk.min(prompt));
        times::check(&format!("prompt of {prompt}, in chunks of {other}"), &hash, &run(other)?.1)?;
        let times = times::repeat(args.common.output.repeat, &format!("prompt of {prompt}"), &hash, || run(chunk))?;
        let row = Row {
            test: "prefill",
            phase: "prefill",
            width: Some(chunk.min(prompt)),
            depth: Some(0),
            sequences: Some(1),
            chunk: Some(chunk),
            variants: subject.variants(chunk.min(prompt)),
            forced: device::forced(&subject.device),
            ..Row::default()
        };
        report.row(&row.measured(prompt, &times, &hash))?;
    }
    Ok(())
}

/// Another way to cut a prompt that is computed in steps of `width` tokens: so narrow that other tiles and passes compute it.
pub(super) fn other_chunk(width: usize) -> usize {
    const NARROW: usize = 31;
    NARROW.min(width / 2 + 1)
}
