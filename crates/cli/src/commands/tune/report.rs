//! What `tessera tune` tells: for people a line for each candidate, for scripts every comparison.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Findings, Tune, changed,
    rule::{self, Outcome},
    run::{Candidate, Cell, Group},
};
use crate::{
    device::{self, Parameter, Tuning},
    machine,
    tuning::{self, Key},
    ui,
};

/// Prints the numbers in force.
pub(super) fn show(args: &Tune) -> Result<()> {
    let (device, tuned) = device::open_tuned(&args.compute)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        let file = tuned.file.as_ref().map(|f| f.display().to_string());
        let all = json!({
            "isa": device::isa_name(&device),
            "threads": device.threads(),
            "file": file,
            "values": tuning::values(&tuned.tuning),
        });
        writeln!(out, "{all:#}")?;
    } else {
        writeln!(out, "{}; {}", device::name(&device), tuned.describe())?;
        let heading = format!("{:<22} {:>9} {:>9}", "number", "default", "in force");
        writeln!(out, "{}", ui::styled(&heading, "1", ui::stdout_colours()))?;
        for parameter in Parameter::ALL {
            let (default, value) = (parameter.of(&Tuning::default()), parameter.of(&tuned.tuning));
            writeln!(out, "{:<22} {default:>9} {value:>9}", parameter.name())?;
        }
    }
    Ok(out.flush()?)
}

/// Prints a line for each candidate, and what came of it.
pub(super) fn table(out: &mut impl Write, findings: &Findings, file: Option<&Path>) -> Result<()> {
    let default = Tuning::default();
    let heading = format!(
        "{:<22} {:>8} {:>9} {:>6} {:>6}  {:<46} {:<46} {}",
        "number", "default", "candidate", "cells", "mean", "faster in (most)", "slower in (most)", "adopted"
    );
    writeln!(out, "{}", ui::styled(&heading, "1", ui::stdout_colours()))?;
    for group in &findings.alone {
        let parameter = group.parameters[0];
        for candidate in &group.candidates {
            let value = parameter.of(&candidate.tuning);
            let label = format!("{:<22} {:>8} {value:>9}", parameter.name(), parameter.of(&default));
            let adopted = value == parameter.of(&findings.adopted);
            writeln!(
                out,
                "{label} {} {}",
                summary(candidate),
                if adopted { "yes".to_owned() } else { verdict(candidate, "another is better, or it did not last") }
            )?;
        }
    }
    for candidate in findings.again.iter().flat_map(|group| &group.candidates) {
        let adopted = holds(candidate, findings);
        writeln!(out, "\nagain: {}", candidate.tuning.to_string().replace(',', ", "))?;
        writeln!(
            out,
            "{:41} {} {}",
            "",
            summary(candidate),
            if adopted { "yes".to_owned() } else { verdict(candidate, "not where it did before, or not with others") }
        )?;
    }
    let what = findings.adopted.to_string().replace(',', ", ");
    let what = if what.is_empty() { "nothing: the defaults are best here".to_owned() } else { what };
    writeln!(out, "\nadopted {what} ({:.0} s)", findings.took.as_secs_f64())?;
    match file {
        Some(file) => writeln!(out, "stored in {}; deleting it restores the defaults", file.display())?,
        None => writeln!(out, "stored nothing (--dry-run)")?,
    }
    Ok(())
}

/// Whether all that a candidate changes was adopted.
fn holds(candidate: &Candidate, findings: &Findings) -> bool {
    changed(&candidate.tuning).into_iter().all(|p| p.of(&candidate.tuning) == p.of(&findings.adopted))
}

/// Why a candidate was not adopted; `gains` where it seemed that it could be.
fn verdict(candidate: &Candidate, gains: &str) -> String {
    let compared = candidate.comparisons();
    let any = |outcome| compared.iter().any(|c| c.outcome() == outcome);
    let why = match () {
        () if compared.is_empty() => "no difference here",
        () if any(Outcome::Slower) => "loses",
        () if any(Outcome::Faster) => gains,
        () => "gains nothing",
    };
    format!("no: {why}")
}

fn summary(candidate: &Candidate) -> String {
    let compared = candidate.comparisons();
    let mean = if compared.is_empty() { "-".to_owned() } else { percent(rule::mean_ratio(&compared)) };
    let [faster, slower] = [Outcome::Faster, Outcome::Slower].map(|outcome| extreme(candidate, outcome));
    format!("{:>6} {mean:>6}  {faster:<46} {slower:<46}", compared.len())
}

/// In how many cells it is faster, or slower, and where most.
fn extreme(candidate: &Candidate, outcome: Outcome) -> String {
    let such = || candidate.cells.iter().filter(|cell| cell.compared.outcome() == outcome);
    let distance = |cell: &&Cell| (cell.compared.ratio - 1.0).abs();
    match such().max_by(|a, b| distance(a).total_cmp(&distance(b))) {
        None => "-".to_owned(),
        Some(cell) => {
            format!("{}: {} {} at {}", such().count(), percent(cell.compared.ratio), cell.place, cell.width)
        }
    }
}

/// `-5.1%`
fn percent(ratio: f64) -> String {
    format!("{:+.1}%", 100.0 * (ratio - 1.0))
}

/// Everything.
pub(super) fn json(findings: &Findings, key: &Key, file: Option<&Path>) -> Value {
    let groups = |groups: &[Group]| -> Vec<Value> {
        groups.iter().flat_map(|group| &group.candidates).map(|c| candidate_json(c, findings)).collect()
    };
    json!({
        "commit": machine::COMMIT,
        "processor": key.machine.processor,
        "cores": key.machine.cores,
        "isa": key.isa,
        "threads": key.threads,
        "seconds": findings.took.as_secs_f64(),
        "candidates": groups(&findings.alone),
        "again": groups(&findings.again),
        "adopted": tuning::values(&findings.adopted),
        "file": file.map(|f| f.display().to_string()),
    })
}

fn candidate_json(candidate: &Candidate, findings: &Findings) -> Value {
    let default = Tuning::default();
    let changed = changed(&candidate.tuning);
    let values = changed.iter().map(|p| (p.name().to_owned(), Value::from(p.of(&candidate.tuning))));
    let defaults = changed.iter().map(|p| (p.name().to_owned(), Value::from(p.of(&default))));
    let cells = candidate.cells.iter().map(|cell| {
        json!({
            "matrix": cell.place,
            "width": cell.width,
            "ratio": cell.compared.ratio,
            "noise": cell.compared.noise,
            "outcome": cell.compared.outcome().name(),
        })
    });
    json!({
        "values": values.collect::<serde_json::Map<_, _>>(),
        "default": defaults.collect::<serde_json::Map<_, _>>(),
        "adopted": holds(candidate, findings),
        "mean_ratio": rule::mean_ratio(&candidate.comparisons()),
        "cells": cells.collect::<Vec<_>>(),
    })
}
