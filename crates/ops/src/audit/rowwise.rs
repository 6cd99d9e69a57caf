//! Subjects: ops that go along rows or number by number: norms, rotations, gates, sums, caps, rows by index.

use tessera_formats::DType;

use super::{
    Op, Settings,
    compare::Arithmetic,
    inputs::{IDS, IDS_FEW, Inputs, Table, batch, numbers, read, weights},
    subject::{Arrangement, Facts, Job, Subject, all_widths},
};
use crate::{Device, Error, Gate, MatrixSource, Rope, RopeLayout, Rotation, Rounding};

/// Widths around vectors, and one that is spread over threads at a few tokens.
const WIDTHS: [usize; 8] = [1, 15, 16, 17, 31, 33, 576, 2049];

/// The first feature that turns, pairs that do, and the numbers of the head that they turn in: whole heads and parts of them.
const HEADS: [(usize, usize, usize); 9] = [
    (0, 1, 2),
    (0, 32, 64),
    (0, 10, 80),
    (0, 40, 80),
    (0, 48, 96),
    (0, 64, 128),
    (0, 128, 512),
    (448, 32, 512),
    (3, 10, 30),
];

/// Heads that are rounded: blocks that are whole and not, matrices of every small size, and those of DeepSeek V4.
const ROUNDED: [(Rounding, usize); 9] = [
    (Rounding::Fp8 { features: 448 }, 512),
    (Rounding::Fp8 { features: 100 }, 130),
    (Rounding::Fp8 { features: 0 }, 3),
    (Rounding::HadamardFp4, 1),
    (Rounding::HadamardFp4, 16),
    (Rounding::HadamardFp4, 32),
    (Rounding::HadamardFp4, 64),
    (Rounding::HadamardFp4, 128),
    (Rounding::HadamardFp4, 1024),
];

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// In runs of this many numbers.
    Norm(usize),
    /// This many pairs of each head.
    Rope(Rotation, usize),
    /// Heads of this many numbers.
    Round(Rounding, usize),
    Gate(Gate),
    /// Of the row's halves.
    GateHalves(Gate),
    /// A part of each row, from the first of these numbers on.
    Columns(usize),
    Add,
    Scale(f32),
    SoftCap(f32),
    LogitRows,
}

impl What {
    fn op(self) -> Op {
        match self {
            What::Norm(_) => Op::Norm,
            What::Rope(..) => Op::Rope,
            What::Round(..) => Op::Round,
            What::Gate(_) | What::GateHalves(_) => Op::Gate,
            What::Columns(_) => Op::Columns,
            What::Add => Op::Add,
            What::Scale(_) => Op::Scale,
            What::SoftCap(_) => Op::SoftCap,
            What::LogitRows => Op::LogitRows,
        }
    }
}

/// Adds all subjects but those of embeddings.
pub(super) fn jobs<D: Device>(settings: &Settings, jobs: &mut Vec<Job<D>>) {
    let mut all = vec![];
    for width in WIDTHS {
        let runs = [1, 3, 16, 64, width].into_iter().filter(|r| width % r == 0 && (*r > 1 || width == 1));
        all.extend(runs.map(|run| (What::Norm(run), width)));
        all.extend(Gate::ALL.map(|gate| (What::Gate(gate), width)));
        all.extend(Gate::ALL.map(|gate| (What::GateHalves(gate), 2 * width)));
        all.extend(
            [What::Columns(width / 3), What::Add, What::Scale(1.7), What::SoftCap(2.5), What::LogitRows]
                .map(|what| (what, width)),
        );
    }
    for (first, pairs, head_dim) in HEADS {
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            let rotation = Rotation::new(head_dim, layout).from(first);
            all.extend([rotation, rotation.inverted()].map(|r| (What::Rope(r, pairs), 3 * head_dim)));
        }
    }
    all.extend(ROUNDED.map(|(rounding, head_dim)| (What::Round(rounding, head_dim), 3 * head_dim)));
    for (what, width) in all.into_iter().filter(|(what, _)| settings.wants(what.op())) {
        // Wide rows are spread over threads early.
        let (ids, widest) = if width < 100 { (IDS, usize::MAX) } else { (IDS_FEW, super::WIDE_TOKENS) };
        let arrangements = all_widths(settings, ids, what.op() != Op::LogitRows, widest);
        jobs.push(Job::new(what.op(), "-", move || Rowwise { what, width, ids, arrangements }));
    }
}

struct Rowwise {
    what: What,
    width: usize,
    ids: u32,
    arrangements: Vec<Arrangement>,
}

impl Subject for Rowwise {
    /// Two inputs and a weight.
    type Loaded<D: Device> = (Table<D>, Table<D>, D::Vector);

