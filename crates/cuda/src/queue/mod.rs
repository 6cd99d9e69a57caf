//! Launches on their way to the card: a few are held back, so that neighbours can become one, and so that a run of launches that comes
//! again is sent as one graph.
//!
//! Nothing is reordered but what may run at once (`order.rs`). Whatever else goes to the stream, or frees memory, sends the held launches
//! first.

use cudarc::driver::sys;

use crate::{
    hash::{HashMap, Quick},
    kernels::{HALVES_HELD, Module},
    matmul::{HALF_RUN, NO_BLOCK, tile::WARP},
};

mod followed;
mod heads;
mod latent;
mod order;
mod received;
mod streams;

pub(crate) use order::Touch;
pub(crate) use received::RECEIVED_MAX;

/// Launches that are held back at most, right after the host waited for the card, which has nothing to do then: the one that fetches
/// what was sent, and eight; and at most at all.
/// In between the number grows by half with each sending: where kernels are small the host takes two thirds of their time for a launch, so
/// that with twice as many the card would wait for them.
const HELD_FIRST: usize = 9;
const HELD_MAX: usize = 256;

/// Runs shorter than this are not worth a graph.
const GRAPH_CALLS_MIN: usize = 6;

/// Runs that are remembered; where there are more, all are forgotten.
const KNOWN_MAX: usize = 512;

/// Runs of memory that launches which became one seldom touch more of.
const TOUCHED_MOST: usize = 16;

/// Parameters of a kernel, at most.
pub(crate) const ARGS_MAX: usize = 56;

/// A launch with all that it takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) module: Module,
    pub(crate) entry: &'static str,
    pub(crate) function: sys::CUfunction,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Blocks of a cluster that the launch asks for; one where the kernel says it itself.
    pub(crate) cluster: u32,
    /// The bits of its parameters, from the lowest byte on.
    pub(crate) args: [u64; ARGS_MAX],
    pub(crate) count: usize,
    /// The memory that it is called with.
    pub(crate) touched: Vec<Touch>,
    /// The parameter that tells it who runs beside it, if it has one.
    pub(crate) beside: Option<usize>,
}

/// What is held back, and graphs of what was sent before.
pub(crate) struct Queue {
    held: Vec<Call>,
    /// How many calls were held when a stage ended, for each that did; only while stages are timed.
    marks: Vec<usize>,
    /// How many are held back at most now.
    held_max: usize,
    graphs: HashMap<u64, Known>,
    /// Graphs that are to be let go of.
    gone: Vec<sys::CUgraphExec>,
    /// Whether the card has clusters of blocks.
    has_clusters: bool,
}

// SAFETY: functions and graphs are handles that the driver lets any thread use; see `Gpu`.
unsafe impl Send for Queue {}

impl Default for Queue {
    fn default() -> Queue {
        let (held, marks, graphs, gone, has_clusters) = Default::default();
        Queue { held, marks, held_max: HELD_FIRST, graphs, gone, has_clusters }
    }
}

/// A run of launches that was sent before.
struct Known {
    calls: Vec<Call>,
    /// And how many of its launches run beside others.
    graph: Option<(sys::CUgraphExec, usize)>,
}

/// What to do with a run of launches.
pub(crate) enum Sending {
    Nothing,
    /// One by one.
    Calls(Vec<Call>),
    /// As a graph, which the caller makes of them and tells by [`Queue::keep`].
    New(u64, Vec<Call>),
    /// As one that there is, of so many launches, and so many that run beside others.
    Graph(sys::CUgraphExec, usize, usize),
}

impl Queue {
    /// Of a card whose clusters of blocks are used, or one without.
    pub(crate) fn of_card(has_clusters: bool) -> Queue {
        Queue { has_clusters, ..Queue::default() }
    }

    /// Holds a launch back, or makes it one with the last; whether it is time to send. `find` gives the function of a module, where the
    /// card runs it.
    pub(crate) fn push(&mut self, call: Call, find: &dyn Fn(Module) -> Option<sys::CUfunction>) -> bool {
        let has_clusters = self.has_clusters;
        let with = |last: &Call| joined(last, &call).or_else(|| followed::joined(last, &call, has_clusters));
        match self.held.last_mut().and_then(|last| Some((with(last)?, last))) {
            Some((mut both, last)) => {
                both.touched = touched_by([&*last, &call]);
                *last = both;
            }
            None => self.held.push(call),
        }
        // Where stages are timed, what belongs to several stays apart.
        let last = &self.held[self.marked()..];
        if let Some((mut all, count)) = streams::connected(last, find).or_else(|| latent::arrived(last, find)) {
            let first = self.held.len() - count;
            all.touched = touched_by(&self.held[first..]);
            self.held.truncate(first);
            self.held.push(all);
        }
        self.held.len() > self.held_max
    }

    /// Holds a launch back as it is; whether it is time to send.
    pub(crate) fn hold(&mut self, call: Call) -> bool {
        self.held.push(call);
        self.held.len() > self.held_max
    }

