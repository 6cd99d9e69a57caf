//! The ops that take rows, or numbers, one by one.

use std::{
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use tessera_ops::{
    Gate, RopeLayout, Rotation, Rounding, StreamGates, math, numerics::part_count, rounding::hadamard_factor,
    streams::gates_width,
};

use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::Module,
    matmul::tile::{Launch, WARP},
    roles::Roles,
    routes::Routes,
    tensor::{Tensor, blocks, each},
};

/// The kernels of `kernels/elementwise/elementwise.cu`.
pub(crate) const ELEMENTWISE: &[&str] =
    &["gate", "columns", "scale", "add", "soft_cap", "gather_rows", "add_fine", "combine", "receive", "spin"];

/// Threads of a block that norms, at most.
pub(crate) const NORM_THREADS_MAX: usize = 1024;

/// Shared memory that a run and its weights may take; what is longer is read again where it is.
const NORM_SHARED_BYTES_MAX: usize = 48 << 10;

/// Wider rows are not coded by the one block that norms them.
const CODED_MAX: usize = 8192;

pub(crate) fn rms_norm(gpu: &Arc<Gpu>, x: &Tensor, weight: &Memory, width: usize, epsilon: f32) -> Tensor {
    assert!(width > 0 && x.width.is_multiple_of(width), "a row is whole runs of the weight's length");
    let is_coded = width == x.width && width <= CODED_MAX;
    let y = if is_coded { Tensor::coded_like(gpu, x, width) } else { Tensor::like(gpu, x, x.width) };
    // Each part's sum has a place in shared memory.
    let sums = part_count(width) * size_of::<f32>();
    let held = sums + 2 * width * size_of::<f32>();
    let is_held = held <= NORM_SHARED_BYTES_MAX;
    let threads = width.next_multiple_of(WARP).min(NORM_THREADS_MAX);
    let mut args = Args::of([Arg::Memory(&x.memory), Arg::Null, Arg::Memory(weight), Arg::Memory(&y.memory)]);
    args.extend(y.code_args());
    args.extend([Arg::U32(width), Arg::F32(epsilon), Arg::U32(is_held.into())]);
    let shared_bytes = if is_held { held } else { sums };
    let launch = Launch { shared_bytes, ..blocks([x.count() / width, 1, 1], threads) };
    gpu.launch(Module::Norm, "rms_norm", launch, &args);
    y
}

pub(crate) fn rotate(gpu: &Gpu, x: &mut Tensor, rotation: &Rotation, angles: &Tensor) {
    x.codes = None;
    assert_eq!(x.rows, angles.rows, "each row has its angles");
    rotation.check(x.width, angles.width);
    let (head_dim, pairs) = (rotation.head_dim, angles.width / 2);
    let heads = x.width / head_dim;
    let count = heads * x.rows;
    let way = usize::from(rotation.layout == RopeLayout::Interleaved) + 2 * usize::from(rotation.inverse);
    let memory = Arg::Memory(&x.memory);
    let mut args = Args::of([memory, memory, Arg::Null, Arg::Memory(&angles.memory)]);
    args.extend([heads, head_dim, rotation.first, pairs, way].map(Arg::U32));
    args.extend([Arg::F32(0.0), Arg::Null, Arg::Null, Arg::Null, Arg::U32(x.rows)]);
    let is_many = count >= HEADS_MANY && head_dim <= HEAD_DIM_SHARED_MAX;
    let (warps, each) = if is_many { (HEADS_WARPS, 2) } else { (1, 1) };
    let grid = blocks([count.div_ceil(warps * each), 1, 1], warps * WARP);
    let launch = Launch { shared_bytes: warps * head_dim * size_of::<f32>(), ..grid };
    gpu.launch(Module::Rope, "rotate", launch, &args);
}

/// Heads are many from here on: a warp has two of them, and a block several warps. Fewer are spread over the card.
const HEADS_MANY: usize = 2048;
const HEADS_WARPS: usize = 4;

/// The widest heads that are taken so.
const HEAD_DIM_SHARED_MAX: usize = 512;

/// Threads of a block that rounds a head, and so the most numbers in one.
pub(crate) const ROUNDED_MAX: usize = 1024;

/// Widths of heads that a warp turns and rounds by itself, and how many of these share a block.
pub(crate) const HADAMARD_WIDTHS: RangeInclusive<usize> = WARP..=8 * WARP;
const HADAMARD_WARPS: usize = 4;

