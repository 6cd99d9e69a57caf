//! From the tensors of a checkpoint to weights on a device, each checked against the shape the model needs.

use tessera_formats::{Bytes, DType, Tensor, codec};
use tessera_ops::{Device, Linear, LinearStack, MatrixSource};

use crate::{Checkpoint, Config, Error};

/// How far loading has come: tensors done and bytes read, for progress bars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensors taken so far.
    pub bytes_done: u64,
    /// Bytes of all tensors.
    pub bytes_total: u64,
}

/// Takes tensors to a device by name.
pub struct Loader<'a, D: Device> {
    /// Where the weights come from.
    pub checkpoint: &'a Checkpoint,
    /// The model's shape.
    pub config: &'a Config,
    /// Whether a model that was trained with rounded latent rows rounds them.
    pub rounds_latent_rows: bool,
    device: &'a D,
    /// Weights that a token is multiplied by, in all projections loaded so far.
    weights_used: f64,
    progress: Progress,
    report: &'a mut dyn FnMut(Progress),
}

impl<'a, D: Device> Loader<'a, D> {
    /// A loader that tells `report` of its progress.
    pub fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        device: &'a D,
        report: &'a mut dyn FnMut(Progress),
    ) -> Loader<'a, D> {
        let bytes_total = checkpoint.tensors().iter().map(|t| t.bytes.len() as u64).sum();
        Loader {
            checkpoint,
            config,
            rounds_latent_rows: true,
            device,
            weights_used: 0.0,
            progress: Progress { bytes_done: 0, bytes_total },
            report,
        }
    }

    /// Whether the checkpoint has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Refuses a checkpoint without these tensors, which the architecture would otherwise do without.
    ///
    /// # Errors
    /// If one is missing.
    pub fn require(&self, names: &[&str]) -> Result<(), Error> {
        match names.iter().find(|name| !self.has(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::MissingTensor { file: self.checkpoint.file().to_owned(), tensor: (*name).to_owned() })
            }
        }
    }

    /// The projection `name.weight` (rows, depth), with `name.bias` if there is one.
    ///
    /// # Errors
    /// If the weight is missing, either has a wrong shape, or the device refuses it.
    pub fn linear(&mut self, name: &str, rows: usize, depth: usize) -> Result<Linear<D>, Error> {
        let weight = format!("{name}.weight");
        let source = self.source(&weight, &[depth, rows])?;
        let matrix = self.device.load_matrix(&source).map_err(|e| self.refused(e))?;
        self.weights_used += rows as f64 * depth as f64;
        Ok(Linear { matrix, bias: self.optional_vector(&format!("{name}.bias"), &[rows])? })
    }

    /// The stack of projections `name.weight` (count, rows, depth), with `name.bias` (count, rows) if there is one. A token
    /// goes to `used` of them.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn stack(
        &mut self,
        name: &str,
        (count, used): (usize, usize),
        rows: usize,
        depth: usize,
    ) -> Result<LinearStack<D>, Error> {
        let source = self.source(&format!("{name}.weight"), &[depth, rows, count])?;
        let matrices = self.device.load_stack(&source, count).map_err(|e| self.refused(e))?;
        self.weights_used += used as f64 * rows as f64 * depth as f64;
        Ok(LinearStack { matrices, bias: self.optional_vector(&format!("{name}.bias"), &[rows, count])? })
    }

    /// A projection whose rows are those of several tensors of `rows` rows each, one below the other. Where their formats differ,
    /// it holds their numbers.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn joined<const N: usize>(&mut self, names: [&str; N], rows: usize, depth: usize) -> Result<Linear<D>, Error> {
        let mut parts = vec![];
        for name in names {
            parts.push(self.source(&format!("{name}.weight"), &[depth, rows])?);
        }
        let first = &parts[0];
        let (name, dtype) = (first.name.clone(), first.dtype);
        let (dtype, bytes) = match parts.iter().all(|part| part.dtype == dtype) {
            true => (dtype, together(parts.into_iter().map(|part| part.bytes).collect())),
            false => (
                DType::F32,
                Bytes::new(parts.iter().flat_map(numbers_of).flat_map(f32::to_le_bytes).collect::<Vec<_>>()),
            ),
        };
        self.weights_used += (N * rows) as f64 * depth as f64;
        self.own_linear(MatrixSource { name, dtype, rows: N * rows, depth, bytes })
    }

    /// The columns of a projection that read part `index` of `count` equal parts of its input.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn slice_of_input(
        &mut self,
        name: &str,
        (index, count): (usize, usize),
        rows: usize,
        depth: usize,
    ) -> Result<MatrixSource, Error> {
        let whole = self.source(&format!("{name}.weight"), &[count * depth, rows])?;
        let row = whole.row_bytes().map_err(|e| self.refused(e))? / count;
        if !depth.is_multiple_of(whole.dtype.block_len()) {
            let numbers = numbers_of(&whole);
            let part = numbers.chunks_exact(depth).skip(index).step_by(count).flatten();
            let bytes = Bytes::new(part.flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            return Ok(MatrixSource { dtype: DType::F32, rows, depth, bytes, ..whole });
        }
        let source = whole.bytes.clone();
        let bytes = Bytes::produced(rows * row, move || {
            source.clone().chunks_exact(row).skip(index).step_by(count).flatten().copied().collect()
        });
        Ok(MatrixSource { rows, depth, bytes, ..whole })
    }

    /// The matrix `name.weight` (rows, depth) as a file holds it, for one who makes something else of it.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn matrix(&mut self, name: &str, rows: usize, depth: usize) -> Result<MatrixSource, Error> {
        self.source(&format!("{name}.weight"), &[depth, rows])
    }

    /// A projection of a matrix that is not as a file holds it.
    ///
    /// # Errors
    /// If the device refuses it.
    pub fn own_linear(&mut self, source: MatrixSource) -> Result<Linear<D>, Error> {
        let matrix = self.device.load_matrix(&source).map_err(|e| self.refused(e))?;
        Ok(Linear { matrix, bias: None })
    }

    /// The same matrix for each of `count` slices of a row.
    ///
    /// # Errors
    /// If the device refuses it.
    pub fn repeated(&mut self, source: MatrixSource, count: usize) -> Result<LinearStack<D>, Error> {
        let bytes = together(vec![source.bytes.clone(); count]);
        let source = MatrixSource { rows: count * source.rows, bytes, ..source };
        let matrices = self.device.load_stack(&source, count).map_err(|e| self.refused(e))?;
        Ok(LinearStack { matrices, bias: None })
    }

    /// Projections of `count` slices of a row, (count, rows, depth), which a file holds as a stack or as one matrix.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn grouped(&mut self, name: &str, count: usize, rows: usize, depth: usize) -> Result<LinearStack<D>, Error> {
        let weight = format!("{name}.weight");
        let is_stack = self.checkpoint.tensor(&weight).is_some_and(|t| t.shape.len() == 3);
        let shape = if is_stack { vec![depth, rows, count] } else { vec![depth, rows * count] };
        let source = self.source(&weight, &shape)?;
        let matrices = self.device.load_stack(&source, count).map_err(|e| self.refused(e))?;
        self.weights_used += count as f64 * rows as f64 * depth as f64;
        Ok(LinearStack { matrices, bias: self.optional_vector(&format!("{name}.bias"), &[rows, count])? })
    }

    /// The whole numbers of a tensor, by its whole name, each below `end`.
    ///
    /// # Errors
    /// If it is missing, has a wrong shape or type, or a number out of range.
    pub fn indices(&mut self, name: &str, shape: &[usize], end: usize) -> Result<Vec<u32>, Error> {
        let tensor = self.shaped(name, shape)?;
        let (file, name) = (self.checkpoint.file().to_owned(), name.to_owned());
        let numbers: Vec<i64> = match tensor.dtype {
            DType::I32 => tensor.bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            DType::I64 => tensor.bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            other => return Err(Error::TableType { file, tensor: name, dtype: other.name() }),
        };
        self.advance(tensor);
        match numbers.iter().find(|n| !(0..end as i64).contains(*n)) {
            Some(found) => Err(Error::TensorIndex { file, tensor: name, found: *found, end }),
            None => Ok(numbers.into_iter().map(|n| n as u32).collect()),
        }
    }

    /// What part of all projections loaded so far one more of this shape would be.
    pub fn share_of_projections(&self, rows: usize, depth: usize) -> f64 {
        let weights = rows as f64 * depth as f64;
        weights / (weights + self.weights_used)
    }

    /// A table with a row of `width` numbers for each token (vocabulary, width).
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn embedding(&mut self, name: &str, width: usize) -> Result<D::Embedding, Error> {
        let source = self.source(&format!("{name}.weight"), &[width, self.config.vocabulary])?;
        self.device.load_embedding(&source).map_err(|e| self.refused(e))
    }

    /// The weights `name.weight` of a norm over `len` numbers.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn norm(&mut self, name: &str, len: usize) -> Result<D::Vector, Error> {
        let offset = self.checkpoint.norm_offset();
        let weights = self.numbers(&format!("{name}.weight"), &[len])?;
        self.vector(&weights.into_iter().map(|w| w + offset).collect::<Vec<_>>())
    }

    /// The numbers of a tensor, by its whole name, as a vector; none if there is no such tensor.
    ///
    /// # Errors
    /// If it has a wrong shape, or the device refuses it.
    pub fn optional_vector(&mut self, name: &str, shape: &[usize]) -> Result<Option<D::Vector>, Error> {
        if !self.has(name) {
            return Ok(None);
        }
        let numbers = self.numbers(name, shape)?;
        self.vector(&numbers).map(Some)
    }

    /// Takes a vector that no tensor holds.
    ///
    /// # Errors
    /// If the device refuses it.
    pub fn vector(&self, values: &[f32]) -> Result<D::Vector, Error> {
        self.device.load_vector(values).map_err(|e| self.refused(e))
    }

    /// The numbers of a tensor, by its whole name.
    ///
    /// # Errors
    /// If it is missing, has a wrong shape, or not all of its numbers are finite.
    pub fn numbers(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name, shape)?;
        tensor.check_finite(self.checkpoint.file())?;
        self.advance(tensor);
        Ok(tensor.decode())
    }

    /// A matrix, or a stack of them one below the other, of exactly this shape: row length first.
    fn source(&mut self, name: &str, shape: &[usize]) -> Result<MatrixSource, Error> {
        let tensor = self.tensor(name, shape)?;
        self.advance(tensor);
        let (name, bytes) = (name.to_owned(), tensor.bytes.clone());
        let (depth, rows) = (shape[0], shape[1..].iter().product());
        Ok(MatrixSource { name, dtype: tensor.dtype, rows, depth, bytes })
    }

    /// A tensor of weights of exactly this shape, in GGUF's order: row length first.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor, Error> {
        let tensor = self.shaped(name, shape)?;
        if !tensor.dtype.is_weight() {
            let (file, tensor_name) = (self.checkpoint.file().to_owned(), name.to_owned());
            return Err(Error::TensorType { file, tensor: tensor_name, dtype: tensor.dtype.name() });
        }
        Ok(tensor)
    }

    /// A tensor of exactly this shape, whatever it holds.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor, Error> {
        let (file, checkpoint) = (self.checkpoint.file().to_owned(), self.checkpoint);
        let Some(tensor) = checkpoint.tensor(name) else {
            return Err(Error::MissingTensor { file, tensor: name.to_owned() });
        };
        // Trailing dimensions of 1 mean nothing.
        let cut = tensor.shape.len() - tensor.shape.iter().rev().take_while(|d| **d == 1).count();
        let trimmed = |s: &[usize], cut: usize| s[..cut.max(1).min(s.len())].to_vec();
        let want_cut = shape.len() - shape.iter().rev().take_while(|d| **d == 1).count();
        if trimmed(&tensor.shape, cut) != trimmed(shape, want_cut) {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(Error::TensorShape { file, tensor: name.to_owned(), found, expected });
        }
        Ok(tensor)
    }

    fn advance(&mut self, tensor: &Tensor) {
        self.progress.bytes_done += tensor.bytes.len() as u64;
        (self.report)(self.progress);
    }

    fn refused(&self, source: tessera_ops::Error) -> Error {
        Error::Device { file: self.checkpoint.file().to_owned(), source }
    }
}

/// Bytes one after another, made when they are read.
fn together(parts: Vec<Bytes>) -> Bytes {
    let len = parts.iter().map(Bytes::len).sum();
    Bytes::produced(len, move || parts.iter().flat_map(|part| part.clone().to_vec()).collect())
}

/// All numbers of a matrix.
fn numbers_of(source: &MatrixSource) -> Vec<f32> {
    let mut numbers = vec![0.0; source.rows * source.depth];
    codec::decode(source.dtype, &source.bytes, &mut numbers);
    numbers
}
