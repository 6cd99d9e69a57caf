//! What becomes one launch, what a graph, and what does not.

use super::{
    followed::codes,
    heads::norm,
    streams::{collapse, combine, floats, gates, spread},
    *,
};
use crate::matmul::{
    layout::{Float, Layout},
    tile::{CodesTile, FloatsTile},
};

/// A card that runs nothing else.
const NONE: fn(Module) -> Option<sys::CUfunction> = |_| None;

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
        cluster: 1,
        args: all,
        count: args.len(),
        touched: vec![],
        beside: None,
    }
}

fn product(weights: u64, x: u64, y: u64, blocks: u32) -> Call {
    let layout = Layout::all()[0];
    let mut args = [0u64; 29];
    (args[0], args[3], args[6], args[14]) = (weights, x, y, 100 * weights);
    (args[17], args[18]) = (NO_BLOCK as u64, NO_BLOCK as u64);
    call(Module::Codes(layout, CodesTile::for_columns(layout, "sm_90a", 1)), "codes", blocks, &args)
}

#[test]
fn products_of_an_input_become_one() {
    let mut queue = Queue::default();
    for (weights, blocks) in [(1, 10), (2, 4), (3, 5), (4, 6)] {
        queue.push(product(weights, 7, 20 + weights, blocks), &NONE);
    }
    let [three, one] = &queue.held[..] else { panic!("three become one, and the fourth begins anew") };
    assert_eq!((three.grid[0], &three.args[..3], &three.args[6..9]), (19, &[1, 2, 3][..], &[21, 22, 23][..]));
    assert_eq!((&three.args[14..17], &three.args[17..19]), (&[100, 200, 300][..], &[10, 14][..]));
    assert_eq!(one.args[0], 4);
    for other in [product(2, 8, 22, 4), product(2, 7, 21, 4)] {
        let mut queue = Queue::default();
        queue.push(product(1, 7, 21, 10), &NONE);
        queue.push(other, &NONE);
        assert_eq!(queue.held.len(), 2, "another input, or a result in the same place");
    }
}

#[test]
fn routed_products_share_lists() {
    let routed = |weights, y, starts, chosen| {
        let mut call = product(weights, 7, y, 10);
        (call.args[12], call.args[13], call.args[27]) = (starts, 60, chosen);
        call
    };
    assert_eq!(left([routed(1, 21, 50, 70), routed(2, 22, 50, 70)]).len(), 1);
    assert_eq!(left([routed(1, 21, 50, 70), routed(2, 22, 51, 70)]).len(), 2, "other lists");
    assert_eq!(left([routed(1, 21, 50, 70), routed(2, 22, 50, 0)]).len(), 2, "blocks for places, and for experts");
    assert_eq!(left([product(1, 7, 21, 10), routed(2, 22, 50, 70)]).len(), 2, "all rows, and places");
}

/// Launches that are left on a card with clusters of blocks, or without.
fn left_of(has_clusters: bool, calls: impl IntoIterator<Item = Call>) -> Vec<Call> {
    let mut queue = Queue::of_card(has_clusters);
    calls.into_iter().for_each(|call| assert!(!queue.push(call, &NONE)));
    queue.held
}

/// A product of `rows` rows by two tokens, in blocks of as many rows as a tile has.
fn product_of_two(weights: u64, y: u64, rows: u64, tile: CodesTile) -> Call {
    let mut call = product(weights, 7, y, (rows / tile.rows() as u64) as u32);
    call.module = Module::Codes(Layout::all()[0], tile);
    (call.args[codes::ROWS[0]], call.args[codes::TOKENS], call.args[codes::SLOTS]) = (rows, 2, 1);
    (call.args[codes::GROUPS], call.args[codes::TURNS], call.count) = (1, 1, 34);
    call
}

fn tile_of(rows: usize) -> CodesTile {
    CodesTile::all(Layout::all()[0], "sm_90a")
        .into_iter()
        .find(|tile| tile.rows() == rows)
        .expect("a tile of so many rows")
}

