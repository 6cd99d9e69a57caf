//! Grouped and routed projections: every way to share the work gives the reference's bits, whatever the segments hold.

use std::num::NonZero;

use tessera_cpu::{
    CpuDevice, Routes,
    isa::Isa,
    matmul::{Activations, Job, Kernels, Overrides, PackedMatrix, SegmentTable, project_segments},
    threads::Threads,
};
use tessera_formats::DType;
use tessera_ops::{
    Device, Error, ExpertGroups, LinearStack, MatrixSource, Router, Routing, Score,
    reference::{self, ReferenceDevice},
};

use crate::{
    tensors::{devices, read, same, tensor},
    weights::{activations, matrix},
};

/// Formats with every kind of layout: nibbles, bytes, halves, minima, floats.
const FORMATS: [DType; 6] = [DType::Q4_K, DType::Q8_0, DType::Q6_K, DType::Q2_K, DType::Q4_1, DType::BF16];

const SWITCHES: [&str; 6] = [
    "",
    "split=weights",
    "split=tokens",
    "moe_tile=16",
    "moe_tile=32,split=tokens",
    "tile=3,moe_tile=64,split=weights",
];

fn linear<D: Device>(device: &D, source: &MatrixSource, count: usize, bias: Option<&[f32]>) -> LinearStack<D> {
    LinearStack {
        matrices: device.load_stack(source, count).unwrap(),
        bias: bias.map(|b| device.load_vector(b).unwrap()),
    }
}

fn with_switches() -> Vec<CpuDevice> {
    let device = |isa: &Isa, threads: usize, text: &str| {
        let kernels = Kernels { overrides: Overrides::parse(text).unwrap(), ..Kernels::new(*isa) };
        CpuDevice::with_kernels(NonZero::new(threads), kernels)
    };
    // Every switch with two threads; with one and three, two of them.
    let all = Isa::available().into_iter().flat_map(|isa| {
        let pick = move |threads| if threads == 2 { &SWITCHES[..] } else { &SWITCHES[2..4] };
        [1, 2, 3].into_iter().flat_map(move |t| pick(t).iter().map(move |s| (isa, t, *s)))
    });
    all.map(|(isa, threads, text)| device(&isa, threads, text)).collect()
}

#[test]
fn grouped_projections_give_the_reference_s_bits() {
    let devices = with_switches();
    for (dtype, groups, rows) in FORMATS.iter().flat_map(|d| [(*d, 1, 20), (*d, 3, 16), (*d, 5, 7)]) {
        let depth = dtype.block_len().max(32) * 2;
        let (source, bias) = (matrix(dtype, groups * rows, depth, 1), activations(1, groups * rows, 2));
        let x = activations(40, groups * depth, 3);
        let on_reference = linear(&ReferenceDevice, &source, groups, Some(&bias));
        let all = reference::Tensor { rows: 40, width: groups * depth, values: x.clone() };
        let want = ReferenceDevice.project_grouped(&all, &on_reference);
        for device in &devices {
            let linear = linear(device, &source, groups, Some(&bias));
            for tokens in [0, 1, 2, 8, 13, 40] {
                let x = tensor(device, tokens, groups * depth, &x[..tokens * groups * depth]);
                let what = format!("{dtype}, {groups} groups, {tokens} tokens, {}", device.name());
                let want = &want.values[..tokens * groups * rows];
                same(&read(device, &device.project_grouped(&x, &linear)), want, &what);
            }
        }
    }
}

/// Logits that send token `t` to exactly the experts `ids(t)`, in this order.
fn logits(tokens: usize, experts: usize, ids: impl Fn(usize) -> Vec<usize>) -> Vec<f32> {
    let mut logits = vec![-4.0; tokens * experts];
    for token in 0..tokens {
        for (slot, id) in ids(token).into_iter().enumerate() {
            logits[token * experts + id] = 3.0 - 0.37 * slot as f32;
        }
    }
    logits
}

fn router<D: Device>(slots: usize) -> Router<D> {
    let routing = Routing { score: Score::Softmax, slots, groups: None, normalise: true, scale: 1.5 };
    Router { routing, bias: None, factors: None }
}

/// The two ways of a layer of experts: to them (two stacks over one input) and back.
struct Experts<D: Device> {
    count: usize,
    out: [LinearStack<D>; 2],
    back: LinearStack<D>,
}

impl<D: Device> Experts<D> {
    fn new(device: &D, sources: &[MatrixSource; 3], count: usize, bias: &[Vec<f32>; 2]) -> Experts<D> {
        let [gate, up, down] = sources;
        Experts {
            count,
            out: [linear(device, gate, count, Some(&bias[0])), linear(device, up, count, None)],
            back: linear(device, down, count, Some(&bias[1])),
        }
    }

