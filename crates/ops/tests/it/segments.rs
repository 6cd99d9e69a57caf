//! Grouped and routed projections: each row against a plain projection of its segment, and against f64.

use tessera_formats::{Bytes, DType};
use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Device, Error, ExpertGroups, Linear, LinearStack, MatrixSource, Router, Routing, Score};

use crate::support::{Random, bits, close, read, source, tensor};

const FORMATS: [DType; 4] = [DType::Q8_0, DType::Q4_K, DType::Q6_K, DType::BF16];

fn part(stack: &MatrixSource, rows: usize, index: usize) -> MatrixSource {
    let bytes = rows * stack.row_bytes().unwrap();
    MatrixSource { rows, bytes: Bytes::new(stack.bytes[index * bytes..][..bytes].to_vec()), ..stack.clone() }
}

fn stacked<D: Device>(device: &D, source: &MatrixSource, count: usize, bias: &[f32]) -> LinearStack<D> {
    LinearStack {
        matrices: device.load_stack(source, count).unwrap(),
        bias: (!bias.is_empty()).then(|| device.load_vector(bias).unwrap()),
    }
}

fn alone(source: &MatrixSource, rows: usize, index: usize, bias: &[f32], x: &[f32]) -> Vec<f32> {
    let device = ReferenceDevice;
    let bias = (!bias.is_empty()).then(|| bias[index * rows..][..rows].to_vec());
    let linear = Linear { matrix: device.load_matrix(&part(source, rows, index)).unwrap(), bias };
    let [y] = device.project(&tensor(&device, 1, x.len(), x), [&linear]);
    read(&device, &y)
}

#[test]
fn a_group_multiplies_its_slice_of_a_row() {
    let mut random = Random(11);
    let (groups, rows, tokens) = (3, 5, 4);
    for dtype in FORMATS {
        let depth = 2 * dtype.block_len().max(32);
        let weights = random.matrix(dtype, groups * rows, depth);
        let x = random.values(tokens * groups * depth);
        for bias in [vec![], random.values(groups * rows)] {
            let run = |out: &mut Vec<f32>| {
                let device = ReferenceDevice;
                let linear = stacked(&device, &weights, groups, &bias);
                *out = read(&device, &device.project_grouped(&tensor(&device, tokens, groups * depth, &x), &linear));
            };
            let mut got = vec![];
            run(&mut got);
            let want: Vec<f32> = (0..tokens * groups)
                .flat_map(|i| alone(&weights, rows, i % groups, &bias, &x[i * depth..][..depth]))
                .collect();
            assert_eq!(bits(&got), bits(&want), "{dtype}");
            let truth = Float64Device;
            let linear = stacked(&truth, &weights, groups, &bias);
            let y = truth.project_grouped(&tensor(&truth, tokens, groups * depth, &x), &linear);
            nearly(&got, &read(&truth, &y), &format!("{dtype}"));
        }
    }
}

/// Close as a whole: eight-bit activations cost about half a percent.
#[track_caller]
fn nearly(got: &[f32], want: &[f32], what: &str) {
    let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    assert!(got.len() == want.len() && (error / norm).sqrt() < 1e-2, "{what}: {}", (error / norm).sqrt());
}

fn routing(score: Score, slots: usize) -> Routing {
    Routing { score, slots, groups: None, normalise: false, scale: 1.0 }
}

fn router<D: Device>(device: &D, routing: Routing, bias: &[f32], factors: &[f32]) -> Router<D> {
    let vector = |v: &[f32]| (!v.is_empty()).then(|| device.load_vector(v).unwrap());
    Router { routing, bias: vector(bias), factors: vector(factors) }
}

/// Routes of logits (tokens, experts).
fn routed<D: Device>(
    device: &D,
    logits: &[f32],
    experts: usize,
    routing: Routing,
    bias: &[f32],
    factors: &[f32],
) -> (Vec<u32>, Vec<f32>) {
    let logits = tensor(device, logits.len() / experts, experts, logits);
    let routes = device.route(&logits, &router(device, routing, bias, factors));
    let (mut ids, mut weights) = (vec![9], vec![9.0]);
    device.read_routes(&routes, &mut ids, &mut weights).unwrap();
    (ids, weights)
}

