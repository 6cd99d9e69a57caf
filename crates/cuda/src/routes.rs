//! Routing on the card: no host knows which experts a step uses.

use std::{ops::Range, sync::Arc};

use tessera_ops::{Role, Routing, Score};

use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::Module,
    matmul::tile::{Launch, WARP},
    roles::Roles,
    tensor::{Tensor, blocks},
};

/// Threads of a block that lists the places of an expert.
pub(crate) const LIST_THREADS: usize = 512;

/// Tokens that are routed, and whose places are listed, by one block: a warp each.
pub(crate) const FEW_TOKENS: usize = LIST_THREADS / WARP;

/// Shared memory that every block can have, beside what is of fixed size.
const SHARED_BYTES_MAX: usize = 40 << 10;

/// The places of each expert, `token * slots + slot`, among tokens of one role, counted from the first of them.
pub(crate) struct List {
    pub(crate) role: Role,
    /// The tokens.
    pub(crate) rows: Range<usize>,
    /// (experts + 1) where the places of each begin in `order`.
    pub(crate) starts: Memory,
    /// (tokens · slots) places, ascending within an expert.
    pub(crate) order: Memory,
    /// (tokens · slots) the column of each place, where each expert's begin at a multiple of eight.
    pub(crate) columns: Memory,
}

/// Which experts each token of a step goes to, with what weights; and the places of each expert.
pub struct Routes {
    pub(crate) tokens: usize,
    pub(crate) slots: usize,
    pub(crate) experts: usize,
    /// (tokens, slots)
    pub(crate) chosen: Memory,
    /// (tokens, slots)
    pub(crate) weights: Memory,
    pub(crate) lists: Vec<List>,
    /// Of the tokens.
    pub(crate) roles: Roles,
}

/// The experts of each token where a model names them, on the card.
pub struct Choices {
    /// (tokens, slots)
    memory: Memory,
    count: usize,
    /// The highest of them.
    last: u32,
}

impl Choices {
    /// Sends them.
    pub(crate) fn new(gpu: &Arc<Gpu>, experts: &[u32]) -> Choices {
        let memory = gpu.take(size_of_val(experts));
        gpu.send(&memory, experts);
        Choices { memory, count: experts.len(), last: experts.iter().copied().max().unwrap_or(0) }
    }
}

impl Routes {
    /// Chooses experts, unless they are given, and weighs them.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        logits: &Tensor,
        routing: &Routing,
        bias: Option<&Memory>,
        factors: Option<&Memory>,
        given: Option<Choices>,
    ) -> Routes {
        let (tokens, experts, slots) = (logits.rows, logits.width, routing.slots);
        routing.check(experts);
        let numbers = |count: usize| gpu.take(count * size_of::<u32>());
        let is_given = given.is_some();
        let chosen = given.map_or_else(
            || numbers(tokens * slots),
            |given| {
                assert_eq!(given.count, tokens * slots, "an expert for each slot");
                assert!(given.count == 0 || (given.last as usize) < experts, "experts that there are");
                given.memory
            },
        );
        let weights = numbers(tokens * slots);
        let lists = logits.roles.runs().iter().map(|run| List {
            role: run.role,
            rows: run.rows.clone(),
            starts: numbers(experts + 1),
            order: numbers(run.rows.len() * slots),
            columns: numbers(run.rows.len() * slots),
        });
        let (lists, roles) = (lists.collect(), logits.roles.clone());
        let routes = Routes { tokens, slots, experts, chosen, weights, lists, roles };
        let (groups, kept, judged_by) = routing.groups.map_or((0, 0, 0), |g| (g.count, g.kept, g.judged_by));
        let score = match routing.score {
            Score::Softmax => 0,
            Score::Sigmoid => 1,
            Score::SoftmaxOfChosen => 2,
            Score::SqrtSoftplus => 3,
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
            Arg::F32(routing.score.sum_min()),
            Arg::F32(routing.scale),
            Arg::U32(is_given.into()),
        ];
        routes.launch(gpu, &args);
        routes
    }

    /// Routes, and lists places: `args` are those of the first kernel.
    fn launch(&self, gpu: &Arc<Gpu>, args: &[Arg<'_>]) {
        let Routes { tokens, slots, experts, .. } = *self;
        // Score, choice and its order.
        let token_bytes = 3 * experts * size_of::<f32>();
        if let ([list], 1..=FEW_TOKENS) = (&self.lists[..], tokens)
            && tokens * token_bytes <= SHARED_BYTES_MAX
        {
            let lists = [&list.starts, &list.order, &list.columns].map(Arg::Memory);
            let mut args = Args::of(args.iter().copied());
            args.extend(lists);
            args.push(Arg::U32(tokens));
            // A warp a token, and a thread an expert.
            let threads = (tokens * WARP).max(experts.next_multiple_of(WARP)).min(LIST_THREADS);
            let launch = Launch { shared_bytes: tokens * token_bytes, ..blocks([1, 1, 1], threads) };
            gpu.launch(Module::Route, "route_few", launch, &args);
            return;
        }
        let launch = Launch { shared_bytes: token_bytes, ..blocks([tokens, 1, 1], WARP) };
        gpu.launch(Module::Route, "route", launch, args);
        for list in &self.lists {
            let args = [
                Arg::From(&self.chosen, list.rows.start * slots * size_of::<u32>()),
                Arg::Memory(&list.starts),
                Arg::Memory(&list.order),
                Arg::Memory(&list.columns),
                Arg::U32(list.rows.len() * slots),
            ];
            gpu.launch(Module::Route, "list_places", blocks([experts, 1, 1], LIST_THREADS), &args);
        }
    }
}
