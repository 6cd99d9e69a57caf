//! Launches on their way to the card: a few are held back, so that neighbours can become one, and so that a run of launches that comes
//! again is sent as one graph.
//!
//! Nothing is reordered. Whatever else goes to the stream, or frees memory, sends the held launches first.

use cudarc::driver::sys;

use crate::{
    hash::{HashMap, Quick},
    kernels::Module,
    matmul::NO_BLOCK,
};

/// Launches that are held back at most: the card begins with the first while the host prepares the next.
const HELD_MAX: usize = 24;

/// Runs shorter than this are not worth a graph.
const GRAPH_CALLS_MIN: usize = 6;

/// Runs that are remembered; where there are more, all are forgotten.
const KNOWN_MAX: usize = 512;

/// Parameters of a kernel, at most.
pub(crate) const ARGS_MAX: usize = 32;

/// A launch with all that it takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) module: Module,
    pub(crate) entry: &'static str,
    pub(crate) function: sys::CUfunction,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// The bits of its parameters, from the lowest byte on.
    pub(crate) args: [u64; ARGS_MAX],
    pub(crate) count: usize,
}

/// What is held back, and graphs of what was sent before.
#[derive(Default)]
pub(crate) struct Queue {
    held: Vec<Call>,
    graphs: HashMap<u64, Known>,
    /// Graphs that are to be let go of.
    gone: Vec<sys::CUgraphExec>,
}

// SAFETY: functions and graphs are handles that the driver lets any thread use; see `Gpu`.
unsafe impl Send for Queue {}

/// A run of launches that was sent before.
struct Known {
    calls: Vec<Call>,
    graph: Option<sys::CUgraphExec>,
}

/// What to do with a run of launches.
pub(crate) enum Sending {
    Nothing,
    /// One by one.
    Calls(Vec<Call>),
    /// As a graph, which the caller makes of them and tells by [`Queue::keep`].
    New(u64, Vec<Call>),
    Graph(sys::CUgraphExec),
}

impl Queue {
    /// Holds a launch back, or makes it one with the last; whether it is time to send.
    pub(crate) fn push(&mut self, call: Call) -> bool {
        match self.held.last_mut().and_then(|last| joined(last, &call)) {
            Some(both) => *self.held.last_mut().expect("there is a last one") = both,
            None => self.held.push(call),
        }
        self.held.len() >= HELD_MAX
    }

    /// Takes what is held back. What comes for the second time becomes a graph.
    pub(crate) fn take(&mut self, with_graphs: bool) -> Sending {
        let calls = std::mem::take(&mut self.held);
        if calls.is_empty() {
            return Sending::Nothing;
        }
        if calls.len() < GRAPH_CALLS_MIN || !with_graphs {
            return Sending::Calls(calls);
        }
        let key = calls.iter().fold(0, |hash, call| call.hash(hash));
        match self.graphs.get(&key) {
            Some(Known { calls: known, graph }) if *known == calls => match graph {
                Some(graph) => Sending::Graph(*graph),
                None => Sending::New(key, calls),
            },
            _ => {
                if self.graphs.len() >= KNOWN_MAX {
                    self.forget();
                }
                let before = self.graphs.insert(key, Known { calls: calls.clone(), graph: None });
                self.gone.extend(before.and_then(|known| known.graph));
                Sending::Calls(calls)
            }
        }
    }

    /// Keeps the graph of a run.
    pub(crate) fn keep(&mut self, key: u64, graph: sys::CUgraphExec) {
        match self.graphs.get_mut(&key) {
            Some(known) => known.graph = Some(graph),
            None => self.gone.push(graph),
        }
    }

    /// Forgets all runs.
    pub(crate) fn forget(&mut self) {
        self.gone.extend(self.graphs.drain().filter_map(|(_, known)| known.graph));
    }

    /// Graphs that are to be let go of.
    pub(crate) fn gone(&mut self) -> Vec<sys::CUgraphExec> {
        std::mem::take(&mut self.gone)
    }
}

impl Call {
    fn hash(&self, hash: u64) -> u64 {
        let words = [self.function as u64, self.threads.into(), self.shared_bytes.into()].into_iter();
        let words = words.chain(self.grid.map(u64::from)).chain(self.args[..self.count].iter().copied());
        words.fold(hash, Quick::with)
    }
}

/// Two neighbours as one launch, where there is one that does the same.
fn joined(last: &Call, next: &Call) -> Option<Call> {
    match (last.module, next.module) {
        (Module::Codes(..), Module::Codes(..)) => joined_products(last, next),
        (Module::Elementwise, Module::Norm) if last.entry == "add" => joined_norm(last, next),
        _ => None,
    }
}

/// Positions of the parameters of `kernels/matmul/codes.cu` that are of one matrix: weights, y, bias, rows.
const OF_MATRIX: [usize; 4] = [0, 6, 9, 14];
/// Where the second matrix's and the third's blocks begin.
const FROM: [usize; 2] = [17, 18];
/// The parameters that matrices must share: the input, no lists, and the shape.
const SHARED: [std::ops::Range<usize>; 3] = [3..6, 12..14, 19..26];

