//! What stands between the projections of a layer's queries, keys and values and its attention, as one launch: norms over heads,
//! rotations, and the way into the pages (`kernels/attention/store.cu`).
//!
//! Neighbours are joined one at a time, by what they read and write alone: a norm and the rotation of what it gives; what gives keys and
//! the store of them; a store and what else is done to other heads, which are its queries. No bit changes, and every tensor holds at the
//! end what it would have held.

use tessera_ops::numerics::ACTIVATION_BLOCK;

use super::Call;
use crate::{kernels::Module, matmul::tile::WARP, rowwise::HADAMARD_WIDTHS};

/// Parameters of `kernels/norm/norm.cu`.
pub(super) mod norm {
    pub(in crate::queue) const X: usize = 0;
    pub(in crate::queue) const ADDED: usize = 1;
    pub(in crate::queue) const WEIGHT: usize = 2;
    pub(in crate::queue) const Y: usize = 3;
    pub(in crate::queue) const CODES: usize = 4;
    pub(in crate::queue) const SCALES: usize = 5;
    pub(in crate::queue) const MINIMA: usize = 6;
    pub(in crate::queue) const WIDTH: usize = 7;
    pub(in crate::queue) const EPSILON: usize = 8;
}

/// Parameters of `kernels/rope/rope.cu`.
pub(super) mod rope {
    pub(in crate::queue) const X: usize = 0;
    pub(in crate::queue) const Y: usize = 1;
    pub(in crate::queue) const WEIGHT: usize = 2;
    pub(in crate::queue) const ANGLES: usize = 3;
    pub(in crate::queue) const HEADS: usize = 4;
    pub(in crate::queue) const HEAD_DIM: usize = 5;
    /// The first feature that turns, pairs, and the way.
    pub(in crate::queue) const TURN: [usize; 3] = [6, 7, 8];
    pub(in crate::queue) const EPSILON: usize = 9;
    /// Codes, scales and minima of what is turned.
    pub(in crate::queue) const CODES: [usize; 3] = [10, 11, 12];
    pub(in crate::queue) const ROWS: usize = 13;
}

/// Parameters of `round_hadamard_fp4` in `kernels/rounding/rounding.cu`.
mod hadamard {
    pub(super) const X: usize = 0;
    pub(super) const WIDTH: usize = 1;
    pub(super) const COUNT: usize = 3;
    /// Angles, heads of a row, the first feature that turns, pairs, and the way.
    pub(super) const TURN: [usize; 5] = [4, 5, 6, 7, 8];
}

/// Bit of the way of a rotation: neighbours pair.
const NEIGHBOURS: u64 = 1;

/// Parameters of `kernels/quantize/quantize.cu`.
pub(super) mod quantize {
    pub(in crate::queue) const X: usize = 0;
    /// Codes, scales and minima.
    pub(in crate::queue) const CODES: [usize; 3] = [1, 2, 3];
    pub(in crate::queue) const ROWS: usize = 4;
    pub(in crate::queue) const BLOCKS: usize = 5;
    pub(in crate::queue) const FINE: usize = 6;
}

/// Parameters of `kernels/attention/store.cu`.
mod store {
    pub(super) const KEYS: usize = 0;
    pub(super) const VALUES: usize = 1;
    pub(super) const HEADS: usize = 6;
    pub(super) const TURNED_KEYS: usize = 8;
    pub(super) const KEY_WEIGHT: usize = 9;
    pub(super) const KEY_EPSILON: usize = 10;
    /// Angles, the first feature that turns, pairs, and the way.
    pub(super) const TURN: [usize; 4] = [11, 12, 13, 14];
    pub(super) const TURNS: usize = 15;
    pub(super) const QUERIES: usize = 16;
    pub(super) const TURNED_QUERIES: usize = 17;
    pub(super) const QUERY_WEIGHT: usize = 18;
    pub(super) const QUERY_EPSILON: usize = 19;
    pub(super) const QUERY_HEADS: usize = 20;
}

/// Bits of `TURNS`.
const KEYS_TURN: u64 = 1;
const QUERIES_TURN: u64 = 2;

