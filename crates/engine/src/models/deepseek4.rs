//! DeepSeek V4 (DeepSeek-AI 2026): a residual of four streams that hyper-connections join and mix, attention over latent rows with
//! compressed ones of all that is older than a window, and experts in every layer. In the first layers a table says which
//! experts a token goes to; in the others those with the best scores, with a bias for the choice alone. Gates are limited.

mod draft;

use std::sync::Arc;

use tessera_ops::{Batch, Device, Gate, Rope, RopeLayout, Score, StreamGates};

use draft::DraftLayer;

use super::{
    Architecture, Drafted,
    blocks::{Experts, GatedMlp, Head, HyperConnection, LatentContext, LatentSelfAttention, routing},
};
use crate::{
    Error, LatentShape,
    config::{Keys, latent::LatentEntries},
    rope,
    weights::Loader,
};

/// The keys of the rotation of layers without compressed rows.
const PLAIN_ROPE: [&str; 2] = ["rope.dimension_count", "rope.freq_base"];
const PLAIN_BASE: f32 = 10_000.0;

/// A DeepSeek V4 model.
pub(super) struct DeepSeek4<D: Device> {
    embedding: D::Embedding,
    streams: usize,
    /// Of layers without compressed rows, and of those with them.
    ropes: [Rope; 2],
    layers: Vec<Layer<D>>,
    head: Head<D>,
    draft: Option<DraftLayer<D>>,
}

/// One layer: a connection, a norm and a block, twice.
struct Layer<D: Device> {
    attention_streams: HyperConnection<D>,
    attention_norm: D::Vector,
    attention: LatentSelfAttention<D>,
    feed_forward_streams: HyperConnection<D>,
    feed_forward_norm: D::Vector,
    experts: Experts<D>,
    shared: Option<GatedMlp<D>>,
    epsilon: f32,
}

/// What all layers are loaded with.
struct Common<D: Device> {
    shape: LatentShape,
    /// A one for each number of all streams, and for each of a head.
    ones: [Arc<D::Vector>; 2],
    ropes: [Rope; 2],
    entries: Vec<LatentEntries>,
}

/// A layer's place: how its tensors' names begin, and what differs.
struct Place<'a> {
    prefix: &'a str,
    ratio: usize,
    entries: LatentEntries,
    is_table: bool,
    limits: (f32, f32),
}

impl<D: Device> Common<D> {
    fn new(loader: &Loader<'_, D>) -> Result<Common<D>, Error> {
        let (c, keys) = (loader.config, Keys::new(loader.checkpoint)?);
        let shape = c.latent.clone().expect("the architecture has this shape");
        let ones = |count: usize| Ok::<_, Error>(Arc::new(loader.vector(&vec![1.0; count])?));
        let (plain, _) = rope::unscaled(&keys, RopeLayout::Interleaved, shape.head_dim, PLAIN_ROPE, PLAIN_BASE)?;
        Ok(Common {
            ones: [ones(shape.streams.count * c.hidden)?, ones(shape.head_dim)?],
            ropes: [plain, rope::compressed(loader.checkpoint, shape.head_dim)?],
            // Only the order of entries matters here.
            entries: shape.entries(1, false).1,
            shape,
        })
    }

    fn place<'a>(&self, prefix: &'a str, layer: usize) -> Place<'a> {
        let shape = &self.shape;
        // A layer that drafts is like the last one, without compressed rows.
        let last = layer.min(shape.limits.len() - 1);
        Place {
            prefix,
            ratio: shape.ratios.get(layer).copied().unwrap_or(0),
            entries: self.entries[layer],
            is_table: layer < shape.table_layers,
            limits: (shape.limits[last], shape.shared_limits[last]),
        }
    }
}

