//! Llama (Touvron et al. 2023), and all that share its course, SmolLM2 among them: layers of norm, attention, residual sum;
//! norm, feed-forward layer, residual sum.

use tessera_ops::{Batch, Device, Gate, Rope, RopeLayout};

use super::{
    Architecture,
    blocks::{FeedForward, GatedMlp, Head, SelfAttention},
};
use crate::{Error, rope, weights::Loader};

/// A Llama model, or another that takes its course.
pub(super) struct Llama<D: Device> {
    embedding: D::Embedding,
    rope: Rope,
    layers: Vec<Layer<D>>,
    head: Head<D>,
    epsilon: f32,
}

struct Layer<D: Device> {
    attention_norm: D::Vector,
    attention: SelfAttention<D>,
    feed_forward_norm: D::Vector,
    feed_forward: FeedForward<D>,
}

/// What the second norm of a layer is called.
pub(super) const FEED_FORWARD_NORM: &str = "ffn_norm";

impl<D: Device> Llama<D> {
    /// Loads a model whose heads pair features by `layout`, whose second norm has this name after `blk.LAYER.`, and whose
    /// feed-forward layers are what `feed_forward` loads.
    pub(super) fn load_with(
        loader: &mut Loader<'_, D>,
        layout: RopeLayout,
        feed_forward_norm: &str,
        feed_forward: impl Fn(&mut Loader<'_, D>, usize) -> Result<FeedForward<D>, Error>,
    ) -> Result<Llama<D>, Error> {
        let c = loader.config;
        let layer = |loader: &mut Loader<'_, D>, i: usize| {
            Ok(Layer {
                attention_norm: loader.norm(&format!("blk.{i}.attn_norm"), c.hidden)?,
                attention: SelfAttention::load(loader, i, layout)?,
                feed_forward_norm: loader.norm(&format!("blk.{i}.{feed_forward_norm}"), c.hidden)?,
                feed_forward: feed_forward(loader, i)?,
            })
        };
        Ok(Llama {
            embedding: loader.embedding("token_embd", c.hidden)?,
            rope: rope::read(loader.checkpoint, layout, c.layers[0].head_dim)?,
            layers: (0..c.layers.len()).map(|i| layer(loader, i)).collect::<Result<_, Error>>()?,
            head: Head::load(loader)?,
            epsilon: c.epsilon,
        })
    }
}

/// The feed-forward layer of Llama and Qwen.
pub(super) fn silu_mlp<D: Device>(loader: &mut Loader<'_, D>, layer: usize) -> Result<FeedForward<D>, Error> {
    GatedMlp::load(loader, layer, Gate::Silu).map(FeedForward::Dense)
}

impl<D: Device> Architecture<D> for Llama<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Llama<D>, Error> {
        // GGUF's converter re-orders query and key rows so that neighbours pair; published weights pair halves.
        let published = loader.checkpoint.keeps_row_order();
        let layout = if published { RopeLayout::Halves } else { RopeLayout::Interleaved };
        Llama::load_with(loader, layout, FEED_FORWARD_NORM, silu_mlp)
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        let angles = ops.rope_angles(&self.rope, batch);
        let mut x = ops.embed(&self.embedding, batch, 1.0);
        for layer in &self.layers {
            let normed = ops.rms_norm(&x, &layer.attention_norm, self.epsilon);
            ops.add(&mut x, &layer.attention.forward(ops, &normed, &angles, cache, batch));
            let normed = ops.rms_norm(&x, &layer.feed_forward_norm, self.epsilon);
            ops.add(&mut x, &layer.feed_forward.forward(ops, &normed));
        }
        x
    }

    fn head(&self) -> &Head<D> {
        &self.head
    }
}
