//! A layer of experts: gate and up, the gate's function, down and the weighted sum. Tokens that go to other experts take turns, so
//! that no expert is in a cache when it is needed.

use std::collections::HashSet;

use anyhow::Result;
use tessera_cpu::{Routes, tensor::Tensor};
use tessera_formats::DType;
use tessera_ops::{Device, Gate, LinearStack, Router, Routing, Score};

use super::{
    About, Subject,
    input::{self, Table},
};
use crate::device::{self, Chosen};

/// Turns of narrow widths. Wide ones touch all experts anyway.
const TURNS: usize = 16;
const NARROW_MAX: usize = 32;

/// The weights of a layer, activations, and the logits of its router.
pub(crate) struct Routed {
    dtype: DType,
    /// Width inside of an expert, and of what goes in and comes out.
    inner: usize,
    hidden: usize,
    experts: usize,
    used: usize,
    gate: LinearStack<Chosen>,
    up: LinearStack<Chosen>,
    down: LinearStack<Chosen>,
    activations: Table,
    logits: Table,
}

impl Routed {
    /// A layer of `experts` experts of (inner, hidden) weights, of which a token uses `used`; inputs of all `widths`.
    ///
    /// # Errors
    /// If blocks of the format do not divide a row, or there is no memory.
    pub(crate) fn new(
        device: &Chosen,
        dtype: DType,
        (inner, hidden): (usize, usize),
        (experts, used): (usize, usize),
        widths: &[usize],
    ) -> Result<Routed> {
        let stack = |rows: usize, depth: usize, seed| -> Result<_> {
            let source = input::weights(dtype, rows * experts, depth, seed)?;
            Ok(LinearStack { matrices: device.load_stack(&source, experts)?, bias: None })
        };
        let tokens = widths.iter().map(|width| width * turns(*width)).max().unwrap_or(1);
        Ok(Routed {
            dtype,
            inner,
            hidden,
            experts,
            used,
            gate: stack(inner, hidden, 1)?,
            up: stack(inner, hidden, 2)?,
            down: stack(hidden, inner, 3)?,
            activations: Table::new(device, tokens, hidden, 4)?,
            logits: Table::new(device, tokens, experts, 5)?,
        })
    }

    fn routes(&self, device: &Chosen, first: usize, tokens: usize) -> Routes {
        let routing = Routing { score: Score::Softmax, slots: self.used, groups: None, normalise: true, scale: 1.0 };
        let logits = self.logits.take(device, first, tokens, (self.experts as f32).sqrt());
        device.route(&logits, &Router { routing, bias: None, factors: None })
    }

    fn layer(&self, device: &Chosen, first: usize, tokens: usize) -> Tensor {
        let x = self.activations.take(device, first, tokens, (self.hidden as f32).sqrt());
        let routes = self.routes(device, first, tokens);
        let [gate, up] = device.project_routed(&x, [&self.gate, &self.up], &routes);
        device.combine_routed(&device.gate(&gate, &up, Gate::Silu), &self.down, &routes)
    }

    fn touched_mean(&self, device: &Chosen, width: usize) -> f64 {
        let of_turn = |turn| self.routes(device, turn * width, width).experts().iter().collect::<HashSet<_>>().len();
        let turns = turns(width);
        (0..turns).map(of_turn).sum::<usize>() as f64 / turns as f64
    }
}

fn turns(width: usize) -> usize {
    if width <= NARROW_MAX { TURNS } else { 1 }
}

impl Subject for Routed {
    fn turns(&self, width: usize) -> usize {
        turns(width)
    }

    fn run(&self, device: &Chosen, width: usize, turn: usize) -> Tensor {
        self.layer(device, turn * width, width)
    }

    fn alone(&self, device: &Chosen, width: usize, turn: usize, token: usize) -> Tensor {
        self.layer(device, turn * width + token, 1)
    }

    fn about(&self) -> About {
        let experts = Some((self.experts, self.used));
        About { kind: "routed", rows: self.inner, depth: self.hidden, experts }
    }

    fn variants(&self, device: &Chosen, width: usize) -> String {
        // How many tokens of the first turn go to each expert that has any.
        let mut counts = vec![0; self.experts];
        self.routes(device, 0, width).experts().iter().for_each(|expert| counts[*expert as usize] += 1);
        counts.retain(|count| *count > 0);
        let segments = counts.len();
        let mut variants: Vec<_> = counts
            .into_iter()
            .filter_map(|tokens| {
                let total = width * self.used;
                device::routed_variant(device, self.dtype, (self.inner, self.hidden), tokens, segments, total)
            })
            .collect();
        variants.sort_unstable();
        variants.dedup();
        variants.join(" ")
    }

    fn touched(&self, device: &Chosen, width: usize) -> Option<f64> {
        Some(self.touched_mean(device, width))
    }

    fn operations(&self, width: usize) -> f64 {
        2.0 * 3.0 * (self.inner * self.hidden * self.used * width) as f64
    }

    fn bytes(&self, device: &Chosen, width: usize) -> f64 {
        let all = self.gate.matrices.bytes() + self.up.matrices.bytes() + self.down.matrices.bytes();
        self.touched_mean(device, width) * all as f64 / self.experts as f64
    }
}