#[test]
fn a_gate_follows_its_products() {
    let gate = |x, up, y, codes, rows, width| {
        call(Module::Elementwise, "gate", 9, &[x, up, y, codes, 41, 42, rows, width, width, width, 3, 9])
    };
    let pair = |rows, tile| [product_of_two(1, 21, rows, tile), product_of_two(2, 22, rows, tile)];
    let followed = |has_clusters, rows, tile, gate| left_of(has_clusters, pair(rows, tile).into_iter().chain([gate]));
    for (tile, cluster) in [(tile_of(16), 4), (tile_of(32), 2)] {
        let [all] = &followed(true, 96, tile, gate(21, 22, 30, 40, 2, 96))[..] else { panic!("one launch") };
        assert_eq!((all.entry, all.cluster, all.grid[0]), ("codes", cluster, 2 * 96 / tile.rows() as u32));
        assert_eq!(all.args[28..34], [40, 41, 42, 30, 3, 9]);
        assert_eq!(followed(false, 96, tile, gate(21, 22, 30, 40, 2, 96)).len(), 2, "no clusters");
    }
    let wide = tile_of(32);
    for (other, why) in [
        (gate(22, 21, 30, 40, 2, 96), "the other way round"),
        (gate(21, 23, 30, 40, 2, 96), "of something else"),
        (gate(21, 22, 30, 0, 2, 96), "without codes"),
        (gate(21, 22, 30, 40, 1, 96), "of some rows"),
        (gate(21, 22, 30, 40, 2, 48), "of some numbers"),
        (gate(21, 22, 7, 40, 2, 96), "where the input is"),
        (gate(21, 22, 30, 22, 2, 96), "codes where up is"),
    ] {
        assert_eq!(followed(true, 96, wide, other).len(), 2, "{why}");
    }
    assert_eq!(followed(true, 48, tile_of(16), gate(21, 22, 30, 40, 2, 48)).len(), 2, "half a block of codes");
    let many = 32 * 400;
    assert_eq!(followed(true, many, wide, gate(21, 22, 30, 40, 2, many)).len(), 2, "several rounds of blocks");
    let three = pair(96, wide).into_iter().chain([product_of_two(3, 23, 96, wide), gate(21, 22, 30, 40, 2, 96)]);
    assert_eq!(left_of(true, three).len(), 2, "a third matrix");
    let turning = pair(96, tile_of(16)).map(|mut call| {
        call.args[codes::TURNS] = 3;
        call
    });
    let turning = turning.into_iter().chain([gate(21, 22, 30, 40, 2, 96)]);
    assert_eq!(left_of(true, turning).len(), 2, "rows that are not neighbours'");
    let behind = pair(96, wide).into_iter().chain([gate(21, 22, 30, 40, 2, 96), product_of_two(3, 23, 96, wide)]);
    assert_eq!(left_of(true, behind).len(), 2, "a product behind what follows");
}

#[test]
fn codes_follow_their_product() {
    let quantize = |x, rows, blocks, fine| call(Module::Quantize, "quantize", 9, &[x, 40, 41, 42, rows, blocks, fine]);
    let product = |tile| product_of_two(1, 21, 96, tile);
    let sliced = |tile, slices| {
        let mut call = product(tile);
        (call.args[codes::SLICED], call.grid[2]) = (1, slices);
        call
    };
    let [all] = &left_of(false, [product(tile_of(32)), quantize(21, 2, 3, 0)])[..] else { panic!("one launch") };
    assert_eq!((all.cluster, &all.args[28..32]), (1, &[40, 41, 42, 0][..]));
    let [all] = &left_of(true, [sliced(tile_of(16), 8), quantize(21, 2, 24, 0)])[..] else { panic!("one launch") };
    assert_eq!(all.cluster, 2);
    for (calls, why) in [
        ([product(tile_of(16)), quantize(21, 2, 3, 0)], "no clusters"),
        ([product(tile_of(32)), quantize(22, 2, 3, 0)], "of something else"),
        ([product(tile_of(32)), quantize(21, 1, 3, 0)], "of some rows"),
        ([product(tile_of(32)), quantize(21, 2, 3, 1)], "fine ones"),
        ([sliced(tile_of(32), 8), quantize(21, 2, 3, 0)], "of a slice"),
    ] {
        assert_eq!(left_of(false, calls).len(), 2, "{why}");
    }
}