/// Two neighbours as one launch, where there is one that does the same.
pub(super) fn joined(last: &Call, next: &Call) -> Option<Call> {
    match (last.module, next.module) {
        (Module::Norm, Module::Rope) => normed_and_turned(last, next),
        (Module::Rope, Module::Quantize) => turned_and_coded(last, next),
        (Module::Rope, Module::Rounding) if next.entry == "round_hadamard_fp4" => turned_and_rounded(last, next),
        (Module::Merge(pages), Module::Quantize) => merged_and_coded(last, next, pages.head_dim),
        (Module::Spans(pages, tile), Module::Quantize) if tile.is_clustered => {
            spans_and_codes(last, next, pages.head_dim)
        }
        (Module::LatentDecode(form, _), Module::Rope) => latent_and_turned(last, next, form.width),
        (Module::LatentDecode(form, _), Module::Quantize) => latent_and_coded(last, next, form.width),
        (Module::Norm | Module::Rope, Module::Store(pages)) => Kind::of(last, pages.head_dim)?.stored(next),
        (Module::Store(pages), Module::Norm | Module::Rope) => Kind::of(next, pages.head_dim)?.beside(last),
        _ => None,
    }
}

/// A norm of heads and their rotation. Codes of what is turned are gone with it, so nobody has read them.
fn normed_and_turned(norm: &Call, rope: &Call) -> Option<Call> {
    let [heads, rows] = [rope::HEADS, rope::ROWS].map(|at| rope.args[at]);
    let can = norm.args[norm::ADDED] == 0
        && (rope.args[rope::WEIGHT], rope.args[rope::CODES[0]]) == (0, 0)
        && rope.args[rope::X] == norm.args[norm::Y]
        && rope.args[rope::Y] == norm.args[norm::Y]
        && norm.args[norm::WIDTH] == rope.args[rope::HEAD_DIM]
        && u64::from(norm.grid[0]) == heads * rows;
    can.then(|| {
        let mut both = rope.clone();
        both.args[rope::X] = norm.args[norm::X];
        both.args[rope::WEIGHT] = norm.args[norm::WEIGHT];
        both.args[rope::EPSILON] = norm.args[norm::EPSILON];
        both
    })
}

/// A rotation of heads, and codes of what it gives.
fn turned_and_coded(turn: &Call, quantize: &Call) -> Option<Call> {
    let r = &turn.args;
    let [heads, rows] = [rope::HEADS, rope::ROWS].map(|at| r[at]);
    // Codes of a row may lie where another row's numbers, or angles, are still to be read.
    let read = [r[rope::X], r[rope::ANGLES]];
    let can = r[rope::CODES[0]] == 0
        && r[rope::HEAD_DIM].is_multiple_of(ACTIVATION_BLOCK as u64)
        && are_codes_of(quantize, r[rope::Y], rows, heads * r[rope::HEAD_DIM], &read);
    can.then(|| with_codes(turn, quantize, rope::CODES))
}

/// A rotation of heads, and their way into small floats, where a warp has a head and both of a pair.
fn turned_and_rounded(turn: &Call, round: &Call) -> Option<Call> {
    let (r, h) = (&turn.args, &round.args);
    let [heads, rows] = [rope::HEADS, rope::ROWS].map(|at| r[at]);
    let [first, pairs, way] = rope::TURN.map(|at| r[at]);
    let can = [r[rope::X], r[rope::Y]] == [h[hadamard::X]; 2]
        && [r[rope::WEIGHT], r[rope::CODES[0]], h[hadamard::TURN[0]]] == [0; 3]
        && (h[hadamard::WIDTH], h[hadamard::COUNT]) == (r[rope::HEAD_DIM], heads * rows)
        && (way & NEIGHBOURS, first % 2) == (NEIGHBOURS, 0)
        && (2 * WARP..=*HADAMARD_WIDTHS.end()).contains(&(h[hadamard::WIDTH] as usize));
    can.then(|| {
        let mut both = round.clone();
        let turn = [r[rope::ANGLES], heads, first, pairs, way];
        hadamard::TURN.into_iter().zip(turn).for_each(|(at, value)| both.args[at] = value);
        both
    })
}

/// Parameters of `kernels/attention/merge.cu`.
mod merge {
    pub(super) const PARTS: usize = 0;
    pub(super) const STATS: usize = 1;
    pub(super) const Y: usize = 3;
    pub(super) const FIRST: usize = 6;
    pub(super) const HEADS: usize = 7;
    /// Codes, scales and minima of the result.
    pub(super) const CODES: [usize; 3] = [10, 11, 12];
}

/// Parameters of `kernels/attention/spans.cu`.
mod spans {
    pub(super) const QUERIES: usize = 0;
    pub(super) const Y: usize = 6;
    pub(super) const FIRST: usize = 9;
    pub(super) const ROWS: usize = 10;
    pub(super) const HEADS: usize = 11;
    /// Codes, scales and minima of the result.
    pub(super) const CODES: [usize; 3] = [23, 24, 25];
}

