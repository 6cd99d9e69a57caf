//! One GGUF file into another with its matrices in another format.
//!
//! Tensors pass one by one, each in slabs of rows shared out to threads, so memory stays small whatever the model's
//! size. The result is written under a temporary name beside its place and renamed when it is whole; a failure leaves
//! nothing behind.

mod plan;

use std::{
    cell::RefCell,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

pub use plan::{Assignment, Note, QuantizePlan};

use crate::{
    DType, FormatError, Gguf, GgufWriter, Tensor,
    codec::{self, EncodeError},
};

/// Why a file cannot be quantized.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum QuantizeError {
    #[error("{0}")]
    Format(EncodeError),
    #[error("tensor `{tensor}`: {fault}")]
    Tensor { tensor: String, fault: EncodeError },
    #[error("{}: cannot be written: {source}; check the folder, its rights and the room on the disk", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Layout { path: PathBuf, source: FormatError },
}

/// How far the work is; given after each slab of rows.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor at work.
    pub tensor: &'a str,
    /// Its place among all, from 0.
    pub index: usize,
    /// What becomes of it.
    pub assignment: Assignment,
    /// Weights written, over all tensors so far.
    pub weights_done: u64,
    /// Weights of the whole file.
    pub weights_total: u64,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Of each tensor, in the file's order.
    pub assignments: Vec<Assignment>,
    /// Bytes of all tensors in the source.
    pub bytes_before: u64,
    /// Bytes of all tensors in the result.
    pub bytes_after: u64,
}

/// Weights that one thread takes at a time: enough to be worth a thread, few enough to hold.
const SLAB_WEIGHTS: usize = 1 << 18;

/// Writes `source` to `path` with the formats of `plan`. Metadata is kept, but for `general.file_type` and
/// `general.quantization_version`. A file at `path` is replaced. [`QuantizePlan::assign`] tells beforehand what will be
/// done, with notes worth printing.
///
/// # Errors
/// If a format has no encoder, a weight is not finite or too large for its format, or the file cannot be written.
pub fn quantize(
    source: &Gguf,
    plan: &QuantizePlan,
    path: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, QuantizeError> {
    let assignments = plan.assign(source)?;
    let summary = Summary {
        bytes_before: bytes_of(source, assignments.iter().map(|a| a.from)),
        bytes_after: bytes_of(source, assignments.iter().map(|a| a.to)),
        assignments,
    };
    write(source, plan, &summary.assignments, path, progress)?;
    Ok(summary)
}

fn bytes_of(source: &Gguf, dtypes: impl Iterator<Item = DType>) -> u64 {
    let lens = source.tensors().iter().zip(dtypes).map(|(t, d)| d.row_bytes(t.depth()).map(|b| b * t.rows()));
    lens.map(|len| len.expect("assigned formats divide rows") as u64).sum()
}

/// The state that the tensors' closures share; they run one after another.
struct Shared<'a> {
    progress: &'a mut dyn FnMut(Progress<'_>),
    weights_done: u64,
    weights_total: u64,
    /// The reason behind a failed write, where it is not the disk.
    fault: Option<QuantizeError>,
}

fn write(
    source: &Gguf,
    plan: &QuantizePlan,
    assignments: &[Assignment],
    path: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), QuantizeError> {
    let weights_total = source.tensors().iter().map(|t| t.len() as u64).sum();
    let shared = RefCell::new(Shared { progress, weights_done: 0, weights_total, fault: None });
    let mut writer = GgufWriter::new();
    for (key, value) in source.metadata() {
        writer = writer.set(key, value.clone());
    }
    if let Some(number) = plan::file_type(plan.dtype) {
        writer = writer.set("general.file_type", number);
    }
    writer = writer.set("general.quantization_version", 2u32);
    for (index, (tensor, &assignment)) in source.tensors().iter().zip(assignments).enumerate() {
        let (shared, threads) = (&shared, plan.threads.max(1));
        writer = writer.produced_tensor(&tensor.name, assignment.to, &*tensor.shape, move |out| {
            let step = Step { tensor, index, assignment, threads };
            step.run(out, &mut shared.borrow_mut())
        });
    }
    let written = writer.write_file(path);
    if let Some(fault) = shared.into_inner().fault {
        return Err(fault);
    }
    written.map_err(|error| match error {
        FormatError::Io { source, .. } => QuantizeError::Write { path: path.to_owned(), source },
        source => QuantizeError::Layout { path: path.to_owned(), source },
    })
}

/// One tensor's turn.
struct Step<'a> {
    tensor: &'a Tensor,
    index: usize,
    assignment: Assignment,
    threads: usize,
}

impl Step<'_> {
    fn run(&self, out: &mut dyn Write, shared: &mut Shared<'_>) -> io::Result<()> {
        let (depth, rows) = (self.tensor.depth(), self.tensor.rows());
        let rows_each = (SLAB_WEIGHTS / depth).max(1);
        let mut row = 0;
        while row < rows {
            let end = rows.min(row + rows_each * self.threads);
            let slabs = self.encode_slabs(row, end, rows_each).map_err(|fault| {
                let message = fault.to_string();
                shared.fault = Some(QuantizeError::Tensor { tensor: self.tensor.name.clone(), fault });
                io::Error::other(message)
            })?;
            for slab in slabs {
                out.write_all(&slab)?;
            }
            shared.weights_done += ((end - row) * depth) as u64;
            (shared.progress)(Progress {
                tensor: &self.tensor.name,
                index: self.index,
                assignment: self.assignment,
                weights_done: shared.weights_done,
                weights_total: shared.weights_total,
            });
            row = end;
        }
        Ok(())
    }

    /// Rows `row..end` in the new format, by one thread for every `rows_each` of them.
    fn encode_slabs(&self, row: usize, end: usize, rows_each: usize) -> Result<Vec<Vec<u8>>, EncodeError> {
        thread::scope(|scope| {
            let start = |row: usize| scope.spawn(move || self.encode_rows(row, end.min(row + rows_each)));
            let threads: Vec<_> = (row..end).step_by(rows_each).map(start).collect();
            threads.into_iter().map(|t| t.join().expect("an encoder does not panic")).collect()
        })
    }

    fn encode_rows(&self, row: usize, end: usize) -> Result<Vec<u8>, EncodeError> {
        let Assignment { from, to, .. } = self.assignment;
        let depth = self.tensor.depth();
        let row_bytes = from.row_bytes(depth).expect("rows of a checked file are whole blocks");
        let bytes = &self.tensor.bytes[row * row_bytes..end * row_bytes];
        if from == to {
            return Ok(bytes.to_vec());
        }
        let mut weights = vec![0.0; (end - row) * depth];
        codec::decode(from, bytes, &mut weights);
        let mut out = Vec::new();
        codec::encode(to, &weights, &mut out).map_err(|fault| fault.counted_from(row * depth))?;
        Ok(out)
    }
}
