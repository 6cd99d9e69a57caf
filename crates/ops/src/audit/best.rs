//! Subjects: the likeliest tokens of rows of logits. Their results are ids and logits by turns.

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{Inputs, Table, batch, numbers},
    subject::{Arrangement, Facts, Job, Subject, all_widths},
};
use crate::{Device, Error, ranking::BEST_MAX};

/// Tokens of a vocabulary, and how many are asked for: around a warp, around what a block takes, and several blocks of blocks.
const SHAPES: [(usize, usize); 10] = [
    (1, 1),
    (3, 7),
    (33, 1),
    (127, BEST_MAX),
    (576, 40),
    (1024, BEST_MAX),
    (1025, 1),
    (2049, BEST_MAX),
    (9001, BEST_MAX),
    (140_003, BEST_MAX),
];

/// Wider vocabularies have fewer rows, and are left out of a brief audit.
const WIDE: usize = 3000;

/// Rows of logits.
const IDS: u32 = 13;

/// Rows of a step, at most.
const ROWS_MAX: usize = 33;

/// Adds all subjects.
pub(super) fn jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    let shapes = SHAPES.into_iter().filter(|(width, _)| settings.wants(Op::Best) && !(settings.brief && *width > WIDE));
    for (width, count) in shapes {
        let arrangements = all_widths(settings, IDS, true, if width > WIDE { 3 } else { ROWS_MAX });
        jobs.push(Job::new(Op::Best, "-", move || Best { width, count, arrangements }));
    }
}

struct Best {
    width: usize,
    count: usize,
    arrangements: Vec<Arrangement>,
}

impl Subject for Best {
    type Loaded<D: Device> = Table<D>;

    fn facts(&self) -> Facts {
        let shape = format!("{} of {}", self.count, self.width);
        Facts { op: Op::Best, format: "-", shape, ids: IDS, has_bad: true, arithmetic: Arithmetic::Rounded }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Table<D>, Error> {
        // Few values, so that many are equal, zeros of either sign, and some tokens that hardly ever come.
        let coarse = |(i, v): (usize, f32)| match i % 17 {
            3 => f32::MIN,
            5 => 0.0f32.copysign(v),
            _ => (v * 64.0).trunc() / 8.0,
        };
        let mut values: Vec<f32> =
            numbers("logits", IDS as usize * self.width).into_iter().enumerate().map(coarse).collect();
        values.resize(values.len() + self.width, f32::INFINITY);
        Inputs::of("logits", self.width, &values).load(device)
    }

    fn run<D: Device>(&self, device: &D, table: &Table<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let (mut out, mut found) = (vec![], vec![]);
        for ids in steps {
            let batch = batch(ids);
            found.clear();
            device.best(&table.rows(device, &batch), ids.len(), self.count, &mut found)?;
            out.extend(found.iter().flat_map(|c| [c.id as f32, c.logit]));
        }
        Ok(out)
    }
}
