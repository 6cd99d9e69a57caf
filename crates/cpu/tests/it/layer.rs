//! A layer of a transformer, all ops together: equal bits everywhere, and no allocation once warm.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
};

use tessera_cpu::{CpuDevice, isa::Isa};
use tessera_formats::DType;
use tessera_ops::{
    Attention, Batch, Device, Gate, KvFormat, KvLayout, Linear, LinearStack, Role, Rope, RopeLayout, Rotation, Router,
    Routing, Score, kv::KvEntry, reference::ReferenceDevice,
};

use crate::{
    tensors::{devices, same},
    weights::{activations, matrix},
};

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: AtomicUsize = const { AtomicUsize::new(0) };
}

// SAFETY: it is the system's allocator and a counter.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.fetch_add(1, Ordering::Relaxed));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 256;
const HIDDEN: usize = 512;
const VOCABULARY: usize = 70;
const HEAD_DIM: usize = 32;
const EXPERTS: usize = 6;
const HEADS: (usize, usize) = (8, 2);

struct Layer<D: Device> {
    embedding: D::Embedding,
    norms: [D::Vector; 4],
    /// query, key, value, output, gate, up, down
    linears: [Linear<D>; 7],
    /// A layer of experts: its router, gate, up and down; and a grouped projection.
    router: (Linear<D>, Router<D>),
    experts: [LinearStack<D>; 3],
    grouped: LinearStack<D>,
    head: Linear<D>,
    rope: Rope,
    spec: Attention,
    cache: D::KvCache,
}

impl<D: Device> Layer<D> {
    fn new(device: &D, pages: usize) -> Layer<D> {
        let (heads, kv_heads) = HEADS;
        let kv = kv_heads * HEAD_DIM;
        let vector = |n, seed| device.load_vector(&activations(1, n, seed)).unwrap();
        let linear = |dtype, rows, depth, seed| Linear {
            matrix: device.load_matrix(&matrix(dtype, rows, depth, seed)).unwrap(),
            bias: (seed % 2 == 0).then(|| vector(rows, seed)),
        };
        let stack = |dtype, count: usize, rows, depth, seed| LinearStack {
            matrices: device.load_stack(&matrix(dtype, count * rows, depth, seed), count).unwrap(),
            bias: (seed % 2 == 0).then(|| vector(count * rows, seed)),
        };
        let routing = Routing { score: Score::Sigmoid, slots: 2, groups: None, normalise: true, scale: 1.5 };
        Layer {
            router: (
                linear(DType::F32, EXPERTS, WIDTH, 10),
                Router { routing, bias: Some(vector(EXPERTS, 11)), factors: Some(vector(EXPERTS, 12)) },
            ),
            experts: [
                stack(DType::Q4_K, EXPERTS, WIDTH, WIDTH, 13),
                stack(DType::Q6_K, EXPERTS, WIDTH, WIDTH, 14),
                stack(DType::Q5_0, EXPERTS, WIDTH, WIDTH, 16),
            ],
            grouped: stack(DType::Q8_0, 2, WIDTH / 2, WIDTH / 2, 17),
            embedding: device.load_embedding(&matrix(DType::Q6_K, VOCABULARY, WIDTH, 20)).unwrap(),
            norms: [vector(WIDTH, 21), vector(HEAD_DIM, 22), vector(WIDTH, 23), vector(WIDTH, 24)],
            linears: [
                linear(DType::Q4_K, WIDTH, WIDTH, 1),
                linear(DType::Q8_0, kv, WIDTH, 2),
                linear(DType::F16, kv, WIDTH, 3),
                linear(DType::Q4_1, WIDTH, WIDTH, 4),
                linear(DType::Q5_K, HIDDEN, WIDTH, 5),
                linear(DType::IQ4_XS, HIDDEN, WIDTH, 6),
                linear(DType::Q6_K, WIDTH, HIDDEN, 7),
            ],
            head: linear(DType::Q6_K, VOCABULARY, WIDTH, 9),
            rope: Rope {
                layout: RopeLayout::Halves,
                frequencies: (0..12).map(|i| 0.5f64.powi(i)).collect(),
                magnitude: 1.0,
            },
            spec: Attention { layer: 0, heads, kv_heads, head_dim: HEAD_DIM, scale: 0.2, window: None, soft_cap: None },
            cache: device
                .kv_cache(&KvLayout::new(vec![KvEntry::pairs(kv_heads, HEAD_DIM)], KvFormat::F16), pages, 0)
                .unwrap(),
        }
    }

