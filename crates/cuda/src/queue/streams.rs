//! Several residual streams: what brings a block's result into them, makes the gates of the next block, and sums and norms what that reads,
//! is one launch (`kernels/streams/connect.cu`), where rows are few.
//!
//! What experts gave is summed on the way. All is recognised by what launches read and write alone; no bit changes, and every tensor
//! holds at the end what it would have held.

use cudarc::driver::sys;

use super::{ARGS_MAX, Call, heads::norm};
use crate::{
    connect::{self, BLOCKS, ROWS_MAX, THREADS},
    kernels::Module,
    matmul::NO_BLOCK,
};

/// Parameters of `combine` in `kernels/elementwise/elementwise.cu`.
pub(super) mod combine {
    pub(in crate::queue) const PARTS: usize = 0;
    pub(in crate::queue) const WEIGHTS: usize = 1;
    pub(in crate::queue) const Y: usize = 2;
    pub(in crate::queue) const ROWS: usize = 3;
    pub(in crate::queue) const WIDTH: usize = 4;
    pub(in crate::queue) const SLOTS: usize = 5;
    pub(in crate::queue) const ADDED: usize = 6;
}

/// Parameters of `spread_streams` in `kernels/streams/streams.cu`.
pub(super) mod spread {
    pub(in crate::queue) const STREAMS: usize = 0;
    pub(in crate::queue) const Y: usize = 1;
    pub(in crate::queue) const GATES: usize = 2;
    pub(in crate::queue) const ROWS: usize = 3;
    pub(in crate::queue) const WIDTH: usize = 4;
    pub(in crate::queue) const COUNT: usize = 5;
    pub(in crate::queue) const PARTS: usize = 6;
    pub(in crate::queue) const WEIGHTS: usize = 7;
    pub(in crate::queue) const ADDED: usize = 8;
    pub(in crate::queue) const SLOTS: usize = 9;
}

/// Parameters of `kernels/matmul/floats.cu`, of which the first matrix is the only one.
pub(super) mod floats {
    pub(in crate::queue) const WEIGHTS: usize = 0;
    pub(in crate::queue) const X: usize = 4;
    pub(in crate::queue) const Y: usize = 5;
    pub(in crate::queue) const BIAS: usize = 9;
    pub(in crate::queue) const STARTS: usize = 13;
    pub(in crate::queue) const ROWS: usize = 15;
    pub(in crate::queue) const FROM: usize = 19;
    pub(in crate::queue) const DEPTH: usize = 22;
    pub(in crate::queue) const TOKENS: usize = 23;
    pub(in crate::queue) const X_WIDTH: usize = 25;
}

/// Parameters of `stream_gates` in `kernels/streams/streams.cu`.
pub(super) mod gates {
    pub(in crate::queue) const MIX: usize = 0;
    pub(in crate::queue) const SCALE: usize = 1;
    pub(in crate::queue) const BASE: usize = 2;
    pub(in crate::queue) const Y: usize = 3;
    pub(in crate::queue) const COUNT: usize = 4;
    pub(in crate::queue) const ROUNDS: usize = 5;
    pub(in crate::queue) const EPSILON: usize = 6;
}

/// Parameters of `collapse_streams`.
pub(super) mod collapse {
    pub(in crate::queue) const STREAMS: usize = 0;
    pub(in crate::queue) const GATES: usize = 1;
    pub(in crate::queue) const Y: usize = 2;
    pub(in crate::queue) const ROWS: usize = 3;
    pub(in crate::queue) const WIDTH: usize = 4;
    pub(in crate::queue) const COUNT: usize = 5;
    pub(in crate::queue) const GATES_WIDTH: usize = 6;
}

/// The launches that become one, but for what may stand before them.
const PATTERN: [&str; 6] = ["spread_streams", "rms_norm", "floats", "stream_gates", "collapse_streams", "rms_norm"];

/// How many of the last calls may become one with what comes next.
pub(super) fn open(calls: &[Call]) -> usize {
    // A block's result is brought into the streams, or they are new.
    let begins = |count: usize, pattern: &[&str]| {
        let last = &calls[calls.len() - count..];
        last.iter().zip(pattern).all(|(call, entry)| call.entry == *entry)
    };
    (1..PATTERN.len().min(calls.len() + 1))
        .rev()
        .find(|n| begins(*n, &PATTERN) || *n < PATTERN.len() - 1 && begins(*n, &PATTERN[1..]))
        .unwrap_or(0)
}

