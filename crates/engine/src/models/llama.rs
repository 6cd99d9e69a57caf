//! Llama (Touvron et al. 2023), and all that share its shape, SmolLM2 among them: pre-norm layers of attention and a
//! SiLU-gated feed-forward layer.

use tessera_ops::{Batch, Device, Gate, Rope, RopeLayout};

use super::{
    Architecture,
    blocks::{GatedMlp, Head, SelfAttention},
};
use crate::{Error, rope, weights::Loader};

/// A Llama model. Qwen 2 and 3 have the same course and differ in what their attention loads.
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
    feed_forward: GatedMlp<D>,
}

impl<D: Device> Llama<D> {
    /// Loads a model whose heads pair features by `layout`.
    pub(super) fn load_with(loader: &mut Loader<'_, D>, layout: RopeLayout) -> Result<Llama<D>, Error> {
        let c = loader.config;
        let layer = |loader: &mut Loader<'_, D>, i: usize| {
            Ok(Layer {
                attention_norm: loader.norm(&format!("blk.{i}.attn_norm"), c.hidden)?,
                attention: SelfAttention::load(loader, i, layout)?,
                feed_forward_norm: loader.norm(&format!("blk.{i}.ffn_norm"), c.hidden)?,
                feed_forward: GatedMlp::load(loader, i, Gate::Silu)?,
            })
        };
        Ok(Llama {
            embedding: loader.embedding("token_embd")?,
            rope: rope::read(loader.checkpoint, layout, c.head_dim)?,
            layers: (0..c.layers).map(|i| layer(loader, i)).collect::<Result<_, Error>>()?,
            head: Head::load(loader)?,
            epsilon: c.epsilon,
        })
    }
}

impl<D: Device> Architecture<D> for Llama<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Llama<D>, Error> {
        // GGUF's converter re-orders query and key rows so that neighbours pair; published weights pair halves.
        let published = loader.checkpoint.keeps_row_order();
        Llama::load_with(loader, if published { RopeLayout::Halves } else { RopeLayout::Interleaved })
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
        self.head.forward(ops, &x, batch)
    }
}