#[test]
fn plain_weights_of_an_input_become_one() {
    let product = |weights: u64, list: u64| {
        let mut args = [0u64; 29];
        (args[floats::WEIGHTS], args[floats::X], args[floats::Y]) = (weights, 7, 20 + weights);
        (args[floats::STARTS], args[floats::ROWS]) = (list, 100 * weights);
        args[floats::FROM..][..3].fill(NO_BLOCK as u64);
        call(Module::Floats(Float::F16, FloatsTile::SINGLE), "floats", weights as u32, &args)
    };
    let held = left((1..=5).map(|weights| product(weights, 0)).collect::<Vec<_>>());
    let [four, one] = &held[..] else { panic!("four become one, and the fifth begins anew") };
    let of_each = |at: usize| &four.args[at..][..4];
    assert_eq!((four.grid[0], of_each(floats::WEIGHTS), four.args[floats::X]), (10, &[1, 2, 3, 4][..], 7));
    assert_eq!((of_each(floats::Y), of_each(floats::ROWS)), (&[21, 22, 23, 24][..], &[100, 200, 300, 400][..]));
    assert_eq!((&four.args[floats::FROM..][..3], one.args[floats::WEIGHTS]), (&[1, 3, 6][..], 5));
    assert_eq!(left([product(1, 0), product(2, 9)]).len(), 2, "all rows, and places");
}

#[test]
fn a_sum_joins_its_norm_where_nothing_is_lost() {
    let add = call(Module::Elementwise, "add", 1, &[5, 6, 64]);
    let norm =
        |rows, codes| call(Module::Norm, "rms_norm", rows, &[5, 0, 8, 9, codes, 11, 12, 64 / u64::from(rows), 0]);
    assert_eq!(joined(&add, &norm(1, 6)).unwrap().args[1], 6);
    assert_eq!(joined(&add, &norm(2, 10)).unwrap().args[1], 6);
    assert!(joined(&add, &norm(2, 6)).is_none(), "codes where the summand is");
    let other = call(Module::Elementwise, "add", 1, &[4, 6, 64]);
    assert!(joined(&other, &norm(1, 10)).is_none());
    assert!(joined(&norm(1, 10), &add).is_none());
}

#[test]
fn a_gate_joins_the_halves_of_what_it_gives() {
    let gate = |width| call(Module::Elementwise, "gate", 9, &[16, 32, 48, 0, 0, 0, 9, width, 512, 1024, 3, 7]);
    let halves = |x, out, slices, depth| {
        let mut call = call(Module::Halves(256), "halves", 9, &[x, out, 80, 0, slices, depth, 2, 1, 0, 0, 0, 0, 0, 0]);
        call.threads = 256;
        call
    };
    let both = joined(&gate(512), &halves(48, 64, 1, 512)).unwrap();
    assert_eq!((&both.args[..3], &both.args[8..14]), (&[16, 64, 80][..], &[32, 48, 512, 1024, 3, 7][..]));
    for (gate, halves, why) in [
        (gate(512), halves(47, 64, 1, 512), "of something else"),
        (gate(512), halves(48, 16, 1, 512), "where the gate's input is"),
        (gate(512), halves(48, 32, 1, 512), "where what is gated is"),
        (gate(512), halves(48, 64, 2, 256), "in slices"),
        (gate(320), halves(48, 64, 1, 320), "in parts of a run"),
        (gate(16384), halves(48, 64, 1, 16384), "of a row that no block holds"),
        (both.clone(), halves(48, 64, 1, 512), "a second time"),
    ] {
        assert!(joined(&gate, &halves).is_none(), "{why}");
    }
    let mut coded = gate(512);
    coded.args[3] = 90;
    assert!(joined(&coded, &halves(48, 64, 1, 512)).is_none(), "codes");
}