    fn forward(&mut self, device: &D, batch: &Batch, logits: &mut Vec<f32>) {
        let [query, key, value, output, gate, up, down] = &self.linears;
        let mut x = device.embed(&self.embedding, batch, 1.5);
        let angles = device.rope_angles(&self.rope, batch);
        let normed = device.rms_norm(&x, &self.norms[0], 1e-5);
        let [q, k, v] = device.project(&normed, [query, key, value]);
        let mut q = device.rms_norm(&q, &self.norms[1], 1e-5);
        let mut k = device.rms_norm(&k, &self.norms[1], 1e-5);
        let rotation = Rotation::new(HEAD_DIM, self.rope.layout);
        device.rotate(&mut q, &rotation, &angles);
        device.rotate(&mut k, &rotation, &angles);
        device.store_kv(&mut self.cache, 0, &k, &v, batch);
        let attended = device.attention(&q, &self.cache, &self.spec, None, batch);
        let [y] = device.project(&attended, [output]);
        device.add(&mut x, &y);
        let normed = device.rms_norm(&x, &self.norms[2], 1e-5);
        let [g, u] = device.project(&normed, [gate, up]);
        let [y] = device.project(&device.gate(&g, &u, Gate::Silu), [down]);
        device.add(&mut x, &y);
        let normed = device.rms_norm(&device.project_grouped(&x, &self.grouped), &self.norms[2], 1e-5);
        let [logits_of_experts] = device.project(&normed, [&self.router.0]);
        let routes = device.route(&logits_of_experts, &self.router.1);
        let [gate, up, down] = &self.experts;
        let [g, u] = device.project_routed(&normed, [gate, up], &routes);
        let y = device.combine_routed(&device.gate(&g, &u, Gate::Silu), down, &routes);
        device.add(&mut x, &y);
        let last = device.rms_norm(&device.logit_rows(&x, batch), &self.norms[3], 1e-5);
        let mut y = device.project_fine(&last, &self.head);
        device.soft_cap(&mut y, 30.0);
        device.read(&y, logits).unwrap();
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * 31 % VOCABULARY as u32).collect()
}

/// All logits of one sequence, `chunk` rows a step.
fn run<D: Device>(device: &D, count: usize, chunk: usize) -> Vec<f32> {
    let pages: Vec<u32> = (0..count.div_ceil(64) as u32).collect();
    let mut layer = Layer::new(device, pages.len());
    let (mut all, mut logits) = (vec![], vec![]);
    for (i, part) in tokens(count).chunks(chunk).enumerate() {
        let mut batch = Batch::default();
        batch.push(part, i * chunk, &pages, Role::Decode, part.len());
        layer.forward(device, &batch, &mut logits);
        all.extend_from_slice(&logits);
    }
    all
}

#[test]
fn a_layer_gives_the_reference_s_bits() {
    let want = run(&ReferenceDevice, 100, 100);
    assert!(want.iter().all(|v| v.is_finite()));
    for device in devices() {
        for chunk in [1, 9, 64, 100] {
            same(&run(&device, 100, chunk), &want, &format!("chunks of {chunk}, {}", device.name()));
        }
    }
}

#[test]
fn a_warm_step_allocates_nothing() {
    for threads in [1, 2] {
        let device = CpuDevice::new(NonZero::new(threads), Some(Isa::best())).unwrap();
        let mut layer = Layer::new(&device, 2);
        let mut logits = vec![];
        let mut prefill = Batch::default();
        prefill.push(&tokens(70), 0, &[0, 1], Role::Prefill, 1);
        let mut decode = Batch::default();
        decode.push(&[5], 70, &[0, 1], Role::Decode, 1);
        for batch in [&prefill, &decode, &prefill, &decode] {
            layer.forward(&device, batch, &mut logits);
        }
        let before = ALLOCATIONS.with(|n| n.load(Ordering::Relaxed));
        for batch in [&prefill, &decode, &decode] {
            layer.forward(&device, batch, &mut logits);
        }
        assert_eq!(ALLOCATIONS.with(|n| n.load(Ordering::Relaxed)) - before, 0, "{threads} threads");
    }
}
