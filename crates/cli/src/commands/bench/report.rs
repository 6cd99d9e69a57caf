//! Rows on their way out: as a table for people, as CSV, or as one JSON object a line.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::Value;

use super::{
    args::Output,
    row::{COLUMNS, Facts, Record, Row},
};

/// Prints rows as they come.
pub(super) struct Report<'a> {
    output: &'a Output,
    facts: Facts,
    columns: &'static [Column],
    begun: bool,
}

/// A column of the table: its title, its width, and what it shows.
pub(super) type Column = (&'static str, usize, fn(&Row) -> String);

const TEST: Column = ("test", 9, |r| r.test.to_owned());
const PHASE: Column = ("phase", 9, |r| r.phase.to_owned());
const WIDTH: Column = ("width", 6, |r| whole(r.width));
const DEPTH: Column = ("depth", 7, |r| whole(r.depth));
const TOKENS: Column = ("tokens", 7, |r| r.tokens.to_string());
const MILLIS: Column = ("ms", 10, |r| format!("{:.2}", r.seconds * 1e3));
const RATE: Column = ("tokens/s", 10, |r| rate(r.tokens_per_second));
const SPREAD: Column =
    ("least to greatest", 19, |r| format!("{} to {}", rate(r.tokens_per_second_min), rate(r.tokens_per_second_max)));
const HASH: Column = ("hash", 13, |r| r.hash.clone());
const VARIANTS: Column = ("  variants", 0, |r| format!("  {}", r.variants));

const OCCUPIED: Column = ("occupied", 9, |r| fixed(r.occupied, 1));

/// Of sequences that come and go.
pub(super) const SLOTS: &[Column] = &[TEST, PHASE, WIDTH, OCCUPIED, TOKENS, MILLIS, RATE, SPREAD, HASH, VARIANTS];
/// Of a model.
pub(super) const MODEL: &[Column] = &[TEST, PHASE, WIDTH, DEPTH, TOKENS, MILLIS, RATE, SPREAD, HASH, VARIANTS];

/// Of a kernel.
pub(super) const KERNEL: &[Column] = &[
    PHASE,
    ("matrix", 13, |r| r.matrix.clone().unwrap_or_default()),
    WIDTH,
    ("ms", 9, |r| format!("{:.3}", r.seconds * 1e3)),
    ("least to greatest", 19, |r| format!("{:.3} to {:.3}", r.seconds_min * 1e3, r.seconds_max * 1e3)),
    ("GOPS", 7, |r| fixed(r.gops, 0)),
    ("GB/s", 7, |r| fixed(r.gigabytes_per_second, 1)),
    ("touched", 9, |r| fixed(r.touched, 1)),
    ("time", 7, |r| fixed(r.relative_time, 2)),
    ("bytes", 7, |r| fixed(r.relative_bytes, 2)),
    HASH,
    ("  variants", 0, |r| format!("  {} {}", r.variants, r.forced)),
];

/// Of attention.
pub(super) const ATTENTION: &[Column] = &[
    PHASE,
    ("heads", 10, |r| r.matrix.clone().unwrap_or_default()),
    DEPTH,
    ("rows", 6, |r| whole(r.width)),
    ("ms", 10, |r| format!("{:.3}", r.seconds * 1e3)),
    ("least to greatest", 20, |r| format!("{:.3} to {:.3}", r.seconds_min * 1e3, r.seconds_max * 1e3)),
    ("GOPS", 7, |r| fixed(r.gops, 0)),
    ("GB/s", 7, |r| fixed(r.gigabytes_per_second, 1)),
    ("time", 7, |r| fixed(r.relative_time, 2)),
    HASH,
    VARIANTS,
];

fn fixed(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(String::new, |n| format!("{n:.digits$}"))
}

fn whole(number: Option<usize>) -> String {
    number.map_or_else(String::new, |n| n.to_string())
}

fn rate(rate: f64) -> String {
    if rate < 1000.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

impl<'a> Report<'a> {
    /// A report whose table has these columns.
    pub(super) fn new(output: &'a Output, facts: Facts, columns: &'static [Column]) -> Report<'a> {
        Report { output, facts, columns, begun: false }
    }

    /// Prints a row, and before the first what stands above it.
    ///
    /// # Errors
    /// If stdout is closed.
    pub(super) fn row(&mut self, row: &Row) -> Result<()> {
        let mut out = io::stdout().lock();
        if !self.begun {
            self.begun = true;
            out.write_all(self.head(row).as_bytes())?;
        }
        let record = Record { facts: &self.facts, row };
        if self.output.json {
            writeln!(out, "{}", serde_json::to_string(&record)?)?;
        } else if self.output.csv {
            writeln!(out, "{}", csv(&serde_json::to_value(&record)?))?;
        } else {
            let cells = self.columns.iter().map(|(_, width, show)| format!("{:>width$}", show(row)));
            writeln!(out, "{}", cells.collect::<String>().trim_end())?;
        }
        Ok(out.flush()?)
    }

    fn head(&self, row: &Row) -> String {
        if self.output.json {
            return String::new();
        }
        if self.output.csv {
            return COLUMNS.join(",") + "\n";
        }
        let titles = self.columns.iter().map(|(title, width, _)| format!("{title:>width$}"));
        let repeats = if row.repeats == 1 { "once".to_owned() } else { format!("median of {}", row.repeats) };
        let heading = self.facts.heading(&row.forced);
        format!("{heading}; {repeats}\n{}\n", titles.collect::<String>().trim_end())
    }
}

impl Facts {
    /// Two lines for people.
    pub(super) fn heading(&self, forced: &str) -> String {
        let Facts { commit, machine, isa, threads, tuning, model, formats } = self;
        let s = if *threads == 1 { "" } else { "s" };
        let forced = if forced.is_empty() { String::new() } else { format!(", forced {forced}") };
        let tuned = if tuning.is_empty() { String::new() } else { format!(", tuned {tuning}") };
        format!("{model} ({formats})\n{machine}, {isa}, {threads} thread{s}{forced}{tuned}; commit {commit}")
    }
}

/// A record as a line of comma-separated values (RFC 4180).
fn csv(record: &Value) -> String {
    let cell = |column: &&str| match &record[*column] {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    COLUMNS.iter().map(cell).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        let record = serde_json::json!({ "commit": "a,b", "machine": "the \"one\"", "threads": 2, "width": null });
        let line = csv(&record);
        assert!(line.starts_with("\"a,b\",\"the \"\"one\"\"\",,2,"), "{line}");
        assert_eq!(line.matches(',').count(), COLUMNS.len() - 1 + 1, "{line}");
    }
}
