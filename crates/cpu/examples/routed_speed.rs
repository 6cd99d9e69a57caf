//! Speed of a layer of experts like Qwen3-30B-A3B's: 128 experts, 8 a token, 2048 x 768, Q4_K, with weights that are not in
//! the cache. `cargo run --release -p tessera-cpu --example routed_speed [THREADS]` (`TESSERA_KERNELS` forces kernels).
//!
//! First few tokens: time against one token, and the same ratio of the weight bytes that the routes touch. Then many tokens
//! under each cap of the pass, interleaved, with the results compared bit by bit. There, with one thread, time is what the
//! thread had of a core (where the system tells), so that other programs disturb less.

use std::{fs, num::NonZero, sync::OnceLock, time::Instant};

use tessera_cpu::{
    CpuDevice, Routes,
    matmul::{Kernels, Overrides},
    tensor::Tensor,
    threads::default_thread_count,
};
use tessera_formats::{Bytes, DType};
use tessera_ops::{Batch, Device, Gate, LinearStack, MatrixSource, Role, Router, Routing, Score};

const EXPERTS: usize = 128;
const SLOTS: usize = 8;
const HIDDEN: usize = 2048;
const INNER: usize = 768;
/// Routes that take turns, so that experts are cold.
const TURNS: usize = 16;
const SECONDS: f64 = 4.0;

struct Layer {
    gate: LinearStack<CpuDevice>,
    up: LinearStack<CpuDevice>,
    down: LinearStack<CpuDevice>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(default_thread_count()), |a| a.parse::<NonZero<usize>>())?;
    let device = CpuDevice::new(Some(threads), None)?;
    let layer = Layer {
        gate: stack(&device, INNER, HIDDEN, 1)?,
        up: stack(&device, INNER, HIDDEN, 2)?,
        down: stack(&device, HIDDEN, INNER, 3)?,
    };
    let expert_bytes =
        (layer.gate.matrices.bytes() + layer.up.matrices.bytes() + layer.down.matrices.bytes()) / EXPERTS;
    println!("{}, {:.1} MB an expert", device.name(), expert_bytes as f64 / 1e6);
    few_tokens(&device, &layer, expert_bytes);
    many_tokens(threads, &device, &layer);
    Ok(())
}

fn few_tokens(device: &CpuDevice, layer: &Layer, expert_bytes: usize) {
    println!("{:>7}{:>9}{:>8}{:>8}{:>9}{:>8}", "tokens", "experts", "ms", "GB/s", "t/t(1)", "bytes");
    let widths = [1, 2, 3, 4, 6, 8, 9, 16, 32];
    let inputs: Vec<Vec<_>> = widths.iter().map(|w| (0..TURNS).map(|i| input(device, *w, i)).collect()).collect();
    let touched = |turns: &[(Tensor, Tensor)]| {
        let experts =
            |logits| device.route(logits, &router()).experts().iter().collect::<std::collections::HashSet<_>>().len();
        turns.iter().map(|(_, logits)| experts(logits)).sum::<usize>() as f64 / TURNS as f64
    };
    // The best of each turn by itself: long rounds are seldom undisturbed.
    let mut best = vec![[f64::INFINITY; TURNS]; widths.len()];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < SECONDS * 3.0 {
        for (best, turns) in best.iter_mut().zip(&inputs) {
            for (best, (x, logits)) in best.iter_mut().zip(turns) {
                let turn = Instant::now();
                run(device, layer, x, &device.route(logits, &router()));
                *best = best.min(turn.elapsed().as_secs_f64());
            }
        }
    }
    let best: Vec<f64> = best.iter().map(|turns| turns.iter().sum::<f64>() / TURNS as f64).collect();
    let experts: Vec<f64> = inputs.iter().map(|t| touched(t)).collect();
    for ((tokens, seconds), experts_here) in widths.iter().zip(&best).zip(&experts) {
        let rate = experts_here * expert_bytes as f64 / seconds / 1e9;
        let (ratio, bytes) = (seconds / best[0], experts_here / experts[0]);
        println!("{tokens:>7}{experts_here:>9.1}{:>8.3}{rate:>8.1}{ratio:>9.2}{bytes:>8.2}", seconds * 1e3);
    }
}

