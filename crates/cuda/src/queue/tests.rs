//! What becomes one launch, what a graph, and what does not.

use super::*;
use crate::matmul::{layout::Layout, tile::CodesTile};

fn call(module: Module, entry: &'static str, grid: u32, args: &[u64]) -> Call {
    let mut all = [0; ARGS_MAX];
    all[..args.len()].copy_from_slice(args);
    let function = std::ptr::dangling_mut();
    Call { module, entry, function, grid: [grid, 1, 1], threads: 256, shared_bytes: 0, args: all, count: args.len() }
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
    let norm =
        |rows, codes| call(Module::Norm, "rms_norm", rows, &[5, 0, 8, 9, codes, 11, 12, 64 / u64::from(rows), 0, 1]);
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
        assert!(!(0..8).any(|i| queue.push(call(Module::Quantize, "quantize", 1, &[y + i]))));
        queue.take(true, false)
    };
    assert!(matches!(run(&mut queue, 100), Sending::Calls(c) if c.len() == 8));
    let Sending::New(key, _) = run(&mut queue, 100) else { panic!("the second time") };
    queue.keep(key, std::ptr::dangling_mut());
    assert!(matches!(run(&mut queue, 100), Sending::Graph(_, 8)));
    assert!(matches!(run(&mut queue, 200), Sending::Calls(_)));
    assert!(matches!(queue.take(true, false), Sending::Nothing));
    assert!(queue.gone().is_empty());
    for y in 0..2 * KNOWN_MAX as u64 {
        run(&mut queue, 1000 + 100 * y);
    }
    assert_eq!(queue.gone().len(), 1, "what is remembered has a bound");
    assert!(queue.graphs.len() <= KNOWN_MAX);
}

const PAGES: crate::kernels::Pages = crate::kernels::Pages { head_dim: 64, format: tessera_ops::KvFormat::F16 };

/// A norm of `heads` heads of each of two rows.
fn norm_of_heads(x: u64, y: u64, heads: u32) -> Call {
    call(Module::Norm, "rms_norm", 2 * heads, &[x, 0, 90, y, 0, 0, 0, 64, 5, 1])
}

fn rotation(x: u64, heads: u32) -> Call {
    let mut call = call(Module::Rope, "rotate", heads, &[x, x, 0, 80, heads.into(), 64, 0, 32, 1, 0]);
    call.grid[1] = 2;
    call
}

fn store(keys: u64, values: u64, heads: u32) -> Call {
    let mut call = call(Module::Store(PAGES), "store", heads, &[keys, values, 70, 71, 72, 73, heads.into(), 0]);
    (call.grid[1], call.count) = (2, 21);
    call
}

/// Launches that are left of some.
fn left(calls: impl IntoIterator<Item = Call>) -> Vec<Call> {
    let mut queue = Queue::default();
    calls.into_iter().for_each(|call| assert!(!queue.push(call)));
    queue.held
}

#[test]
fn what_is_done_to_heads_becomes_one() {
    let plain = left([rotation(1, 2), store(1, 3, 2), rotation(2, 6)]);
    assert_eq!((plain.len(), plain[0].grid), (1, [8, 2, 1]));
    let normed =
        left([norm_of_heads(11, 1, 2), rotation(1, 2), store(1, 3, 2), norm_of_heads(12, 2, 6), rotation(2, 6)]);
    assert_eq!((normed.len(), normed[0].grid), (1, [8, 2, 1]));
    // Keys, values; turned keys, weight, epsilon; angles and the turn; who turns; queries the same, and their heads.
    let args = &normed[0].args;
    assert_eq!((&args[..2], &args[8..16]), (&[11, 3][..], &[1, 90, 5, 80, 0, 32, 1, 3][..]));
    assert_eq!(args[16..21], [12, 2, 90, 5, 6]);
}

#[test]
fn heads_are_left_alone_where_something_would_be_lost() {
    let turned = || [rotation(1, 2), store(1, 3, 2)];
    let count = |calls: Vec<Call>| left(calls).len();
    let after = |next: Call| count(turned().into_iter().chain([next]).collect());
    assert_eq!(after(rotation(2, 6)), 1);
    assert_eq!(after(rotation(1, 2)), 2, "what was stored turns again");
    assert_eq!(after(rotation(3, 2)), 2, "values are still to be read");
    assert_eq!(after(norm_of_heads(1, 2, 2)), 2, "the norm of what turns");
    assert_eq!(after(norm_of_heads(9, 3, 2)), 2, "a norm in the values' place");
    let mut other = rotation(2, 6);
    other.args[3] = 81;
    assert_eq!(after(other), 2, "other angles");
    let mut narrow = rotation(2, 6);
    narrow.args[5] = 32;
    assert_eq!(after(narrow), 2, "heads of another size");
    // A third: there is room for keys and queries alone; the queries turn once.
    assert_eq!(count(turned().into_iter().chain([rotation(2, 6), rotation(4, 6)]).collect()), 2);
    assert_eq!(count(turned().into_iter().chain([rotation(2, 6), rotation(2, 6)]).collect()), 2);
    assert_eq!(count(vec![rotation(5, 2), store(1, 3, 2)]), 2, "other keys");
    assert_eq!(count(vec![rotation(3, 2), store(1, 3, 2)]), 2, "values that turn");
    assert_eq!(count(vec![norm_of_heads(1, 2, 2), rotation(3, 2)]), 2, "what was not normed");
}

#[test]
fn marks_stay_behind_their_launches() {
    let mut queue = Queue::default();
    queue.push(rotation(1, 2));
    queue.mark();
    queue.push(norm_of_heads(9, 4, 3));
    queue.mark();
    // The last may become one with the next; so what is marked behind it waits.
    let (calls, marks) = queue.take_marked(true);
    assert_eq!((calls.len(), marks), (1, vec![1]));
    queue.push(rotation(4, 3));
    queue.mark();
    let (calls, marks) = queue.take_marked(false);
    assert_eq!((calls.len(), marks), (1, vec![1, 1]), "the norm and its rotation");
}
