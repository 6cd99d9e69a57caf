//! Qwen 2 and Qwen 3 (Yang et al. 2024, 2025): Llama's course with rotations that pair the halves of a head. Qwen 2 has
//! biases on queries, keys and values; Qwen 3 has norms over each head of queries and keys. Both come with the
//! tensors: attention takes a bias or a norm where the checkpoint has one. Qwen 3 MoE has experts in every layer, whose
//! weights are a softmax over all, divided by the sum of the chosen.

use tessera_ops::{Batch, Device, Gate, RopeLayout, Score};

use super::{
    Architecture,
    blocks::{Experts, FeedForward, Head, routing},
    llama::{FEED_FORWARD_NORM, Llama, silu_mlp},
};
use crate::{Error, weights::Loader};

/// The norms of Qwen 3's heads.
const HEAD_NORMS: [&str; 2] = ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"];

/// A Qwen 2 model.
pub(super) struct Qwen2<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Qwen2<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Qwen2<D>, Error> {
        loader.require(&["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"])?;
        Llama::load_with(loader, RopeLayout::Halves, FEED_FORWARD_NORM, silu_mlp).map(Qwen2)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }

    fn head(&self) -> &Head<D> {
        self.0.head()
    }
}

/// A Qwen 3 model.
pub(super) struct Qwen3<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Qwen3<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Qwen3<D>, Error> {
        loader.require(&HEAD_NORMS)?;
        Llama::load_with(loader, RopeLayout::Halves, FEED_FORWARD_NORM, silu_mlp).map(Qwen3)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }

    fn head(&self) -> &Head<D> {
        self.0.head()
    }
}

/// A Qwen 3 model with experts.
pub(super) struct Qwen3Moe<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Qwen3Moe<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Qwen3Moe<D>, Error> {
        loader.require(&HEAD_NORMS)?;
        let routing = routing(loader, Score::Softmax, true)?;
        let experts = |loader: &mut Loader<'_, D>, layer: usize| {
            Experts::load(loader, layer, routing, Gate::Silu).map(FeedForward::Sparse)
        };
        Llama::load_with(loader, RopeLayout::Halves, FEED_FORWARD_NORM, experts).map(Qwen3Moe)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }

    fn head(&self) -> &Head<D> {
        self.0.head()
    }
}
