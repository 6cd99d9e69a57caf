//! `tessera audit`: every kernel of this machine, at every edge, against the reference and float64.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde_json::json;
use tessera_cpu::{audit as machine, matmul::Overrides};
use tessera_formats::DType;
use tessera_ops::{
    Device,
    audit::{Failure as Finding, Op, Report, Row, Settings, Variant, WIDE_TOKENS, audit, report::REFERENCE},
};

use crate::{
    args::weight_formats,
    device::{self, Place},
    ui::{self, Failure},
};

/// Findings printed; the rest are counted.
const SHOWN_FINDINGS: usize = 12;

/// Hold every kernel that this machine can run against the reference, to the last bit, and against float64.
#[derive(Debug, Args)]
#[command(
    after_help = "Every op, format, instruction set, number of threads and switch, at widths around every edge of a tile or pass, \
with outputs poisoned before they are written. Prints a table and the first row that is wrong, and fails if there is one.

Examples:
  tessera audit
  tessera audit --full --json > audit.json
  tessera audit --op routed --format Q4_K --kernels isa=avx2,moe_tile=32"
)]
pub(crate) struct Audit {
    /// Every width from 1 to 64, every cap on tiles, more shapes: minutes rather than seconds
    #[arg(long)]
    pub(crate) full: bool,
    /// No wide steps, and fewer shapes of attention: for a machine that computes slowly, as an emulated card does
    #[arg(long, conflicts_with = "full")]
    pub(crate) brief: bool,
    /// Audit this op alone
    #[arg(long, value_name = "OP", value_parser = audited_ops())]
    pub(crate) op: Option<Op>,
    /// Audit this format of weights alone
    #[arg(long, value_name = "FORMAT", value_parser = weight_formats(), ignore_case = true)]
    pub(crate) format: Option<DType>,
    /// Audit only what these switches force, as in TESSERA_KERNELS: isa=avx2,split=tokens
    #[arg(long, value_name = "SWITCHES")]
    pub(crate) kernels: Option<String>,
    /// Audit this device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Place,
    /// Print JSON: a row for each op, format and variant
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the audit and prints what it found.
pub(crate) fn main(args: &Audit) -> Result<()> {
    if let (Some(op), Some(format)) = (args.op, args.format)
        && !op.has_format()
    {
        let what = format!("{op} has no weights, in {format} or any format");
        return Err(Failure::new(what, "leave out --format or name another --op").into());
    }
    let card = |ordinal| tessera_cuda::audit::variants(ordinal, device::kernel_cache());
    let variants = match args.device {
        Place::Cpu => None,
        Place::Auto => card(0).ok(),
        Place::Cuda(ordinal) => Some(card(ordinal)?),
    };
    let Some(variants) = variants else {
        let forced = args.kernels.as_deref().map(Overrides::parse).transpose()?;
        return run(args, machine::all_edges(), &machine::variants(args.full, forced));
    };
    if args.kernels.is_some() {
        return Err(Failure::new("switches of kernels are the CPU's", "leave out --kernels or --device").into());
    }
    run(args, tessera_cuda::audit::all_edges(&variants), &variants)
}

fn run<D: Device>(args: &Audit, edges: BTreeSet<usize>, variants: &[Variant<D>]) -> Result<()> {
    let settings = Settings { edges, full: args.full, brief: args.brief, op: args.op, format: args.format };
    let names: Vec<&str> = variants.iter().map(|v| v.name.as_str()).collect();
    let bar = ui::steps_bar("auditing", 1);
    let start = Instant::now();
    let report = audit(&settings, variants, &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(progress.next.to_owned());
    });
    bar.finish_and_clear();
    let took = start.elapsed();
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", as_json(&report, &settings, &names, took))?;
    } else {
        print(&mut out, &report, &settings, &names, took)?;
    }
    out.flush()?;
    if report.passed() {
        return Ok(());
    }
    let count = report.failures().count();
    let what = format!("the audit found something wrong in {count} of {} combinations", report.rows().len());
    Err(Failure::new(what, "do not trust this build on this machine; report the first row above").into())
}

