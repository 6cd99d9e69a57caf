//! A mixture of experts (Shazeer et al. 2017): each token goes to a few of many feed-forward layers, and what comes back is
//! weighed.

use tessera_ops::{
    Device, ExpertGroups, Gate, Linear, LinearStack, Router, Routing, Score, routing::EXPERT_GROUPS_MAX,
};

use crate::{
    Error,
    config::{ExpertShape, Keys},
    weights::Loader,
};

/// The experts of one layer.
pub(in crate::models) struct Experts<D: Device> {
    scores: Linear<D>,
    router: Router<D>,
    input: Input<D>,
    down: LinearStack<D>,
    kind: Gate,
    /// (tokens, slots) the experts of each token, where they do not follow from scores.
    table: Option<Vec<u32>>,
}

/// Projections into the experts.
enum Input<D: Device> {
    /// Gate and up.
    Apart(LinearStack<D>, LinearStack<D>),
    /// Gate and up as the halves of one matrix.
    Joined(LinearStack<D>),
}

impl<D: Device> Experts<D> {
    /// Loads `blk.LAYER.ffn_*_exps`, the router `ffn_gate_inp`, and where they are there the bias on the choice
    /// `exp_probs_b.bias` and factors on the weights `ffn_down_exps.scale`.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or the device refuses it.
    pub(in crate::models) fn load(
        loader: &mut Loader<'_, D>,
        layer: usize,
        routing: Routing,
        kind: Gate,
    ) -> Result<Experts<D>, Error> {
        Experts::named(loader, &format!("blk.{layer}."), routing, kind)
    }

    /// Loads tensors whose names begin with `prefix`.
    ///
    /// # Errors
    /// As [`Experts::load`].
    pub(in crate::models) fn named(
        loader: &mut Loader<'_, D>,
        prefix: &str,
        routing: Routing,
        kind: Gate,
    ) -> Result<Experts<D>, Error> {
        let (hidden, shape) = (loader.config.hidden, shape(loader)?);
        let (of, width) = ((shape.count, shape.used), shape.feed_forward);
        let name = |part: &str| format!("{prefix}ffn_{part}");
        let input = if loader.has(&format!("{}.weight", name("gate_up_exps"))) {
            Input::Joined(loader.stack(&name("gate_up_exps"), of, 2 * width, hidden)?)
        } else {
            let gate = loader.stack(&name("gate_exps"), of, width, hidden)?;
            Input::Apart(gate, loader.stack(&name("up_exps"), of, width, hidden)?)
        };
        let router = Router {
            routing,
            bias: loader.optional_vector(&format!("{prefix}exp_probs_b.bias"), &[shape.count])?,
            factors: loader.optional_vector(&name("down_exps.scale"), &[shape.count])?,
        };
        Ok(Experts {
            scores: loader.linear(&name("gate_inp"), shape.count, hidden)?,
            router,
            input,
            down: loader.stack(&name("down_exps"), of, hidden, width)?,
            kind,
            table: None,
        })
    }

    /// The same, but a table gives the experts of each token, and scores only their weights.
    ///
    /// # Errors
    /// If the tensor is missing, has a wrong shape, or names an expert that there is not.
    pub(in crate::models) fn with_table(self, loader: &mut Loader<'_, D>, name: &str) -> Result<Experts<D>, Error> {
        let (slots, experts) = (self.router.routing.slots, shape(loader)?.count);
        let table = loader.indices(name, &[slots, loader.config.vocabulary], experts)?;
        Ok(Experts { table: Some(table), ..self })
    }

    /// (rows, hidden) to (rows, hidden). The router sees `judged`, the experts `x`.
    pub(in crate::models) fn forward(&self, ops: &D, x: &D::Tensor, judged: &D::Tensor) -> D::Tensor {
        let [scores] = ops.project(judged, [&self.scores]);
        self.through(ops, x, &ops.route(&scores, &self.router))
    }

