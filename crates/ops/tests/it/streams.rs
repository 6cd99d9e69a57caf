//! Several residual streams by hand, experts that are chosen already, and turning back.

use tessera_ops::{
    Device, Gate, Rope, RopeLayout, Rotation, Router, Routing, Score, StreamGates, reference::ReferenceDevice,
};

use crate::support::{Random, batch, close, read, tensor};

#[test]
fn the_matrix_has_a_row_for_each_source() {
    let device = ReferenceDevice;
    // Two streams of two features; gates in 1, 2; out 3, 4; source 0 goes to 10, 20, source 1 to 30, 40.
    let gates = tensor(&device, 1, 8, &[1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]);
    let mut streams = tensor(&device, 1, 4, &[1.0, 2.0, 0.5, 0.25]);
    assert_eq!(read(&device, &device.collapse_streams(&streams, &gates, 2)), [2.0, 2.5]);
    let y = tensor(&device, 1, 2, &[100.0, 1000.0]);
    device.spread_streams(&mut streams, &y, &gates, 2);
    assert_eq!(
        read(&device, &streams),
        [300.0 + 10.0 + 15.0, 3000.0 + 20.0 + 7.5, 400.0 + 20.0 + 20.0, 4000.0 + 40.0 + 10.0]
    );
    assert_eq!(read(&device, &device.copies(&y, 3)), [100.0, 1000.0].repeat(3));
}

#[test]
fn gates_have_their_scales_and_what_is_added() {
    let device = ReferenceDevice;
    let spec = StreamGates { count: 2, rounds: Some(30), epsilon: 0.25 };
    let vector = |v: &[f32]| device.load_vector(v).unwrap();
    let mix = tensor(&device, 1, 8, &[1.0, -1.0, 2.0, 0.0, 0.0, 5.0, 5.0, 0.0]);
    let base = vector(&[0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let got = read(&device, &device.stream_gates(&mix, &vector(&[2.0, 0.5, 1.0]), &base, &spec));
    let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
    close(&got[..4], &[sigmoid(2.0) + 0.25, sigmoid(1.0) + 0.25, 2.0 * sigmoid(1.0), 1.0], 1e-6, "gates");
    assert!(got[5] > got[4] && got[6] > got[7], "a source goes where its row is large: {got:?}");
    let last = StreamGates { rounds: None, ..spec };
    let mix = tensor(&device, 1, 2, &[1.0, -1.0]);
    let got = read(&device, &device.stream_gates(&mix, &vector(&[2.0]), &vector(&[0.0, 3.0]), &last));
    close(&got, &[sigmoid(2.0) + 0.25, sigmoid(1.0) + 0.25], 1e-6, "the last gates");
}

#[test]
fn turning_back_undoes_a_turn_of_a_tail() {
    let device = ReferenceDevice;
    let mut random = Random(6);
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        let rope = Rope { layout, frequencies: vec![1.0, 0.3, 0.01], magnitude: 1.0 };
        let angles = device.rope_angles(&rope, &batch(&[0; 4], 1000));
        let values = random.values(4 * 20);
        let mut x = tensor(&device, 4, 20, &values);
        let rotation = Rotation::new(10, layout).from(4);
        device.rotate(&mut x, &rotation, &angles);
        let turned = read(&device, &x);
        for (head, old) in turned.chunks(10).zip(values.chunks(10)) {
            assert_eq!(head[..4], old[..4], "what is before stays");
            assert!(head[4..].iter().zip(&old[4..]).all(|(a, b)| a != b));
        }
        device.rotate(&mut x, &rotation.inverted(), &angles);
        close(&read(&device, &x), &values, 1e-6, "turned back");
    }
}

#[test]
fn chosen_experts_are_weighed_by_their_scores() {
    let device = ReferenceDevice;
    let routing = Routing { score: Score::SqrtSoftplus, slots: 2, groups: None, normalise: true, scale: 1.5 };
    let bias = Some(device.load_vector(&[0.0, 0.0, 50.0, 0.0]).unwrap());
    let router = Router { routing, bias, factors: None };
    let logits = tensor(&device, 2, 4, &[3.0, 1.0, -2.0, 0.5, -40.0, -41.0, 5.0, -39.0]);
    let (mut experts, mut weights) = (vec![], vec![]);
    let score = |l: f32| l.exp().ln_1p().sqrt();
    let chosen = device.route_chosen(&logits, &router, vec![3, 1, 0, 1]);
    device.read_routes(&chosen, &mut experts, &mut weights).unwrap();
    assert_eq!(experts, [3, 1, 0, 1], "neither logits nor bias choose");
    let total = score(0.5) + score(1.0);
    close(&weights[..2], &[1.5 * score(0.5) / total, 1.5 * score(1.0) / total], 1e-6, "weights");
    // Scores below the least sum, 2^-14, are divided by that.
    let least = 2f32.powi(-14);
    close(&weights[2..], &[1.5 * score(-40.0) / least, 1.5 * score(-41.0) / least], 1e-9, "small weights");
    let routes = device.route(&logits, &router);
    device.read_routes(&routes, &mut experts, &mut weights).unwrap();
    assert_eq!(experts, [2, 0, 2, 3], "the bias chooses");
    let total = score(-2.0) + score(3.0);
    close(&weights[..2], &[1.5 * score(-2.0) / total, 1.5 * score(3.0) / total], 1e-6, "the bias does not weigh");
}

#[test]
fn a_limit_holds_the_gate_above_and_up_on_both_sides() {
    let device = ReferenceDevice;
    let (x, up) = (tensor(&device, 1, 4, &[20.0, -20.0, 1.0, 1.0]), tensor(&device, 1, 4, &[1.0, 1.0, 30.0, -30.0]));
    let got = read(&device, &device.gate(&x, &up, Gate::SiluClamped(10.0)));
    let silu = |v: f32| v / (1.0 + (-v).exp());
    close(&got, &[silu(10.0), silu(-20.0), 10.0 * silu(1.0), -10.0 * silu(1.0)], 1e-5, "limits");
}