#[test]
fn experts_meet_the_rows_that_chose_them() {
    let mut random = Random(12);
    let (experts, rows, tokens, slots) = (6, 7, 5, 3);
    for dtype in FORMATS {
        let depth = 2 * dtype.block_len().max(32);
        let (out, back) = (random.matrix(dtype, experts * rows, depth), random.matrix(dtype, experts * rows, depth));
        let (x, y) = (random.values(tokens * depth), random.values(tokens * slots * depth));
        let logits: Vec<f32> = random.values(tokens * experts).iter().map(|v| 4.0 * v).collect();
        for bias in [vec![], random.values(experts * rows)] {
            let (got, routes) = expert_layer(&ReferenceDevice, [&out, &back], [&x, &y], &logits, &bias);
            let (ids, weights) = routes;
            let mut want: Vec<f32> = vec![];
            for (place, expert) in ids.iter().enumerate() {
                want.extend(alone(&out, rows, *expert as usize, &bias, &x[place / slots * depth..][..depth]));
            }
            let mut sums = vec![0.0f32; tokens * rows];
            for (place, expert) in ids.iter().enumerate() {
                let row = alone(&back, rows, *expert as usize, &bias, &y[place * depth..][..depth]);
                for (sum, v) in sums[place / slots * rows..].iter_mut().zip(row) {
                    *sum = weights[place].mul_add(v, *sum);
                }
            }
            want.extend(sums);
            assert_eq!(bits(&got), bits(&want), "{dtype}");
            let (truth, (ids64, _)) = expert_layer(&Float64Device, [&out, &back], [&x, &y], &logits, &bias);
            assert_eq!(ids, ids64);
            nearly(&got, &truth, &format!("{dtype}"));
        }
    }
}

/// Both ways of a layer of experts, one after another, and its routes.
fn expert_layer<D: Device>(
    device: &D,
    [out, back]: [&MatrixSource; 2],
    [x, y]: [&[f32]; 2],
    logits: &[f32],
    bias: &[f32],
) -> (Vec<f32>, (Vec<u32>, Vec<f32>)) {
    let (experts, slots) = (6, 3);
    let (tokens, depth) = (logits.len() / experts, out.depth);
    let (out, back) = (stacked(device, out, experts, bias), stacked(device, back, experts, bias));
    let routing = Routing { normalise: true, scale: 2.5, ..routing(Score::Softmax, slots) };
    let routes = device.route(&tensor(device, tokens, experts, logits), &router(device, routing, &[], &[]));
    let [first, second] = device.project_routed(&tensor(device, tokens, depth, x), [&out, &out], &routes);
    assert_eq!(bits(&read(device, &first)), bits(&read(device, &second)));
    let back = device.combine_routed(&tensor(device, tokens * slots, depth, y), &back, &routes);
    let (mut ids, mut weights) = (vec![], vec![]);
    device.read_routes(&routes, &mut ids, &mut weights).unwrap();
    ([read(device, &first), read(device, &back)].concat(), (ids, weights))
}

