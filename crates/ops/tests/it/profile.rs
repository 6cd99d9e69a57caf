//! The measured device: the bits of the one inside, and an entry an op.

use tessera_formats::DType;
use tessera_ops::{
    Device, Linear, LinearStack, Profiled, Router, Routing, Score,
    profile::{Entry, Label},
    reference::ReferenceDevice,
};

use crate::support::{Random, bits, read, tensor};

const TOKENS: usize = 5;
const EXPERTS: usize = 4;
const SLOTS: usize = 2;
const ROWS: usize = 6;
const DEPTH: usize = 64;

/// Every op that is lent weights, twice, so that what was lent has come back.
fn ops<D: Device>(device: &D) -> Vec<u32> {
    let mut random = Random(5);
    let matrix = random.matrix(DType::Q8_0, ROWS, DEPTH);
    let (stack, back) =
        (random.matrix(DType::Q8_0, EXPERTS * ROWS, DEPTH), random.matrix(DType::Q8_0, EXPERTS * ROWS, DEPTH));
    let mut vector = |len: usize| Some(device.load_vector(&random.values(len)).unwrap());
    let linear = Linear { matrix: device.load_matrix(&matrix).unwrap(), bias: vector(ROWS) };
    let plain = Linear { matrix: device.load_matrix(&matrix).unwrap(), bias: None };
    let out = LinearStack { matrices: device.load_stack(&stack, EXPERTS).unwrap(), bias: vector(EXPERTS * ROWS) };
    let back = LinearStack { matrices: device.load_stack(&back, EXPERTS).unwrap(), bias: vector(EXPERTS * ROWS) };
    let routing = Routing { score: Score::Sigmoid, slots: SLOTS, groups: None, normalise: true, scale: 1.0 };
    let router = Router { routing, bias: vector(EXPERTS), factors: vector(EXPERTS) };
    let norm = vector(DEPTH).unwrap();
    let mut values = |rows: usize, width: usize| tensor(device, rows, width, &random.values(rows * width));
    let (x, wide, logits) = (values(TOKENS, DEPTH), values(TOKENS, EXPERTS * DEPTH), values(TOKENS, EXPERTS));
    let inner = values(TOKENS * SLOTS, DEPTH);
    let mut found = Vec::new();
    for _ in 0..2 {
        let [a, b] = device.project(&device.rms_norm(&x, &norm, 1e-5), [&linear, &plain]);
        let routes = device.route(&logits, &router);
        let [c] = device.project_routed(&x, [&out], &routes);
        let d = device.combine_routed(&inner, &back, &routes);
        let results = [a, b, c, d, device.project_fine(&x, &linear), device.project_grouped(&wide, &out)];
        found.extend(results.iter().flat_map(|y| bits(&read(device, y))));
    }
    found
}

fn label(name: &str) -> Label {
    assert!(!name.is_empty());
    Label { layer: Some(3), stage: "weights" }
}

#[test]
fn what_is_lent_comes_back_and_gives_the_same_bits() {
    let measured = Profiled::new(ReferenceDevice, label);
    assert_eq!(ops(&measured), ops(&ReferenceDevice));
    let entries: Vec<_> =
        measured.take().unwrap().into_iter().filter(|e| !matches!(e.label.stage, "embed" | "read")).collect();
    let stages: Vec<_> = entries.iter().map(|e| e.label.stage).collect();
    let turn = ["norm", "weights", "router", "weights", "weights", "weights", "weights"];
    assert_eq!(stages, [turn, turn].concat());
    let layers = entries.iter().map(|e| e.label.layer);
    assert!(layers.clone().all(|layer| layer == Some(3)), "{layers:?}");

    // 34 bytes for 32 weights; activations in f32.
    let (matrix, x, row) = (ROWS * DEPTH / 32 * 34, TOKENS * DEPTH * 4, TOKENS * ROWS * 4);
    let products = 2 * TOKENS * ROWS * DEPTH;
    let at = |i: usize| -> (usize, usize) {
        let Entry { bytes, operations, .. } = entries[i];
        (bytes as usize, operations as usize)
    };
    assert_eq!(at(1), (x + 2 * (matrix + row), 2 * products));
    // Experts that have a token: two at least, as each token goes to two.
    let touched = (2..=EXPERTS).find(|touched| at(3).0 == x + touched * matrix + SLOTS * row);
    let touched = touched.expect("some experts are touched");
    assert_eq!(at(3).1, SLOTS * products);
    assert_eq!(at(4), (SLOTS * x + touched * matrix + SLOTS * row, SLOTS * products));
    assert_eq!(at(5), (x + matrix + row, 2 * products));
    assert_eq!(at(6), (EXPERTS * (x + matrix + row), EXPERTS * products));
}
