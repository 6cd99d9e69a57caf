//! A shared expert runs beside the router and the experts that it chooses, and not a bit changes: on a card, or on the emulated one, which
//! holds each launch to what it may touch before earlier work is done.

use tessera_formats::DType;
use tessera_ops::{
    Batch, Device, Gate, Linear, LinearStack, MatrixSource, Role, Router, Routing, Score, reference::ReferenceDevice,
};

const WIDTH: usize = 256;
const EXPERTS: usize = 8;

fn floats(seed: usize, rows: usize, depth: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * depth).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "plain".to_owned(), dtype: DType::F32, rows, depth, bytes: bytes.into() }
}

fn codes(seed: usize, rows: usize, depth: usize) -> MatrixSource {
    let block = |b: usize| [0x00, 0x20].into_iter().chain((0..32).map(move |i| (b * 31 + i * 7 + seed * 3) as u8));
    let bytes: Vec<u8> = (0..rows * depth / 32).flat_map(block).collect();
    MatrixSource { name: "codes".to_owned(), dtype: DType::Q8_0, rows, depth, bytes: bytes.into() }
}

/// A layer: a shared expert, and routed ones.
struct Layer<D: Device> {
    norm: D::Vector,
    shared: [Linear<D>; 3],
    scores: Linear<D>,
    router: Router<D>,
    experts: [LinearStack<D>; 3],
}

impl<D: Device> Layer<D> {
    fn new(device: &D, seed: usize) -> Layer<D> {
        let linear = |source| Linear { matrix: device.load_matrix(&source).unwrap(), bias: None };
        let stack = |seed| {
            let matrices = device.load_stack(&codes(seed, EXPERTS * WIDTH, WIDTH), EXPERTS).unwrap();
            LinearStack { matrices, bias: None }
        };
        let routing = Routing { score: Score::SqrtSoftplus, slots: 3, groups: None, normalise: true, scale: 1.5 };
        Layer {
            norm: device.load_vector(&[0.5; WIDTH]).unwrap(),
            shared: [1, 2, 3].map(|i| linear(codes(seed + i, WIDTH, WIDTH))),
            scores: linear(floats(seed, EXPERTS, WIDTH)),
            router: Router { routing, bias: None, factors: None },
            experts: [4, 5, 6].map(|i| stack(seed + i)),
        }
    }

    /// `wait` is called behind each op.
    fn forward(&self, ops: &D, x: &mut D::Tensor, wait: &dyn Fn()) {
        let gate = Gate::SiluClamped(3.0);
        let normed = ops.rms_norm(x, &self.norm, 1e-5);
        wait();
        let shared = {
            let [a, b] = ops.project(&normed, [&self.shared[0], &self.shared[1]]);
            wait();
            let gated = ops.gate(&a, &b, gate);
            wait();
            let [y] = ops.project(&gated, [&self.shared[2]]);
            wait();
            y
        };
        let [scores] = ops.project(&normed, [&self.scores]);
        wait();
        let routes = ops.route(&scores, &self.router);
        wait();
        let [a, b] = ops.project_routed(&normed, [&self.experts[0], &self.experts[1]], &routes);
        wait();
        let gated = ops.gate(&a, &b, gate);
        wait();
        let mut y = ops.combine_routed(&gated, &self.experts[2], &routes);
        wait();
        ops.add(&mut y, &shared);
        ops.add(x, &y);
        wait();
    }
}

/// What layers make of some rows, so many times.
fn computed<D: Device>(ops: &D, layers: &[Layer<D>], rows: usize, times: usize, wait: &dyn Fn()) -> Vec<Vec<u32>> {
    let mut batch = Batch::default();
    (0..rows).for_each(|row| batch.push(&[row as u32], 3, &[0], Role::Decode, 0));
    let table = ops.load_embedding(&floats(9, rows, WIDTH)).unwrap();
    let once = |_| {
        let mut x = ops.embed(&table, &batch, 1.0);
        layers.iter().for_each(|layer| layer.forward(ops, &mut x, wait));
        let mut out = vec![];
        ops.read(&x, &mut out).unwrap();
        out.iter().map(|v| v.to_bits()).collect()
    };
    (0..times).map(once).collect()
}

fn layers<D: Device>(device: &D) -> Vec<Layer<D>> {
    (0..3).map(|i| Layer::new(device, 10 * i)).collect()
}

#[test]
fn shared_experts_run_beside_others() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let starts_early = crate::starts_early(&card);
    let (on_card, on_reference) = (layers(&card), layers(&ReferenceDevice));
    for rows in [1, 2, 5] {
        let [expected] = &computed(&ReferenceDevice, &on_reference, rows, 1, &|| {})[..] else { unreachable!() };
        let apart = computed(&card, &on_card, rows, 1, &|| card.wait().unwrap());
        assert!(apart[0] == *expected, "{rows} rows: one launch after another");
        // One by one, and then as graphs.
        for time in 0..4 {
            let before = card.counts().beside;
            let seen = computed(&card, &on_card, rows, 1, &|| {});
            assert!(seen[0] == *expected, "{rows} rows, time {time}");
            // Of a layer: scores and the shared expert's two, the choice and its gate, its last and the experts' two.
            let beside = card.counts().beside - before;
            assert!(!starts_early && beside == 0 || starts_early && (5..=9).contains(&beside), "{rows} rows: {beside}");
        }
    }
}