/// Products of one input by several matrices.
fn joined_products(last: &Call, next: &Call) -> Option<Call> {
    let is_same = |at: usize| last.args[at] == next.args[at];
    let place = FROM.iter().position(|at| last.args[*at] == NO_BLOCK as u64)?;
    let written = |call: &Call, matrix: usize| call.args[OF_MATRIX[1] + matrix];
    let can = last.function == next.function
        && last.grid[1..] == next.grid[1..]
        && (last.threads, last.shared_bytes) == (next.threads, next.shared_bytes)
        && next.args[FROM[0]] == NO_BLOCK as u64
        && SHARED.into_iter().flatten().all(is_same)
        && next.args[12] == 0
        // Of two results in one place, the first was given up.
        && (0..=place).all(|matrix| written(last, matrix) != written(next, 0));
    can.then(|| {
        let mut both = last.clone();
        for at in OF_MATRIX {
            both.args[at + 1 + place] = next.args[at];
        }
        both.args[FROM[place]] = last.grid[0].into();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{layout::Layout, tile::CodesTile};

    fn call(module: Module, entry: &'static str, grid: u32, args: &[u64]) -> Call {
        let mut all = [0; ARGS_MAX];
        all[..args.len()].copy_from_slice(args);
        let function = std::ptr::dangling_mut();
        Call {
            module,
            entry,
            function,
            grid: [grid, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args: all,
            count: args.len(),
        }
    }

    fn product(weights: u64, x: u64, y: u64, blocks: u32) -> Call {
        let layout = Layout::all()[0];
        let mut args = [0u64; 26];
        (args[0], args[3], args[6], args[14]) = (weights, x, y, 100 * weights);
        (args[17], args[18]) = (NO_BLOCK as u64, NO_BLOCK as u64);
        call(Module::Codes(layout, CodesTile::for_columns(layout, 1)), "codes", blocks, &args)
    }

    #[test]
    fn products_of_an_input_become_one() {
        let mut queue = Queue::default();
        for (weights, blocks) in [(1, 10), (2, 4), (3, 5), (4, 6)] {
            queue.push(product(weights, 7, 20 + weights, blocks));
        }
        let [three, one] = &queue.held[..] else { panic!("three become one, and the fourth begins anew") };
        assert_eq!((three.grid[0], &three.args[..3], &three.args[6..9]), (19, &[1, 2, 3][..], &[21, 22, 23][..]));
        assert_eq!((&three.args[14..17], &three.args[17..19]), (&[100, 200, 300][..], &[10, 14][..]));
        assert_eq!(one.args[0], 4);
        for other in [product(2, 8, 22, 4), product(2, 7, 21, 4)] {
            let mut queue = Queue::default();
            queue.push(product(1, 7, 21, 10));
            queue.push(other);
            assert_eq!(queue.held.len(), 2, "another input, or a result in the same place");
        }
    }

    #[test]
    fn a_sum_joins_its_norm_where_nothing_is_lost() {
        let add = call(Module::Elementwise, "add", 1, &[5, 6, 64]);
        let norm = |rows, codes| {
            call(Module::Norm, "rms_norm", rows, &[5, 0, 8, 9, codes, 11, 12, 64 / u64::from(rows), 0, 1])
        };
        assert_eq!(joined(&add, &norm(1, 6)).unwrap().args[1], 6);
        assert_eq!(joined(&add, &norm(2, 10)).unwrap().args[1], 6);
        assert!(joined(&add, &norm(2, 6)).is_none(), "codes where the summand is");
        let other = call(Module::Elementwise, "add", 1, &[4, 6, 64]);
        assert!(joined(&other, &norm(1, 10)).is_none());
        assert!(joined(&norm(1, 10), &add).is_none());
    }

    #[test]
    fn what_comes_again_becomes_a_graph() {
        let mut queue = Queue::default();
        let run = |queue: &mut Queue, y: u64| {
            assert!(!(0..10).any(|i| queue.push(call(Module::Rope, "rotate", 1, &[y + i]))));
            queue.take(true)
        };
        assert!(matches!(run(&mut queue, 100), Sending::Calls(c) if c.len() == 10));
        let Sending::New(key, _) = run(&mut queue, 100) else { panic!("the second time") };
        queue.keep(key, std::ptr::dangling_mut());
        assert!(matches!(run(&mut queue, 100), Sending::Graph(_)));
        assert!(matches!(run(&mut queue, 200), Sending::Calls(_)));
        assert!(matches!(queue.take(true), Sending::Nothing));
        assert!(queue.gone().is_empty());
        for y in 0..2 * KNOWN_MAX as u64 {
            run(&mut queue, 1000 + 100 * y);
        }
        assert_eq!(queue.gone().len(), 1, "what is remembered has a bound");
        assert!(queue.graphs.len() <= KNOWN_MAX);
    }
}
