//! Gated feed-forward layers: one that every token goes through, or a mixture of experts.

use tessera_ops::{Device, Gate, Linear};

use super::Experts;
use crate::{Error, weights::Loader};

/// A gated feed-forward layer (Shazeer 2020): `down(gate(x W) * (x V))`.
pub(in crate::models) struct GatedMlp<D: Device> {
    gate: Linear<D>,
    up: Linear<D>,
    down: Linear<D>,
    kind: Gate,
}

impl<D: Device> GatedMlp<D> {
    /// Loads `blk.LAYER.ffn_{gate,up,down}`.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(loader: &mut Loader<'_, D>, layer: usize, kind: Gate) -> Result<GatedMlp<D>, Error> {
        let width = loader.config.layers[layer].feed_forward;
        GatedMlp::named(loader, |part| format!("blk.{layer}.ffn_{part}"), width, kind)
    }

    /// Loads projections of another name and width.
    ///
    /// # Errors
    /// As [`GatedMlp::load`].
    pub(in crate::models) fn named(
        loader: &mut Loader<'_, D>,
        name: impl Fn(&str) -> String,
        width: usize,
        kind: Gate,
    ) -> Result<GatedMlp<D>, Error> {
        let hidden = loader.config.hidden;
        Ok(GatedMlp {
            gate: loader.linear(&name("gate"), width, hidden)?,
            up: loader.linear(&name("up"), width, hidden)?,
            down: loader.linear(&name("down"), hidden, width)?,
            kind,
        })
    }

    /// (rows, hidden) to (rows, hidden).
    pub(in crate::models) fn forward(&self, ops: &D, x: &D::Tensor) -> D::Tensor {
        let [gate, up] = ops.project(x, [&self.gate, &self.up]);
        let [y] = ops.project(&ops.gate(&gate, &up, self.kind), [&self.down]);
        y
    }
}

/// The feed-forward layer of one layer.
pub(in crate::models) enum FeedForward<D: Device> {
    /// For all tokens.
    Dense(GatedMlp<D>),
    /// Experts, routed by the layer's input.
    Sparse(Experts<D>),
    /// Experts, and one more that every token goes to.
    SparseAndShared(Experts<D>, GatedMlp<D>),
}

impl<D: Device> FeedForward<D> {
    /// (rows, hidden) to (rows, hidden).
    pub(in crate::models) fn forward(&self, ops: &D, x: &D::Tensor) -> D::Tensor {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(ops, x),
            FeedForward::Sparse(experts) => experts.forward(ops, x, x),
            FeedForward::SparseAndShared(experts, shared) => {
                // First, so that the sum stands beside what it is a part of.
                let shared = shared.forward(ops, x);
                let mut y = experts.forward(ops, x, x);
                ops.add(&mut y, &shared);
                y
            }
        }
    }
}