    fn run(&self, device: &D, x: &[f32], logits: &[f32], slots: usize, depth: usize) -> Vec<f32> {
        let tokens = x.len() / depth;
        let routes = device.route(&tensor(device, tokens, self.count, logits), &router(slots));
        let [gate, up] = &self.out;
        let [gate, up] = device.project_routed(&tensor(device, tokens, depth, x), [gate, up], &routes);
        let hidden = device.gate(&gate, &up, tessera_ops::Gate::Silu);
        let y = device.combine_routed(&hidden, &self.back, &routes);
        [read(device, &gate), read(device, &up), read(device, &y)].concat()
    }
}

#[test]
fn routed_projections_give_the_reference_s_bits_however_tokens_are_routed() {
    let devices = with_switches();
    let (experts, slots, rows, tokens) = (7, 2, 37, 70);
    for (index, dtype) in FORMATS.into_iter().enumerate() {
        let depth = dtype.block_len().max(64);
        let hidden = depth; // so that one format serves both ways
        let mixed = if dtype == DType::Q4_K { DType::Q6_K } else { dtype };
        let sources = [
            matrix(dtype, experts * hidden, depth, 1),
            matrix(mixed, experts * hidden, depth, 2),
            matrix(dtype, experts * rows, hidden, 3),
        ];
        let bias = [activations(1, experts * hidden, 4), activations(1, experts * rows, 5)];
        let x = activations(tokens, depth, 6);
        let spread: &dyn Fn(usize) -> Vec<usize> = &|t| vec![t % 7, (t + 1 + t / 7 % 6) % 7];
        let crowd: &dyn Fn(usize) -> Vec<usize> = &|t| vec![4, if t % 3 == 0 { 6 } else { 1 }];
        let one: &dyn Fn(usize) -> Vec<usize> = &|_| vec![6, 0];
        let on_reference = Experts::new(&ReferenceDevice, &sources, experts, &bias);
        let packed: Vec<_> = devices.iter().map(|d| (d, Experts::new(d, &sources, experts, &bias))).collect();
        for (kind, ids) in [("spread", spread), ("a crowd", crowd), ("all in one", one)] {
            for tokens in [0, 1, 3, 17, 33, 70] {
                let (logits, x) = (logits(tokens, experts, ids), &x[..tokens * depth]);
                let want = on_reference.run(&ReferenceDevice, x, &logits, slots, depth);
                assert!(want.iter().all(|v| v.is_finite()));
                // Of the many tokens every second device takes its turn.
                for (device, experts) in packed.iter().skip(index % 2).step_by(if tokens > 17 { 2 } else { 1 }) {
                    let what = format!("{dtype}, {kind}, {tokens} tokens, {}", device.name());
                    same(&experts.run(*device, x, &logits, slots, depth), &want, &what);
                }
            }
        }
    }
}

#[test]
fn a_routed_row_knows_no_neighbours() {
    let (experts, slots, depth, rows, tokens) = (5, 3, 256, 19, 30);
    let source = [1, 2, 3].map(|seed| matrix(DType::Q4_K, experts * 256, depth, seed));
    let source = [source[0].clone(), source[1].clone(), matrix(DType::Q4_K, experts * rows, 256, 9)];
    let bias = [activations(1, experts * 256, 4), activations(1, experts * rows, 5)];
    let (x, logits) = (activations(tokens, depth, 6), activations(tokens, experts, 7));
    for device in devices() {
        let layer = Experts::new(&device, &source, experts, &bias);
        let whole = layer.run(&device, &x, &logits, slots, depth);
        let sums = &whole[2 * tokens * slots * 256..];
        let mut bad = x.clone();
        bad[12 * depth + 5] = f32::NAN;
        let with_bad = layer.run(&device, &bad, &logits, slots, depth);
        for t in 0..tokens {
            let (row, l) = (&x[t * depth..][..depth], &logits[t * experts..][..experts]);
            let alone = layer.run(&device, row, l, slots, depth);
            let want = &sums[t * rows..][..rows];
            same(&alone[2 * slots * 256..], want, &format!("token {t} alone, {}", device.name()));
            let beside = &with_bad[2 * tokens * slots * 256 + t * rows..][..rows];
            if t == 12 {
                assert!(beside.iter().all(|v| v.is_nan()), "a bad row must show");
            } else {
                same(beside, want, &format!("token {t} beside a bad one, {}", device.name()));
            }
        }
    }
}

