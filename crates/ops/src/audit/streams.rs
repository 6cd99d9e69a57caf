//! Subjects: several residual streams, from copies of a row by way of gates to the sum into a block and back.

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{IDS_FEW, Inputs, Table, batch, numbers, read},
    subject::{Arrangement, Facts, Job, Subject, all_widths},
};
use crate::{
    Device, Error, StreamGates,
    streams::{STREAMS_MAX, gates_width},
};

/// Widths of a stream: around vectors, and one that is spread over threads at a single token.
const WIDTHS: [usize; 5] = [1, 15, 33, 576, 4096];

/// What is computed, of so many streams.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Copies,
    Gates(Option<usize>),
    Collapse,
    Spread,
}

/// Adds all subjects.
pub(super) fn jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    if !settings.wants(Op::Streams) {
        return;
    }
    for count in 1..=STREAMS_MAX {
        let gates = [None, Some(1), Some(20)].map(|rounds| (What::Gates(rounds), 1));
        let wide = WIDTHS.into_iter().flat_map(|w| [What::Copies, What::Collapse, What::Spread].map(|what| (what, w)));
        for (what, width) in gates.into_iter().chain(wide) {
            let arrangements = all_widths(settings, IDS_FEW, true, super::WIDE_TOKENS);
            jobs.push(Job::new(Op::Streams, "-", move || Streams { what, count, width, arrangements }));
        }
    }
}

struct Streams {
    what: What,
    count: usize,
    /// Numbers of a stream.
    width: usize,
    arrangements: Vec<Arrangement>,
}

/// What ops take on a device.
pub(super) struct Loaded<D: Device> {
    one: Table<D>,
    all: Table<D>,
    gates: Table<D>,
    scale: D::Vector,
    base: D::Vector,
}

impl Streams {
    fn spec(&self) -> StreamGates {
        let rounds = if let What::Gates(rounds) = self.what { rounds } else { Some(1) };
        StreamGates { count: self.count, rounds, epsilon: 1e-3 }
    }
}

impl Subject for Streams {
    type Loaded<D: Device> = Loaded<D>;

    fn facts(&self) -> Facts {
        let shape = format!("{} of {}, {:?}", self.count, self.width, self.what);
        Facts { op: Op::Streams, format: "-", shape, ids: IDS_FEW, has_bad: true, arithmetic: Arithmetic::Rounded }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Loaded<D>, Error> {
        let spec = self.spec();
        let input = |name, width| Inputs::new(name, IDS_FEW as usize, 1, width).load(device);
        let gates = if let What::Gates(_) = self.what { spec.width() } else { gates_width(self.count) };
        Ok(Loaded {
            one: input("one", self.width)?,
            all: input("all", self.count * self.width)?,
            gates: input("gates", gates)?,
            scale: device.load_vector(&numbers("scale", spec.parts()))?,
            base: device.load_vector(&numbers("base", spec.width()))?,
        })
    }

    fn run<D: Device>(&self, device: &D, on: &Loaded<D>, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let mut out = vec![];
        for ids in steps {
            let batch = batch(ids);
            let gates = on.gates.rows(device, &batch);
            let mut all = on.all.rows(device, &batch);
            let done = match self.what {
                What::Copies => device.copies(&on.one.rows(device, &batch), self.count),
                What::Gates(_) => device.stream_gates(&gates, &on.scale, &on.base, &self.spec()),
                What::Collapse => device.collapse_streams(&all, &gates, self.count),
                What::Spread => {
                    device.spread_streams(&mut all, &on.one.rows(device, &batch), &gates, self.count);
                    all
                }
            };
            out.extend(read(device, &done)?);
        }
        Ok(out)
    }
}
