//! What experts gave goes into several residual streams, and what the next block reads comes out of them, in one launch where the card can, and
//! not a bit of it changes: on a card, or on the emulated one (`EMULATED_CARD=capability=9.0 tools/emulate cargo test -p tessera-cuda`). A
//! machine without either has nothing to show.

use tessera_formats::DType;
use tessera_ops::{
    Batch, Device, Linear, LinearStack, MatrixSource, Role, Router, Routing, Score, StreamGates,
    reference::ReferenceDevice, streams::gates_width,
};

/// Streams, the numbers of one, rows of a step, the format of gates' weights, and rounds of normalisation.
#[derive(Clone, Copy, Debug)]
struct Shape {
    count: usize,
    width: usize,
    rows: usize,
    dtype: DType,
    rounds: Option<usize>,
}

const EXPERTS: usize = 4;
const SLOTS: usize = 3;
/// What an expert's last projection reads.
const INNER: usize = 64;

fn value(seed: usize, i: usize) -> f32 {
    ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0
}

fn source(seed: usize, dtype: DType, rows: usize, depth: usize) -> MatrixSource {
    let value = |i: usize| value(seed, i);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => (0..rows * depth).flat_map(|i| value(i).to_le_bytes()).collect(),
        DType::BF16 => (0..rows * depth).flat_map(|i| ((value(i).to_bits() >> 16) as u16).to_le_bytes()).collect(),
        // F16 of 1 to 2, by their lowest bits.
        DType::F16 => (0..rows * depth).flat_map(|i| (0x3c00 | (i * 37 % 1024) as u16).to_le_bytes()).collect(),
        // Blocks of a scale and 32 codes.
        _ => (0..rows * depth / 32)
            .flat_map(|b| [0x00, 0x24].into_iter().chain((0..32).map(move |i| (b * 31 + i * 7) as u8)))
            .collect(),
    };
    MatrixSource { name: "weights".to_owned(), dtype, rows, depth, bytes: bytes.into() }
}

/// Rows of a table.
fn rows_of<D: Device>(device: &D, seed: usize, rows: usize, width: usize) -> D::Tensor {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut batch = Batch::default();
    batch.push(&tokens, 0, &vec![0; rows.div_ceil(64)], Role::Decode, 0);
    device.embed(&device.load_embedding(&source(seed, DType::F32, rows, width)).unwrap(), &batch, 1.0)
}

/// Every tensor of a block's end and the next one's beginning; `after` is called behind each op.
/// Where the norm of all streams is not kept, its memory may be given out again.
fn connection<D: Device>(
    device: &D,
    shape: Shape,
    (has_before, keeps): (bool, bool),
    after: &dyn Fn(),
) -> Vec<Vec<f32>> {
    let Shape { count, width, rows, dtype, rounds } = shape;
    let spec = StreamGates { count, rounds, epsilon: 1e-3 };
    let vector = |seed: usize, count: usize| {
        device.load_vector(&(0..count).map(|i| 1.0 + value(seed, i) / 4.0).collect::<Vec<_>>()).unwrap()
    };
    let linear = |seed: usize, dtype, rows, depth| Linear {
        matrix: device.load_matrix(&source(seed, dtype, rows, depth)).unwrap(),
        bias: None,
    };
    let mix = linear(1, dtype, spec.width(), count * width);
    let probes = [linear(2, DType::Q8_0, 20, count * width), linear(3, DType::Q8_0, 20, width)];
    let stack = device.load_stack(&source(4, DType::F16, EXPERTS * width, INNER), EXPERTS).unwrap();
    let down = LinearStack { matrices: stack, bias: None };
    let routing = Routing { score: Score::Softmax, slots: SLOTS, groups: None, normalise: true, scale: 1.0 };
    let (scale, base) = (vector(5, spec.parts()), vector(6, spec.width()));
    let (ones, norm) = (vector(7, count * width), vector(8, width));
    let [logits, inner, shared, gates_before] =
        [(9, EXPERTS, 1), (10, INNER, SLOTS), (11, width, 1), (12, gates_width(count), 1)]
            .map(|(seed, width, times)| rows_of(device, seed, rows * times, width));
    let mut streams = rows_of(device, 13, rows, count * width);
    let routes = device.route(&logits, &Router { routing, bias: None, factors: None });
    // What a step sends is sent, and nothing is held back.
    device.read(&streams, &mut vec![]).unwrap();
    let mut y = device.combine_routed(&inner, &down, &routes);
    after();
    if has_before {
        device.add(&mut y, &shared);
        after();
        device.spread_streams(&mut streams, &y, &gates_before, count);
        after();
    }
    let normed = device.rms_norm(&streams, &ones, 1e-5);
    after();
    let [mixed] = device.project(&normed, [&mix]);
    after();
    let normed = keeps.then_some(normed);
    let gates = device.stream_gates(&mixed, &scale, &base, &spec);
    after();
    let x = device.collapse_streams(&streams, &gates, count);
    after();
    let out = device.rms_norm(&x, &norm, 1e-6);
    let [of_sum] = device.project(&out, [&probes[1]]);
    let of_all = normed.as_ref().map(|normed| device.project(normed, [&probes[0]]));
    let read = |x: &D::Tensor| {
        let mut out = vec![];
        device.read(x, &mut out).unwrap();
        out
    };
    let kept = [normed.as_ref(), of_all.as_ref().map(|[product]| product)];
    [&y, &streams, &mixed, &gates, &x, &out, &of_sum].into_iter().chain(kept.into_iter().flatten()).map(read).collect()
}

const NAMES: [&str; 9] =
    ["y", "streams", "mix", "gates", "x", "out", "a product of the sum", "normed", "a product of all"];

#[test]
fn streams_are_connected_at_once() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let is_hopper = card.name().contains("sm_90a");
    let shape = |count, width, rows, dtype, rounds| Shape { count, width, rows, dtype, rounds };
    for (shape, ways) in [
        (shape(4, 512, 1, DType::F16, Some(20)), (true, false)),
        (shape(4, 512, 1, DType::F16, None), (false, true)),
        // Blocks with no part, with one and with two; more rows.
        (shape(3, 1536, 3, DType::BF16, Some(2)), (true, true)),
        (shape(2, 4608, 1, DType::F16, Some(3)), (true, false)),
        (shape(2, 512, 2, DType::F32, Some(1)), (true, true)),
        // A single stream, too many rows, and streams that are not whole parts.
        (shape(1, 512, 2, DType::F32, Some(1)), (true, true)),
        (shape(2, 512, 17, DType::F16, Some(3)), (true, true)),
        (shape(4, 160, 1, DType::F16, Some(3)), (true, true)),
    ] {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = connection(&card, shape, ways, after);
            (results, card.counts().launches - before)
        };
        let (joined, few) = launches(&|| {});
        let (single, many) = launches(&|| card.wait().unwrap());
        let reference = connection(&ReferenceDevice, shape, ways, &|| {});
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (i, name) in NAMES.into_iter().take(joined.len()).enumerate() {
            assert!(bits(&joined[i]) == bits(&single[i]), "{shape:?}: {name}");
            assert!(bits(&joined[i]) == bits(&reference[i]), "{shape:?}: {name} of the reference");
        }
        let is_connected = is_hopper && shape.count > 1 && shape.rows <= 16 && shape.width.is_multiple_of(512);
        let saved = 2 * u64::from(ways.0) + if is_connected { 4 + u64::from(ways.0) } else { 0 };
        assert_eq!(many - few, saved, "{shape:?}: launches");
    }
}