#[test]
fn what_comes_again_becomes_a_graph() {
    let mut queue = Queue::default();
    let run = |queue: &mut Queue, y: u64| {
        assert!(!(0..8).any(|i| queue.push(call(Module::Quantize, "quantize", 1, &[y + i]), &NONE)));
        queue.take(true, false, false)
    };
    assert!(matches!(run(&mut queue, 100), Sending::Calls(c) if c.len() == 8));
    let Sending::New(key, _) = run(&mut queue, 100) else { panic!("the second time") };
    queue.keep(key, std::ptr::dangling_mut(), 3);
    assert!(matches!(run(&mut queue, 100), Sending::Graph(_, 8, 3)));
    assert!(matches!(run(&mut queue, 200), Sending::Calls(_)));
    assert!(matches!(queue.take(true, false, false), Sending::Nothing));
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
    call(Module::Norm, "rms_norm", 2 * heads, &[x, 0, 90, y, 0, 0, 0, 64, 5])
}

fn rotation(x: u64, heads: u32) -> Call {
    let mut call = call(Module::Rope, "rotate", heads, &[x, x, 0, 80, heads.into(), 64, 0, 32, 1, 0, 0, 0, 0, 2]);
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
    calls.into_iter().for_each(|call| assert!(!queue.push(call, &NONE)));
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
fn what_turns_is_coded_at_once() {
    let coded = |x, rows, blocks, fine| call(Module::Quantize, "quantize", 4, &[x, 31, 32, 33, rows, blocks, fine]);
    let [both] = &left([rotation(1, 6), coded(1, 2, 12, 0)])[..] else { panic!("one launch") };
    assert_eq!((both.grid, &both.args[10..13]), ([6, 2, 1], &[31, 32, 33][..]));
    for (other, why) in [
        (coded(2, 2, 12, 0), "of something else"),
        (coded(1, 1, 12, 0), "of some rows"),
        (coded(1, 2, 6, 0), "of some heads"),
        (coded(1, 2, 12, 1), "fine ones"),
    ] {
        assert_eq!(left([rotation(1, 6), other]).len(), 2, "{why}");
    }
    // Then it is no longer what a store, or another rotation, joins.
    assert_eq!(left([rotation(1, 2), coded(1, 2, 4, 0), store(1, 3, 2)]).len(), 2);
    assert_eq!(left([rotation(1, 2), coded(1, 2, 4, 0), rotation(1, 2)]).len(), 2);
}

/// Launches of a connection of one row, four streams of 512 numbers: what experts gave, a sum, and the rest.
fn connection() -> Vec<Call> {
    let float = Module::Floats(Float::F16, FloatsTile::SINGLE);
    vec![
        call(Module::Elementwise, "combine", 1, &[90, 91, 2, 1, 512, 6, 0]),
        call(Module::Elementwise, "add", 1, &[2, 92, 512]),
        call(Module::Streams, "spread_streams", 1, &[1, 2, 3, 1, 512, 4, 0, 0, 0, 0]),
        call(Module::Norm, "rms_norm", 1, &[1, 0, 80, 10, 11, 12, 13, 2048, 5]),
        {
            let mut args = [0; 29];
            (args[floats::WEIGHTS], args[floats::X], args[floats::Y], args[floats::ROWS]) = (81, 10, 14, 24);
            args[floats::FROM..][..3].fill(NO_BLOCK as u64);
            (args[floats::DEPTH], args[floats::TOKENS], args[floats::X_WIDTH]) = (2048, 1, 2048);
            let mut product = call(float, "floats", 1, &args);
            product.grid[2] = 1;
            product
        },
        call(Module::Streams, "stream_gates", 1, &[14, 82, 83, 15, 4, 20, 6]),
        call(Module::Streams, "collapse_streams", 1, &[1, 15, 16, 1, 512, 4, 24]),
        call(Module::Norm, "rms_norm", 1, &[16, 0, 84, 17, 18, 19, 20, 512, 7]),
    ]
}

fn pushed(calls: Vec<Call>) -> Vec<Call> {
    let mut queue = Queue::default();
    calls.into_iter().for_each(|call| {
        queue.push(call, &|_| Some(std::ptr::dangling_mut()));
    });
    queue.held
}

#[test]
fn streams_are_connected() {
    let [all] = &pushed(connection())[..] else { panic!("one launch") };
    assert_eq!((all.entry, all.grid), ("connect", [8, 1, 1]));
    let want = [
        &[1, 2, 3, 90, 91, 92, 6][..],
        &[80, 10, 11, 12, 13, 5, 81, 14, 82, 83, 15, 20, 6, 16],
        &[84, 17, 18, 19, 20, 7, 512],
    ];
    assert_eq!(all.args[..all.count], want.concat());
    let [given, read] = &pushed(connection().into_iter().filter(|c| c.entry != "spread_streams").collect())[..] else {
        panic!("new streams, and what is before them")
    };
    assert_eq!((given.entry, read.entry, &read.args[..4]), ("combine", "connect", &[1, 0, 0, 0][..]));
    assert_eq!(left(connection()).len(), 6, "a card that has no such kernel");
}

#[test]
fn streams_are_left_alone_where_something_would_be_lost() {
    for (at, arg, value, why) in [
        (3, norm::X, 9, "the norm of something else"),
        (3, norm::WIDTH, 512, "a norm of parts"),
        (4, floats::X, 9, "a product of something else"),
        (4, floats::BIAS, 9, "a bias"),
        (4, floats::FROM, 3, "several matrices"),
        (4, floats::TOKENS, 2, "more rows"),
        (5, gates::MIX, 9, "gates of something else"),
        (5, gates::COUNT, 2, "gates of fewer streams"),
        (6, collapse::GATES, 9, "a sum by other gates"),
        (7, norm::X, 9, "the norm of something else"),
        (7, norm::WIDTH, 32, "a norm of heads"),
        (6, collapse::Y, 14, "results in one place"),
        (6, collapse::Y, 10, "the result where the norm is written"),
    ] {
        let mut calls = connection();
        calls[at].args[arg] = value;
        assert_eq!(pushed(calls).len(), 6, "{why}");
    }
    // Two rows: a result may lie where what is read lies, if rows lie alike.
    let two = |x: u64, y: u64| {
        let mut calls = connection();
        for (call, arg) in [(0, combine::ROWS), (2, spread::ROWS), (4, floats::TOKENS), (6, collapse::ROWS)] {
            calls[call].args[arg] = 2;
        }
        calls[1].args[2] = 1024;
        [3, 5, 7].into_iter().for_each(|i: usize| calls[i].grid[0] = 2);
        (calls[6].args[collapse::Y], calls[7].args[norm::X], calls[7].args[norm::Y]) = (x, x, y);
        pushed(calls).len()
    };
    assert_eq!((two(16, 17), two(92, 17), two(16, 3), two(16, 12)), (1, 1, 6, 6));
    // One row: also where something was that is given up.
    let mut calls = connection();
    calls[7].args[norm::CODES] = 12;
    assert_eq!(pushed(calls).len(), 1);
}

#[test]
fn what_may_become_one_is_kept_back() {
    for sent in 1..8 {
        let mut queue = Queue::default();
        for (i, call) in connection().into_iter().enumerate() {
            queue.push(call, &|_| Some(std::ptr::dangling_mut()));
            if i + 1 == sent {
                assert!(matches!(queue.take(true, false, true), Sending::Nothing), "nothing can be sent yet");
            }
        }
        assert_eq!(queue.held.len(), 1);
    }
}

#[test]
fn marks_stay_behind_their_launches() {
    let mut queue = Queue::default();
    queue.push(rotation(1, 2), &NONE);
    queue.mark();
    queue.push(norm_of_heads(9, 4, 3), &NONE);
    queue.mark();
    // The last may become one with the next; so what is marked behind it waits.
    let (calls, marks) = queue.take_marked(true);
    assert_eq!((calls.len(), marks), (1, vec![1]));
    queue.push(rotation(4, 3), &NONE);
    queue.mark();
    let (calls, marks) = queue.take_marked(false);
    assert_eq!((calls.len(), marks), (1, vec![1, 1]), "the norm and its rotation");
}
