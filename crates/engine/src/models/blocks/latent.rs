//! Self-attention over latent rows (DeepSeek-AI 2026): queries by way of a narrow projection, one row a token that is key and
//! value at once, a sink for each head, and compressed rows of what is older than the window.
//!
//! A compressor makes a row of every few tokens from inputs that it keeps of each; where the rows are many, an indexer with a
//! smaller compressor of its own selects those that a token attends to. Since values are rotated as keys are, what attention
//! gives is turned back before groups of heads, each by itself, and then all together, are projected.

use std::sync::Arc;

use tessera_ops::{
    Batch, Compressor, Device, LatentAttention, Linear, LinearStack, Rope, RopeLayout, Rotation, Rounding, Selector,
    latent::{CompressedRows, complete_rows},
};

use crate::{
    Error, LatentShape,
    config::latent::{LatentEntries, SELECTED_RATIO},
    weights::Loader,
};

/// Attention of one layer.
pub(in crate::models) struct LatentSelfAttention<D: Device> {
    query_down: Linear<D>,
    query_norm: D::Vector,
    query_up: Linear<D>,
    row: Linear<D>,
    row_norm: D::Vector,
    /// A one for each number of a head: heads of queries are normed without weights.
    ones: Arc<D::Vector>,
    sinks: D::Vector,
    compressed: Option<Compressed<D>>,
    output_down: LinearStack<D>,
    output_up: Linear<D>,
    spec: LatentAttention,
    rotation: Rotation,
    rounding: Option<Rounding>,
    epsilon: f32,
}

/// What a layer with compressed rows has.
struct Compressed<D: Device> {
    rows: CompressedInput<D>,
    indexer: Option<Indexer<D>>,
}

/// A compressor with the projection that its inputs come from: values, then scores.
struct CompressedInput<D: Device> {
    input: Linear<D>,
    compressor: Compressor<D>,
}

/// What selects compressed rows.
struct Indexer<D: Device> {
    keys: CompressedInput<D>,
    query: Linear<D>,
    weights: Linear<D>,
    selector: Selector,
    rotation: Rotation,
    rounding: Option<Rounding>,
}

/// What layers share.
pub(in crate::models) struct LatentContext<'a, D: Device> {
    pub(in crate::models) shape: &'a LatentShape,
    /// A one for each number of a head.
    pub(in crate::models) ones: &'a Arc<D::Vector>,
    /// Of layers with compressed rows.
    pub(in crate::models) rope: &'a Rope,
    /// Whether cached rows are rounded as the model was trained.
    pub(in crate::models) rounds: bool,
}

impl<D: Device> LatentSelfAttention<D> {
    /// Loads `PREFIXattn_*` and what belongs to compressed rows of `ratio` tokens (0: none).
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(
        loader: &mut Loader<'_, D>,
        context: &LatentContext<'_, D>,
        prefix: &str,
        ratio: usize,
        entries: LatentEntries,
    ) -> Result<LatentSelfAttention<D>, Error> {
        let (c, shape) = (loader.config, context.shape);
        let (head_dim, width) = (shape.head_dim, c.heads * shape.head_dim);
        let name = |part: &str| format!("{prefix}attn_{part}");
        let compressed = match entries.compressed {
            Some(entries_of_rows) => {
                let rounding = context.rounds.then(|| shape.row_rounding());
                let of = (&*name("compressor"), ratio, head_dim);
                Some(Compressed {
                    rows: CompressedInput::load(loader, context, of, entries_of_rows, rounding)?,
                    indexer: entries.keys.map(|keys| Indexer::load(loader, context, prefix, keys)).transpose()?,
                })
            }
            None => None,
        };
        let sinks = loader.numbers(&format!("{}.weight", name("sinks")), &[c.heads])?;
        let groups = shape.output_groups;
        Ok(LatentSelfAttention {
            query_down: loader.linear(&name("q_a"), shape.query_rank, c.hidden)?,
            query_norm: loader.norm(&name("q_a_norm"), shape.query_rank)?,
            query_up: loader.linear(&name("q_b"), width, shape.query_rank)?,
            row: loader.linear(&name("kv"), head_dim, c.hidden)?,
            row_norm: loader.norm(&name("kv_a_norm"), head_dim)?,
            ones: context.ones.clone(),
            sinks: loader.vector(&sinks)?,
            compressed,
            output_down: loader.grouped(&name("output_a"), groups, shape.output_rank, width / groups)?,
            output_up: loader.linear(&name("output_b"), c.hidden, groups * shape.output_rank)?,
            spec: LatentAttention {
                entry: entries.raw,
                window: shape.window,
                compressed: entries.compressed.map(|(_, entry)| CompressedRows { entry, ratio }),
                heads: c.heads,
                head_dim,
                scale: (head_dim as f32).sqrt().recip(),
            },
            rotation: Rotation::new(head_dim, RopeLayout::Interleaved).from(head_dim - shape.turning),
            rounding: context.rounds.then(|| shape.row_rounding()),
            epsilon: c.epsilon,
        })
    }

