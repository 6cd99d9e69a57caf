//! What follows a product of codes where its results are summed (`kernels/matmul/epilogue.cuh`): codes of them, or a gate of two matrices'
//! and codes of what that gives.
//!
//! All is recognised by what launches read and write alone; no bit changes, and every tensor holds at the end what it would have held.

use tessera_ops::numerics::ACTIVATION_BLOCK;

use super::{
    Call, gate,
    heads::{are_codes_of, quantize},
};
use crate::{kernels::Module, matmul::NO_BLOCK};

/// Parameters of `kernels/matmul/codes.cu`.
pub(super) mod codes {
    /// Results of the first matrix, and of the second.
    pub(in crate::queue) const Y: usize = 6;
    pub(in crate::queue) const UP: usize = 7;
    /// Rows of both.
    pub(in crate::queue) const ROWS: [usize; 2] = [14, 15];
    /// Where blocks of further matrices begin.
    pub(in crate::queue) const FROM: [usize; 2] = [17, 18];
    /// Rows of the input, and places that each serves.
    pub(in crate::queue) const TOKENS: usize = 20;
    pub(in crate::queue) const SLOTS: usize = 21;
    pub(in crate::queue) const GROUPS: usize = 24;
    pub(in crate::queue) const TURNS: usize = 25;
    pub(in crate::queue) const SLICED: usize = 26;
    pub(in crate::queue) const CHOSEN: usize = 27;
    /// Codes, scales and minima of what it gives.
    pub(in crate::queue) const CODES: [usize; 3] = [28, 29, 30];
    pub(in crate::queue) const GATED: usize = 31;
    /// The kind of gate, and its limit.
    pub(in crate::queue) const GATE: [usize; 2] = [32, 33];
}

/// A product, and what follows it.
pub(super) fn joined(last: &Call, next: &Call, has_clusters: bool) -> Option<Call> {
    let cluster = cluster(last).filter(|blocks| *blocks == 1 || has_clusters)?;
    match next.entry {
        "gate" => gated(last, next, cluster),
        "quantize" => coded(last, next, cluster),
        _ => None,
    }
}

/// The blocks of the grid that have whole blocks of codes, of each matrix; none where rows are not whole blocks, or something follows
/// already.
fn cluster(product: &Call) -> Option<u32> {
    let Module::Codes(_, tile) = product.module else { return None };
    let a = &product.args;
    let is_pair = a[codes::FROM[0]] != NO_BLOCK as u64;
    let has_half = a[codes::GROUPS] * (tile.rows() as u64) < ACTIVATION_BLOCK as u64;
    let blocks: usize = product.grid.iter().map(|n| *n as usize).product();
    let can = a[codes::FROM[1]] == NO_BLOCK as u64
        && a[codes::CODES[0]] == 0
        // Where blocks come in rounds, each round would wait for what follows: measured, that costs more than a launch.
        && tile.fits_at_once(blocks)
        && a[codes::ROWS[0]].is_multiple_of(ACTIVATION_BLOCK as u64)
        // Neighbours have neighbouring rows.
        && (!has_half || a[codes::TURNS] == 1);
    can.then_some((1 + u32::from(is_pair)) * (1 + u32::from(has_half)))
}

/// Whether nothing that the product reads or writes is written meanwhile.
fn are_apart(product: &Call, written: &[u64]) -> bool {
    let touched = |at: &usize| written.contains(&product.args[*at]);
    // Weights, the input, results, biases and lists.
    !(0..codes::ROWS[0]).chain([codes::CHOSEN]).any(|at| touched(&at))
}

fn rows_of_results(product: &Call) -> u64 {
    product.args[codes::TOKENS] * product.args[codes::SLOTS]
}

/// Gate and up, what the one lets through of the other, and its codes.
fn gated(product: &Call, next: &Call, cluster: u32) -> Option<Call> {
    let (a, g) = (&product.args, &next.args);
    let width = a[codes::ROWS[0]];
    let [x_stride, up_stride, kind, limit] = gate::REST.map(|at| g[at]);
    let out = [gate::CODES, gate::CODES + 1, gate::CODES + 2].map(|at| g[at]);
    let can = a[codes::FROM[0]] != NO_BLOCK as u64
        && [g[gate::X], g[gate::UP]] == [a[codes::Y], a[codes::UP]]
        && [a[codes::ROWS[1]], g[gate::WIDTH], x_stride, up_stride] == [width; 4]
        && (g[gate::ROWS], a[codes::SLICED]) == (rows_of_results(product), 0)
        && out[0] != 0
        && are_apart(product, &[&out[..], &[g[gate::Y]]].concat());
    can.then(|| {
        let mut both = with_codes(product, out, cluster);
        both.args[codes::GATED] = g[gate::Y];
        codes::GATE.into_iter().zip([kind, limit]).for_each(|(at, value)| both.args[at] = value);
        both
    })
}

/// One matrix, or one for each slice of a row, and codes of the results.
fn coded(product: &Call, next: &Call, cluster: u32) -> Option<Call> {
    let a = &product.args;
    let slices = if a[codes::SLICED] != 0 { u64::from(product.grid[2]) } else { 1 };
    let out = quantize::CODES.map(|at| next.args[at]);
    let can = a[codes::FROM[0]] == NO_BLOCK as u64
        && are_codes_of(next, a[codes::Y], rows_of_results(product), slices * a[codes::ROWS[0]], &[])
        && are_apart(product, &out);
    can.then(|| with_codes(product, out, cluster))
}

fn with_codes(product: &Call, out: [u64; 3], cluster: u32) -> Call {
    let mut both = product.clone();
    codes::CODES.into_iter().zip(out).for_each(|(at, value)| both.args[at] = value);
    both.cluster = cluster;
    both
}
