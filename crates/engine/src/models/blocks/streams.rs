//! Hyper-connections: a residual of several streams, which a block reads and writes through gates of its own.

use std::sync::Arc;

use tessera_ops::{Device, Linear, StreamGates};

use crate::{Error, weights::Loader};

/// The gates of one block.
pub(in crate::models) struct HyperConnection<D: Device> {
    /// A one for each number of all streams: they are normed together, without weights.
    ones: Arc<D::Vector>,
    mix: Linear<D>,
    scale: D::Vector,
    base: D::Vector,
    spec: StreamGates,
    epsilon: f32,
}

impl<D: Device> HyperConnection<D> {
    /// Loads `NAME_fn`, `NAME_scale` and `NAME_base`.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(
        loader: &mut Loader<'_, D>,
        name: &str,
        ones: &Arc<D::Vector>,
        spec: StreamGates,
    ) -> Result<HyperConnection<D>, Error> {
        let scale = loader.numbers(&format!("{name}_scale.weight"), &[spec.parts()])?;
        let base = loader.numbers(&format!("{name}_base.weight"), &[spec.width()])?;
        Ok(HyperConnection {
            ones: ones.clone(),
            mix: loader.linear(&format!("{name}_fn"), spec.width(), spec.count * loader.config.hidden)?,
            scale: loader.vector(&scale)?,
            base: loader.vector(&base)?,
            spec,
            epsilon: loader.config.epsilon,
        })
    }

    /// The gates of each row of streams (rows, count · hidden).
    pub(in crate::models) fn gates(&self, ops: &D, streams: &D::Tensor) -> D::Tensor {
        let [mix] = ops.project(&ops.rms_norm(streams, &self.ones, self.epsilon), [&self.mix]);
        ops.stream_gates(&mix, &self.scale, &self.base, &self.spec)
    }

    /// What a block reads of the streams, (rows, hidden), and the gates that its result goes back through.
    pub(in crate::models) fn read(&self, ops: &D, streams: &D::Tensor) -> (D::Tensor, D::Tensor) {
        let gates = self.gates(ops, streams);
        (ops.collapse_streams(streams, &gates, self.spec.count), gates)
    }

    /// Brings a block's result into the streams.
    pub(in crate::models) fn write(&self, ops: &D, streams: &mut D::Tensor, y: &D::Tensor, gates: &D::Tensor) {
        ops.spread_streams(streams, y, gates, self.spec.count);
    }
}
