//! Gemma 3 (Gemma team 2025): norms before and after each block, five layers of sliding-window attention to one of
//! full attention, each kind with a rotation of its own, norms over heads of queries and keys, a GELU gate, and
//! embeddings scaled by the root of their width.

use tessera_ops::{Batch, Device, Gate, Rope, RopeLayout};

use super::{
    Architecture,
    blocks::{GatedMlp, Head, SelfAttention},
};
use crate::{Error, config::Keys, rope, weights::Loader};

/// The keys of the rotation of layers with a window: its dimensions, and its base.
const LOCAL_ROPE: [&str; 2] = ["rope.dimension_count", "rope.local.freq_base"];
const LOCAL_BASE: f32 = 10_000.0;
/// The 27B model scales scores by `(hidden / heads)^-½`, all others by `head_dim^-½`. It is known by its layers.
const LAYERS_OF_27B: usize = 62;

/// A Gemma 3 model.
pub(super) struct Gemma3<D: Device> {
    embedding: D::Embedding,
    embedding_scale: f32,
    full_rope: Rope,
    local_rope: Rope,
    layers: Vec<Layer<D>>,
    head: Head<D>,
    epsilon: f32,
}

struct Layer<D: Device> {
    full: bool,
    attention_norm: D::Vector,
    attention: SelfAttention<D>,
    post_attention_norm: D::Vector,
    feed_forward_norm: D::Vector,
    feed_forward: GatedMlp<D>,
    post_feed_forward_norm: D::Vector,
}

impl<D: Device> Layer<D> {
    fn load(loader: &mut Loader<'_, D>, index: usize) -> Result<Layer<D>, Error> {
        let c = loader.config;
        let name = |part: &str| format!("blk.{index}.{part}");
        let mut attention = SelfAttention::load(loader, index, RopeLayout::Halves)?;
        if c.layers.len() == LAYERS_OF_27B {
            attention = attention.with_scale((c.hidden as f32 / c.heads as f32).sqrt().recip());
        }
        Ok(Layer {
            full: c.layers[index].window.is_none(),
            attention_norm: loader.norm(&name("attn_norm"), c.hidden)?,
            attention,
            post_attention_norm: loader.norm(&name("post_attention_norm"), c.hidden)?,
            feed_forward_norm: loader.norm(&name("ffn_norm"), c.hidden)?,
            feed_forward: GatedMlp::load(loader, index, Gate::GeluTanh)?,
            post_feed_forward_norm: loader.norm(&name("post_ffw_norm"), c.hidden)?,
        })
    }
}

impl<D: Device> Architecture<D> for Gemma3<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Gemma3<D>, Error> {
        let c = loader.config;
        loader.require(&["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"])?;
        let keys = Keys::new(loader.checkpoint)?;
        let head_dim = c.layers[0].head_dim;
        let (local_rope, _) = rope::unscaled(&keys, RopeLayout::Halves, head_dim, LOCAL_ROPE, LOCAL_BASE)?;
        Ok(Gemma3 {
            embedding: loader.embedding("token_embd", c.hidden)?,
            embedding_scale: (c.hidden as f32).sqrt(),
            full_rope: rope::read(loader.checkpoint, RopeLayout::Halves, head_dim)?,
            local_rope,
            layers: (0..c.layers.len()).map(|i| Layer::load(loader, i)).collect::<Result<_, Error>>()?,
            head: Head::load(loader)?,
            epsilon: c.epsilon,
        })
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        let norm = |x: &D::Tensor, weight: &D::Vector| ops.rms_norm(x, weight, self.epsilon);
        let (full, local) = (ops.rope_angles(&self.full_rope, batch), ops.rope_angles(&self.local_rope, batch));
        let mut x = ops.embed(&self.embedding, batch, self.embedding_scale);
        for layer in &self.layers {
            let angles = if layer.full { &full } else { &local };
            let y = layer.attention.forward(ops, &norm(&x, &layer.attention_norm), angles, cache, batch);
            ops.add(&mut x, &norm(&y, &layer.post_attention_norm));
            let y = layer.feed_forward.forward(ops, &norm(&x, &layer.feed_forward_norm));
            ops.add(&mut x, &norm(&y, &layer.post_feed_forward_norm));
        }
        x
    }

    fn head(&self) -> &Head<D> {
        &self.head
    }
}