/// Parameters of `kernels/latent/decode.cu`.
mod latent {
    pub(super) const QUERIES: usize = 0;
    pub(super) const SELECTED: usize = 3;
    pub(super) const Y: usize = 5;
    pub(super) const FIRST: usize = 8;
    pub(super) const HEADS: usize = 9;
    /// Angles, the first feature that turns, pairs, and the way.
    pub(super) const TURN: [usize; 4] = [15, 16, 17, 18];
    pub(super) const CODES: [usize; 3] = [19, 20, 21];
}

/// Whether codes are those of all rows of `y`, in heads of `width` numbers, and lie where nothing of `read` does.
pub(super) fn are_codes_of(quantize: &Call, y: u64, rows: u64, width: u64, read: &[u64]) -> bool {
    let q = &quantize.args;
    let is_whole = (q[quantize::ROWS], q[quantize::BLOCKS] * ACTIVATION_BLOCK as u64) == (rows, width);
    (q[quantize::X], q[quantize::FINE]) == (y, 0)
        && is_whole
        && !quantize::CODES.iter().any(|at| read.contains(&q[*at]))
}

/// With codes in these places.
fn with_codes(call: &Call, quantize: &Call, places: [usize; 3]) -> Call {
    let mut both = call.clone();
    places.into_iter().zip(quantize::CODES).for_each(|(to, from)| both.args[to] = quantize.args[from]);
    both
}

/// Attention's spans as one, and codes of what they give.
fn merged_and_coded(last: &Call, quantize: &Call, head_dim: usize) -> Option<Call> {
    let a = &last.args;
    let rows = u64::from(last.grid[0]) / a[merge::HEADS];
    let read = [a[merge::PARTS], a[merge::STATS]];
    let can = (a[merge::FIRST], a[merge::CODES[0]]) == (0, 0)
        && head_dim.is_multiple_of(2 * ACTIVATION_BLOCK)
        && are_codes_of(quantize, a[merge::Y], rows, a[merge::HEADS] * head_dim as u64, &read);
    can.then(|| with_codes(last, quantize, merge::CODES))
}

/// Attention of clusters, and codes of what it gives.
fn spans_and_codes(last: &Call, quantize: &Call, head_dim: usize) -> Option<Call> {
    let a = &last.args;
    let can = (a[spans::FIRST], a[spans::CODES[0]]) == (0, 0)
        && are_codes_of(quantize, a[spans::Y], a[spans::ROWS], a[spans::HEADS] * head_dim as u64, &[a[spans::QUERIES]]);
    can.then(|| with_codes(last, quantize, spans::CODES))
}

/// Attention over latent rows, and the rotation of what it gives.
fn latent_and_turned(last: &Call, turn: &Call, width: usize) -> Option<Call> {
    let (a, r) = (&last.args, &turn.args);
    let can = (a[latent::FIRST], a[latent::TURN[0]]) == (0, 0)
        && [r[rope::X], r[rope::Y]] == [a[latent::Y]; 2]
        && (r[rope::WEIGHT], r[rope::CODES[0]], r[rope::HEAD_DIM]) == (0, 0, width as u64)
        && [r[rope::HEADS], r[rope::ROWS]] == [a[latent::HEADS], u64::from(last.grid[2])];
    can.then(|| {
        let mut both = last.clone();
        let turn = [r[rope::ANGLES], r[rope::TURN[0]], r[rope::TURN[1]], r[rope::TURN[2]]];
        latent::TURN.into_iter().zip(turn).for_each(|(at, value)| both.args[at] = value);
        both
    })
}

/// The same, turned, and codes of the result.
fn latent_and_coded(last: &Call, quantize: &Call, width: usize) -> Option<Call> {
    let a = &last.args;
    let is_turned = a[latent::TURN[0]] != 0 && a[latent::CODES[0]] == 0;
    let read = [latent::QUERIES, latent::SELECTED, latent::TURN[0]].map(|at| a[at]);
    let rows = u64::from(last.grid[2]);
    let can = is_turned && are_codes_of(quantize, a[latent::Y], rows, a[latent::HEADS] * width as u64, &read);
    can.then(|| with_codes(last, quantize, latent::CODES))
}