/// Two neighbours as one launch.
pub(super) fn joined(last: &Call, next: &Call) -> Option<Call> {
    match (last.entry, next.entry) {
        ("combine", "add") => with_summand(last, next),
        ("combine", "spread_streams") => with_parts(last, next),
        _ => None,
    }
}

/// What experts gave, and a summand behind it.
fn with_summand(combine: &Call, add: &Call) -> Option<Call> {
    let (c, [x, added, count, ..]) = (&combine.args, add.args);
    let is_whole = count == c[combine::ROWS] * c[combine::WIDTH];
    let can = x == c[combine::Y] && added != x && c[combine::ADDED] == 0 && is_whole;
    can.then(|| {
        let mut both = combine.clone();
        both.args[combine::ADDED] = added;
        both
    })
}

/// What experts gave, as it goes into the streams.
fn with_parts(combine: &Call, spread: &Call) -> Option<Call> {
    let (c, s) = (&combine.args, &spread.args);
    let is_same = [(combine::Y, spread::Y), (combine::ROWS, spread::ROWS), (combine::WIDTH, spread::WIDTH)];
    let read = [combine::PARTS, combine::WEIGHTS, combine::ADDED].map(|at| c[at]);
    let is_apart = ![s[spread::STREAMS], s[spread::Y]].iter().any(|written| read.contains(written));
    let can = is_same.iter().all(|(a, b)| c[*a] == s[*b]) && s[spread::PARTS] == 0 && is_apart;
    can.then(|| {
        let mut both = spread.clone();
        let parts = [
            (spread::PARTS, combine::PARTS),
            (spread::WEIGHTS, combine::WEIGHTS),
            (spread::ADDED, combine::ADDED),
            (spread::SLOTS, combine::SLOTS),
        ];
        parts.into_iter().for_each(|(to, from)| both.args[to] = c[from]);
        both
    })
}

/// Memory that a launch reads or writes: where it begins, and the bytes of a row.
type Place = (u64, u64);

/// The last calls as one launch, if they are what it does: it, and how many there are. `find` gives the function of a module, where the
/// card runs it.
pub(super) fn connected(calls: &[Call], find: &dyn Fn(Module) -> Option<sys::CUfunction>) -> Option<(Call, usize)> {
    let [.., first, mixed, gated, collapsed, second] = calls else { return None };
    let [norm_of_all, product, gate, sum, norm_of_sum] = [first, mixed, gated, collapsed, second].map(|c| &c.args);
    let entries = [first, mixed, gated, collapsed, second].map(|c| c.entry);
    let Module::Floats(float, _) = mixed.module else { return None };
    if entries != PATTERN[1..] {
        return None;
    }
    let before = calls.len().checked_sub(PATTERN.len()).map(|at| &calls[at]);
    let before = before.filter(|c| c.entry == PATTERN[0] && c.args[spread::STREAMS] == norm_of_all[norm::X]);
    let (rows, width, count) = (sum[collapse::ROWS], sum[collapse::WIDTH], sum[collapse::COUNT]);
    let (rounds, gates_width) = (gate[gates::ROUNDS], product[floats::ROWS]);
    let is_of_all = norm_of_all[norm::WIDTH] == count * width
        && norm_of_all[norm::X] == sum[collapse::STREAMS]
        && norm_of_all[norm::ADDED] == 0
        && u64::from(first.grid[0]) == rows;
    let is_product = product[floats::X] == norm_of_all[norm::Y]
        && [floats::BIAS, floats::STARTS].iter().all(|at| product[*at] == 0)
        && [floats::DEPTH, floats::X_WIDTH].iter().all(|at| product[*at] == count * width)
        && (product[floats::TOKENS], product[floats::FROM], mixed.grid[2]) == (rows, NO_BLOCK as u64, 1);
    let is_gated = (gate[gates::MIX], gate[gates::COUNT]) == (product[floats::Y], count)
        && gates_width == if rounds > 0 { count * (2 + count) } else { count }
        && u64::from(gated.grid[0]) == rows;
    let is_summed = (sum[collapse::GATES], sum[collapse::GATES_WIDTH]) == (gate[gates::Y], gates_width);
    let is_normed = (norm_of_sum[norm::X], norm_of_sum[norm::ADDED]) == (sum[collapse::Y], 0)
        && norm_of_sum[norm::WIDTH] == width
        && u64::from(second.grid[0]) == rows;
    let is_spread = before.is_none_or(|c| {
        [(spread::ROWS, rows), (spread::WIDTH, width), (spread::COUNT, count)].iter().all(|(at, v)| c.args[*at] == *v)
    });
    let is_all = is_of_all && is_product && is_gated && is_summed && is_normed && is_spread;
    let shared_bytes = connect::shared_bytes(count as usize, width as usize)?;
    if !is_all || rows > ROWS_MAX as u64 {
        return None;
    }
    let mut args = [0; ARGS_MAX];
    let mut count_of_args = 0;
    let mut put = |values: &[u64]| {
        args[count_of_args..][..values.len()].copy_from_slice(values);
        count_of_args += values.len();
    };
    put(&[norm_of_all[norm::X]]);
    let of_spread = [spread::Y, spread::GATES, spread::PARTS, spread::WEIGHTS, spread::ADDED, spread::SLOTS];
    put(&of_spread.map(|at| before.map_or(0, |c| c.args[at])));
    put(&[norm::WEIGHT, norm::Y, norm::CODES, norm::SCALES, norm::MINIMA, norm::EPSILON].map(|at| norm_of_all[at]));
    put(&[product[floats::WEIGHTS], product[floats::Y]]);
    put(&[gates::SCALE, gates::BASE, gates::Y, gates::ROUNDS, gates::EPSILON].map(|at| gate[at]));
    put(&[sum[collapse::Y]]);
    put(&[norm::WEIGHT, norm::Y, norm::CODES, norm::SCALES, norm::MINIMA, norm::EPSILON].map(|at| norm_of_sum[at]));
    put(&[width]);
    if !is_apart(before, &[first, mixed, gated, collapsed, second], rows) {
        return None;
    }
    let streams = u8::try_from(count).ok().filter(|n| connect::STREAMS.contains(n))?;
    let module = Module::Connect(float, streams);
    let call = Call {
        module,
        entry: module.entries()[0],
        function: find(module)?,
        grid: [BLOCKS as u32, rows as u32, 1],
        threads: THREADS as u32,
        shared_bytes: shared_bytes as u32,
        cluster: 1,
        args,
        count: count_of_args,
        touched: vec![],
        beside: None,
    };
    Some((call, PATTERN.len() - usize::from(before.is_none())))
}

