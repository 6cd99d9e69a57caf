//! `tessera tune`: measure the numbers that only a machine can tell, and keep those that gain.
//!
//! Each number is measured alone against the default. The winners are measured again, and must gain where they gained
//! before: of a hundred comparisons one is always lucky. Those that hold are measured together, as they might get in
//! each other's way; if they lose anywhere, only the greatest gain stays. [`rule`] says when a candidate is adopted,
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
    after_help = "Candidates and the default take turns; every result must have the same bits. A candidate is adopted only if it is \
faster somewhere and slower nowhere, beyond the noise between two readings of the default, at all widths at which it \
makes a difference, and again when it is measured again. \
What is adopted goes into a file in the folder for caches (TESSERA_TUNING names another), for this \
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
    /// The winners, measured again: each, and those that held together.
    again: Vec<Group>,
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

/// All numbers alone, then those that gain: again, and together.
fn measure(device: &mut Chosen, size: Size) -> Result<Findings> {
    let (start, default, workers) = (Instant::now(), Tuning::default(), device.threads());
    let group = |parameter: Parameter| {
        let others = size.candidates(parameter).iter().filter(|value| **value != parameter.of(&default));
        Group::new(vec![parameter], others.filter_map(|value| parameter.with(default, *value)))
    };
    let mut alone = Parameter::ALL.map(group).to_vec();
    let bar = ui::steps_bar("tuning", run::steps(size, workers, &alone));
    run::run(device, size, &mut alone, &bar)?;
    let mut again: Vec<Group> = alone.iter().filter_map(winner).collect();
    bar.inc_length(run::steps(size, workers, &again));
    run::run(device, size, &mut again, &bar)?;
    let gains = confirmed(&alone, &again);
    let all = gains.iter().fold(default, |all, tuning| combined(all, *tuning));
    let mut adopted = all;
    if gains.len() > 1 {
        let mut together = vec![Group::new(changed(&all), [all])];
        bar.inc_length(run::steps(size, workers, &together));
        run::run(device, size, &mut together, &bar)?;
        if rule::best(&together[0].comparisons()).is_none() {
            adopted = gains[0];
        }
        again.append(&mut together);
    }
    bar.finish_and_clear();
    Ok(Findings { alone, again, adopted, took: start.elapsed() })
}

/// The best value of a number, to be measured again.
fn winner(group: &Group) -> Option<Group> {
    let best = rule::best(&group.comparisons())?;
    Some(Group::new(group.parameters.clone(), [group.candidates[best].tuning]))
}

/// Of the winners, those that gain again where they gained the first time, the greatest gain first.
fn confirmed(alone: &[Group], again: &[Group]) -> Vec<Tuning> {
    let first = |tuning: &Tuning| alone.iter().flat_map(|g| &g.candidates).find(|c| c.tuning == *tuning);
    let held = again.iter().flat_map(|group| &group.candidates).filter_map(|candidate| {
        let (first, second) = (first(&candidate.tuning)?.comparisons(), candidate.comparisons());
        rule::repeats(&first, &second).then(|| (rule::mean_ratio(&second), candidate.tuning))
    });
    let mut held: Vec<_> = held.collect();
    held.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    held.into_iter().map(|(_, tuning)| tuning).collect()
}

/// The numbers that are not as by default.
fn changed(tuning: &Tuning) -> Vec<Parameter> {
    Parameter::ALL.into_iter().filter(|p| p.of(tuning) != p.of(&Tuning::default())).collect()
}

/// `tuning` with what another changes.
fn combined(tuning: Tuning, other: Tuning) -> Tuning {
    changed(&other).into_iter().fold(tuning, |all, p| p.with(all, p.of(&other)).unwrap_or(all))
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
    fn winners_gain_twice() {
        let alone = [
            group(Parameter::PrefetchBytes, &[(1024, 0.9), (2048, 0.7), (4096, 1.2)]),
            group(Parameter::TurnBytes, &[(1024, 1.1)]),
            group(Parameter::PassTokens, &[(64, 0.8)]),
            group(Parameter::ProductsPerByte, &[(3, 0.9), (4, 0.995)]),
        ];
        let winners: Vec<_> = alone.iter().filter_map(winner).collect();
        let texts: Vec<_> = winners.iter().map(|g| g.candidates[0].tuning.to_string()).collect();
        assert_eq!(texts, ["prefetch_bytes=2048", "pass_tokens=64", "products_per_byte=3"]);
        let again = [
            group(Parameter::PrefetchBytes, &[(2048, 0.9)]),
            group(Parameter::PassTokens, &[(64, 1.0)]),
            group(Parameter::ProductsPerByte, &[(3, 0.8)]),
        ];
        let held = confirmed(&alone, &again);
        let texts: Vec<_> = held.iter().map(Tuning::to_string).collect();
        assert_eq!(texts, ["products_per_byte=3", "prefetch_bytes=2048"]);
        assert_eq!(combined(held[0], held[1]).to_string(), "prefetch_bytes=2048,products_per_byte=3");
        assert!(confirmed(&alone, &[]).is_empty());
    }
}