#[test]
fn scores_by_hand() {
    let third = (3.0f32).ln();
    let device = ReferenceDevice;
    // Probabilities 1/8, 3/8, 3/8, 1/8.
    let logits = [0.0, third, third, 0.0];
    let (ids, weights) = routed(&device, &logits, 4, routing(Score::Softmax, 3), &[], &[]);
    assert_eq!(ids, [1, 2, 0]);
    close(&weights, &[0.375, 0.375, 0.125], 1e-6, "softmax");
    let normal = Routing { normalise: true, scale: 7.0, ..routing(Score::Softmax, 3) };
    close(&routed(&device, &logits, 4, normal, &[], &[]).1, &[3.0, 3.0, 1.0], 1e-5, "normalised, scaled");
    close(&routed(&device, &logits, 4, normal, &[], &[5.0, 1.0, 2.0, 0.0]).1, &[3.0, 6.0, 5.0], 1e-5, "factors");
    let (ids, weights) = routed(&device, &logits, 4, routing(Score::SoftmaxOfChosen, 3), &[], &[]);
    assert_eq!(ids, [1, 2, 0]);
    close(&weights, &[3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0], 1e-6, "softmax of the chosen");
    // Sigmoids 1/2, 3/4, 3/4, 1/2; the bias moves the choice, not the weight.
    let (ids, weights) = routed(&device, &logits, 4, routing(Score::Sigmoid, 2), &[0.0, 0.0, 0.1, 0.5], &[]);
    assert_eq!(ids, [3, 2]);
    close(&weights, &[0.5, 0.75], 1e-6, "sigmoid");
    let groups = Some(ExpertGroups { count: 2, kept: 1, judged_by: 2 });
    let limited = Routing { groups, ..routing(Score::Sigmoid, 2) };
    assert_eq!(routed(&device, &logits, 4, limited, &[0.0, 0.0, 0.0, 0.1], &[]).0, [2, 3]);
}

#[test]
fn routing_is_close_to_the_truth_and_knows_no_neighbours() {
    let mut random = Random(13);
    let (experts, tokens) = (64, 9);
    let logits: Vec<f32> = random.values(tokens * experts).iter().map(|v| 6.0 * v).collect();
    let (bias, factors) = (random.values(experts), random.values(experts));
    for score in [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen] {
        for (groups, normalise) in [
            (None, false),
            (None, true),
            (Some(ExpertGroups { count: 8, kept: 3, judged_by: 2 }), true),
            (Some(ExpertGroups { count: 4, kept: 2, judged_by: 1 }), false),
        ] {
            let routing = Routing { groups, normalise, scale: 1.7, ..routing(score, 6) };
            let got = routed(&ReferenceDevice, &logits, experts, routing, &bias, &factors);
            let want = routed(&Float64Device, &logits, experts, routing, &bias, &factors);
            assert_eq!(got.0, want.0, "{routing:?}");
            close(&got.1, &want.1, 2e-6, &format!("{routing:?}"));
            for token in 0..tokens {
                let row = &logits[token * experts..][..experts];
                let alone = routed(&ReferenceDevice, row, experts, routing, &bias, &factors);
                assert_eq!(alone.0, got.0[token * 6..][..6]);
                assert_eq!(bits(&alone.1), bits(&got.1[token * 6..][..6]));
            }
        }
    }
}

#[test]
fn scores_that_vanish_or_are_no_numbers() {
    let normal = Routing { normalise: true, ..routing(Score::Sigmoid, 2) };
    let device = ReferenceDevice;
    // Sigmoids of next to nothing: no quotient of two of them.
    let (ids, weights) = routed(&device, &[f32::NEG_INFINITY; 4], 4, normal, &[], &[]);
    assert_eq!(ids, [0, 1]);
    assert!(weights.iter().all(|w| *w < 1e-15), "{weights:?}");
    for score in [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen] {
        let (ids, weights) = routed(&device, &[0.0, 5.0, f32::NAN, 1.0], 4, routing(score, 2), &[], &[]);
        assert!(ids.contains(&2) || score == Score::Softmax, "a bad logit is chosen");
        assert!(weights.iter().any(|w| w.is_nan()), "and shows");
    }
}

#[test]
fn stacks_that_do_not_fit_are_refused() {
    let device = ReferenceDevice;
    for count in [0, 2, 4] {
        let error = device.load_stack(&source(3, 1, &[1.0, 2.0, 3.0]), count).err().unwrap();
        assert!(matches!(error, Error::Stack { rows: 3, .. }), "{error}");
    }
    let error = device.load_stack(&source(4, 1, &[1.0, 2.0, 3.0, f32::NAN]), 2).err().unwrap();
    assert!(matches!(error, Error::NotFinite { row: 3, .. }), "{error}");
}
