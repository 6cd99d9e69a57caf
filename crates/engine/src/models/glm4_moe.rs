//! GLM 4.5 (Zeng et al. 2025): Llama's course with biases on queries, keys and values, in some sizes norms over their heads, and
//! rotations of the first half of each head. The first layers are dense; in the others a token goes to the experts with the
//! best sigmoid scores, to which a bias is added for the choice alone, and to one expert that all tokens share. A last
//! layer, which predicts the token after the next, is left out.

use tessera_ops::{Batch, Device, Gate, RopeLayout, Score};

use super::{
    Architecture,
    blocks::{Experts, FeedForward, GatedMlp, Head, routing},
    llama::{Llama, silu_mlp},
};
use crate::{Error, weights::Loader};

/// GGUF names the second norm by what it follows.
const FEED_FORWARD_NORM: &str = "post_attention_norm";

/// A GLM 4.5 model.
pub(super) struct Glm4Moe<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for Glm4Moe<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Glm4Moe<D>, Error> {
        let (routing, experts) = (routing(loader, Score::Sigmoid, true)?, loader.config.experts);
        let feed_forward = |loader: &mut Loader<'_, D>, layer: usize| {
            let Some(shape) = experts.filter(|e| layer >= e.dense_layers) else { return silu_mlp(loader, layer) };
            let experts = Experts::load(loader, layer, routing, Gate::Silu)?;
            if shape.shared == 0 {
                return Ok(FeedForward::Sparse(experts));
            }
            let name = |part: &str| format!("blk.{layer}.ffn_{part}_shexp");
            let shared = GatedMlp::named(loader, name, shape.shared * shape.feed_forward, Gate::Silu)?;
            Ok(FeedForward::SparseAndShared(experts, shared))
        };
        Llama::load_with(loader, RopeLayout::Halves, FEED_FORWARD_NORM, feed_forward).map(Glm4Moe)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }

    fn head(&self) -> &Head<D> {
        self.0.head()
    }
}
