//! Subjects and how they are examined: once on float64, once on the reference, then on every variant in every
//! arrangement.

use tessera_formats::DType;

use super::{
    Op, Settings, Variant, WIDE_TOKENS,
    compare::{self, Arithmetic, Cause, Difference, Failure},
    report::{REFERENCE, Row},
};
use crate::{
    Device, Error,
    reference::{ReferenceDevice, float64::Float64Device},
};

/// What is true of a subject on every device.
pub(super) struct Facts {
    pub(super) op: Op,
    /// Of the weights, or of keys and values; `-` where there is none.
    pub(super) format: &'static str,
    /// For people: `37 x 288`.
    pub(super) shape: String,
    /// Input rows, named `0..ids`. Where `has_bad`, row `ids` is one that is not a number.
    pub(super) ids: u32,
    pub(super) has_bad: bool,
    pub(super) arithmetic: Arithmetic,
}

/// Rows put into steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arrangement {
    /// For people: `in order`.
    pub(super) name: String,
    /// The ids of each step's rows.
    pub(super) steps: Vec<Vec<u32>>,
}

impl Arrangement {
    /// A single step.
    pub(super) fn one(name: &str, ids: impl Iterator<Item = u32>) -> Arrangement {
        Arrangement { name: name.to_owned(), steps: vec![ids.collect()] }
    }
}

/// An op over given weights and a table of input rows.
pub(super) trait Subject {
    /// Weights and inputs on a device.
    type Loaded<D: Device>;

    /// What it is.
    fn facts(&self) -> Facts;

    /// What every variant has to compute.
    fn arrangements(&self) -> Vec<Arrangement>;

    /// Steps in which every row is alone, as far as it can be: all ids are in them, some more than once.
    fn alone(&self) -> Vec<Vec<u32>> {
        let facts = self.facts();
        (0..facts.ids + u32::from(facts.has_bad)).map(|id| vec![id]).collect()
    }