pub(crate) fn round(gpu: &Gpu, x: &mut Tensor, head_dim: usize, rounding: Rounding) {
    x.codes = None;
    assert!(
        head_dim > 0 && x.width.is_multiple_of(head_dim) && rounding.fits(head_dim),
        "a row is whole heads that can be rounded"
    );
    assert!(head_dim <= ROUNDED_MAX, "heads of at most 1024 numbers are rounded");
    let count = x.count() / head_dim;
    let launch = blocks([count, 1, 1], head_dim.next_multiple_of(WARP));
    let (memory, width) = (Arg::Memory(&x.memory), Arg::U32(head_dim));
    match rounding {
        Rounding::Fp8 { features } => {
            gpu.launch(Module::Rounding, "round_fp8", launch, &[memory, width, Arg::U32(features)]);
        }
        Rounding::HadamardFp4 => {
            let mut args = Args::of([memory, width, Arg::F32(hadamard_factor(head_dim)), Arg::U32(count)]);
            // Places for the rotation that the queue joins with it.
            args.extend([Arg::Null, Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::U32(0)]);
            // Heads of whole lanes are a warp's.
            let launch = match HADAMARD_WIDTHS.contains(&head_dim) {
                true => blocks([count.div_ceil(HADAMARD_WARPS), 1, 1], HADAMARD_WARPS * WARP),
                false => launch,
            };
            gpu.launch(Module::Rounding, "round_hadamard_fp4", launch, &args);
        }
    }
}

pub(crate) fn copies(gpu: &Arc<Gpu>, x: &Tensor, count: usize) -> Tensor {
    let y = Tensor::like(gpu, x, count * x.width);
    let args = [Arg::Memory(&x.memory), Arg::Memory(&y.memory), Arg::U32(x.rows), Arg::U32(x.width), Arg::U32(count)];
    gpu.launch(Module::Streams, "copies", each(y.count()), &args);
    y
}

pub(crate) fn stream_gates(gpu: &Arc<Gpu>, mix: &Tensor, scale: &Memory, base: &Memory, spec: &StreamGates) -> Tensor {
    let y = Tensor::like(gpu, mix, mix.width);
    let args = [
        Arg::Memory(&mix.memory),
        Arg::Memory(scale),
        Arg::Memory(base),
        Arg::Memory(&y.memory),
        Arg::U32(spec.count),
        Arg::U32(spec.rounds.unwrap_or(0)),
        Arg::F32(spec.epsilon),
    ];
    gpu.launch(Module::Streams, "stream_gates", blocks([mix.rows, 1, 1], WARP), &args);
    y
}

pub(crate) fn collapse_streams(gpu: &Arc<Gpu>, streams: &Tensor, gates: &Tensor, count: usize) -> Tensor {
    let fits = streams.rows == gates.rows && streams.width.is_multiple_of(count) && gates.width >= count;
    assert!(fits, "a gate a stream");
    let y = Tensor::like(gpu, streams, streams.width / count);
    let mut args = Args::of([Arg::Memory(&streams.memory), Arg::Memory(&gates.memory), Arg::Memory(&y.memory)]);
    args.extend([y.rows, y.width, count, gates.width].map(Arg::U32));
    gpu.launch(Module::Streams, "collapse_streams", each(y.count()), &args);
    y
}

pub(crate) fn spread_streams(gpu: &Gpu, streams: &mut Tensor, y: &Tensor, gates: &Tensor, count: usize) {
    streams.codes = None;
    assert!(streams.rows == y.rows && streams.width == count * y.width, "a row of streams for each row");
    assert_eq!((gates.rows, gates.width), (y.rows, gates_width(count)), "gates for all streams");
    let mut args = Args::of([Arg::Memory(&streams.memory), Arg::Memory(&y.memory), Arg::Memory(&gates.memory)]);
    args.extend([y.rows, y.width, count].map(Arg::U32));
    // Places for what the queue joins with it.
    args.extend([Arg::Null, Arg::Null, Arg::Null, Arg::U32(0)]);
    gpu.launch(Module::Streams, "spread_streams", each(y.count()), &args);
}