fn many_tokens(threads: NonZero<usize>, device: &CpuDevice, layer: &Layer) {
    println!("{:>7}  {:<14}{:>9}{:>8}", "tokens", "switches", "ms", "GOPS");
    let caps = ["moe_tile=16", "moe_tile=32", "moe_tile=64", "moe_tile=128", ""];
    let devices: Vec<CpuDevice> = caps
        .iter()
        .filter_map(|text| Overrides::parse(text).ok())
        .map(|overrides| CpuDevice::with_kernels(Some(threads), Kernels { overrides, ..*device.kernels() }))
        .collect();
    for tokens in [128, 512, 2048] {
        let (x, logits) = input(device, tokens, 0);
        let routes = device.route(&logits, &router());
        let want = bits(&run(device, layer, &x, &routes));
        let mut best = vec![f64::INFINITY; devices.len()];
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < SECONDS * 2.0 {
            for (best, device) in best.iter_mut().zip(&devices) {
                let round = now(device.threads());
                let y = run(device, layer, &x, &routes);
                *best = best.min(now(device.threads()) - round);
                assert_eq!(bits(&y), want, "{}", device.name());
            }
        }
        stages(device, layer, &x, &logits);
        let products = (tokens * SLOTS * 3 * HIDDEN * INNER) as f64;
        for (cap, seconds) in caps.iter().zip(best) {
            println!("{tokens:>7}  {cap:<14}{:>9.2}{:>8.0}", seconds * 1e3, 2.0 * products / seconds / 1e9);
        }
    }
}

/// A point in time, in seconds: this thread's share of a core, or the clock.
fn now(threads: usize) -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let clock = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    let text = if threads == 1 { fs::read_to_string("/proc/thread-self/schedstat").ok() } else { None };
    let own = text.and_then(|t| t.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()));
    own.map_or(clock, |nanoseconds| nanoseconds / 1e9)
}

/// What each op takes.
fn stages(device: &CpuDevice, layer: &Layer, x: &Tensor, logits: &Tensor) {
    let mut best = [f64::INFINITY; 4];
    for _ in 0..10 {
        let mut times = [now(device.threads()); 5];
        let routes = device.route(logits, &router());
        times[1] = now(device.threads());
        let [gate, up] = device.project_routed(x, [&layer.gate, &layer.up], &routes);
        times[2] = now(device.threads());
        let hidden = device.gate(&gate, &up, Gate::Silu);
        times[3] = now(device.threads());
        device.combine_routed(&hidden, &layer.down, &routes);
        times[4] = now(device.threads());
        best.iter_mut().zip(times.windows(2)).for_each(|(best, t)| *best = best.min(t[1] - t[0]));
    }
    let [route, out, gate, back] = best.map(|seconds| seconds * 1e3);
    println!("{:>7}  route {route:.2}, gate and up {out:.2}, silu {gate:.2}, down and sum {back:.2} ms", x.rows());
}

fn run(device: &CpuDevice, layer: &Layer, x: &Tensor, routes: &Routes) -> Tensor {
    let [gate, up] = device.project_routed(x, [&layer.gate, &layer.up], routes);
    device.combine_routed(&device.gate(&gate, &up, Gate::Silu), &layer.down, routes)
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.as_slice().iter().map(|v| v.to_bits()).collect()
}

fn router() -> Router<CpuDevice> {
    let routing = Routing { score: Score::Softmax, slots: SLOTS, groups: None, normalise: true, scale: 1.0 };
    Router { routing, bias: None, factors: None }
}

/// Activations and router logits of some tokens.
fn input(device: &CpuDevice, tokens: usize, seed: usize) -> (Tensor, Tensor) {
    let tensor = |width: usize, seed: u64| {
        let mut state = seed;
        let values: Vec<u8> =
            (0..tokens * width).flat_map(|_| ((next(&mut state) >> 40) as f32 / 8e6 - 1.0).to_le_bytes()).collect();
        let name = "activations".to_owned();
        let source = MatrixSource { name, dtype: DType::F32, rows: tokens, depth: width, bytes: Bytes::new(values) };
        let mut batch = Batch::default();
        let ids: Vec<u32> = (0..tokens as u32).collect();
        batch.push(&ids, 0, &vec![0; tokens.div_ceil(64)], Role::Decode, 0);
        device.load_embedding(&source).map(|table| device.embed(&table, &batch, 1.0))
    };
    let seed = (tokens * 1000 + seed) as u64;
    match (tensor(HIDDEN, seed), tensor(EXPERTS, seed + 500)) {
        (Ok(x), Ok(logits)) => (x, logits),
        (Err(error), _) | (_, Err(error)) => panic!("finite numbers make a table: {error}"),
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state
}

/// A stack of random codes with harmless scales.
fn stack(
    device: &CpuDevice,
    rows: usize,
    depth: usize,
    seed: u64,
) -> Result<LinearStack<CpuDevice>, tessera_ops::Error> {
    let dtype = DType::Q4_K;
    let (mut state, mut bytes) = (seed, vec![0u8; dtype.row_bytes(depth).unwrap_or(0) * rows * EXPERTS]);
    bytes.fill_with(|| (next(&mut state) >> 56) as u8);
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        // Two f16: 2^-7.
        block[..4].copy_from_slice(&[0x00, 0x20, 0x00, 0x20]);
    }
    let source =
        MatrixSource { name: "experts".to_owned(), dtype, rows: rows * EXPERTS, depth, bytes: Bytes::new(bytes) };
    Ok(LinearStack { matrices: device.load_stack(&source, EXPERTS)?, bias: None })
}
