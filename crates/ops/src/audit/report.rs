//! The outcome of an audit: a row for each op, format and variant.

use std::collections::BTreeMap;

use super::{Failure, Op};

/// The variant name under which the reference itself stands, compared with float64.
pub const REFERENCE: &str = "reference";

/// What was found of one op, format and variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The op.
    pub op: Op,
    /// The format of its weights, or of keys and values; `-` where it has none.
    pub format: &'static str,
    /// The variant; [`REFERENCE`] for the reference itself.
    pub variant: String,
    /// Cases: a subject in an arrangement.
    pub cases: usize,
    /// Rows compared in all cases.
    pub rows: usize,
    /// Cases in which something is wrong.
    pub failed: usize,
    /// The first of them, if any.
    pub first: Option<Failure>,
    /// The largest distance of a row from float64, as [`super::compare::Arithmetic`] measures it.
    pub worst_error: f64,
    /// The bound nearest to it.
    pub bound: f64,
}

impl Row {
    /// A row without cases.
    pub(super) fn new(op: Op, format: &'static str, variant: &str) -> Row {
        let variant = variant.to_owned();
        Row { op, format, variant, cases: 0, rows: 0, failed: 0, first: None, worst_error: 0.0, bound: 0.0 }
    }

    /// Counts a case.
    pub(super) fn count(&mut self, rows: usize, failure: Option<Failure>) {
        self.cases += 1;
        self.rows += rows;
        if let Some(failure) = failure {
            self.failed += 1;
            self.first.get_or_insert(failure);
        }
    }

    /// Notes a distance from float64 and the bound it has to keep; the one nearest to its bound stays.
    pub(super) fn note(&mut self, error: f64, bound: f64) {
        if self.bound == 0.0 || error / bound > self.worst_error / self.bound {
            (self.worst_error, self.bound) = (error, bound);
        }
    }
}

/// All rows: by op, then format, then variant, each in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    index: BTreeMap<(Op, &'static str, String), usize>,
}

impl Report {
    /// Adds rows to those of the same op, format and variant.
    pub(super) fn merge(&mut self, rows: Vec<Row>) {
        for row in rows {
            let at = *self.index.entry((row.op, row.format, row.variant.clone())).or_insert(self.rows.len());
            match self.rows.get_mut(at) {
                None => self.rows.push(row),
                Some(known) => {
                    known.cases += row.cases;
                    known.rows += row.rows;
                    known.failed += row.failed;
                    known.note(row.worst_error, row.bound);
                    known.first = known.first.take().or(row.first);
                }
            }
        }
    }

    /// All rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether nothing is wrong. An audit of nothing has not passed.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.failed == 0)
    }

    /// Cases in all.
    pub fn cases(&self) -> usize {
        self.rows.iter().map(|row| row.cases).sum()
    }

    /// Rows compared in all.
    pub fn rows_compared(&self) -> usize {
        self.rows.iter().map(|row| row.rows).sum()
    }

    /// The rows in which something is wrong.
    pub fn failures(&self) -> impl Iterator<Item = (&Row, &Failure)> {
        self.rows.iter().filter_map(|row| row.first.as_ref().map(|first| (row, first)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Cause, *};

    fn failure(row: usize) -> Failure {
        let (shape, arrangement) = ("2 x 32".to_owned(), "in order".to_owned());
        let cause = Cause::Differs;
        Failure { shape, arrangement, width: 64, row, element: 1, rows_wrong: 3, expected: 1.0, got: 2.0, cause }
    }

    #[test]
    fn rows_of_one_kind_are_one_and_the_first_failure_stays() {
        let mut report = Report::default();
        assert!(!report.passed(), "nothing was audited");
        let mut row = Row::new(Op::Dense, "Q8_0", "v");
        row.count(5, None);
        row.note(0.5, 1.0);
        report.merge(vec![row.clone(), Row::new(Op::Dense, "Q8_0", "w")]);
        assert!(report.passed());
        let mut worse = Row::new(Op::Dense, "Q8_0", "v");
        worse.count(7, Some(failure(33)));
        worse.count(1, Some(failure(1)));
        // Farther in number, but nearer to nothing wrong.
        worse.note(0.6, 10.0);
        report.merge(vec![worse]);
        assert!(!report.passed());
        assert_eq!((report.rows().len(), report.cases(), report.rows_compared()), (2, 3, 13));
        let found: Vec<_> = report.failures().collect();
        assert_eq!((found.len(), found[0].0.failed, found[0].1.row), (1, 2, 33));
        assert_eq!((found[0].0.worst_error, found[0].0.bound), (0.5, 1.0));
    }
}
