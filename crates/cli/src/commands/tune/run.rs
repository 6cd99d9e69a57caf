//! The measurement: candidates and the default take turns on one device, whose threads and scratch memory they share.

use std::collections::BTreeSet;

use anyhow::Result;
use indicatif::ProgressBar;

use super::{
    rule::{Comparison, Readings},
    survey::{Place, Size},
};
use crate::{
    device::{Chosen, Parameter, Tuning},
    measure::{Case, Subject},
};

/// A tuning that might be adopted, and how it did.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) tuning: Tuning,
    /// One for each place and width that it governs.
    pub(super) cells: Vec<Cell>,
}

#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) place: String,
    pub(super) width: usize,
    pub(super) compared: Comparison,
}

/// Candidates that are measured against each other, and the numbers that they change.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) parameters: Vec<Parameter>,
    pub(super) candidates: Vec<Candidate>,
}

impl Group {
    pub(super) fn new(parameters: Vec<Parameter>, tunings: impl IntoIterator<Item = Tuning>) -> Group {
        let candidates = tunings.into_iter().map(|tuning| Candidate { tuning, cells: vec![] }).collect();
        Group { parameters, candidates }
    }

    /// Compared cell by cell.
    pub(super) fn comparisons(&self) -> Vec<Vec<Comparison>> {
        self.candidates.iter().map(Candidate::comparisons).collect()
    }

    fn widths(&self, place: &Place) -> BTreeSet<usize> {
        self.parameters.iter().flat_map(|parameter| place.widths(*parameter)).collect()
    }
}

impl Candidate {
    pub(super) fn comparisons(&self) -> Vec<Comparison> {
        self.cells.iter().map(|cell| cell.compared).collect()
    }
}

/// How many steps [`run`] takes.
pub(super) fn steps(size: Size, workers: usize, groups: &[Group]) -> u64 {
    let places = size.places(workers);
    let widths = groups.iter().flat_map(|group| places.iter().map(|place| group.widths(place).len()));
    widths.sum::<usize>() as u64
}

/// Measures all groups at all places.
///
/// # Errors
/// If a candidate gives other bits than the default, or there is no memory.
pub(super) fn run(device: &mut Chosen, size: Size, groups: &mut [Group], bar: &ProgressBar) -> Result<()> {
    for place in size.places(device.threads()) {
        let widths: BTreeSet<usize> = groups.iter().flat_map(|group| group.widths(&place)).collect();
        if widths.is_empty() {
            continue;
        }
        bar.set_message(place.name());
        let subject = place.make(device, &widths.into_iter().collect::<Vec<_>>())?;
        for group in groups.iter_mut() {
            for width in group.widths(&place) {
                cell(device, size, &place, &*subject, width, &mut group.candidates)?;
                bar.inc(1);
            }
        }
    }
    Ok(())
}

/// One place and width, for all candidates that govern it.
fn cell(
    device: &mut Chosen,
    size: Size,
    place: &Place,
    subject: &dyn Subject,
    width: usize,
    candidates: &mut [Candidate],
) -> Result<()> {
    let mut governing: Vec<_> =
        candidates.iter_mut().filter(|c| place.governs(device, subject, width, &c.tuning)).collect();
    if governing.is_empty() {
        return Ok(());
    }
    device.retune(Tuning::default());
    let case = Case::new(subject, device, width, &size.effort(width))?;
    // The default stands first and, as far from it as can be, in the middle.
    let mut tunings: Vec<_> = governing.iter().map(|candidate| candidate.tuning).collect();
    tunings.insert(0, Tuning::default());
    let again = tunings.len().div_ceil(2);
    tunings.insert(again, Tuning::default());
    let mut readings = vec![vec![]; tunings.len()];
    for round in 0..size.rounds() {
        for i in 0..tunings.len() {
            // Each stands at each place of a round in its turn, now after one neighbour, now after the other.
            let i = if round % 2 == 0 { i } else { tunings.len() - 1 - i };
            let at = (i + round / 2) % tunings.len();
            device.retune(tunings[at]);
            let what = format!("{} at width {width} with {}", place.name(), tunings[at]);
            readings[at].push(case.measure(subject, device, &what)?.as_secs_f64());
        }
    }
    device.retune(Tuning::default());
    let others = (1..tunings.len()).filter(|at| *at != again);
    for (candidate, at) in governing.iter_mut().zip(others) {
        let of = Readings { default: &readings[0], again: &readings[again], candidate: &readings[at] };
        candidate.cells.push(Cell { place: place.name(), width, compared: Comparison::of(of) });
    }
    Ok(())
}
