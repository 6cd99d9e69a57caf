//! Measuring a projection: weights that are in no cache, readings that are long enough for the clock, and a hash of every
//! result. `tessera bench kernel` and `tessera tune` stand on it.

mod attention;
mod case;
mod dense;
mod input;
mod routed;
pub(crate) mod times;

use tessera_cpu::tensor::Tensor;

use crate::device::Chosen;

pub(crate) use attention::{Attention, Heads, Rows};
pub(crate) use case::{Case, Effort};
pub(crate) use dense::Dense;
pub(crate) use routed::Routed;

/// What is measured.
pub(crate) trait Subject {
    /// Turns until the first one's weights are in no cache any more.
    fn turns(&self, width: usize) -> usize;

    /// Computes one turn.
    fn run(&self, device: &Chosen, width: usize, turn: usize) -> Tensor;

    /// Computes one token of a turn alone.
    fn alone(&self, device: &Chosen, width: usize, turn: usize, token: usize) -> Tensor;

    /// What it is.
    fn about(&self) -> About;

    /// The variants that compute it, each once.
    fn variants(&self, device: &Chosen, width: usize) -> String;

    /// Experts that the tokens of a turn touch, in the mean; none where there are no experts.
    fn touched(&self, device: &Chosen, width: usize) -> Option<f64>;

    /// Additions and multiplications of a turn.
    fn operations(&self, width: usize) -> f64;

    /// Bytes of the weights that a turn touches, in the mean.
    fn bytes(&self, device: &Chosen, width: usize) -> f64;
}

/// What a subject is: a matrix, or a layer of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// `dense` or `routed`.
    pub(crate) kind: &'static str,
    /// Output features; of a layer, the width inside of an expert.
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    /// Experts of a layer, and how many a token uses.
    pub(crate) experts: Option<(usize, usize)>,
}
