//! The layer that drafts (multi-token prediction): from what the trunk leaves of a token, before streams are joined, and from the
//! token that follows it, it predicts the one after that. It is one more layer without compressed rows, with rows of its own in
//! the cache; the embedding and the projection onto the vocabulary are the trunk's. Further drafts go on from what it leaves itself.

use tessera_ops::{Batch, Device, Linear, LinearStack, Rope, StreamGates};

use super::{Common, Layer};
use crate::{
    Error,
    models::blocks::{Head, HyperConnection},
    weights::Loader,
};

/// The layer with what joins its two inputs, and its own end.
pub(super) struct DraftLayer<D: Device> {
    /// Of the token's embedding.
    token_norm: D::Vector,
    token: Linear<D>,
    /// Of each stream by itself, the same for all.
    previous_norm: D::Vector,
    previous: LinearStack<D>,
    layer: Layer<D>,
    end: HyperConnection<D>,
    norm: D::Vector,
    streams: usize,
    epsilon: f32,
}

/// How the layer's tensors are named: in a model's file or in one of its own.
struct Names {
    /// Of the block's own tensors.
    block: String,
    /// Of what is beside them.
    beside: String,
    norm: &'static str,
    /// Both inputs have one matrix.
    is_joined: bool,
}

impl Names {
    fn find<D: Device>(loader: &Loader<'_, D>, layer: usize) -> Names {
        let (block, beside) = (format!("blk.{layer}."), format!("blk.{layer}.nextn."));
        match loader.has(&format!("{beside}eh_proj.weight")) {
            true => Names { block, beside, norm: "shared_head_norm", is_joined: true },
            false => Names { block: "mtp.0.".to_owned(), beside: "mtp.0.".to_owned(), norm: "norm", is_joined: false },
        }
    }
}

impl<D: Device> DraftLayer<D> {
    /// Loads the layer by the names of either form.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(super) fn load(loader: &mut Loader<'_, D>, common: &Common<D>) -> Result<DraftLayer<D>, Error> {
        let (c, index) = (loader.config, loader.config.layers.len());
        let names = Names::find(loader, index);
        let name = |part: &str| format!("{}{part}", names.beside);
        let (hidden, count) = (c.hidden, common.shape.streams.count);
        let (token, previous) = if names.is_joined {
            let both = name("eh_proj");
            let token = loader.slice_of_input(&both, (0, 2), hidden, hidden)?;
            (token, loader.slice_of_input(&both, (1, 2), hidden, hidden)?)
        } else {
            (loader.matrix(&name("e_proj"), hidden, hidden)?, loader.matrix(&name("h_proj"), hidden, hidden)?)
        };
        let end = match loader.has(&name("hc_head_fn.weight")) {
            true => name("hc_head"),
            false => "output_hc".to_owned(),
        };
        let last = StreamGates { rounds: None, ..common.shape.streams };
        Ok(DraftLayer {
            token_norm: loader.norm(&name("enorm"), hidden)?,
            token: loader.own_linear(token)?,
            previous_norm: loader.norm(&name("hnorm"), hidden)?,
            previous: loader.repeated(previous, count)?,
            layer: Layer::load(loader, common, &common.place(&names.block, index))?,
            end: HyperConnection::load(loader, &end, &common.ones[0], last)?,
            norm: loader.norm(&name(names.norm), hidden)?,
            streams: count,
            epsilon: c.epsilon,
        })
    }

    /// What it leaves of each row, (rows, count · hidden), from `previous` of the same shape and the rows' tokens.
    pub(super) fn forward(
        &self,
        ops: &D,
        (embedding, rope): (&D::Embedding, &Rope),
        previous: &D::Tensor,
        cache: &mut D::KvCache,
        batch: &Batch,
    ) -> D::Tensor {
        // What a device is sent comes before what it computes.
        let token = ops.embed(embedding, batch, 1.0);
        let (angles, choices) = (ops.rope_angles(rope, batch), self.layer.experts.choices(ops, &batch.tokens));
        let token = ops.rms_norm(&token, &self.token_norm, self.epsilon);
        let [token] = ops.project(&token, [&self.token]);
        let previous = ops.rms_norm(previous, &self.previous_norm, self.epsilon);
        let mut streams = ops.copies(&token, self.streams);
        ops.add(&mut streams, &ops.project_grouped(&previous, &self.previous));
        self.layer.forward(ops, &mut streams, ([&angles, &angles], choices), cache, batch);
        streams
    }

    /// Logits of the wanted rows, (wanted rows, vocabulary), by the trunk's projection.
    pub(super) fn logits(&self, ops: &D, head: &Head<D>, streams: &D::Tensor, batch: &Batch) -> D::Tensor {
        let (x, _) = self.end.read(ops, &ops.logit_rows(streams, batch));
        head.project(ops, &ops.rms_norm(&x, &self.norm, self.epsilon))
    }
}
