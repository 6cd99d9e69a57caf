//! What transformer models are made of: self-attention, a gated feed-forward layer, an output head.
//! An architecture is a short file that puts these together; what differs are fields of the blocks.

use tessera_ops::{Attention, Batch, Device, Gate, Linear, RopeLayout};

use crate::{Error, weights::Loader};

/// The head's input is quantized finely where the head is at most this part of all projections: its errors go straight
/// into the logits, and such a head costs little (ARCHITECTURE.md, "The head's activations").
const FINE_HEAD_SHARE_MAX: f64 = 0.25;

/// Causal self-attention with grouped query heads (Ainslie et al. 2023), rotary positions, and in some models norms
/// over each head of queries and keys.
pub(super) struct SelfAttention<D: Device> {
    query: Linear<D>,
    key: Linear<D>,
    value: Linear<D>,
    output: Linear<D>,
    /// Norms of query and key heads.
    norms: Option<(D::Vector, D::Vector)>,
    epsilon: f32,
    layout: RopeLayout,
    spec: Attention,
}

impl<D: Device> SelfAttention<D> {
    /// Loads `blk.LAYER.attn_*`. Scores are scaled by `head_dim^-½`; a window and another scale are set by the model.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(super) fn load(
        loader: &mut Loader<'_, D>,
        layer: usize,
        layout: RopeLayout,
    ) -> Result<SelfAttention<D>, Error> {
        let c = loader.config;
        let name = |part: &str| format!("blk.{layer}.attn_{part}");
        let norms = if loader.has(&format!("{}.weight", name("q_norm"))) {
            Some((loader.norm(&name("q_norm"), c.head_dim)?, loader.norm(&name("k_norm"), c.head_dim)?))
        } else {
            None
        };
        Ok(SelfAttention {
            query: loader.linear(&name("q"), c.query_width(), c.hidden)?,
            key: loader.linear(&name("k"), c.kv_width(), c.hidden)?,
            value: loader.linear(&name("v"), c.kv_width(), c.hidden)?,
            output: loader.linear(&name("output"), c.hidden, c.query_width())?,
            norms,
            epsilon: c.epsilon,
            layout,
            spec: Attention {
                layer,
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                scale: (c.head_dim as f32).sqrt().recip(),
                window: None,
                soft_cap: None,
            },
        })
    }

    /// Limits attention to the last `window` tokens.
    pub(super) fn with_window(mut self, window: Option<usize>) -> SelfAttention<D> {
        self.spec.window = window;
        self
    }

    /// Scales scores by `scale` instead of `head_dim^-½`.
    pub(super) fn with_scale(mut self, scale: f32) -> SelfAttention<D> {
        self.spec.scale = scale;
        self
    }

    /// (rows, hidden) to (rows, hidden); writes the rows' keys and values into the cache.
    pub(super) fn forward(
        &self,
        ops: &D,
        x: &D::Tensor,
        angles: &D::Tensor,
        cache: &mut D::KvCache,
        batch: &Batch,
    ) -> D::Tensor {
        let [mut query, mut key, value] = ops.project(x, [&self.query, &self.key, &self.value]);
        if let Some((query_norm, key_norm)) = &self.norms {
            query = ops.rms_norm(&query, query_norm, self.epsilon);
            key = ops.rms_norm(&key, key_norm, self.epsilon);
        }
        ops.rotate(&mut query, self.spec.head_dim, self.layout, angles);
        ops.rotate(&mut key, self.spec.head_dim, self.layout, angles);
        ops.store_kv(cache, self.spec.layer, &key, &value, batch);
        let mixed = ops.attention(&query, cache, &self.spec, None, batch);
        let [y] = ops.project(&mixed, [&self.output]);
        y
    }
}

/// A gated feed-forward layer (Shazeer 2020): `down(gate(x W) * (x V))`.
pub(super) struct GatedMlp<D: Device> {
    gate: Linear<D>,
    up: Linear<D>,
    down: Linear<D>,
    kind: Gate,
}

impl<D: Device> GatedMlp<D> {
    /// Loads `blk.LAYER.ffn_*`.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(super) fn load(loader: &mut Loader<'_, D>, layer: usize, kind: Gate) -> Result<GatedMlp<D>, Error> {
        let c = loader.config;
        let name = |part: &str| format!("blk.{layer}.ffn_{part}");
        Ok(GatedMlp {
            gate: loader.linear(&name("gate"), c.feed_forward, c.hidden)?,
            up: loader.linear(&name("up"), c.feed_forward, c.hidden)?,
            down: loader.linear(&name("down"), c.hidden, c.feed_forward)?,
            kind,
        })
    }

    /// (rows, hidden) to (rows, hidden).
    pub(super) fn forward(&self, ops: &D, x: &D::Tensor) -> D::Tensor {
        let [gate, up] = ops.project(x, [&self.gate, &self.up]);
        let [y] = ops.project(&ops.gate(&gate, &up, self.kind), [&self.down]);
        y
    }
}

/// The end of a model: norm and projection onto the vocabulary, for the rows whose logits are wanted.
pub(super) struct Head<D: Device> {
    norm: D::Vector,
    projection: Linear<D>,
    fine: bool,
    epsilon: f32,
    cap: Option<f32>,
}

impl<D: Device> Head<D> {
    /// Loads `output_norm` and `output`, or where that is missing the token embedding in its place (tied weights).
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(super) fn load(loader: &mut Loader<'_, D>) -> Result<Head<D>, Error> {
        let c = loader.config;
        let name = if loader.has("output.weight") { "output" } else { "token_embd" };
        let head = c.vocabulary as f64 * c.hidden as f64;
        let attention = 2 * c.hidden * (c.query_width() + c.kv_width());
        let layers = c.layers as f64 * (attention + 3 * c.hidden * c.feed_forward) as f64;
        Ok(Head {
            norm: loader.norm("output_norm", c.hidden)?,
            projection: loader.linear(name, c.vocabulary, c.hidden)?,
            fine: head <= FINE_HEAD_SHARE_MAX * (head + layers),
            epsilon: c.epsilon,
            cap: c.logit_cap,
        })
    }

    /// (rows, hidden) to (wanted rows, vocabulary).
    pub(super) fn forward(&self, ops: &D, x: &D::Tensor, batch: &Batch) -> D::Tensor {
        let x = ops.rms_norm(&ops.logit_rows(x, batch), &self.norm, self.epsilon);
        let mut logits = if self.fine {
            ops.project_fine(&x, &self.projection)
        } else {
            let [logits] = ops.project(&x, [&self.projection]);
            logits
        };
        if let Some(cap) = self.cap {
            ops.soft_cap(&mut logits, cap);
        }
        logits
    }
}
