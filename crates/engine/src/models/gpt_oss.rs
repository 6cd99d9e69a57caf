//! gpt-oss (OpenAI 2025): Llama's course with biases everywhere, an attention sink for each head, a sliding window in every
//! other layer, and experts whose weights are a softmax over the chosen ones and whose gate is clamped.

use tessera_ops::{Batch, Device, Gate, RopeLayout, Score};

use super::{
    Architecture,
    blocks::{Experts, FeedForward, Head, routing},
    llama::Llama,
};
use crate::{Error, weights::Loader};

/// GGUF names the second norm by what it follows.
const FEED_FORWARD_NORM: &str = "post_attention_norm";

/// A gpt-oss model.
pub(super) struct GptOss<D: Device>(Llama<D>);

impl<D: Device> Architecture<D> for GptOss<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<GptOss<D>, Error> {
        loader.require(&["blk.0.attn_sinks.weight", "blk.0.ffn_gate_exps.bias", "blk.0.ffn_down_exps.bias"])?;
        let routing = routing(loader, Score::SoftmaxOfChosen, false)?;
        let experts = |loader: &mut Loader<'_, D>, layer: usize| {
            Experts::load(loader, layer, routing, Gate::SwigluOai).map(FeedForward::Sparse)
        };
        Llama::load_with(loader, RopeLayout::Halves, FEED_FORWARD_NORM, experts).map(GptOss)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        self.0.forward(ops, cache, batch)
    }

    fn head(&self) -> &Head<D> {
        self.0.head()
    }
}