    fn facts(&self) -> Facts {
        let width = self.width;
        let shape = match self.what {
            What::Norm(run) => format!("{width} in runs of {run}"),
            What::Rope(Rotation { head_dim, first, layout, inverse }, pairs) => {
                let back = if inverse { ", back" } else { "" };
                format!("{width} in heads of {head_dim}, {pairs} pairs from {first}, {layout:?}{back}")
            }
            What::Round(rounding, head_dim) => format!("{width} in heads of {head_dim}, {rounding:?}"),
            What::Gate(gate) => format!("{width}, {gate:?}"),
            What::GateHalves(gate) => format!("halves of {width}, {gate:?}"),
            What::Columns(first) => format!("{width} from {first}"),
            What::Add | What::Scale(_) | What::SoftCap(_) | What::LogitRows => format!("{width}"),
        };
        let has_bad = self.what != What::LogitRows;
        Facts { op: self.what.op(), format: "-", shape, ids: self.ids, has_bad, arithmetic: Arithmetic::Rounded }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<Self::Loaded<D>, Error> {
        let input = |name| Inputs::new(name, self.ids as usize, 1, self.width).load(device);
        let run = if let What::Norm(run) = self.what { run } else { 1 };
        Ok((input("x")?, input("y")?, device.load_vector(&numbers("norm", run))?))
    }

    fn run<D: Device>(
        &self,
        device: &D,
        (x, y, weight): &Self::Loaded<D>,
        steps: &[Vec<u32>],
    ) -> Result<Vec<f32>, Error> {
        let mut out = vec![];
        for ids in steps {
            let mut batch = batch(ids);
            let mut x = x.rows(device, &batch);
            let done = match self.what {
                What::Norm(_) => device.rms_norm(&x, weight, 1e-6),
                What::Rope(rotation, pairs) => {
                    let base = 10_000f64;
                    let frequencies = (0..pairs).map(|i| base.powf(-(i as f64) / pairs as f64)).collect();
                    let rope = Rope { layout: rotation.layout, frequencies, magnitude: 1.1 };
                    device.rotate(&mut x, &rotation, &device.rope_angles(&rope, &batch));
                    x
                }
                What::Round(rounding, head_dim) => {
                    device.round(&mut x, head_dim, rounding);
                    x
                }
                What::Gate(gate) => device.gate(&x, &y.rows(device, &batch), gate),
                What::GateHalves(gate) => device.gate_halves(&x, gate),
                What::Columns(first) => device.columns(&x, first..self.width),
                What::Scale(factor) => {
                    device.scale(&mut x, factor);
                    x
                }
                What::Add => {
                    device.add(&mut x, &y.rows(device, &batch));
                    x
                }
                What::SoftCap(cap) => {
                    device.soft_cap(&mut x, cap);
                    x
                }
                What::LogitRows => {
                    out.extend(every_row_once(device, &x, &mut batch, self.width)?);
                    continue;
                }
            };
            out.extend(read(device, &done)?);
        }
        Ok(out)
    }
}

/// All rows by way of two choices of rows: every third, and the others.
fn every_row_once<D: Device>(
    device: &D,
    x: &D::Tensor,
    batch: &mut crate::Batch,
    width: usize,
) -> Result<Vec<f32>, Error> {
    let mut out = vec![f32::NAN; batch.len() * width];
    for third in [true, false] {
        batch.logit_rows = (0..batch.len() as u32).filter(|row| row.is_multiple_of(3) == third).collect();
        let rows = read(device, &device.logit_rows(x, batch))?;
        // A result of another size stays NaN, and is found.
        for (row, values) in batch.logit_rows.iter().zip(rows.chunks_exact(width)) {
            out[*row as usize * width..][..width].copy_from_slice(values);
        }
    }
    Ok(out)
}

/// Adds the subject of one format's embeddings.
pub(super) fn embed_jobs<D: Device>(settings: &Settings, dtype: DType, jobs: &mut Vec<Job<D>>) {
    if settings.wants(Op::Embed) {
        let arrangements = all_widths(settings, IDS_FEW, false, super::WIDE_TOKENS);
        let width = 256 + dtype.block_len();
        let make = move || Embed { table: weights("embedding", dtype, IDS_FEW as usize, width), arrangements };
        jobs.push(Job::new(Op::Embed, dtype.name(), make));
    }
}

/// A table of some format.
struct Embed {
    table: MatrixSource,
    arrangements: Vec<Arrangement>,
}

impl Subject for Embed {
    type Loaded<D: Device> = D::Embedding;

    fn facts(&self) -> Facts {
        let shape = format!("{} x {}", self.table.rows, self.table.depth);
        let format = self.table.dtype.name();
        Facts { op: Op::Embed, format, shape, ids: IDS_FEW, has_bad: false, arithmetic: Arithmetic::Rounded }
    }

    fn arrangements(&self) -> Vec<Arrangement> {
        self.arrangements.clone()
    }

    fn load<D: Device>(&self, device: &D) -> Result<D::Embedding, Error> {
        device.load_embedding(&self.table)
    }

    fn run<D: Device>(&self, device: &D, table: &D::Embedding, steps: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
        let mut out = vec![];
        for ids in steps {
            out.extend(read(device, &device.embed(table, &batch(ids), 3.7))?);
        }
        Ok(out)
    }
}