/// What is done to the heads of rows.
struct Kind {
    x: u64,
    y: u64,
    weight: u64,
    epsilon: u64,
    /// Heads of all rows.
    count: u64,
    /// Heads of a row, where it is known.
    heads: Option<u64>,
    /// As [`store::TURN`]; none: it does not turn.
    turn: Option<[u64; 4]>,
}

impl Kind {
    /// Of a call, where its heads have `head_dim` numbers.
    fn of(call: &Call, head_dim: usize) -> Option<Kind> {
        let a = &call.args;
        let (kind, width) = match call.module {
            Module::Norm if a[norm::ADDED] == 0 && a[norm::CODES] == 0 => {
                let (weight, epsilon) = (a[norm::WEIGHT], a[norm::EPSILON]);
                let count = call.grid[0].into();
                let kind = Kind { x: a[norm::X], y: a[norm::Y], weight, epsilon, count, heads: None, turn: None };
                (kind, a[norm::WIDTH])
            }
            Module::Rope if a[rope::CODES[0]] == 0 => {
                let [first, pairs, way] = rope::TURN.map(|at| a[at]);
                let turn = Some([a[rope::ANGLES], first, pairs, way]);
                let (weight, epsilon, heads) = (a[rope::WEIGHT], a[rope::EPSILON], Some(a[rope::HEADS]));
                let count = a[rope::HEADS] * a[rope::ROWS];
                let kind = Kind { x: a[rope::X], y: a[rope::Y], weight, epsilon, count, heads, turn };
                (kind, a[rope::HEAD_DIM])
            }
            _ => return None,
        };
        (width == head_dim as u64).then_some(kind)
    }

    /// With the store of these heads as keys.
    fn stored(self, call: &Call) -> Option<Call> {
        let [heads, rows, _] = call.grid.map(u64::from);
        let a = &call.args;
        let is_new = a[store::TURNED_KEYS] == 0 && a[store::QUERIES] == 0;
        let can = is_new && a[store::KEYS] == self.y && a[store::VALUES] != self.y && self.count == heads * rows;
        can.then(|| {
            let mut both = call.clone();
            both.args[store::KEYS] = self.x;
            both.args[store::TURNED_KEYS] = self.y;
            both.args[store::KEY_WEIGHT] = self.weight;
            both.args[store::KEY_EPSILON] = self.epsilon;
            self.turn_in(&mut both, KEYS_TURN);
            both
        })
    }

    /// Beside a store, as its queries.
    fn beside(self, call: &Call) -> Option<Call> {
        let a = &call.args;
        let rows = u64::from(call.grid[1]);
        let heads = self.heads.unwrap_or(self.count / rows.max(1));
        let is_whole = heads * rows == self.count && self.agrees(a);
        let mut both = call.clone();
        if a[store::QUERIES] == 0 {
            // Nothing that the store reads or writes may be written meanwhile, nor read what it writes.
            let touched = [a[store::KEYS], a[store::VALUES], a[store::TURNED_KEYS]];
            let is_apart = !touched.contains(&self.y) && self.x != a[store::TURNED_KEYS];
            if !is_whole || !is_apart || u64::from(call.grid[0]) != a[store::HEADS] {
                return None;
            }
            both.args[store::QUERIES] = self.x;
            both.args[store::TURNED_QUERIES] = self.y;
            both.args[store::QUERY_WEIGHT] = self.weight;
            both.args[store::QUERY_EPSILON] = self.epsilon;
            both.args[store::QUERY_HEADS] = heads;
            both.grid[0] += heads as u32;
        } else {
            // The queries were normed, and are turned now.
            let is_next = self.x == a[store::TURNED_QUERIES] && self.y == self.x && self.weight == 0;
            let is_open = a[store::TURNS] & QUERIES_TURN == 0 && self.turn.is_some() && heads == a[store::QUERY_HEADS];
            if !is_whole || !is_next || !is_open {
                return None;
            }
        }
        self.turn_in(&mut both, QUERIES_TURN);
        Some(both)
    }

    /// Whether what turns already turns by the same angles.
    fn agrees(&self, args: &[u64]) -> bool {
        let theirs = store::TURN.map(|at| args[at]);
        args[store::TURNS] == 0 || self.turn.is_none_or(|own| own == theirs)
    }

    fn turn_in(&self, call: &mut Call, bit: u64) {
        if let Some(turn) = self.turn {
            store::TURN.into_iter().zip(turn).for_each(|(at, value)| call.args[at] = value);
            call.args[store::TURNS] |= bit;
        }
    }
}