impl<D: Device> Layer<D> {
    fn load(loader: &mut Loader<'_, D>, common: &Common<D>, place: &Place<'_>) -> Result<Layer<D>, Error> {
        let (c, shape, prefix) = (loader.config, &common.shape, place.prefix);
        let name = |part: &str| format!("{prefix}{part}");
        let [wide_ones, ones] = &common.ones;
        let context = LatentContext { shape, ones, rope: &common.ropes[1], rounds: loader.rounds_latent_rows };
        let connection = |loader: &mut Loader<'_, D>, part: &str| {
            HyperConnection::load(loader, &name(part), wide_ones, shape.streams)
        };
        let (gate, shared_gate) = (Gate::SiluClamped(place.limits.0), Gate::SiluClamped(place.limits.1));
        let routing = routing(loader, Score::SqrtSoftplus, true)?;
        let mut experts = Experts::named(loader, prefix, routing, gate)?;
        if place.is_table {
            experts = experts.with_table(loader, &name("ffn_gate_tid2eid.weight"))?;
        }
        let shared = match c.experts {
            Some(e) if e.shared > 0 => {
                let named = |part: &str| name(&format!("ffn_{part}_shexp"));
                Some(GatedMlp::named(loader, named, e.shared * e.feed_forward, shared_gate)?)
            }
            _ => None,
        };
        Ok(Layer {
            attention_streams: connection(loader, "hc_attn")?,
            attention_norm: loader.norm(&name("attn_norm"), c.hidden)?,
            attention: LatentSelfAttention::load(loader, &context, prefix, place.ratio, place.entries)?,
            feed_forward_streams: connection(loader, "hc_ffn")?,
            feed_forward_norm: loader.norm(&name("ffn_norm"), c.hidden)?,
            experts,
            shared,
            epsilon: c.epsilon,
        })
    }

    /// Streams (rows, count · hidden), in place. `angles` are those of layers without and with compressed rows, `choices` those of
    /// its experts.
    fn forward(
        &self,
        ops: &D,
        streams: &mut D::Tensor,
        (angles, choices): ([&D::Tensor; 2], Option<D::Choices>),
        cache: &mut D::KvCache,
        batch: &Batch,
    ) {
        let angles = angles[usize::from(self.attention.is_compressed())];
        let (x, gates) = self.attention_streams.read(ops, streams);
        let x = ops.rms_norm(&x, &self.attention_norm, self.epsilon);
        let y = self.attention.forward(ops, &x, angles, cache, batch);
        self.attention_streams.write(ops, streams, &y, &gates);
        let (x, gates) = self.feed_forward_streams.read(ops, streams);
        let x = ops.rms_norm(&x, &self.feed_forward_norm, self.epsilon);
        // The shared expert comes first, so that the sum stands beside what it is a part of.
        let shared = self.shared.as_ref().map(|shared| shared.forward(ops, &x));
        let mut y = self.experts.forward_chosen(ops, &x, choices);
        if let Some(shared) = &shared {
            ops.add(&mut y, shared);
        }
        self.feed_forward_streams.write(ops, streams, &y, &gates);
    }
}

impl<D: Device> Architecture<D> for DeepSeek4<D> {
    fn load(loader: &mut Loader<'_, D>) -> Result<DeepSeek4<D>, Error> {
        let (c, common) = (loader.config, Common::new(loader)?);
        let layer =
            |loader: &mut Loader<'_, D>, i: usize| Layer::load(loader, &common, &common.place(&format!("blk.{i}."), i));
        let last = StreamGates { rounds: None, ..common.shape.streams };
        let draft = if common.shape.drafts { Some(DraftLayer::load(loader, &common)?) } else { None };
        Ok(DeepSeek4 {
            embedding: loader.embedding("token_embd", c.hidden)?,
            streams: common.shape.streams.count,
            layers: (0..c.layers.len()).map(|i| layer(loader, i)).collect::<Result<_, Error>>()?,
            head: Head::load(loader)?.with_streams(HyperConnection::load(loader, "output_hc", &common.ones[0], last)?),
            ropes: common.ropes,
            draft,
        })
    }

    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor {
        // What a device is sent comes before what it computes.
        let embedded = ops.embed(&self.embedding, batch, 1.0);
        let [plain, compressed] = self.ropes.each_ref().map(|rope| ops.rope_angles(rope, batch));
        let choices: Vec<_> = self.layers.iter().map(|layer| layer.experts.choices(ops, &batch.tokens)).collect();
        let mut streams = ops.copies(&embedded, self.streams);
        drop(embedded);
        for (layer, choices) in self.layers.iter().zip(choices) {
            layer.forward(ops, &mut streams, ([&plain, &compressed], choices), cache, batch);
        }
        streams
    }

    fn head(&self) -> &Head<D> {
        &self.head
    }

    fn drafts(&self) -> bool {
        self.draft.is_some()
    }

    fn draft(&self, ops: &D, previous: &D::Tensor, cache: &mut D::KvCache, batch: &Batch) -> Option<Drafted<D>> {
        let draft = self.draft.as_ref()?;
        let left = draft.forward(ops, (&self.embedding, &self.ropes[0]), previous, cache, batch);
        let logits = draft.logits(ops, &self.head, &left, batch);
        Some(Drafted { left, logits })
    }
}