fn print(out: &mut impl Write, report: &Report, settings: &Settings, names: &[&str], took: Duration) -> io::Result<()> {
    let formats: Vec<&str> = DType::all().map(DType::name).collect();
    let of_formats: Vec<Op> = Op::ALL.into_iter().filter(|op| op.has_format()).collect();
    if report.rows().iter().any(|row| row.op.has_format()) {
        write!(out, "{:10}", "format")?;
        of_formats.iter().try_for_each(|op| write!(out, "{op:>10}"))?;
        writeln!(out)?;
        for format in formats.iter().filter(|f| report.rows().iter().any(|r| r.op.has_format() && r.format == **f)) {
            write!(out, "{format:10}")?;
            of_formats.iter().try_for_each(|op| write!(out, "{:>10}", cell(report, *op, format)))?;
            writeln!(out)?;
        }
        writeln!(out)?;
    }
    let others: BTreeSet<(Op, &str)> =
        report.rows().iter().filter(|r| !r.op.has_format()).map(|r| (r.op, r.format)).collect();
    for (op, format) in &others {
        let kind = if *format == "-" { String::new() } else { format!("KV {format}") };
        writeln!(out, "{op:10} {kind:8} {:>11}", cell(report, *op, format))?;
    }
    writeln!(out, "\nCells: the worst error against float64, or in how many cases of how many a variant is wrong.\n")?;
    writeln!(out, "variants  {}", names.join("\n          "))?;
    writeln!(out, "widths    {}", ranges(&settings.widths()))?;
    if !settings.full && settings.format.is_none() {
        let few: Vec<&str> = DType::all().filter(|d| settings.is_for_its_kind(*d)).map(DType::name).collect();
        let few = few.join(", ");
        writeln!(out, "          above {WIDE_TOKENS}, and on variants with switches: {few}; --full: every format")?;
    }
    for (index, (row, finding)) in report.failures().enumerate() {
        if index == SHOWN_FINDINGS {
            writeln!(out, "… and {} more", report.failures().count() - SHOWN_FINDINGS)?;
            break;
        }
        print_finding(out, row, finding)?;
    }
    let (cases, rows, seconds) = (report.cases(), report.rows_compared(), took.as_secs_f64());
    let verdict = if report.passed() { "all equal to the last bit" } else { "FAILED" };
    writeln!(out, "\n{cases} cases, {rows} rows compared in {seconds:.1} s: {verdict}")
}

/// The ops of an audit.
fn audited_ops() -> impl TypedValueParser<Value = Op> {
    let known = PossibleValuesParser::new(Op::ALL.map(Op::name));
    known.try_map(|name| Op::ALL.into_iter().find(|op| op.name() == name).ok_or("no such op"))
}

/// Numbers with runs of neighbours drawn together: `0, 1, 7-9`.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = vec![];
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let texts = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    texts.collect::<Vec<_>>().join(", ")
}

/// One op and format over all variants.
fn cell(report: &Report, op: Op, format: &str) -> String {
    let rows: Vec<&Row> = report.rows().iter().filter(|r| r.op == op && r.format == format).collect();
    let (cases, failed) = rows.iter().fold((0, 0), |(c, f), row| (c + row.cases, f + row.failed));
    if rows.is_empty() {
        return "-".to_owned();
    }
    if failed > 0 {
        return format!("{failed}/{cases}");
    }
    format!("{:.1e}", rows.iter().fold(0.0, |worst, row| row.worst_error.max(worst)))
}

fn print_finding(out: &mut impl Write, row: &Row, finding: &Finding) -> io::Result<()> {
    let Finding { shape, arrangement, width, row: first, element, rows_wrong, expected, got, cause } = finding;
    writeln!(out, "\n{} {} on {}: wrong in {} of {} cases", row.op, row.format, row.variant, row.failed, row.cases)?;
    writeln!(out, "  first in {shape}, {width} rows {arrangement}: {cause}")?;
    writeln!(out, "  row {first}, element {element}: expected {expected:e}, got {got:e}; {rows_wrong} rows are wrong")
}

fn as_json(report: &Report, settings: &Settings, names: &[&str], took: Duration) -> serde_json::Value {
    let rows: Vec<_> = report.rows().iter().map(row_json).collect();
    json!({
        "passed": report.passed(),
        "cases": report.cases(),
        "rows_compared": report.rows_compared(),
        "seconds": took.as_secs_f64(),
        "variants": names,
        "reference": REFERENCE,
        "widths": settings.widths(),
        "full": settings.full,
        "rows": rows,
    })
}

fn row_json(row: &Row) -> serde_json::Value {
    let first = row.first.as_ref().map(|f| {
        json!({
            "shape": f.shape,
            "arrangement": f.arrangement,
            "width": f.width,
            "row": f.row,
            "element": f.element,
            "rows_wrong": f.rows_wrong,
            // JSON has no NaN.
            "expected": f.expected.to_string(),
            "got": f.got.to_string(),
            "cause": f.cause.to_string(),
        })
    });
    json!({
        "op": row.op.name(),
        "format": row.format,
        "variant": row.variant,
        "cases": row.cases,
        "rows": row.rows,
        "failed": row.failed,
        "worst_error": row.worst_error,
        "bound": row.bound,
        "first": first,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_drawn_together() {
        assert_eq!(ranges(&[0, 1, 7, 8, 9, 12]), "0-1, 7-9, 12");
        assert_eq!(ranges(&[]), "");
    }
}