    /// Calls that a stage ended behind.
    fn marked(&self) -> usize {
        self.marks.last().map_or(0, |mark| (*mark).min(self.held.len()))
    }

    /// Takes out what is sent: all, or where more may come all but what may become one with it.
    fn sent(&mut self, but_last: bool) -> Vec<Call> {
        let open = streams::open(&self.held).max(latent::open(&self.held)).max(1).min(self.held.len());
        let open = if but_last { open } else { 0 };
        let rest = self.held.split_off(self.held.len() - open);
        std::mem::replace(&mut self.held, rest)
    }

    /// A stage ends with the last launch.
    pub(crate) fn mark(&mut self) {
        self.marks.push(self.held.len());
    }

    /// The host has waited for the card.
    pub(crate) fn waited(&mut self) {
        self.held_max = HELD_FIRST;
    }

    /// As [`Queue::take`], to be timed: calls, and how many of them are before each mark.
    pub(crate) fn take_marked(&mut self, but_last: bool) -> (Vec<Call>, Vec<usize>) {
        let calls = self.sent(but_last);
        let (marks, later) = std::mem::take(&mut self.marks).into_iter().partition(|mark| *mark <= calls.len());
        self.marks = Vec::into_iter(later).map(|mark| mark - calls.len()).collect();
        self.hold_more();
        (calls, marks)
    }

    /// Takes what is held back, but for the last launches if `but_last`, which may become one with the next. What comes for the second
    /// time becomes a graph. Launches run beside each other where `in_pairs`.
    pub(crate) fn take(&mut self, with_graphs: bool, in_pairs: bool, but_last: bool) -> Sending {
        let calls = self.sent(but_last);
        let arranged = |calls| if in_pairs { order::paired(calls) } else { calls };
        if calls.is_empty() {
            return Sending::Nothing;
        }
        self.hold_more();
        if calls.len() < GRAPH_CALLS_MIN || !with_graphs {
            return Sending::Calls(arranged(calls));
        }
        let key = calls.iter().fold(0, |hash, call| call.hash(hash));
        match self.graphs.get(&key) {
            Some(Known { calls: known, graph }) if *known == calls => match graph {
                Some((graph, beside)) => Sending::Graph(*graph, ops(&calls), *beside),
                None => Sending::New(key, arranged(calls)),
            },
            _ => {
                if self.graphs.len() >= KNOWN_MAX {
                    self.forget();
                }
                let before = self.graphs.insert(key, Known { calls: calls.clone(), graph: None });
                self.gone.extend(before.and_then(|known| known.graph).map(|(graph, _)| graph));
                Sending::Calls(arranged(calls))
            }
        }
    }

    fn hold_more(&mut self) {
        self.held_max = (self.held_max * 3 / 2).min(HELD_MAX);
    }

    /// Keeps the graph of a run, of whose launches so many run beside others.
    pub(crate) fn keep(&mut self, key: u64, graph: sys::CUgraphExec, beside: usize) {
        match self.graphs.get_mut(&key) {
            Some(known) => known.graph = Some((graph, beside)),
            None => self.gone.push(graph),
        }
    }

    /// Forgets all runs.
    pub(crate) fn forget(&mut self) {
        self.gone.extend(self.graphs.drain().filter_map(|(_, known)| Some(known.graph?.0)));
    }

    /// Graphs that are to be let go of.
    pub(crate) fn gone(&mut self) -> Vec<sys::CUgraphExec> {
        std::mem::take(&mut self.gone)
    }
}

impl Call {
    fn hash(&self, hash: u64) -> u64 {
        let words =
            [self.function as u64, self.threads.into(), self.shared_bytes.into(), self.cluster.into()].into_iter();
        let words = words.chain(self.grid.map(u64::from)).chain(self.args[..self.count].iter().copied());
        words.fold(hash, Quick::with)
    }
}

/// How many of them do more than fetch what was sent.
pub(crate) fn ops(calls: &[Call]) -> usize {
    calls.iter().filter(|call| !received::fetches(call)).count()
}

/// All that launches touch.
fn touched_by<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Vec<Touch> {
    let mut all: Vec<Touch> = Vec::with_capacity(TOUCHED_MOST);
    for touch in calls.into_iter().flat_map(|call| &call.touched) {
        if !all.contains(touch) {
            all.push(*touch);
        }
    }
    all
}

/// Two neighbours as one launch, where there is one that does the same.
fn joined(last: &Call, next: &Call) -> Option<Call> {
    match (last.module, next.module) {
        (Module::Codes(..) | Module::Wide(..), Module::Codes(..) | Module::Wide(..)) => {
            joined_products(last, next, &CODES)
        }
        (Module::Floats(..), Module::Floats(..)) => joined_products(last, next, &FLOATS),
        (Module::Elementwise, Module::Elementwise) if received::fetches(last) => received::joined(last, next),
        (Module::Elementwise, Module::Norm) if last.entry == "add" => joined_norm(last, next),
        (Module::Elementwise, Module::Halves(_)) if last.entry == "gate" => gated_halves(last, next),
        _ => heads::joined(last, next).or_else(|| streams::joined(last, next)),
    }
}

