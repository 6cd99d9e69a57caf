//! Launches beside each other, where kernels start early: of two that have nothing to do with each other the second does not wait for the
//! first (`kernels/turn.cuh`).
//!
//! What a launch touches is the memory that it was called with; what it writes, its source says: parameters that are no pointers to what
//! is `const`. So a launch may go before others that it shares nothing with but what all of them read, and two such may run at once. That
//! is all that is reordered, and no bit changes. Memory of steps is given out again: what is new in a place waits for what was there.

use super::Call;
use crate::kernels::Module;

/// Launches that another is looked for among, to run beside one.
const AHEAD_MAX: usize = 8;

/// The parameter of a launch that runs beside the one before it, as `kernels/turn.cuh` has it; else 0.
const BESIDE: u64 = 1;
/// That of one whose lists are complete when it starts.
const LISTED: u64 = 2;

/// A run of the card's memory that a launch reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    /// Its first byte, and the one behind its last.
    pub(crate) bytes: [u64; 2],
    pub(crate) writes: bool,
    /// Whether it is looked up before all else.
    pub(crate) is_list: bool,
}

impl Touch {
    fn meets(&self, other: &Touch) -> bool {
        (self.writes || other.writes) && self.bytes[0] < other.bytes[1] && other.bytes[0] < self.bytes[1]
    }
}

impl Call {
    /// Whether it runs beside the one before it.
    pub(crate) fn is_beside(&self) -> bool {
        self.beside.is_some_and(|place| self.args[place] == BESIDE)
    }
}

/// Whether neither writes what the other touches.
pub(super) fn are_apart(a: &Call, b: &Call) -> bool {
    !a.touched.iter().any(|t| b.touched.iter().any(|other| t.meets(other)))
}

/// The same launches, those that may run at once in pairs of neighbours, of which the second knows.
pub(super) fn paired(mut calls: Vec<Call>) -> Vec<Call> {
    let mut at = 0;
    while at < calls.len() {
        let Some(second) = beside(&calls[at..]) else {
            at += 1;
            continue;
        };
        calls[at + 1..=at + second].rotate_right(1);
        // The first one's blocks are all there before the second's come: the smaller goes first, and leaves room.
        if work(&calls[at + 1]) < work(&calls[at]) {
            calls.swap(at, at + 1);
        }
        let place = calls[at + 1].beside.expect("a launch that can run beside another");
        calls[at + 1].args[place] = BESIDE;
        at += 2;
    }
    tell_of_lists(&mut calls);
    calls
}

/// Tells products whose lists are complete when they start. A launch starts when the one before it has its turn, so when all before that
/// are complete; behind one that lets it start at once, when that one may.
fn tell_of_lists(calls: &mut [Call]) {
    // How many of the run are complete when a launch starts; with the first of them is all that was sent before.
    let mut complete = 0;
    for i in 1..calls.len() {
        let (before, rest) = calls.split_at_mut(i);
        let (last, call) = (&before[i - 1], &mut rest[0]);
        if !(last.module.starts_next() || last.is_beside()) {
            complete = i - 1;
        }
        let Some(place) = call.beside.filter(|_| matches!(call.module, Module::Codes(..) | Module::Wide(..))) else {
            continue;
        };
        let is_written =
            |list: &Touch| before[complete..].iter().any(|c| c.touched.iter().any(|t| t.writes && t.meets(list)));
        let mut lists = call.touched.iter().filter(|t| t.is_list).peekable();
        if call.args[place] == 0 && complete > 0 && lists.peek().is_some() && !lists.any(is_written) {
            call.args[place] = LISTED;
        }
    }
}

/// The next launch that can go before all others but the first, and run beside that.
fn beside(calls: &[Call]) -> Option<usize> {
    calls[0].beside?;
    let last = AHEAD_MAX.min(calls.len() - 1);
    (1..=last).find(|i| calls[*i].beside.is_some() && calls[..*i].iter().all(|before| are_apart(before, &calls[*i])))
}

/// Threads of a launch.
fn work(call: &Call) -> u64 {
    call.grid.map(u64::from).iter().product::<u64>() * u64::from(call.threads)
}

#[cfg(test)]
mod tests {
    use super::{super::ARGS_MAX, *};

    /// The place of the word of these launches.
    const WORD: usize = 3;

    /// A launch of so many blocks that reads and writes hundreds of bytes, by number.
    fn call(entry: &'static str, blocks: u32, reads: &[u64], writes: &[u64]) -> Call {
        let touch = |writes: bool| move |i: &u64| Touch { bytes: [100 * i, 100 * i + 100], writes, is_list: false };
        Call {
            module: Module::Quantize,
            entry,
            function: std::ptr::dangling_mut(),
            grid: [blocks, 1, 1],
            threads: 128,
            shared_bytes: 0,
            cluster: 1,
            args: [0; ARGS_MAX],
            count: WORD + 1,
            touched: reads.iter().map(touch(false)).chain(writes.iter().map(touch(true))).collect(),
            beside: Some(WORD),
        }
    }

