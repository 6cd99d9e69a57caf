//! From the tensors of a checkpoint to weights on a device, each checked against the shape the model needs.

use tessera_formats::Tensor;
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

    /// A tensor of exactly this shape, in GGUF's order: row length first.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor, Error> {
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
        if !tensor.dtype.is_weight() {
            return Err(Error::TensorType { file, tensor: name.to_owned(), dtype: tensor.dtype.name() });
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
