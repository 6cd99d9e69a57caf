//! `tessera bench attention`: the ways of attention against each other, by head size, rows and length of the sequence.
//!
//! The ways take turns, measurement by measurement, so that what disturbs the machine disturbs all of them alike. Their
//! results must be the same to the last bit, and those of some rows the same as of each alone.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use tessera_cpu::attention::select::Way;

use super::{
    args::Attention as Args,
    report::{self, Report},
    row::{Facts, Row},
};
use crate::{
    args::Compute,
    cache::CacheFormat,
    device::{self, Chosen},
    machine,
    measure::{
        Attention, Heads, Rows,
        times::{self, Hash, Times},
    },
    ui::Failure,
};

/// A measurement is at least this long.
const SECONDS_MIN: f64 = 0.02;

/// Up to this many rows the ways for few rows are compared, above it those for many.
const FEW_ROWS: usize = 24;

/// Rows that are computed alone as well.
const ALONE_MAX: usize = 3;

/// Measures and prints.
pub(super) fn main(args: &Args) -> Result<()> {
    if !args.heads.is_multiple_of(args.kv_heads) {
        let message = format!("{} query heads are not whole groups of {}", args.heads, args.kv_heads);
        return Err(Failure::new(message, "give --heads a multiple of --kv-heads").into());
    }
    let CacheFormat::Plain(format) = args.cache.format else {
        return Err(Failure::new("keys and values of heads cannot be packed", "give another --cache-format").into());
    };
    let facts = Facts {
        commit: machine::COMMIT,
        machine: machine::name(),
        isa: device::isa_name(&*open(args, None)?),
        threads: open(args, None)?.threads(),
        tuning: String::new(),
        model: "attention".to_owned(),
        formats: args.cache.format.name().to_owned(),
    };
    let mut report = Report::new(&args.output, facts, report::ATTENTION);
    for &head_dim in &args.head_dims {
        let heads = Heads { heads: args.heads, kv_heads: args.kv_heads, head_dim, window: args.window, format };
        for &tokens in &args.tokens {
            let subject = Attention::new(&*open(args, None)?, &heads, tokens, 3 * machine::cache_bytes())?;
            for rows in args.rows.iter().map(|r| *r.min(&tokens)) {
                measure(args, &subject, &heads, tokens, rows, &mut report)?;
            }
        }
    }
    Ok(())
}

fn open(args: &Args, kernels: Option<String>) -> Result<Arc<Chosen>> {
    device::open(&Compute { threads: args.threads, kernels })
}

/// Some rows in all ways.
fn measure(
    args: &Args,
    subject: &Attention,
    heads: &Heads,
    tokens: usize,
    rows: usize,
    report: &mut Report<'_>,
) -> Result<()> {
    let ways = if rows <= FEW_ROWS { [Way::Single, Way::TwoPass] } else { [Way::Fused, Way::Unfused] };
    let sets = match args.kernels.as_slice() {
        [] => ways.map(|way| format!("attention={}", way.name())).to_vec(),
        given => given.to_vec(),
    };
    let mut cases = vec![];
    for set in sets {
        cases.push(Case::new(subject, open(args, Some(set))?, tokens, rows)?);
    }
    for case in &cases {
        times::check(&format!("{rows} rows with {}", device::forced(&case.device)), &cases[0].hash, &case.hash)?;
    }
    for _ in 0..args.output.repeat {
        cases.iter_mut().try_for_each(|case| case.measure(subject))?;
    }
    let first = cases[0].times.median();
    for case in &cases {
        let seconds = case.times.median();
        let row = Row {
            test: "attention",
            phase: if rows <= FEW_ROWS { "decode" } else { "prefill" },
            width: Some(rows),
            depth: Some(tokens),
            matrix: Some(format!("{}/{}x{}", heads.heads, heads.kv_heads, heads.head_dim)),
            gops: Some(subject.operations(rows) / seconds / 1e9),
            gigabytes_per_second: Some(subject.bytes(rows) / seconds / 1e9),
            relative_time: Some(seconds / first),
            variants: device::attention_plan(&case.device, heads, rows, tokens),
            forced: device::forced(&case.device),
            ..Row::default()
        };
        report.row(&row.measured(rows, &case.times, &case.hash))?;
    }
    Ok(())
}

/// A way.
struct Case {
    device: Arc<Chosen>,
    rows: Rows,
    /// Turns of a measurement.
    count: usize,
    hash: Hash,
    times: Times,
}

impl Case {
    /// Computes all rows once, and some alone.
    fn new(subject: &Attention, device: Arc<Chosen>, tokens: usize, count: usize) -> Result<Case> {
        let (first, rows) = (tokens - count, subject.queries(&device, tokens - count, count));
        subject.run(&device, &rows, 0); // wakes the threads
        let start = Instant::now();
        let all = subject.run(&device, &rows, 0);
        let turns = (SECONDS_MIN / start.elapsed().as_secs_f64()) as usize + 1;
        for row in (0..count).rev().step_by(count.div_ceil(ALONE_MAX)) {
            let alone = subject.run(&device, &subject.queries(&device, first + row, 1), 0);
            let (expected, found) = (Hash::of_floats([alone.as_slice()]), Hash::of_floats([all.row(row)]));
            times::check(&format!("row {row} of {count} at {tokens} tokens"), &expected, &found)?;
        }
        let turns = if count <= FEW_ROWS { turns.max(subject.turns()) } else { turns };
        let hash = Hash::of_floats([all.as_slice()]);
        Ok(Case { device, rows, count: turns, hash, times: Times::default() })
    }

    /// Adds the mean time of a turn.
    fn measure(&mut self, subject: &Attention) -> Result<()> {
        subject.run(&self.device, &self.rows, 0);
        let start = Instant::now();
        for turn in 1..self.count {
            subject.run(&self.device, &self.rows, turn);
        }
        let last = subject.run(&self.device, &self.rows, self.count);
        let time = start.elapsed();
        times::check(&device::forced(&self.device), &self.hash, &Hash::of_floats([last.as_slice()]))?;
        self.times.push(time.div_f64(self.count as f64));
        Ok(())
    }
}
