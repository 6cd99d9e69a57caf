//! Causal self-attention with grouped query heads (Ainslie et al. 2023) and rotary positions.

use tessera_ops::{Attention, Batch, Device, Linear, RopeLayout, Rotation};

use crate::{Error, weights::Loader};

/// Self-attention of one layer. What an architecture adds comes with its tensors (biases, norms over each head of queries
/// and keys, sinks) or is set by the model.
pub(in crate::models) struct SelfAttention<D: Device> {
    query: Linear<D>,
    keys: Keys<D>,
    output: Linear<D>,
    query_norm: Option<D::Vector>,
    key_norm: Option<D::Vector>,
    value_norm: Option<D::Vector>,
    sinks: Option<D::Vector>,
    epsilon: f32,
    rotation: Rotation,
    spec: Attention,
}

/// Where keys and values come from.
enum Keys<D: Device> {
    /// Projections of their own.
    Own { key: Linear<D>, value: Linear<D> },
    /// One projection, which is both: values are the keys before norm and rotation.
    Joined(Linear<D>),
    /// What an earlier layer has written.
    Shared,
}

impl<D: Device> SelfAttention<D> {
    /// Loads `blk.LAYER.attn_*` in the shape of the layer. Scores are scaled by `head_dim^-½`, unless the model sets another
    /// scale.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(
        loader: &mut Loader<'_, D>,
        layer: usize,
        layout: RopeLayout,
    ) -> Result<SelfAttention<D>, Error> {
        let (c, shape) = (loader.config, loader.config.layers[layer]);
        let name = |part: &str| format!("blk.{layer}.attn_{part}");
        let norm = |loader: &mut Loader<'_, D>, part: &str| match loader.has(&format!("{}.weight", name(part))) {
            true => loader.norm(&name(part), shape.head_dim).map(Some),
            false => Ok(None),
        };
        let query = loader.linear(&name("q"), c.query_width(layer), c.hidden)?;
        let query_norm = norm(loader, "q_norm")?;
        let (keys, key_norm) = if shape.kv_from == layer {
            let key = loader.linear(&name("k"), shape.kv_width(), c.hidden)?;
            let keys = match loader.has(&format!("{}.weight", name("v"))) {
                true => Keys::Own { key, value: loader.linear(&name("v"), shape.kv_width(), c.hidden)? },
                false => Keys::Joined(key),
            };
            (keys, norm(loader, "k_norm")?)
        } else {
            (Keys::Shared, None)
        };
        Ok(SelfAttention {
            query,
            keys,
            output: loader.linear(&name("output"), c.hidden, c.query_width(layer))?,
            query_norm,
            key_norm,
            value_norm: None,
            sinks: loader.optional_vector(&format!("{}.weight", name("sinks")), &[c.heads])?,
            epsilon: c.epsilon,
            rotation: Rotation::new(shape.head_dim, layout),
            spec: Attention {
                layer: c.kv_entry(layer),
                heads: c.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: (shape.head_dim as f32).sqrt().recip(),
                window: shape.window,
                soft_cap: None,
            },
        })
    }

    /// Scales scores by `scale` instead of `head_dim^-½`.
    pub(in crate::models) fn with_scale(mut self, scale: f32) -> SelfAttention<D> {
        self.spec.scale = scale;
        self
    }

    /// Norms each head of values, without weights: `ones` has a one for each number of a head.
    pub(in crate::models) fn with_value_norm(mut self, ones: D::Vector) -> SelfAttention<D> {
        self.value_norm = Some(ones);
        self
    }

    /// (rows, hidden) to (rows, hidden); writes the rows' keys and values into the cache, unless they are another layer's.
    pub(in crate::models) fn forward(
        &self,
        ops: &D,
        x: &D::Tensor,
        angles: &D::Tensor,
        cache: &mut D::KvCache,
        batch: &Batch,
    ) -> D::Tensor {
        let (query, written) = match &self.keys {
            Keys::Own { key, value } => {
                let [query, key, value] = ops.project(x, [&self.query, key, value]);
                let value = self.normed(ops, value, self.value_norm.as_ref());
                (query, Some((key, value)))
            }
            Keys::Joined(key) => {
                let [query, key] = ops.project(x, [&self.query, key]);
                let value = match &self.value_norm {
                    Some(ones) => ops.rms_norm(&key, ones, self.epsilon),
                    None => ops.columns(&key, 0..self.spec.kv_heads * self.spec.head_dim),
                };
                (query, Some((key, value)))
            }
            Keys::Shared => {
                let [query] = ops.project(x, [&self.query]);
                (query, None)
            }
        };
        if let Some((key, value)) = written {
            let mut key = self.normed(ops, key, self.key_norm.as_ref());
            ops.rotate(&mut key, &self.rotation, angles);
            ops.store_kv(cache, self.spec.layer, &key, &value, batch);
        }
        let mut query = self.normed(ops, query, self.query_norm.as_ref());
        ops.rotate(&mut query, &self.rotation, angles);
        let mixed = ops.attention(&query, cache, &self.spec, self.sinks.as_ref(), batch);
        let [y] = ops.project(&mixed, [&self.output]);
        y
    }

    /// Norms each head, where there are weights for it.
    fn normed(&self, ops: &D, x: D::Tensor, weight: Option<&D::Vector>) -> D::Tensor {
        weight.map(|weight| ops.rms_norm(&x, weight, self.epsilon)).unwrap_or(x)
    }
}
