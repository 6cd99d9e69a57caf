//! Routing on the card: no host knows which experts a step uses.

use std::sync::Arc;

use tessera_ops::{Routing, Score};

use crate::{
    driver::{Arg, Gpu, Memory},
    kernels::Module,
    matmul::tile::{Launch, WARP},
    tensor::{Tensor, blocks},
};

/// Threads of the block that lists the places of each expert.
const LIST_THREADS: usize = 256;

/// Which experts each token of a step goes to, with what weights; and the places `token * slots + slot` of each expert.
pub struct Routes {
    pub(crate) tokens: usize,
    pub(crate) slots: usize,
    pub(crate) experts: usize,
    /// (tokens, slots)
    pub(crate) chosen: Memory,
    /// (tokens, slots)
    pub(crate) weights: Memory,
    /// (experts + 1) where the places of each begin in `order`.
    pub(crate) starts: Memory,
    /// (tokens · slots) places, ascending within an expert.
    pub(crate) order: Memory,
}

impl Routes {
    /// Chooses and weighs experts.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        logits: &Tensor,
        routing: &Routing,
        bias: Option<&Memory>,
        factors: Option<&Memory>,
    ) -> Routes {
        let (tokens, experts, slots) = (logits.rows, logits.width, routing.slots);
        routing.check(experts);
        let numbers = |count: usize| gpu.take(count * size_of::<u32>());
        let places = tokens * slots;
        let routes = Routes {
            tokens,
            slots,
            experts,
            chosen: numbers(places),
            weights: numbers(places),
            starts: numbers(experts + 1),
            order: numbers(places),
        };
        let (groups, kept, judged_by) = routing.groups.map_or((0, 0, 0), |g| (g.count, g.kept, g.judged_by));
        let score = match routing.score {
            Score::Softmax => 0,
            Score::Sigmoid => 1,
            Score::SoftmaxOfChosen => 2,
        };
        let args = [
            Arg::Memory(&logits.memory),
            bias.into(),
            factors.into(),
            Arg::Memory(&routes.chosen),
            Arg::Memory(&routes.weights),
            Arg::U32(experts),
            Arg::U32(slots),
            Arg::U32(score),
            Arg::U32(groups),
            Arg::U32(kept),
            Arg::U32(judged_by),
            Arg::U32(routing.normalise.into()),
            Arg::F32(routing.scale),
        ];
        // Scores and choices as numbers, and a byte for what is taken.
        let shared_bytes = experts * (2 * size_of::<f32>() + 1);
        let launch = Launch { shared_bytes, ..blocks([tokens, 1, 1], WARP) };
        gpu.launch(Module::Route, "route", launch, &args);
        let args = [
            Arg::Memory(&routes.chosen),
            Arg::Memory(&routes.starts),
            Arg::Memory(&routes.order),
            Arg::U32(places),
            Arg::U32(experts),
        ];
        gpu.launch(Module::Route, "list_places", blocks([1, 1, 1], LIST_THREADS), &args);
        routes
    }
}