    /// Whether it has compressed rows, and so the rotation that goes with them.
    pub(in crate::models) fn is_compressed(&self) -> bool {
        self.compressed.is_some()
    }

    /// (rows, hidden) to (rows, hidden); writes the rows, what they are compressed from, and the rows that they complete.
    pub(in crate::models) fn forward(
        &self,
        ops: &D,
        x: &D::Tensor,
        angles: &D::Tensor,
        cache: &mut D::KvCache,
        batch: &Batch,
    ) -> D::Tensor {
        let Projected { query, row, weights, inputs: _inputs } = self.projected(ops, x, cache, batch);
        let mut row = ops.rms_norm(&row, &self.row_norm, self.epsilon);
        ops.rotate(&mut row, &self.rotation, angles);
        if let Some(rounding) = self.rounding {
            ops.round(&mut row, self.spec.head_dim, rounding);
        }
        ops.store_rows(cache, self.spec.entry, &row, batch);
        if let Some(compressed) = &self.compressed {
            ops.compress(cache, &compressed.rows.compressor, batch);
            if let Some(indexer) = &compressed.indexer {
                ops.compress(cache, &indexer.keys.compressor, batch);
            }
        }
        let query = ops.rms_norm(&query, &self.query_norm, self.epsilon);
        let indexer = self.compressed.as_ref().and_then(|c| c.indexer.as_ref()).filter(|i| i.chooses(batch));
        let selection = indexer.zip(weights.as_ref()).map(|(i, w)| i.select(ops, &query, w, angles, cache, batch));
        let [query] = ops.project(&query, [&self.query_up]);
        let mut query = ops.rms_norm(&query, &self.ones, self.epsilon);
        ops.rotate(&mut query, &self.rotation, angles);
        let mut y = ops.attend_latent(&query, cache, &self.spec, selection.as_ref(), &self.sinks, batch);
        ops.rotate(&mut y, &self.rotation.inverted(), angles);
        let [y] = ops.project(&ops.project_grouped(&y, &self.output_down), [&self.output_up]);
        y
    }

    /// What is projected from the block's input. Inputs of compressors are stored.
    fn projected(&self, ops: &D, x: &D::Tensor, cache: &mut D::KvCache, batch: &Batch) -> Projected<D> {
        let mut store = |of: &CompressedInput<D>, input: &D::Tensor| {
            ops.store_rows(cache, of.compressor.inputs, input, batch);
        };
        match &self.compressed {
            None => {
                let [query, row] = ops.project(x, [&self.query_down, &self.row]);
                Projected { query, row, weights: None, inputs: vec![] }
            }
            Some(Compressed { rows, indexer: None }) => {
                let [query, row, input] = ops.project(x, [&self.query_down, &self.row, &rows.input]);
                store(rows, &input);
                Projected { query, row, weights: None, inputs: vec![input] }
            }
            Some(Compressed { rows, indexer: Some(indexer) }) => {
                let all = [&self.query_down, &self.row, &rows.input, &indexer.keys.input, &indexer.weights];
                let [query, row, input, key, weights] = ops.project(x, all);
                store(rows, &input);
                store(&indexer.keys, &key);
                Projected { query, row, weights: Some(weights), inputs: vec![input, key] }
            }
        }
    }
}