/// Whether nothing is lost where all is done at once. A row is read before the row's own results are written, but other rows may be ahead;
/// so what is read may lie where a result goes, if rows lie alike. Of a single row, what is written last may also lie where something
/// was that is given up by then.
fn is_apart(before: Option<&Call>, calls: &[&Call; 5], rows: u64) -> bool {
    let [norm_of_all, product, gate, sum, norm_of_sum] = calls.map(|c| &c.args);
    let (wide, narrow) = (4 * norm_of_all[norm::WIDTH], 4 * norm_of_sum[norm::WIDTH]);
    let (gates_bytes, none) = (4 * product[floats::ROWS], 0);
    let codes = |args: &[u64; ARGS_MAX]| [norm::CODES, norm::SCALES, norm::MINIMA].map(|at| (args[at], none));
    let is_there = |places: &[Place]| places.iter().copied().filter(|(at, _)| *at != 0).collect::<Vec<_>>();
    let mixed = [(norm_of_all[norm::Y], wide), (product[floats::Y], gates_bytes)];
    let early = is_there(&[&mixed[..], &codes(norm_of_all)].concat());
    let late = is_there(&[&[(norm_of_sum[norm::Y], narrow)][..], &codes(norm_of_sum)].concat());
    let others: [Place; 3] = [(gate[gates::Y], gates_bytes), (sum[collapse::Y], narrow), (norm_of_all[norm::X], wide)];
    let are_distinct = |places: &[Place]| (1..places.len()).all(|i| places[..i].iter().all(|r| r.0 != places[i].0));
    let results = [&early[..], &others, &late].concat();
    let differ = are_distinct(&results)
        || rows == 1 && [&early, &late].iter().all(|some| are_distinct(&[&others[..], some].concat()));
    let Some(s) = before.map(|c| &c.args) else { return differ };
    let count = s[spread::COUNT];
    let read = [
        (s[spread::Y], narrow),
        (s[spread::GATES], 4 * count * (2 + count)),
        (s[spread::PARTS], narrow * s[spread::SLOTS]),
        (s[spread::WEIGHTS], 4 * s[spread::SLOTS]),
        (s[spread::ADDED], narrow),
    ];
    let mut pairs = read.iter().flat_map(|r| results.iter().map(move |w| (r, w)));
    differ && pairs.all(|(r, w)| r.0 != w.0 || rows == 1 || r.1 == w.1)
}