/// Where the parameters of products stand that are of one matrix or of all, in a kernel that takes several matrices.
struct Places {
    /// Weights, y, bias and rows of the first matrix; those of the others follow each.
    of_matrix: [usize; 4],
    /// Where the blocks of the second matrix, and those of further ones, begin.
    from: &'static [usize],
    /// What matrices must share: the input, the lists, and the shape.
    shared: [std::ops::Range<usize>; 3],
}

/// Of `kernels/matmul/codes.cu` and `wide.cu`.
const CODES: Places = Places { of_matrix: [0, 6, 9, 14], from: &[17, 18], shared: [3..6, 12..14, 19..34] };
/// Of `kernels/matmul/floats.cu`.
const FLOATS: Places = Places { of_matrix: [0, 5, 9, 15], from: &[19, 20, 21], shared: [4..5, 13..15, 22..29] };

/// Products of one input by several matrices.
fn joined_products(last: &Call, next: &Call, places: &Places) -> Option<Call> {
    let is_same = |at: usize| last.args[at] == next.args[at];
    let place = places.from.iter().position(|at| last.args[*at] == NO_BLOCK as u64)?;
    let written = |call: &Call, matrix: usize| call.args[places.of_matrix[1] + matrix];
    let can = last.function == next.function
        && last.grid[1..] == next.grid[1..]
        && (last.threads, last.shared_bytes) == (next.threads, next.shared_bytes)
        && next.args[places.from[0]] == NO_BLOCK as u64
        && places.shared.iter().cloned().flatten().all(is_same)
        // Of two results in one place, the first was given up.
        && (0..=place).all(|matrix| written(last, matrix) != written(next, 0));
    can.then(|| {
        let mut both = last.clone();
        for at in places.of_matrix {
            both.args[at + 1 + place] = next.args[at];
        }
        both.args[places.from[place]] = last.grid[0].into();
        both.grid[0] += next.grid[0];
        both
    })
}

/// A sum, and the norm of it.
fn joined_norm(add: &Call, norm: &Call) -> Option<Call> {
    let ([x, added, count, ..], [normed, none, _, _, codes, scales, minima, width, ..]) = (add.args, norm.args);
    // A row's codes may lie where another row's summand was, which is still to be read.
    let is_apart = norm.grid[0] == 1 || ![codes, scales, minima].contains(&added);
    let can = x == normed && none == 0 && count == u64::from(norm.grid[0]) * width && is_apart;
    can.then(|| {
        let mut both = norm.clone();
        both.args[1] = added;
        both
    })
}

/// Parameters of `gate` in `kernels/elementwise/elementwise.cu`.
mod gate {
    pub(super) const X: usize = 0;
    pub(super) const UP: usize = 1;
    pub(super) const Y: usize = 2;
    pub(super) const CODES: usize = 3;
    pub(super) const ROWS: usize = 6;
    pub(super) const WIDTH: usize = 7;
    /// Where rows of both begin, the kind of gate, and its limit.
    pub(super) const REST: [usize; 4] = [8, 9, 10, 11];
}

/// Parameters of `kernels/quantize/halves.cu`.
mod halves {
    pub(super) const X: usize = 0;
    /// Numbers and scales.
    pub(super) const OUT: [usize; 2] = [1, 2];
    pub(super) const SLICES: usize = 4;
    pub(super) const DEPTH: usize = 5;
    pub(super) const UP: usize = 8;
    pub(super) const Y: usize = 9;
    pub(super) const REST: [usize; 4] = [10, 11, 12, 13];
}

/// A gate, and what it gives as f16, where a block holds a row.
fn gated_halves(last: &Call, next: &Call) -> Option<Call> {
    let (g, h) = (&last.args, &next.args);
    let held = u64::from(next.threads) / WARP as u64 * (HALVES_HELD * HALF_RUN) as u64;
    let can = (h[halves::X], h[halves::DEPTH], h[halves::SLICES]) == (g[gate::Y], g[gate::WIDTH], 1)
        && (u64::from(next.grid[0]), h[halves::UP], g[gate::CODES]) == (g[gate::ROWS], 0, 0)
        && h[halves::DEPTH] <= held
        // Whole runs, and what is read at once.
        && h[halves::DEPTH].is_multiple_of(HALF_RUN as u64)
        && [g[gate::REST[0]], g[gate::REST[1]]].iter().all(|n| n.is_multiple_of(4))
        && [gate::X, gate::UP].iter().all(|at| g[*at] % 16 == 0)
        // Other rows are still to be read.
        && !halves::OUT.iter().any(|at| [g[gate::X], g[gate::UP]].contains(&h[*at]));
    can.then(|| {
        let mut both = next.clone();
        let rest = halves::REST.into_iter().zip(gate::REST);
        let all = [(halves::X, gate::X), (halves::UP, gate::UP), (halves::Y, gate::Y)].into_iter().chain(rest);
        all.for_each(|(to, from)| both.args[to] = g[from]);
        both
    })
}

#[cfg(test)]
mod tests;
