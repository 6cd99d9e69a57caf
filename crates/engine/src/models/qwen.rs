//! Qwen 2 and Qwen 3 (Yang et al. 2024, 2025): Llama's course with rotations that pair the halves of a head. Qwen 2 has
//! biases on queries, keys and values; Qwen 3 has norms over each head of queries and keys. Both come with the
//! tensors: attention takes a bias or a norm where the checkpoint has one.

use tessera_ops::{Batch, Device, RopeLayout};

use super::{Architecture, llama::Llama};
use crate::{Error, weights::Loader};

/// A Qwen 2 model.
pub(super) struct Qwen2<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Qwen2<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Qwen2<D>, Error> {
        loader.require(&["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"])?;
        Llama::load_with(loader, RopeLayout::Halves).map(Qwen2)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }
}

/// A Qwen 3 model.
pub(super) struct Qwen3<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Qwen3<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Qwen3<D>, Error> {
        loader.require(&["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"])?;
        Llama::load_with(loader, RopeLayout::Halves).map(Qwen3)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }
}