/// `gate(x) * up`, where both begin at a column of tensors of the same rows.
pub(crate) fn gate(gpu: &Arc<Gpu>, x: (&Tensor, usize), up: (&Tensor, usize), width: usize, gate: Gate) -> Tensor {
    assert_eq!(x.0.rows, up.0.rows, "gate and up have one shape");
    assert!(x.1 + width <= x.0.width && up.1 + width <= up.0.width, "columns of both");
    let y = Tensor::coded_like(gpu, x.0, width);
    let (kind, limit) = match gate {
        Gate::Silu => (0, 0.0),
        Gate::GeluTanh => (1, 0.0),
        Gate::SwigluOai => (2, math::SWIGLU_LIMIT),
        Gate::SiluClamped(limit) => (3, limit),
    };
    let mut args: Vec<_> = [x, up].map(|(t, first)| Arg::From(&t.memory, first * size_of::<f32>())).into();
    args.push(Arg::Memory(&y.memory));
    args.extend(y.code_args());
    args.extend([y.rows, width, x.0.width, up.0.width, kind].map(Arg::U32));
    args.push(Arg::F32(limit));
    gpu.launch(Module::Elementwise, "gate", each(y.count()), &args);
    y
}

pub(crate) fn columns(gpu: &Arc<Gpu>, x: &Tensor, columns: Range<usize>) -> Tensor {
    assert!(columns.end <= x.width, "columns of the tensor");
    let y = Tensor::like(gpu, x, columns.len());
    let args = [
        Arg::Memory(&x.memory),
        Arg::Memory(&y.memory),
        Arg::U32(x.rows),
        Arg::U32(y.width),
        Arg::U32(x.width),
        Arg::U32(columns.start),
    ];
    gpu.launch(Module::Elementwise, "columns", each(y.count()), &args);
    y
}

pub(crate) fn scale(gpu: &Gpu, x: &mut Tensor, factor: f32) {
    x.codes = None;
    let args = [Arg::Memory(&x.memory), Arg::U64(x.count()), Arg::F32(factor)];
    gpu.launch(Module::Elementwise, "scale", each(x.count()), &args);
}

pub(crate) fn add(gpu: &Gpu, x: &mut Tensor, y: &Tensor) {
    x.codes = None;
    assert_eq!((x.rows, x.width), (y.rows, y.width), "summands have one shape");
    let args = [Arg::Memory(&x.memory), Arg::Memory(&y.memory), Arg::U64(x.count())];
    gpu.launch(Module::Elementwise, "add", each(x.count()), &args);
}

pub(crate) fn soft_cap(gpu: &Gpu, x: &mut Tensor, cap: f32) {
    x.codes = None;
    let args = [Arg::Memory(&x.memory), Arg::U64(x.count()), Arg::F32(cap)];
    gpu.launch(Module::Elementwise, "soft_cap", each(x.count()), &args);
}

/// The rows of `x` that `wanted` names, each below its rows.
pub(crate) fn gather_rows(gpu: &Arc<Gpu>, x: &Tensor, wanted: &Memory, roles: Roles, count: usize) -> Tensor {
    let y = Tensor::new(gpu, count, x.width, roles);
    let args =
        [Arg::Memory(&x.memory), Arg::Memory(wanted), Arg::Memory(&y.memory), Arg::U32(count), Arg::U32(x.width)];
    gpu.launch(Module::Elementwise, "gather_rows", each(y.count()), &args);
    y
}

/// Codes' and rest's products, (2 · rows, width), together, into these rows of `y`.
pub(crate) fn add_fine(gpu: &Arc<Gpu>, parts: &Tensor, bias: Option<&Memory>, y: &Tensor, rows: Range<usize>) {
    let to = Arg::From(&y.memory, rows.start * y.width * size_of::<f32>());
    let args = [Arg::Memory(&parts.memory), bias.into(), to, Arg::U32(rows.len()), Arg::U32(y.width)];
    gpu.launch(Module::Elementwise, "add_fine", each(rows.len() * y.width), &args);
}

/// The weighted sums of each token's slots.
pub(crate) fn combine(gpu: &Arc<Gpu>, parts: &Tensor, routes: &Routes) -> Tensor {
    let (weights, slots) = (&routes.weights, routes.slots);
    let y = Tensor::new(gpu, routes.tokens, parts.width, routes.roles.clone());
    let args = [
        Arg::Memory(&parts.memory),
        Arg::Memory(weights),
        Arg::Memory(&y.memory),
        Arg::U32(y.rows),
        Arg::U32(y.width),
        Arg::U32(slots),
        Arg::Null,
    ];
    gpu.launch(Module::Elementwise, "combine", each(y.count()), &args);
    y
}