    /// The experts of a step's tokens, where a table gives them: named before the step's first op.
    pub(in crate::models) fn choices(&self, ops: &D, tokens: &[u32]) -> Option<D::Choices> {
        let (table, slots) = (self.table.as_ref()?, self.router.routing.slots);
        Some(ops.choices(tokens.iter().flat_map(|t| &table[*t as usize * slots..][..slots]).copied().collect()))
    }

    /// As [`Experts::forward`] with a router that sees `x`, to what [`Experts::choices`] gave.
    pub(in crate::models) fn forward_chosen(&self, ops: &D, x: &D::Tensor, choices: Option<D::Choices>) -> D::Tensor {
        assert_eq!(choices.is_some(), self.table.is_some(), "experts are named where a table gives them");
        let Some(choices) = choices else { return self.forward(ops, x, x) };
        let [scores] = ops.project(x, [&self.scores]);
        self.through(ops, x, &ops.route_chosen(&scores, &self.router, choices))
    }

    fn through(&self, ops: &D, x: &D::Tensor, routes: &D::Routes) -> D::Tensor {
        let gated = match &self.input {
            Input::Apart(gate, up) => {
                let [gate, up] = ops.project_routed(x, [gate, up], routes);
                ops.gate(&gate, &up, self.kind)
            }
            Input::Joined(both) => {
                let [both] = ops.project_routed(x, [both], routes);
                ops.gate_halves(&both, self.kind)
            }
        };
        ops.combine_routed(&gated, &self.down, routes)
    }
}

/// The shape of the experts that an architecture must have.
fn shape<D: Device>(loader: &Loader<'_, D>) -> Result<ExpertShape, Error> {
    let keys = Keys::new(loader.checkpoint)?;
    loader.config.experts.ok_or_else(|| keys.wrong("expert_count", 0, "the number of experts of this architecture"))
}

/// How a checkpoint routes: `score` is what its architecture does unless the metadata names another score, `normalise`
/// whether it divides weights by their sum unless the metadata says.
///
/// # Errors
/// If a value is absurd or unknown.
pub(in crate::models) fn routing<D: Device>(
    loader: &Loader<'_, D>,
    score: Score,
    normalise: bool,
) -> Result<Routing, Error> {
    let (keys, shape) = (Keys::new(loader.checkpoint)?, shape(loader)?);
    let score = match keys.optional_count("expert_gating_func", 0..=usize::from(u8::MAX))? {
        None | Some(0) => score,
        Some(1) => Score::Softmax,
        Some(2) => Score::Sigmoid,
        Some(3) => Score::SoftmaxOfChosen,
        Some(4) => Score::SqrtSoftplus,
        Some(other) => {
            return Err(keys.wrong(
                "expert_gating_func",
                other,
                "1 (softmax), 2 (sigmoid), 3 (softmax of the chosen) or 4 (root of softplus)",
            ));
        }
    };
    Ok(Routing {
        score,
        slots: shape.used,
        groups: groups(&keys, shape, score)?,
        normalise: keys.flag("expert_weights_norm")?.unwrap_or(normalise),
        scale: keys.optional_number("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0),
    })
}

/// Groups of experts of which a token may use some; none where it may use all.
fn groups(keys: &Keys<'_>, shape: ExpertShape, score: Score) -> Result<Option<ExpertGroups>, Error> {
    let count = keys.count_or("expert_group_count", 0..=EXPERT_GROUPS_MAX, 0)?;
    if count <= 1 {
        return Ok(None);
    }
    let kept = keys.count("expert_group_used_count", 1..=count)?;
    let size = shape.count / count;
    // Groups are judged by one expert with softmax (DeepSeek V2), by two with sigmoid (V3).
    let judged_by = if score == Score::Sigmoid { 2 } else { 1 };
    if size * count != shape.count || kept * size < shape.used || judged_by > size {
        let expected = format!("equal groups of the {} experts, with {} to choose from", shape.count, shape.used);
        return Err(keys.wrong("expert_group_count", count, expected));
    }
    Ok(Some(ExpertGroups { count, kept, judged_by }))
}
