//! `tessera bench kernel`: one projection, or one layer of experts, at many widths, with weights that are in no cache.
//!
//! Several sets of switches take turns, measurement by measurement, so that what disturbs the machine disturbs all of them
//! alike; their results must be the same to the last bit. So must a token's result, alone and in every width.

mod dense;
mod input;
mod routed;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tessera_cpu::tensor::Tensor;

use super::{
    args::Kernel,
    machine,
    report::{self, Report},
    row::{Facts, Row},
    times::{self, Hash, Times},
};
use crate::{
    args::Compute,
    device::{self, Chosen},
    ui::Failure,
};
use dense::Dense;
use routed::Routed;

/// A measurement is at least this long, so that the clock does not matter.
const SECONDS_MIN: f64 = 0.02;
/// Tokens of a width that are computed alone as well: all but in the widest.
const ALONE_MAX: usize = 2048;

/// What is measured.
trait Subject {
    /// Turns until the first one's weights are in no cache any more.
    fn turns(&self, width: usize) -> usize;

    /// Computes one turn.
    fn run(&self, device: &Chosen, width: usize, turn: usize) -> Tensor;

    /// Computes one token of a turn alone.
    fn alone(&self, device: &Chosen, width: usize, turn: usize, token: usize) -> Tensor;

    /// What a row says of it.
    fn row(&self, device: &Chosen, width: usize) -> Row;

    /// Additions and multiplications of a turn.
    fn operations(&self, width: usize) -> f64;

    /// Bytes of the weights that a turn touches, in the mean.
    fn bytes(&self, device: &Chosen, width: usize) -> f64;
}

/// Measures and prints.
pub(super) fn main(args: &Kernel) -> Result<()> {
    let devices = devices(args)?;
    let subject: Box<dyn Subject> = match (args.experts, args.used) {
        (Some(experts), Some(used)) if used <= experts => Box::new(Routed::new(&devices[0], args, experts, used)?),
        (Some(experts), Some(used)) => {
            let message = format!("a token cannot go to {used} of {experts} experts");
            return Err(Failure::new(message, "lower --used, or raise --experts").into());
        }
        _ => Box::new(Dense::new(&devices[0], args)?),
    };
    let mut cases = Vec::new();
    for device in &devices {
        for &width in &args.widths {
            cases.push(Case::new(&*subject, device.clone(), width)?);
        }
    }
    for (i, case) in cases.iter().enumerate().skip(args.widths.len()) {
        let what = format!("width {} with {}", case.width, device::forced(&case.device));
        times::check(&what, &cases[i % args.widths.len()].hash, &case.hash)?;
    }
    for _ in 0..args.output.repeat {
        cases.iter_mut().try_for_each(|case| case.measure(&*subject))?;
    }
    let facts = Facts {
        commit: machine::COMMIT,
        machine: machine::name(),
        isa: device::isa_name(&devices[0]),
        threads: devices[0].threads(),
        model: if args.experts.is_some() { "a layer of experts" } else { "a matrix" }.to_owned(),
        formats: args.format.name().to_owned(),
    };
    let mut report = Report::new(&args.output, facts, report::KERNEL);
    for of_device in cases.chunks(args.widths.len()) {
        for case in of_device {
            report.row(&case.row(&*subject, &of_device[0]))?;
        }
    }
    Ok(())
}

/// One for each set of switches; without any, what the environment says.
fn devices(args: &Kernel) -> Result<Vec<Arc<Chosen>>> {
    let open = |kernels| device::open(&Compute { threads: args.threads, kernels });
    if args.kernels.is_empty() {
        return Ok(vec![open(None)?]);
    }
    args.kernels.iter().map(|text| open(Some(text.clone()))).collect()
}

/// A width on a device.
struct Case {
    device: Arc<Chosen>,
    width: usize,
    /// Turns of a measurement.
    count: usize,
    hash: Hash,
    times: Times,
}

impl Case {
    /// Computes all turns once, and some tokens alone.
    fn new(subject: &dyn Subject, device: Arc<Chosen>, width: usize) -> Result<Case> {
        let turns = subject.turns(width);
        let start = Instant::now();
        for turn in 0..turns - 1 {
            subject.run(&device, width, turn);
        }
        let last = subject.run(&device, width, turns - 1);
        let seconds = start.elapsed().as_secs_f64();
        for token in (0..width).step_by(width.div_ceil(ALONE_MAX)) {
            let alone = subject.alone(&device, width, turns - 1, token);
            let row = last.row(token);
            let (expected, found) = (Hash::of_floats([alone.as_slice()]), Hash::of_floats([row]));
            times::check(&format!("token {token} in a width of {width}"), &expected, &found)?;
        }
        let count = turns * ((SECONDS_MIN / seconds) as usize + 1);
        Ok(Case { device, width, count, hash: Hash::of_floats([last.as_slice()]), times: Times::default() })
    }

    fn measure(&mut self, subject: &dyn Subject) -> Result<()> {
        let turns = subject.turns(self.width);
        subject.run(&self.device, self.width, turns - 1); // wakes the threads
        let start = Instant::now();
        for turn in 0..self.count - 1 {
            subject.run(&self.device, self.width, turn % turns);
        }
        let last = subject.run(&self.device, self.width, turns - 1);
        let time = start.elapsed();
        times::check(&format!("width {}", self.width), &self.hash, &Hash::of_floats([last.as_slice()]))?;
        self.times.push(Duration::div_f64(time, self.count as f64));
        Ok(())
    }

    fn row(&self, subject: &dyn Subject, first: &Case) -> Row {
        let (seconds, bytes) = (self.times.median(), subject.bytes(&self.device, self.width));
        let row = Row {
            test: "kernel",
            width: Some(self.width),
            gops: Some(subject.operations(self.width) / seconds / 1e9),
            gigabytes_per_second: Some(bytes / seconds / 1e9),
            relative_time: Some(seconds / first.times.median()),
            relative_bytes: Some(bytes / subject.bytes(&first.device, first.width)),
            forced: device::forced(&self.device),
            ..subject.row(&self.device, self.width)
        };
        row.measured(self.width, &self.times, &self.hash)
    }
}