/// What is projected from a block's input.
struct Projected<D: Device> {
    /// Narrow queries, and rows.
    query: D::Tensor,
    row: D::Tensor,
    /// Of an indexer's heads.
    weights: Option<D::Tensor>,
    /// What compressors take. It is kept while the block runs, so that a device that does several things at once writes elsewhere.
    inputs: Vec<D::Tensor>,
}

impl<D: Device> CompressedInput<D> {
    fn load(
        loader: &mut Loader<'_, D>,
        context: &LatentContext<'_, D>,
        (name, ratio, head_dim): (&str, usize, usize),
        (inputs, output): (usize, usize),
        rounding: Option<Rounding>,
    ) -> Result<CompressedInput<D>, Error> {
        let (c, width) = (loader.config, LatentShape::input_width(ratio, head_dim));
        let ape = loader.numbers(&format!("{name}_ape.weight"), &[width, ratio])?;
        Ok(CompressedInput {
            input: loader.joined([&*format!("{name}_kv"), &*format!("{name}_gate")], width, c.hidden)?,
            compressor: Compressor {
                inputs,
                output,
                ratio,
                overlap: ratio == SELECTED_RATIO,
                head_dim,
                ape: loader.vector(&ape)?,
                norm: loader.norm(&format!("{name}_norm"), head_dim)?,
                epsilon: c.epsilon,
                rope: context.rope.clone(),
                rounding,
            },
        })
    }
}

impl<D: Device> Indexer<D> {
    fn load(
        loader: &mut Loader<'_, D>,
        context: &LatentContext<'_, D>,
        prefix: &str,
        entries: (usize, usize),
    ) -> Result<Indexer<D>, Error> {
        let shape = context.shape;
        let crate::IndexerShape { heads, head_dim, top_k } = shape.indexer.expect("a layer with keys has an indexer");
        let rounding = context.rounds.then_some(Rounding::HadamardFp4);
        let of = (&*format!("{prefix}indexer_compressor"), SELECTED_RATIO, head_dim);
        Ok(Indexer {
            keys: CompressedInput::load(loader, context, of, entries, rounding)?,
            query: loader.linear(&format!("{prefix}indexer.attn_q_b"), heads * head_dim, shape.query_rank)?,
            weights: loader.linear(&format!("{prefix}indexer.proj"), heads, loader.config.hidden)?,
            selector: Selector {
                entry: entries.1,
                ratio: SELECTED_RATIO,
                heads,
                head_dim,
                top_k,
                scale: ((head_dim * heads) as f32).sqrt().recip(),
            },
            rotation: Rotation::new(head_dim, RopeLayout::Interleaved).from(head_dim - shape.turning),
            rounding,
        })
    }

    /// Whether some row of the batch sees more compressed rows than are selected. If none does, each attends to all that it sees,
    /// as it would if they were selected.
    fn chooses(&self, batch: &Batch) -> bool {
        let Selector { ratio, top_k, .. } = self.selector;
        batch.positions.iter().any(|p| complete_rows(*p as usize, ratio) > top_k)
    }

    /// The compressed rows for each row, from the narrow queries after their norm.
    fn select(
        &self,
        ops: &D,
        query: &D::Tensor,
        weights: &D::Tensor,
        angles: &D::Tensor,
        cache: &D::KvCache,
        batch: &Batch,
    ) -> D::Selection {
        let [mut query] = ops.project(query, [&self.query]);
        ops.rotate(&mut query, &self.rotation, angles);
        if let Some(rounding) = self.rounding {
            ops.round(&mut query, self.selector.head_dim, rounding);
        }
        ops.select(&query, weights, cache, &self.selector, batch)
    }
}
