//! Subjects: dense, fine and grouped projections.

use tessera_formats::DType;

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{IDS, IDS_FEW, Inputs, Table, batch, beside, numbers, read, weights},
    subject::{Arrangement, Facts, Job, Subject, all_widths, widest},
};
use crate::{Device, Error, Linear, LinearStack, MatrixSource};

/// Output features that are no whole number of any tile's rows.
pub(super) const ROWS_TAIL: usize = 37;

/// Tokens up to which fine projections are audited; they compute each row twice, by what dense ones are computed.
const FINE_TOKENS: usize = 65;

/// Tokens up to which odd shapes are audited: a tile of registers and what is left over. Passes know no shape.
const SHAPE_TOKENS: usize = 16;

/// Groups of a grouped projection.
const GROUPS: usize = 3;

/// A short depth for many widths: a few blocks, where they are small no whole 64.
pub(super) fn short_depth(dtype: DType) -> usize {
    let block = dtype.block_len();
    64usize.next_multiple_of(block) + if block < 64 { block } else { 0 }
}

/// Depths around the cuts of segments, with every kind of tail that whole blocks allow.
fn depths(dtype: DType, full: bool) -> Vec<usize> {
    let block = dtype.block_len();
    let mut depths = vec![block, 256 + block, 512 + block, 1024 + block];
    if full {
        depths.extend([2048, 4096 + block]);
    }
    depths
}

/// Adds the subjects of one format.
pub(super) fn jobs<D: Device>(settings: &Settings, dtype: DType, jobs: &mut Vec<Job<D>>) {
    let mut add = |kind: Kind, rows: usize, depth: usize, ids: u32, widest: usize| {
        if settings.wants(kind.op()) {
            let arrangements = all_widths(settings, ids, true, widest);
            let make = move || Projection::new(kind, dtype, rows, depth, ids, arrangements);
            jobs.push(Job::of_format(settings, kind.op(), dtype, make));
        }
    };
    add(Kind::Dense, ROWS_TAIL, short_depth(dtype), IDS, widest(settings, dtype));
    for (rows, depth) in [1, 15, 16, 17, 32, 33].into_iter().zip(depths(dtype, settings.full)) {
        add(Kind::Dense, rows, depth, IDS_FEW, SHAPE_TOKENS);
    }
    add(Kind::Fine, ROWS_TAIL, short_depth(dtype), IDS, FINE_TOKENS);
    add(Kind::Grouped, ROWS_TAIL / 2, short_depth(dtype), IDS, widest(settings, dtype));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dense,
    Fine,
    Grouped,
}

impl Kind {
    fn op(self) -> Op {
        match self {
            Kind::Dense => Op::Dense,
            Kind::Fine => Op::Fine,
            Kind::Grouped => Op::Grouped,
        }
    }

    fn matrices(self) -> usize {
        if self == Kind::Grouped { GROUPS } else { 1 }
    }
}

/// A matrix or a stack of groups, with a bias. A dense projection has a second matrix of another format over the same
/// input, as layers have.
struct Projection {
    kind: Kind,
    source: MatrixSource,
    second: MatrixSource,
    bias: Vec<f32>,
    x: Inputs,
    ids: u32,
    arrangements: Vec<Arrangement>,
}

impl Projection {
    fn new(kind: Kind, dtype: DType, rows: usize, depth: usize, ids: u32, arrangements: Vec<Arrangement>) -> Self {
        let rows_all = kind.matrices() * rows;
        // One whose blocks fit every depth, and whose activations are quantized in the other way.
        let other = if dtype.is_float() && depth.is_multiple_of(32) { DType::Q8_0 } else { DType::F32 };
        Projection {
            kind,
            source: weights("matrix", dtype, rows_all, depth),
            second: weights("second", other, 3, depth),
            bias: numbers("bias", rows_all),
            x: Inputs::new("x", ids as usize, 1, kind.matrices() * depth),
            ids,
            arrangements,
        }
    }
}

/// The projection as its kind needs it.
enum Weights<D: Device> {
    Dense([Linear<D>; 2]),
    Fine(Linear<D>),
    Grouped(LinearStack<D>),
}

impl Subject for Projection {
    type Loaded<D: Device> = (Weights<D>, Table<D>);

    fn facts(&self) -> Facts {
        let (rows, depth) = (self.source.rows / self.kind.matrices(), self.source.depth);
        let groups = if self.kind == Kind::Grouped { format!("{GROUPS} x ") } else { String::new() };
        let arithmetic = match self.kind {
            _ if self.source.dtype.is_float() && self.second.dtype.is_float() => Arithmetic::Rounded,
            Kind::Fine => Arithmetic::Fine,
            Kind::Dense | Kind::Grouped => Arithmetic::Quantized,
        };
        Facts {
            op: self.kind.op(),
            format: self.source.dtype.name(),
            shape: format!("{groups}{rows} x {depth}"),
            ids: self.ids,
            has_bad: true,
            arithmetic,
        }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Self::Loaded<D>, Error> {
        let bias = Some(device.load_vector(&self.bias)?);
        let weights = match self.kind {
            Kind::Dense => {
                let second = Linear { matrix: device.load_matrix(&self.second)?, bias: None };
                Weights::Dense([Linear { matrix: device.load_matrix(&self.source)?, bias }, second])
            }
            Kind::Fine => Weights::Fine(Linear { matrix: device.load_matrix(&self.source)?, bias }),
            Kind::Grouped => Weights::Grouped(LinearStack { matrices: device.load_stack(&self.source, GROUPS)?, bias }),
        };
        Ok((weights, self.x.load(device)?))
    }

    fn run<D: Device>(
        &self,
        device: &D,
        (weights, x): &Self::Loaded<D>,
        steps: &[Vec<u32>],
    ) -> Result<Vec<f32>, Error> {
        let mut out = vec![];
        for ids in steps {
            let x = x.rows(device, &batch(ids));
            match weights {
                Weights::Dense([first, second]) => {
                    let y = device.project(&x, [first, second]);
                    let parts = [read(device, &y[0])?, read(device, &y[1])?];
                    out.extend(beside(&parts, ids.len()));
                }
                Weights::Fine(linear) => out.extend(read(device, &device.project_fine(&x, linear))?),
                Weights::Grouped(stack) => out.extend(read(device, &device.project_grouped(&x, stack))?),
            }
        }
        Ok(out)
    }
}