#[test]
fn routes_are_the_reference_s() {
    let (experts, tokens) = (60, 300);
    // Few different values, so that ties abound.
    let logits: Vec<f32> = activations(tokens, experts, 8).iter().map(|v| (v * 6.0).round() / 2.0).collect();
    let mut odd = logits[..3 * experts].to_vec();
    (odd[7], odd[experts + 9], odd[2 * experts]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let (bias, factors) = (activations(1, experts, 9), activations(1, experts, 10));
    for score in [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen] {
        for (slots, groups) in [
            (1, None),
            (8, None),
            (60, None),
            (4, Some(ExpertGroups { count: 6, kept: 2, judged_by: 2 })),
            (10, Some(ExpertGroups { count: 4, kept: 1, judged_by: 1 })),
        ] {
            let routing = Routing { score, slots, groups, normalise: slots != 1, scale: 0.7 };
            for (logits, extra) in [(&logits, true), (&logits, false), (&odd, true), (&odd, false)] {
                let want = routed(&ReferenceDevice, logits, experts, routing, extra.then_some((&bias, &factors)));
                for device in devices() {
                    let got = routed(&device, logits, experts, routing, extra.then_some((&bias, &factors)));
                    assert_eq!(got.0, want.0, "{routing:?}, {}", device.name());
                    same(&got.1, &want.1, &format!("{routing:?}, {}", device.name()));
                }
            }
        }
    }
}

fn routed<D: Device>(
    device: &D,
    logits: &[f32],
    experts: usize,
    routing: Routing,
    extra: Option<(&Vec<f32>, &Vec<f32>)>,
) -> (Vec<u32>, Vec<f32>) {
    let router = Router {
        routing,
        bias: extra.map(|e| device.load_vector(e.0).unwrap()),
        factors: extra.map(|e| device.load_vector(e.1).unwrap()),
    };
    let routes = device.route(&tensor(device, logits.len() / experts, experts, logits), &router);
    let (mut ids, mut weights) = (vec![], vec![]);
    device.read_routes(&routes, &mut ids, &mut weights).unwrap();
    (ids, weights)
}

/// At every edge of every pass, outputs poisoned: rows of one expert around each width, its neighbours empty.
#[test]
fn every_pass_is_covered_to_its_last_row() {
    let (experts, rows, depth) = (3, 16, 64);
    let source = matrix(DType::Q8_0, experts * rows, depth, 1);
    let on_reference = linear(&ReferenceDevice, &source, experts, None);
    let x = activations(260, depth, 2);
    let full = reference::Tensor { rows: 260, width: depth, values: x.clone() };
    let routes = reference::Routes { slots: 1, experts: vec![1; 260], weights: vec![1.0; 260] };
    let [want] = ReferenceDevice.project_routed(&full, [&on_reference], &routes);
    for isa in Isa::available() {
        for threads in [1, 2] {
            let pool = Threads::new(NonZero::new(threads).unwrap());
            let packed = PackedMatrix::pack_stack(&source, experts, &pool).unwrap();
            for cap in ["moe_tile=16", "moe_tile=32", "moe_tile=64", "moe_tile=128"] {
                let kernels = Kernels { overrides: Overrides::parse(cap).unwrap(), ..Kernels::new(isa) };
                for tokens in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
                    let routes = Routes::new(experts, 1, &vec![1; tokens], &vec![1.0; tokens]);
                    let mut out = vec![f32::NAN; tokens * rows];
                    let (x, table) = (&x[..tokens * depth], SegmentTable::routed(&routes, false));
                    let jobs = &mut [Job::new(&packed, None, &mut out)];
                    project_segments(&kernels, &pool, &mut Activations::new(), x, depth, &table, jobs);
                    let what = format!("{tokens} tokens, {cap}, {}, {threads} threads", isa.name());
                    same(&out, &want.values[..tokens * rows], &what);
                }
            }
        }
    }
}

#[test]
fn damage_in_a_stack_is_named_by_row() {
    let device = CpuDevice::new(None, None).unwrap();
    let mut source = matrix(DType::F16, 6, 2, 1);
    let mut bytes = source.bytes.to_vec();
    bytes[5 * 4..][..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    source.bytes = tessera_formats::Bytes::new(bytes);
    assert!(matches!(device.load_stack(&source, 3).err(), Some(Error::NotFinite { row: 5, .. })));
    assert!(matches!(device.load_stack(&source, 4).err(), Some(Error::Stack { rows: 6, count: 4, .. })));
}