    /// The same of inputs that are rounded as what multiplies 16-bit numbers rounds them. Where there is one, a device whose
    /// arithmetic is its own is held to the truth about that: what rounding inputs does to a row may be large, and what else
    /// goes wrong must not hide in it.
    fn of_halves(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Loads weights and inputs.
    fn load<D: Device>(&self, device: &D) -> Result<Self::Loaded<D>, Error>;

    /// Computes the steps in order. The result has a row for each row of each step, one after another, which belongs to
    /// the id there.
    fn run<D: Device>(&self, device: &D, loaded: &Self::Loaded<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error>;
}

/// Examines variants.
type Examine<D> = dyn FnOnce(&[Variant<D>]) -> Vec<Row>;

/// A subject to be made and examined.
pub(super) struct Job<D> {
    /// For people.
    pub(super) label: String,
    /// Examines all variants.
    pub(super) run: Box<Examine<D>>,
}

impl<D: Device> Job<D> {
    pub(super) fn new<S: Subject>(op: Op, format: &str, make: impl FnOnce() -> S + 'static) -> Job<D> {
        let run = Box::new(move |variants: &[Variant<D>]| examine(&make(), &|v| v.scope.holds(op), variants));
        Job { label: format!("{op} {format}"), run }
    }

    /// A job for a format that need not be audited on every variant; see [`Settings::is_for_its_kind`].
    pub(super) fn of_format<S: Subject>(
        settings: &Settings,
        op: Op,
        dtype: DType,
        make: impl FnOnce() -> S + 'static,
    ) -> Job<D> {
        if settings.is_for_its_kind(dtype) {
            return Job::new(op, dtype.name(), make);
        }
        let run = Box::new(move |variants: &[Variant<D>]| examine(&make(), &|v| v.scope.is_whole(), variants));
        Job { label: format!("{op} {dtype}"), run }
    }
}

/// The widest step of a format's subjects.
pub(super) fn widest(settings: &Settings, dtype: DType) -> usize {
    if settings.is_for_its_kind(dtype) { usize::MAX } else { WIDE_TOKENS }
}

/// Every width in order; and the narrower ones in other places, beside others and, where there is one, beside a row that is
/// not a number.
pub(super) fn all_widths(settings: &Settings, ids: u32, has_bad: bool, widest: usize) -> Vec<Arrangement> {
    let mut all = vec![];
    for width in settings.widths().into_iter().filter(|w| *w <= widest) {
        all.push(Arrangement::one("in order", (0..width as u32).map(|i| i % ids)));
        if (2..=WIDE_TOKENS).contains(&width) {
            // 11 is prime to any number of ids, so that neighbours are strangers and every place changes.
            let shuffled = |i: u32| if has_bad && i % 3 == 1 { ids } else { (11 * i + 5) % ids };
            let name = if has_bad { "shuffled, beside rows that are not numbers" } else { "shuffled" };
            all.push(Arrangement::one(name, (0..width as u32).map(shuffled)));
        }
    }
    all
}

/// The right answers for a subject's ids: (ids, width).
struct Answers {
    reference: Vec<f32>,
    truth: Vec<f32>,
    width: usize,
    /// (ids) distances of the reference from float64.
    distances: Vec<f64>,
    bound: f64,
}

fn examine<S: Subject, D: Device>(
    subject: &S,
    wanted: &dyn Fn(&Variant<D>) -> bool,
    variants: &[Variant<D>],
) -> Vec<Row> {
    let facts = subject.facts();
    let mut own = Row::new(facts.op, facts.format, REFERENCE);
    let answers = match answers(subject, &facts, &mut own) {
        Ok(answers) => answers,
        Err(error) => {
            own.count(0, Some(failed(&facts, "", 0, &error)));
            return vec![own];
        }
    };
    let arrangements = subject.arrangements();
    let mut rows = vec![own];
    for variant in variants.iter().filter(|v| wanted(v)) {
        let mut row = Row::new(facts.op, facts.format, &variant.name);
        match subject.load(&variant.device) {
            // What a device says that it lacks, it does not do wrong.
            Err(Error::Unsupported { .. }) => continue,
            Err(error) => row.count(0, Some(failed(&facts, "loading", 0, &error))),
            Ok(loaded) => {
                let own = if variant.scope.has_reference(facts.op) {
                    Ok(None)
                } else {
                    alone(subject, &facts, variant, &loaded, &answers, &mut row).map(Some)
                };
                match own {
                    Err(Error::Unsupported { .. }) => continue,
                    Err(error) => row.count(0, Some(failed(&facts, "alone", 1, &error))),
                    Ok(own) => {
                        let answers = own.as_ref().unwrap_or(&answers);
                        for arrangement in &arrangements {
                            try_out(subject, &facts, variant, &loaded, arrangement, answers, &mut row);
                        }
                    }
                }
            }
        }
        if row.cases > 0 {
            rows.push(row);
        }
    }
    rows
}

/// All rows, in order.
fn all_ids(facts: &Facts) -> Vec<u32> {
    (0..facts.ids + u32::from(facts.has_bad)).collect()
}

/// All rows in f64.
fn truth<S: Subject>(subject: &S, facts: &Facts) -> Result<Vec<f32>, Error> {
    subject.run(&Float64Device, &subject.load(&Float64Device)?, &[all_ids(facts)])
}

/// Computes the answers, and holds the reference against float64.
fn answers<S: Subject>(subject: &S, facts: &Facts, row: &mut Row) -> Result<Answers, Error> {
    let (ids, has_bad) = (facts.ids as usize, usize::from(facts.has_bad));
    let truth = truth(subject, facts)?;
    let reference = subject.run(&ReferenceDevice, &subject.load(&ReferenceDevice)?, &[all_ids(facts)])?;
    let width = reference.len() / (ids + has_bad);
    let bound = facts.arithmetic.bound(width);
    // The last row may be no number, and what it is stands in no relation to the truth.
    let distances = compare::distances(&reference, &truth, ids, width);
    let found = compare::inexact(&reference, &truth, &distances, width, bound);
    row.count(ids, found.map(|d| failure(facts, "in order", ids, d)));
    distances.iter().for_each(|d| row.note(*d, bound));
    Ok(Answers { reference, truth, width, distances, bound })
}

/// A variant's own answers for rows that are alone, held against float64.
fn alone<S: Subject, D: Device>(
    subject: &S,
    facts: &Facts,
    variant: &Variant<D>,
    loaded: &S::Loaded<D>,
    answers: &Answers,
    row: &mut Row,
) -> Result<Answers, Error> {
    let (ids, width) = (facts.ids as usize, answers.width);
    let steps = subject.alone();
    let got = subject.run(&variant.device, loaded, &steps)?;
    let order = steps.concat();
    let mut reference = vec![f32::NAN; answers.reference.len()];
    // What a row had last counts: what comes again must have the same bits.
    for (id, values) in order.iter().zip(got.chunks_exact(width)) {
        reference[*id as usize * width..][..width].copy_from_slice(values);
    }
    if let Some(found) = compare::bits(&got, &order, &reference, width) {
        row.count(order.len(), Some(failure(facts, "alone, again", 1, found)));
    }
    // Keys and values are as coarse on all devices, and set the bound of attention; else operands do.
    let is_attention = matches!(facts.op, Op::Attention | Op::Latent);
    let (truth, arithmetic) = match subject.of_halves() {
        Some(of_halves) => (truth(&of_halves, facts)?, Arithmetic::HalfWeights),
        None if is_attention => (answers.truth.clone(), facts.arithmetic),
        None => (answers.truth.clone(), Arithmetic::Halves),
    };
    let bound = arithmetic.bound(width);
    let distances = compare::distances(&reference, &truth, ids, width);
    let found = compare::inexact(&reference, &truth, &distances, width, bound);
    row.count(ids, found.map(|d| failure(facts, "alone", 1, d)));
    distances.iter().for_each(|d| row.note(*d, bound));
    Ok(Answers { reference, truth, width, distances, bound })
}

/// Runs one arrangement on one variant, and compares.
fn try_out<S: Subject, D: Device>(
    subject: &S,
    facts: &Facts,
    variant: &Variant<D>,
    loaded: &S::Loaded<D>,
    arrangement: &Arrangement,
    answers: &Answers,
    row: &mut Row,
) {
    let ids = arrangement.steps.concat();
    let widest = arrangement.steps.iter().map(Vec::len).max().unwrap_or(0);
    let got = match subject.run(&variant.device, loaded, &arrangement.steps) {
        Ok(got) => got,
        Err(Error::Unsupported { .. }) => return,
        Err(error) => return row.count(0, Some(failed(facts, &arrangement.name, widest, &error))),
    };
    let found = compare::bits(&got, &ids, &answers.reference, answers.width);
    if found.is_none() {
        // Equal bits are equally far from the truth.
        let errors = ids.iter().filter_map(|id| answers.distances.get(*id as usize));
        errors.for_each(|d| row.note(*d, answers.bound));
    }
    row.count(ids.len(), found.map(|d| in_step(facts, arrangement, d)));
}

/// A difference, told by its step.
fn in_step(facts: &Facts, arrangement: &Arrangement, mut found: Difference) -> Failure {
    let (mut step, count) = (0, arrangement.steps.len());
    while step + 1 < count && found.row >= arrangement.steps[step].len() {
        found.row -= arrangement.steps[step].len();
        step += 1;
    }
    let width = arrangement.steps.get(step).map_or(0, Vec::len);
    let name = if count > 1 { format!("{}, step {}", arrangement.name, step + 1) } else { arrangement.name.clone() };
    failure(facts, &name, width, found)
}

fn failure(facts: &Facts, arrangement: &str, width: usize, found: Difference) -> Failure {
    let Difference { row, element, rows_wrong, expected, got, cause } = found;
    let (shape, arrangement) = (facts.shape.clone(), arrangement.to_owned());
    Failure { shape, arrangement, width, row: row + 1, element: element + 1, rows_wrong, expected, got, cause }
}

fn failed(facts: &Facts, arrangement: &str, width: usize, error: &Error) -> Failure {
    let (expected, got, cause) = (f32::NAN, f32::NAN, Cause::Failed(error.to_string()));
    failure(facts, arrangement, width, Difference { row: 0, element: 0, rows_wrong: width, expected, got, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_told_by_its_step() {
        let facts = Facts {
            op: Op::Attention,
            format: "F16",
            shape: "s".to_owned(),
            ids: 9,
            has_bad: false,
            arithmetic: Arithmetic::Rounded,
        };
        let steps = vec![vec![0, 1], vec![], vec![2, 3, 4]];
        let arrangement = Arrangement { name: "chunks".to_owned(), steps };
        let (expected, got, cause) = (1.0, 2.0, Cause::Differs);
        let at = |row| Difference { row, element: 4, rows_wrong: 1, expected, got, cause: cause.clone() };
        let told = |row| in_step(&facts, &arrangement, at(row));
        assert_eq!((told(1).arrangement.as_str(), told(1).row, told(1).width), ("chunks, step 1", 2, 2));
        assert_eq!((told(2).arrangement.as_str(), told(2).row, told(2).width), ("chunks, step 3", 1, 3));
        assert_eq!((told(4).row, told(4).element), (3, 5));
    }

    #[test]
    fn widths_come_in_order_shuffled_and_beside_bad_rows() {
        let settings = Settings { edges: [4].into(), ..Settings::default() };
        let all = all_widths(&settings, 7, true, 8);
        let widths: Vec<usize> = all.iter().map(|a| a.steps[0].len()).collect();
        assert_eq!(widths, [0, 1, 3, 3, 4, 4, 5, 5, 8, 8]);
        assert_eq!(all[8].steps[0], [0, 1, 2, 3, 4, 5, 6, 0]);
        assert_eq!(all[9].steps[0], [5, 7, 6, 3, 7, 4, 1, 7]);
        let without = all_widths(&settings, 7, false, 8);
        assert_eq!(without[9].steps[0], [5, 2, 6, 3, 0, 4, 1, 5]);
    }
}