    /// The launches' names and words.
    fn told(calls: Vec<Call>) -> Vec<(&'static str, u64)> {
        paired(calls).iter().map(|call| (call.entry, call.args[WORD])).collect()
    }

    #[test]
    fn two_ways_go_side_by_side() {
        // A shared expert, and a router with the experts that it chooses, of one input.
        let layer = vec![
            call("shared", 64, &[1], &[2]),
            call("gate", 2, &[2], &[3]),
            call("shared down", 99, &[3], &[4]),
            call("scores", 8, &[1], &[5]),
            call("route", 1, &[5], &[6]),
            call("experts", 50, &[1, 6], &[7]),
            call("experts down", 60, &[7, 6], &[8]),
            call("sum", 1, &[4, 8], &[9]),
        ];
        let (first, second) = (0, BESIDE);
        let expected = [
            ("scores", first),
            ("shared", second),
            ("route", first),
            ("gate", second),
            ("experts", first),
            ("shared down", second),
            ("experts down", 0),
            ("sum", 0),
        ];
        assert_eq!(told(layer), expected);
    }

    #[test]
    fn what_shares_memory_keeps_its_order() {
        let first = || call("first", 1, &[1], &[2]);
        let apart = call("second", 1, &[1], &[3]);
        assert_eq!(told(vec![first(), apart.clone()]), [("first", 0), ("second", BESIDE)]);
        for (second, why) in [
            (call("second", 1, &[2], &[3]), "reads what is written"),
            (call("second", 1, &[3], &[2]), "writes the same"),
            (call("second", 1, &[3], &[1]), "writes what is read"),
            (Call { beside: None, ..apart.clone() }, "knows of nobody"),
        ] {
            assert_eq!(told(vec![first(), second]), [("first", 0), ("second", 0)], "{why}");
        }
        // What lies between needs what the first of the two has written, or is in the way of the second.
        let between = |touch: u64| call("between", 1, &[2], &[touch]);
        let order =
            |touch: u64| told(vec![first(), between(touch), apart.clone()]).iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(order(4), ["first", "second", "between"]);
        assert_eq!(order(1), ["first", "between", "second"]);
        assert_eq!(order(3), ["first", "between", "second"]);
        let partly = Touch { bytes: [250, 251], writes: true, is_list: false };
        assert!(!are_apart(&first(), &Call { touched: vec![partly], ..first() }), "a byte of what is written");
    }

    /// What products are told of a run in which lists are written, and then looked up.
    #[test]
    fn lists_that_are_complete_are_read_early() {
        let product = Module::all().into_iter().find(|m| matches!(m, Module::Codes(..))).expect("there are products");
        let list = |i: u64| Touch { bytes: [100 * i, 100 * i + 100], writes: false, is_list: true };
        let first = || Call { beside: None, ..call("first", 1, &[1], &[2]) };
        let route = || Call { beside: None, ..call("route", 1, &[2], &[6]) };
        let experts = |from: u64, to: u64| {
            let mut call = Call { module: product, ..call("experts", 50, &[from], &[to]) };
            call.touched.push(list(6));
            call
        };
        let words = |calls: Vec<Call>| paired(calls).iter().map(|c| c.args[WORD]).collect::<Vec<_>>();
        // Of the launch before, and of two before that; a product without lists has nothing to look up.
        assert_eq!(words(vec![first(), route(), experts(1, 7), experts(7, 8)]), [0, 0, 0, LISTED]);
        let dense = Call { module: product, ..call("dense", 50, &[7], &[8]) };
        assert_eq!(words(vec![first(), route(), experts(1, 7), dense]), [0; 4]);
        // The launch before lets the next start at once: then it starts when that one may.
        let norm = || Call { module: Module::Norm, beside: None, ..call("norm", 1, &[2], &[9]) };
        assert_eq!(words(vec![first(), route(), norm(), experts(9, 7)]), [0; 4]);
        assert_eq!(words(vec![first(), route(), first(), norm(), experts(9, 7)]), [0, 0, 0, 0, LISTED]);
        // So it is behind one that runs beside another: beside the one that writes the lists, and not beside one that begins later.
        let pair = |reads: u64, writes: u64| [call("a", 1, &[reads], &[writes]), call("b", 2, &[1], &[4])];
        assert_eq!(words([vec![first()], pair(2, 6).to_vec(), vec![experts(4, 7)]].concat()), [0, 0, BESIDE, 0]);
        let behind = [vec![first(), route()], pair(6, 3).to_vec(), vec![experts(4, 7)]].concat();
        assert_eq!(words(behind), [0, 0, 0, BESIDE, LISTED]);
        // What was sent before the run may still be on its way when the second of it starts.
        assert_eq!(words(vec![experts(1, 7), experts(7, 8), experts(8, 7)]), [0, 0, LISTED]);
    }
}
