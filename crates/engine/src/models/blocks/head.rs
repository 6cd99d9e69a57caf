//! The end of a model: norm and projection onto the vocabulary.

use tessera_ops::{Batch, Device, Linear};

use super::HyperConnection;
use crate::{Error, weights::Loader};

/// The head's input is quantized finely where the head is at most this part of all projections: its errors go straight
/// into the logits, and such a head costs little (ARCHITECTURE.md, "The head's activations").
const FINE_HEAD_SHARE_MAX: f64 = 0.25;

/// The output head, for the rows whose logits are wanted.
pub(in crate::models) struct Head<D: Device> {
    norm: D::Vector,
    projection: Linear<D>,
    fine: bool,
    epsilon: f32,
    cap: Option<f32>,
    /// Joins several residual streams.
    streams: Option<HyperConnection<D>>,
}

impl<D: Device> Head<D> {
    /// Loads `output_norm` and `output`, or where that is missing the token embedding in its place (tied weights). To be
    /// called when all else is loaded.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(loader: &mut Loader<'_, D>) -> Result<Head<D>, Error> {
        let c = loader.config;
        let name = if loader.has("output.weight") { "output" } else { "token_embd" };
        let fine = loader.share_of_projections(c.vocabulary, c.hidden) <= FINE_HEAD_SHARE_MAX;
        Ok(Head {
            norm: loader.norm("output_norm", c.hidden)?,
            projection: loader.linear(name, c.vocabulary, c.hidden)?,
            fine,
            epsilon: c.epsilon,
            cap: c.logit_cap,
            streams: None,
        })
    }

    /// For a residual of several streams, which are joined first.
    pub(in crate::models) fn with_streams(mut self, streams: HyperConnection<D>) -> Head<D> {
        self.streams = Some(streams);
        self
    }

    /// What is projected: (rows, hidden).
    pub(in crate::models) fn normed(&self, ops: &D, x: &D::Tensor) -> D::Tensor {
        match &self.streams {
            Some(streams) => ops.rms_norm(&streams.read(ops, x).0, &self.norm, self.epsilon),
            None => ops.rms_norm(x, &self.norm, self.epsilon),
        }
    }

    /// (rows, hidden) to (wanted rows, vocabulary).
    pub(in crate::models) fn forward(&self, ops: &D, x: &D::Tensor, batch: &Batch) -> D::Tensor {
        self.project(ops, &self.normed(ops, &ops.logit_rows(x, batch)))
    }

    /// What comes after the norm: (rows, hidden) to (rows, vocabulary).
    pub(in crate::models) fn project(&self, ops: &D, x: &D::Tensor) -> D::Tensor {
        let mut logits = if self.fine {
            ops.project_fine(x, &self.projection)
        } else {
            let [logits] = ops.project(x, [&self.projection]);
            logits
        };
        if let Some(cap) = self.cap {
            ops.soft_cap(&mut logits, cap);
        }
        logits
    }
}
