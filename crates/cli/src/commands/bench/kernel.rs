//! `tessera bench kernel`: one projection, or one layer of experts, at many widths, with weights that are in no cache.
//!
//! Several sets of switches take turns, measurement by measurement, so that what disturbs the machine disturbs all of them
//! alike; their results must be the same to the last bit. So must a token's result, alone and in every width.

use std::sync::Arc;

use anyhow::Result;

use super::{
    args::Kernel,
    report::{self, Report},
    row::{Facts, Row},
};
use crate::{
    args::Compute,
    device::{self, Chosen},
    machine,
    measure::{
        self, Dense, Effort, Routed, Subject,
        times::{self, Times},
    },
    ui::Failure,
};

/// Of each width, all tokens but of the widest are computed alone as well.
const EFFORT: Effort = Effort { seconds: 0.02, turns_max: usize::MAX, alone_max: 2048 };

/// Measures and prints.
pub(super) fn main(args: &Kernel) -> Result<()> {
    let (devices, sizes) = (devices(args)?, (args.rows, args.depth));
    let subject: Box<dyn Subject> = match (args.experts, args.used) {
        (Some(experts), Some(used)) if used <= experts => {
            Box::new(Routed::new(&devices[0], args.format, sizes, (experts, used), &args.widths)?)
        }
        (Some(experts), Some(used)) => {
            let message = format!("a token cannot go to {used} of {experts} experts");
            return Err(Failure::new(message, "lower --used, or raise --experts").into());
        }
        _ => {
            let cold_bytes = if args.hot { 0 } else { 3 * machine::cache_bytes() };
            Box::new(Dense::new(&devices[0], args.format, sizes, &args.widths, cold_bytes)?)
        }
    };
    let mut cases = Vec::new();
    for device in &devices {
        for &width in &args.widths {
            cases.push(Case::new(&*subject, device.clone(), width)?);
        }
    }
    for (i, case) in cases.iter().enumerate().skip(args.widths.len()) {
        let what = format!("width {} with {}", case.case.width, device::forced(&case.device));
        times::check(&what, &cases[i % args.widths.len()].case.hash, &case.case.hash)?;
    }
    for _ in 0..args.output.repeat {
        cases.iter_mut().try_for_each(|case| case.measure(&*subject))?;
    }
    let facts = Facts {
        commit: machine::COMMIT,
        machine: machine::name(),
        isa: device::isa_name(&devices[0]),
        threads: devices[0].threads(),
        tuning: device::tuned(&devices[0]),
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
    case: measure::Case,
    times: Times,
}

impl Case {
    fn new(subject: &dyn Subject, device: Arc<Chosen>, width: usize) -> Result<Case> {
        let case = measure::Case::new(subject, &device, width, &EFFORT)?;
        Ok(Case { device, case, times: Times::default() })
    }

    fn measure(&mut self, subject: &dyn Subject) -> Result<()> {
        let what = format!("width {}", self.case.width);
        self.times.push(self.case.measure(subject, &self.device, &what)?);
        Ok(())
    }

    fn row(&self, subject: &dyn Subject, first: &Case) -> Row {
        let (width, about) = (self.case.width, subject.about());
        let (seconds, bytes) = (self.times.median(), subject.bytes(&self.device, width));
        let row = Row {
            test: "kernel",
            phase: about.kind,
            width: Some(width),
            matrix: Some(format!("{}x{}", about.rows, about.depth)),
            experts: about.experts.map(|(experts, _)| experts),
            used: about.experts.map(|(_, used)| used),
            touched: subject.touched(&self.device, width),
            gops: Some(subject.operations(width) / seconds / 1e9),
            gigabytes_per_second: Some(bytes / seconds / 1e9),
            relative_time: Some(seconds / first.times.median()),
            relative_bytes: Some(bytes / subject.bytes(&first.device, first.case.width)),
            variants: subject.variants(&self.device, width),
            forced: device::forced(&self.device),
            ..Row::default()
        };
        row.measured(width, &self.times, &self.case.hash)
    }
}
