//! Gemma 4 (Gemma team 2026): Gemma 3's norms before and after each block, and layers of two kinds. Most attend to a sliding
//! window; the others attend to all tokens, with wider heads, of which they rotate a part, and in some sizes with values
//! that are the keys before their norm. Heads of queries and keys are normed with weights, heads of values without, and
//! scores are not scaled. The last layers may read the keys and values of earlier ones.
//!
//! Larger models have experts beside the dense feed-forward layer, with a router that norms the residual stream for itself.
//! Small ones have *per-layer embeddings*: a table gives each token a vector for every layer, to which a projection of
//! the token's embedding is added; each layer gates its part by the residual stream and adds what a projection makes of it.

use tessera_ops::{Batch, Device, Gate, Linear, Rope, RopeLayout, Score};

use super::{
    Architecture,
    blocks::{Experts, GatedMlp, Head, SelfAttention, routing},
};
use crate::{Config, Error, config::Keys, rope, weights::Loader};

/// The keys of the rotation of layers with a window: its dimensions, and its base.
const LOCAL_ROPE: [&str; 2] = ["rope.dimension_count_swa", "rope.freq_base_swa"];
const LOCAL_BASE: f32 = 10_000.0;
/// The most numbers that a token may have for a layer.
const PER_LAYER_MAX: usize = 1 << 20;

/// A Gemma 4 model.
pub(super) struct Gemma4<D: Device> {
    embedding: D::Embedding,
    hidden: usize,
    /// None where no layer is of the kind.
    full_rope: Option<Rope>,
    local_rope: Option<Rope>,
    per_layer: Option<PerLayer<D>>,
    layers: Vec<Layer<D>>,
    head: Head<D>,
    epsilon: f32,
}

struct Layer<D: Device> {
    windowed: bool,
    attention_norm: D::Vector,
    attention: SelfAttention<D>,
    post_attention_norm: D::Vector,
    feed_forward_norm: D::Vector,
    feed_forward: GatedMlp<D>,
    mixture: Option<Mixture<D>>,
    post_feed_forward_norm: D::Vector,
    per_layer: Option<PerLayerBlock<D>>,
    /// Factor on the residual stream at the end of the layer.
    output_scale: f32,
}

/// Experts beside the dense layer: the sum of both, each with a norm of its own.
struct Mixture<D: Device> {
    dense_post_norm: D::Vector,
    /// The router's scale over the root of the width, as the weight of its norm.
    router_norm: D::Vector,
    norm: D::Vector,
    experts: Experts<D>,
    post_norm: D::Vector,
}

/// What makes the vectors of each token for all layers.
struct PerLayer<D: Device> {
    /// (vocabulary, layers · width)
    table: D::Embedding,
    /// Numbers of a token for one layer.
    width: usize,
    /// (layers · width, hidden)
    projection: Linear<D>,
    norm: D::Vector,
}

/// What a layer makes of its vector.
struct PerLayerBlock<D: Device> {
    gate: Linear<D>,
    projection: Linear<D>,
    post_norm: D::Vector,
}

impl<D: Device> Layer<D> {
    fn load(loader: &mut Loader<'_, D>, index: usize, per_layer: Option<usize>) -> Result<Layer<D>, Error> {
        let (c, shape) = (loader.config, loader.config.layers[index]);
        let name = |part: &str| format!("blk.{index}.{part}");
        let ones = loader.vector(&vec![1.0; shape.head_dim])?;
        let attention = SelfAttention::load(loader, index, RopeLayout::Halves)?.with_scale(1.0).with_value_norm(ones);
        let scale = name("layer_output_scale.weight");
        Ok(Layer {
            windowed: shape.window.is_some(),
            attention_norm: loader.norm(&name("attn_norm"), c.hidden)?,
            attention,
            post_attention_norm: loader.norm(&name("post_attention_norm"), c.hidden)?,
            feed_forward_norm: loader.norm(&name("ffn_norm"), c.hidden)?,
            feed_forward: GatedMlp::load(loader, index, Gate::GeluTanh)?,
            mixture: if c.experts.is_some() { Some(Mixture::load(loader, index)?) } else { None },
            post_feed_forward_norm: loader.norm(&name("post_ffw_norm"), c.hidden)?,
            per_layer: per_layer.map(|width| PerLayerBlock::load(loader, index, width)).transpose()?,
            output_scale: if loader.has(&scale) { loader.numbers(&scale, &[1])?[0] } else { 1.0 },
        })
    }
}

impl<D: Device> Mixture<D> {
    fn load(loader: &mut Loader<'_, D>, index: usize) -> Result<Mixture<D>, Error> {
        let hidden = loader.config.hidden;
        let name = |part: &str| format!("blk.{index}.{part}");
        let routing = routing(loader, Score::Softmax, true)?;
        let root = (hidden as f32).sqrt();
        let scale = loader.numbers(&name("ffn_gate_inp.scale"), &[hidden])?;
        Ok(Mixture {
            dense_post_norm: loader.norm(&name("post_ffw_norm_1"), hidden)?,
            router_norm: loader.vector(&scale.into_iter().map(|s| s / root).collect::<Vec<_>>())?,
            norm: loader.norm(&name("pre_ffw_norm_2"), hidden)?,
            experts: Experts::load(loader, index, routing, Gate::GeluTanh)?,
            post_norm: loader.norm(&name("post_ffw_norm_2"), hidden)?,
        })
    }

