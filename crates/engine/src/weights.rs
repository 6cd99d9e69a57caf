//! From the tensors of a checkpoint to weights on a device, each checked against the shape the model needs.

use tessera_formats::Tensor;
use tessera_ops::{Device, Linear, MatrixSource};

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
        Loader { checkpoint, config, device, progress: Progress { bytes_done: 0, bytes_total }, report }
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
        let source = self.source(&weight, rows, depth)?;
        let matrix = self.device.load_matrix(&source).map_err(|e| self.refused(e))?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector_with_offset(&bias, rows, 0.0)?) } else { None };
        Ok(Linear { matrix, bias })
    }

    /// The table of token embeddings (vocabulary, hidden).
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn embedding(&mut self, name: &str) -> Result<D::Embedding, Error> {
        let source = self.source(&format!("{name}.weight"), self.config.vocabulary, self.config.hidden)?;
        self.device.load_embedding(&source).map_err(|e| self.refused(e))
    }

    /// The weights `name.weight` of a norm over `len` numbers.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn norm(&mut self, name: &str, len: usize) -> Result<D::Vector, Error> {
        self.vector_with_offset(&format!("{name}.weight"), len, self.checkpoint.norm_offset())
    }

    fn vector_with_offset(&mut self, name: &str, len: usize, offset: f32) -> Result<D::Vector, Error> {
        let tensor = self.tensor(name, &[len])?;
        tensor.check_finite(self.checkpoint.file())?;
        let values: Vec<f32> = tensor.decode().into_iter().map(|v| v + offset).collect();
        self.advance(tensor);
        self.device.load_vector(&values).map_err(|e| self.refused(e))
    }

    fn source(&mut self, name: &str, rows: usize, depth: usize) -> Result<MatrixSource, Error> {
        let tensor = self.tensor(name, &[depth, rows])?;
        self.advance(tensor);
        let (name, bytes) = (name.to_owned(), tensor.bytes.clone());
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
