//! `tessera tune`: measure the numbers that only a machine can tell, and keep those that gain.
//!
//! Each number is measured alone against the default. What is adopted of all of them is measured again, together: numbers
//! that only seemed better, or that get in each other's way, fall there. [`rule`] says when a candidate is adopted,
//! [`survey`] what is measured, [`run`] how.

mod report;
mod rule;
mod run;
mod survey;

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;

use crate::{
    args::Compute,
    device::{self, Chosen, Parameter, Tuning},
    machine,
    tuning::{self, FILE_VARIABLE, Key, Machine},
    ui::{self, Failure},
};
use run::Group;
use survey::Size;

/// Measure what is fastest on this machine, and use it from then on.
#[derive(Debug, Args)]
#[command(
    after_help = "Candidates and the default take turns; every result must have the same bits. A candidate is adopted only if it is
faster somewhere and slower nowhere, beyond the noise between two readings of the default, at all widths at which it
makes a difference. What is adopted goes into a file in the folder for caches (TESSERA_TUNING names another), for this
processor, instruction set and number of threads. Deleting the file restores the defaults. Leave the machine alone meanwhile.

Examples:
  tessera tune                    one to two minutes on two cores
  tessera tune --dry-run          show what would be adopted
  tessera tune --threads 1        for runs with --threads 1
  tessera tune --show             the numbers in force
  tessera tune --reset            back to the defaults"
)]
pub(crate) struct Tune {
    /// Measure little, in seconds: small matrices and few candidates
    #[arg(long)]
    pub(crate) quick: bool,
    /// Store nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the numbers in force, and measure nothing
    #[arg(long, conflicts_with_all = ["quick", "dry_run"])]
    pub(crate) show: bool,
    /// Delete the file, and measure nothing
    #[arg(long, conflicts_with_all = ["quick", "dry_run", "show"])]
    pub(crate) reset: bool,
    /// Print JSON: every comparison
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: Compute,
}

/// What was found.
struct Findings {
    /// One for each number.
    alone: Vec<Group>,
    /// What was measured together, last what was adopted, if anything.
    together: Vec<Group>,
    adopted: Tuning,
    took: Duration,
}

/// Measures, prints and stores.
pub(crate) fn main(args: &Tune) -> Result<()> {
    if args.show {
        return report::show(args);
    }
    let path = tuning::path()
        .ok_or_else(|| Failure::new("the environment names no home folder", format!("name a file in {FILE_VARIABLE}")));
    if args.reset {
        return reset(&path?, args.json);
    }
    let mut device = device::untuned(&args.compute)?;
    let switches = device::switches(&device);
    if !switches.is_empty() {
        let message = format!("{switches} would hide what is to be measured");
        return Err(Failure::new(message, "leave out all switches of kernels but isa").into());
    }
    let key = Key { machine: Machine::this(), isa: device::isa_name(&device), threads: device.threads() };
    let size = if args.quick { Size::Quick } else { Size::Full };
    let findings = measure(&mut device, size)?;
    let file = if args.dry_run { None } else { Some(path?) };
    if let Some(file) = &file {
        tuning::store(file, &key, &findings.adopted)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{:#}", report::json(&findings, &key, file.as_deref()))?;
    } else {
        let s = if key.threads == 1 { "" } else { "s" };
        writeln!(out, "{}, {}, {} thread{s}", machine::name(), key.isa, key.threads)?;
        report::table(&mut out, &findings, file.as_deref())?;
    }
    Ok(out.flush()?)
}

/// All numbers alone, then those that gain together.
fn measure(device: &mut Chosen, size: Size) -> Result<Findings> {
    let (start, default, workers) = (Instant::now(), Tuning::default(), device.threads());
    let group = |parameter: Parameter| {
        let others = size.candidates(parameter).iter().filter(|value| **value != parameter.of(&default));
        Group::new(vec![parameter], others.filter_map(|value| parameter.with(default, *value)))
    };
    let mut alone = Parameter::ALL.map(group).to_vec();
    let bar = ui::steps_bar("tuning", run::steps(size, workers, &alone));
    run::run(device, size, &mut alone, &bar)?;
    let mut together = vec![];
    let mut adopted = default;
    for tuning in proposals(&alone) {
        let changed = Parameter::ALL.into_iter().filter(|p| p.of(&tuning) != p.of(&default)).collect();
        let mut group = vec![Group::new(changed, [tuning])];
        bar.inc_length(run::steps(size, workers, &group));
        run::run(device, size, &mut group, &bar)?;
        together.append(&mut group);
        if together.last().is_some_and(|g| rule::best(&g.comparisons()).is_some()) {
            adopted = tuning;
            break;
        }
    }
    bar.finish_and_clear();
    Ok(Findings { alone, together, adopted, took: start.elapsed() })
}

/// What to measure together, in order, until one may be adopted: the best value of each number; then each of these alone,
/// the greatest gain first.
fn proposals(alone: &[Group]) -> Vec<Tuning> {
    let default = Tuning::default();
    let best = |group: &Group| {
        let candidate = &group.candidates[rule::best(&group.comparisons())?];
        Some((rule::mean_ratio(&candidate.comparisons()), group.parameters[0], candidate.tuning))
    };
    let mut gains: Vec<_> = alone.iter().filter_map(best).collect();
    gains.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let take = |all: Tuning, (_, parameter, tuning): &(f64, Parameter, Tuning)| {
        parameter.with(all, parameter.of(tuning)).unwrap_or(all)
    };
    let mut proposals: Vec<Tuning> = gains.iter().map(|(_, _, tuning)| *tuning).collect();
    if gains.len() > 1 {
        proposals.insert(0, gains.iter().fold(default, take));
    }
    proposals
}

fn reset(path: &Path, json: bool) -> Result<()> {
    let there = tuning::reset(path)?;
    let mut out = io::stdout().lock();
    if json {
        let file = path.display().to_string();
        writeln!(out, "{}", serde_json::json!({ "file": file, "deleted": there }))?;
    } else if there {
        writeln!(out, "deleted {}; the defaults are in force", path.display())?;
    } else {
        writeln!(out, "there is no {}; the defaults are in force", path.display())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{rule::Comparison, run::Cell, *};

    fn group(parameter: Parameter, candidates: &[(usize, f64)]) -> Group {
        let tunings = candidates.iter().map(|(value, _)| parameter.with(Tuning::default(), *value).unwrap());
        let mut group = Group::new(vec![parameter], tunings);
        for (candidate, (_, ratio)) in group.candidates.iter_mut().zip(candidates) {
            let compared = Comparison { ratio: *ratio, noise: 0.01 };
            candidate.cells = vec![Cell { place: "here".to_owned(), width: 1, compared }];
        }
        group
    }

    #[test]
    fn the_best_values_are_proposed_together_then_each_alone() {
        let alone = [
            group(Parameter::PrefetchBytes, &[(1024, 0.9), (2048, 0.7), (4096, 1.2)]),
            group(Parameter::TurnBytes, &[(1024, 1.1)]),
            group(Parameter::ProductsPerByte, &[(3, 0.6), (4, 0.995)]),
        ];
        let texts: Vec<_> = proposals(&alone).iter().map(Tuning::to_string).collect();
        assert_eq!(texts, ["prefetch_bytes=2048,products_per_byte=3", "products_per_byte=3", "prefetch_bytes=2048"]);
        assert_eq!(proposals(&alone[..1]).len(), 1);
        assert_eq!(proposals(&alone[1..2]).len(), 0);
    }
}
