//! A row of a measurement: one schema for the table, for CSV and for JSON.

use serde::Serialize;

use super::times::{Hash, Times};

/// What is true of all rows of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Facts {
    pub(super) commit: &'static str,
    pub(super) machine: String,
    pub(super) isa: &'static str,
    pub(super) threads: usize,
    /// The model, or the format of a single matrix.
    pub(super) model: String,
    /// Formats of its matrices, most bytes first.
    pub(super) formats: String,
    /// The measured numbers that are not as by default.
    pub(super) tuning: String,
}

/// One measurement. Columns that it has no use for are empty.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    /// `prefill`, `decode`, `batch`, `sweep`, `kernel`, `attention`.
    pub(super) test: &'static str,
    /// What of it was timed: `prefill`, `decode`.
    pub(super) phase: &'static str,
    /// Tokens in a step, or slots for sequences.
    pub(super) width: Option<usize>,
    /// Sequences in all.
    pub(super) sequences: Option<usize>,
    /// Sequences in a step, in the mean.
    pub(super) occupied: Option<f64>,
    /// Tokens of a sequence before what was timed.
    pub(super) depth: Option<usize>,
    /// Prompt tokens in a step at most.
    pub(super) chunk: Option<usize>,
    /// Tokens that were computed in the time.
    pub(super) tokens: usize,
    /// Rows and depth of a single matrix.
    pub(super) matrix: Option<String>,
    /// Experts that a token could go to, those it went to, and those that all tokens touched, in the mean.
    pub(super) experts: Option<usize>,
    pub(super) used: Option<usize>,
    pub(super) touched: Option<f64>,
    pub(super) repeats: usize,
    pub(super) seconds: f64,
    pub(super) seconds_min: f64,
    pub(super) seconds_max: f64,
    pub(super) tokens_per_second: f64,
    pub(super) tokens_per_second_min: f64,
    pub(super) tokens_per_second_max: f64,
    /// 10⁹ additions and multiplications a second.
    pub(super) gops: Option<f64>,
    /// 10⁹ bytes of weights a second.
    pub(super) gigabytes_per_second: Option<f64>,
    /// Time, and bytes of weights, over those of the first width.
    pub(super) relative_time: Option<f64>,
    pub(super) relative_bytes: Option<f64>,
    /// Bytes of a copy of the sequence's keys and values.
    pub(super) snapshot_bytes: Option<usize>,
    /// The variants that a projection was computed with.
    pub(super) variants: String,
    /// What was forced.
    pub(super) forced: String,
    /// Of what was computed.
    pub(super) hash: String,
}

impl Row {
    /// Fills in what follows from times and tokens.
    pub(super) fn measured(mut self, tokens: usize, times: &Times, hash: &Hash) -> Row {
        let rate = |seconds: f64| tokens as f64 / seconds;
        self.tokens = tokens;
        self.repeats = times.count();
        (self.seconds, self.seconds_min, self.seconds_max) = (times.median(), times.least(), times.greatest());
        self.tokens_per_second = rate(times.median());
        (self.tokens_per_second_min, self.tokens_per_second_max) = (rate(times.greatest()), rate(times.least()));
        self.hash = hash.to_string();
        self
    }
}

/// A row with the facts: what CSV and JSON hold.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    #[serde(flatten)]
    pub(super) facts: &'a Facts,
    #[serde(flatten)]
    pub(super) row: &'a Row,
}

/// The columns of CSV, in order: the keys of JSON.
pub(super) const COLUMNS: [&str; 34] = [
    "commit",
    "machine",
    "isa",
    "threads",
    "model",
    "formats",
    "tuning",
    "test",
    "phase",
    "width",
    "sequences",
    "occupied",
    "depth",
    "chunk",
    "tokens",
    "matrix",
    "experts",
    "used",
    "touched",
    "repeats",
    "seconds",
    "seconds_min",
    "seconds_max",
    "tokens_per_second",
    "tokens_per_second_min",
    "tokens_per_second_max",
    "gops",
    "gigabytes_per_second",
    "relative_time",
    "relative_bytes",
    "snapshot_bytes",
    "variants",
    "forced",
    "hash",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_a_column() {
        let [machine, tuning, model, formats] = Default::default();
        let facts = Facts { commit: "", machine, isa: "", threads: 1, tuning, model, formats };
        let text = serde_json::to_string(&Record { facts: &facts, row: &Row::default() }).unwrap();
        let at = COLUMNS.map(|column| text.find(&format!("\"{column}\":")).expect(column));
        assert!(at.is_sorted(), "{text}");
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record.as_object().unwrap().len(), COLUMNS.len());
    }
}