    /// The sum of the dense layer's result and the experts', from the residual stream `x`.
    fn forward(&self, ops: &D, x: &D::Tensor, dense: &D::Tensor, epsilon: f32) -> D::Tensor {
        let norm = |x: &D::Tensor, weight: &D::Vector| ops.rms_norm(x, weight, epsilon);
        let experts = self.experts.forward(ops, &norm(x, &self.norm), &norm(x, &self.router_norm));
        let mut y = norm(dense, &self.dense_post_norm);
        ops.add(&mut y, &norm(&experts, &self.post_norm));
        y
    }
}

impl<D: Device> PerLayer<D> {
    fn load(loader: &mut Loader<'_, D>, width: usize) -> Result<PerLayer<D>, Error> {
        let (hidden, all) = (loader.config.hidden, loader.config.layers.len() * width);
        Ok(PerLayer {
            table: loader.embedding("per_layer_token_embd", all)?,
            width,
            projection: loader.linear("per_layer_model_proj", all, hidden)?,
            norm: loader.norm("per_layer_proj_norm", width)?,
        })
    }

    /// (rows, layers · width), from the scaled embeddings.
    fn forward(&self, ops: &D, embedded: &D::Tensor, hidden: usize, epsilon: f32, batch: &Batch) -> D::Tensor {
        let [mut y] = ops.project(embedded, [&self.projection]);
        ops.scale(&mut y, (hidden as f32).sqrt().recip());
        let mut y = ops.rms_norm(&y, &self.norm, epsilon);
        ops.add(&mut y, &ops.embed(&self.table, batch, (self.width as f32).sqrt()));
        ops.scale(&mut y, std::f32::consts::FRAC_1_SQRT_2);
        y
    }
}

impl<D: Device> PerLayerBlock<D> {
    fn load(loader: &mut Loader<'_, D>, index: usize, width: usize) -> Result<PerLayerBlock<D>, Error> {
        let hidden = loader.config.hidden;
        let name = |part: &str| format!("blk.{index}.{part}");
        Ok(PerLayerBlock {
            gate: loader.linear(&name("inp_gate"), width, hidden)?,
            projection: loader.linear(&name("proj"), hidden, width)?,
            post_norm: loader.norm(&name("post_norm"), hidden)?,
        })
    }

    fn forward(&self, ops: &D, x: &D::Tensor, mine: &D::Tensor, epsilon: f32) -> D::Tensor {
        let [gate] = ops.project(x, [&self.gate]);
        let [y] = ops.project(&ops.gate(&gate, mine, Gate::GeluTanh), [&self.projection]);
        ops.rms_norm(&y, &self.post_norm, epsilon)
    }
}

impl<D: Device> Architecture<D> for Gemma4<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<Gemma4<D>, Error> {
        let c = loader.config;
        loader.require(&["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"])?;
        let keys = Keys::new(loader.checkpoint)?;
        let width = keys.count_or("embedding_length_per_layer_input", 0..=PER_LAYER_MAX, 0)?;
        let width = Some(width).filter(|width| *width > 0);
        let layer = |loader: &mut Loader<'_, D>, i| Layer::load(loader, i, width);
        let local_rope = |dim| {
            let rope = rope::unscaled(&keys, RopeLayout::Halves, dim, LOCAL_ROPE, LOCAL_BASE);
            rope.map(|(rope, _)| rope)
        };
        Ok(Gemma4 {
            embedding: loader.embedding("token_embd", c.hidden)?,
            hidden: c.hidden,
            full_rope: head_dim(c, false)
                .map(|dim| rope::read(loader.checkpoint, RopeLayout::Halves, dim))
                .transpose()?,
            local_rope: head_dim(c, true).map(local_rope).transpose()?,
            per_layer: width.map(|width| PerLayer::load(loader, width)).transpose()?,
            layers: (0..c.layers.len()).map(|i| layer(loader, i)).collect::<Result<_, Error>>()?,
            head: Head::load(loader)?,
            epsilon: c.epsilon,
        })
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        let norm = |x: &D::Tensor, weight: &D::Vector| ops.rms_norm(x, weight, self.epsilon);
        let angles = |rope: &Option<Rope>| rope.as_ref().map(|rope| ops.rope_angles(rope, batch));
        let (full, local) = (angles(&self.full_rope), angles(&self.local_rope));
        let mut x = ops.embed(&self.embedding, batch, (self.hidden as f32).sqrt());
        let per_layer =
            self.per_layer.as_ref().map(|p| (p.forward(ops, &x, self.hidden, self.epsilon, batch), p.width));
        for (i, layer) in self.layers.iter().enumerate() {
            let angles = if layer.windowed { &local } else { &full };
            let angles = angles.as_ref().expect("a layer's kind has its rotation");
            let y = layer.attention.forward(ops, &norm(&x, &layer.attention_norm), angles, cache, batch);
            ops.add(&mut x, &norm(&y, &layer.post_attention_norm));
            let mut y = layer.feed_forward.forward(ops, &norm(&x, &layer.feed_forward_norm));
            if let Some(mixture) = &layer.mixture {
                y = mixture.forward(ops, &x, &y, self.epsilon);
            }
            ops.add(&mut x, &norm(&y, &layer.post_feed_forward_norm));
            if let (Some(block), Some((all, width))) = (&layer.per_layer, &per_layer) {
                let mine = ops.columns(all, i * width..(i + 1) * width);
                let y = block.forward(ops, &x, &mine, self.epsilon);
                ops.add(&mut x, &y);
            }
            ops.scale(&mut x, layer.output_scale);
        }
        x
    }

    fn head(&self) -> &Head<D> {
        &self.head
    }
}

/// Numbers in a head of the layers of one kind, if there are any.
fn head_dim(config: &Config, windowed: bool) -> Option<usize> {
    config.layers.iter().find(|layer| layer.window.is_some() == windowed).map(|layer| layer.head_dim)
}
