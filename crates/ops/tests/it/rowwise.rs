//! Every op but attention against f64, and each row against itself alone.

use tessera_formats::DType;
use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Device, Error, Gate, Linear, Rope, RopeLayout, Rotation};

use crate::support::{Random, batch, bits, close, read, source, tensor};

fn norms<D: Device>(device: &D, rows: usize, width: usize, run: usize, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let weight = device.load_vector(&weight[..run]).unwrap();
    read(device, &device.rms_norm(&tensor(device, rows, width, x), &weight, 1e-5))
}

#[test]
fn norms_are_close_to_the_truth() {
    let mut random = Random(1);
    for (rows, width, run) in [(1, 1, 1), (3, 15, 5), (2, 64, 64), (2, 576, 64), (1, 2049, 2049)] {
        let (x, w) = (random.values(rows * width), random.values(run));
        let got = norms(&ReferenceDevice, rows, width, run, &x, &w);
        // At most width / 16 + 4 roundings in the sum, halved by the root, and four after it: 1e-5 covers 2049.
        close(&got, &norms(&Float64Device, rows, width, run, &x, &w), 2e-5, "norm");
        let alone: Vec<f32> = x.chunks(width).flat_map(|row| norms(&ReferenceDevice, 1, width, run, row, &w)).collect();
        assert_eq!(bits(&got), bits(&alone));
    }
}

fn turned<D: Device>(device: &D, start: usize, rope: &Rope, head_dim: usize, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / (2 * head_dim);
    let angles = device.rope_angles(rope, &batch(&vec![0; rows], start));
    let mut x = tensor(device, rows, 2 * head_dim, x);
    device.rotate(&mut x, &Rotation::new(head_dim, rope.layout), &angles);
    read(device, &x)
}

#[test]
fn rotations_are_close_to_the_truth() {
    let mut random = Random(2);
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        for (head_dim, pairs, start, magnitude) in
            [(8, 4, 0, 1.0), (64, 32, 100, 1.0), (80, 10, 7, 1.2), (6, 0, 3, 1.0)]
        {
            let frequencies = (0..pairs).map(|i| 10_000f64.powf(-(i as f64) / pairs as f64)).collect();
            let rope = Rope { layout, frequencies, magnitude };
            let x = random.values(3 * 2 * head_dim);
            let got = turned(&ReferenceDevice, start, &rope, head_dim, &x);
            close(&got, &turned(&Float64Device, start, &rope, head_dim, &x), 1e-6, "rotation");
            let later = turned(&ReferenceDevice, start + 2, &rope, head_dim, &x[2 * 2 * head_dim..]);
            assert_eq!(bits(&got[2 * 2 * head_dim..]), bits(&later));
            if start == 0 {
                assert_eq!(got[..2 * head_dim], x[..2 * head_dim], "position 0 does not turn");
            }
        }
    }
}

#[test]
fn a_quarter_turn_by_hand() {
    let quarter = std::f64::consts::FRAC_PI_2;
    for (layout, want) in
        [(RopeLayout::Interleaved, [-2.0, 1.0, 3.0, 4.0]), (RopeLayout::Halves, [-3.0, 2.0, 1.0, 4.0])]
    {
        // Interleaved turns features 0 and 1; halves of four features, 0 and 2 (the second pair stands still).
        let frequencies = if layout == RopeLayout::Halves { vec![quarter, 0.0] } else { vec![quarter] };
        let rope = Rope { layout, frequencies, magnitude: 1.0 };
        let x: Vec<f32> = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0].to_vec();
        close(&turned(&ReferenceDevice, 1, &rope, 4, &x), &[want, want].concat(), 1e-6, "quarter turn");
    }
}

fn elementwise<D: Device>(device: &D, x: &[f32], y: &[f32]) -> Vec<Vec<f32>> {
    let (a, b) = (tensor(device, 1, x.len(), x), tensor(device, 1, y.len(), y));
    let mut outs = vec![];
    for gate in Gate::ALL {
        outs.push(read(device, &device.gate(&a, &b, gate)));
    }
    let mut sum = tensor(device, 1, x.len(), x);
    device.add(&mut sum, &b);
    outs.push(read(device, &sum));
    device.soft_cap(&mut sum, 0.5);
    outs.push(read(device, &sum));
    outs
}

#[test]
fn element_ops_are_close_to_the_truth() {
    let mut random = Random(3);
    let (x, y) = (random.values(1000), random.values(1000));
    let x: Vec<f32> = x.iter().map(|v| v * 10.0).collect();
    let (got, want) = (elementwise(&ReferenceDevice, &x, &y), elementwise(&Float64Device, &x, &y));
    for (got, want) in got.iter().zip(&want) {
        close(got, want, 5e-6, "element op");
    }
}

fn projected<D: Device>(device: &D, matrix: &tessera_ops::MatrixSource, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let bias = bias.map(|b| device.load_vector(b).unwrap());
    let linear: Linear<D> = Linear { matrix: device.load_matrix(matrix).unwrap(), bias };
    let x = tensor(device, x.len() / matrix.depth, matrix.depth, x);
    let [a, b] = device.project(&x, [&linear, &linear]);
    assert_eq!(bits(&read(device, &a)), bits(&read(device, &b)));
    read(device, &a)
}

fn projected_finely<D: Device>(device: &D, matrix: &tessera_ops::MatrixSource, x: &[f32], bias: &[f32]) -> Vec<f32> {
    let bias = Some(device.load_vector(bias).unwrap());
    let linear: Linear<D> = Linear { matrix: device.load_matrix(matrix).unwrap(), bias };
    let x = tensor(device, x.len() / matrix.depth, matrix.depth, x);
    read(device, &device.project_fine(&x, &linear))
}

#[test]
fn fine_products_are_closer_still() {
    let mut random = Random(5);
    for dtype in DType::all() {
        let (rows, depth) = (2, 1280);
        let matrix = random.matrix(dtype, rows, depth);
        let (x, bias) = (random.values(3 * depth), random.values(rows));
        let got = projected_finely(&ReferenceDevice, &matrix, &x, &bias);
        let want = projected_finely(&Float64Device, &matrix, &x, &bias);
        let mut weights = vec![0.0f32; rows * depth];
        tessera_formats::codec::decode(dtype, &matrix.bytes, &mut weights);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            // The rest of a code is at most half a step, and its own code is off by half of a 127th of that.
            let total: f32 = weights[i % rows * depth..][..depth].iter().map(|v| v.abs()).sum();
            let step = if dtype.is_float() { 0.0 } else { 0.51 / 127.0 * 0.51 / 127.0 };
            assert!((g - w).abs() <= total * (step + 1e-5) + 1e-5, "{dtype}: {g}, not {w}");
        }
        let alone: Vec<f32> =
            x.chunks(depth).flat_map(|row| projected_finely(&ReferenceDevice, &matrix, row, &bias)).collect();
        assert_eq!(bits(&got), bits(&alone), "{dtype}: a row depends on its neighbours");
    }
}

#[test]
fn products_are_close_to_the_truth_in_every_format() {
    let mut random = Random(4);
    for dtype in DType::all() {
        for (rows, depth) in [(3, 256), (2, 1280)] {
            let matrix = random.matrix(dtype, rows, depth);
            let (x, bias) = (random.values(3 * depth), random.values(rows));
            let got = projected(&ReferenceDevice, &matrix, &x, Some(&bias));
            let want = projected(&Float64Device, &matrix, &x, Some(&bias));
            let mut weights = vec![0.0f32; rows * depth];
            tessera_formats::codec::decode(dtype, &matrix.bytes, &mut weights);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                // A code is off by half a step of at most 1 / 127; the format's own roundings are 2^-20 at most.
                let weight = &weights[i % rows * depth..][..depth];
                let total: f32 = weight.iter().map(|v| v.abs()).sum();
                let step = if dtype.is_float() { 0.0 } else { 0.51 / 127.0 };
                assert!((g - w).abs() <= total * (step + 1e-5) + 1e-5, "{dtype} {rows}x{depth}: {g}, not {w}");
            }
            let alone: Vec<f32> =
                x.chunks(depth).flat_map(|row| projected(&ReferenceDevice, &matrix, row, Some(&bias))).collect();
            assert_eq!(bits(&got), bits(&alone), "{dtype}: a row depends on its neighbours");
        }
    }
}

#[test]
fn a_bias_is_added_once() {
    let matrix = source(2, 3, &[1.0, 2.0, 3.0, -1.0, 0.5, 4.0]);
    assert_eq!(projected(&ReferenceDevice, &matrix, &[1.0, 2.0, 4.0], None), [17.0, 16.0]);
    assert_eq!(projected(&ReferenceDevice, &matrix, &[1.0, 2.0, 4.0], Some(&[0.5, -1.0])), [17.5, 15.0]);
}

#[test]
fn embeddings_are_rows_times_a_scale() {
    let device = ReferenceDevice;
    let table = device.load_embedding(&source(3, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
    let mut step = batch(&[2, 0, 2], 5);
    let x = device.embed(&table, &step, 0.5);
    assert_eq!(read(&device, &x), [2.0, 2.5, 0.0, 0.5, 2.0, 2.5]);
    step.logit_rows = vec![1, 2];
    assert_eq!(read(&device, &device.logit_rows(&x, &step)), [0.0, 0.5, 2.0, 2.5]);
}

#[test]
fn bad_weights_are_refused() {
    let device = ReferenceDevice;
    let bad = source(2, 2, &[0.0, 1.0, f32::NAN, 3.0]);
    for error in [device.load_matrix(&bad).unwrap_err(), device.load_embedding(&bad).unwrap_err()] {
        assert!(matches!(error, Error::NotFinite { row: 1, what: "weight", .. }), "{error}");
    }
    let mut short = source(2, 2, &[0.0; 4]);
    short.rows = 3;
    assert!(matches!(device.load_matrix(&short).unwrap_err(), Error::Shape { rows: 3, .. }));

    let mut blocks = Random(5).matrix(DType::Q4_0, 2, 64);
    let mut bytes = blocks.bytes.to_vec();
    // The last block's scale becomes the f16 infinity.
    bytes[3 * 18..][..2].copy_from_slice(&0x7c00u16.to_le_bytes());
    blocks.bytes = tessera_formats::Bytes::new(bytes);
    for error in [device.load_matrix(&blocks).unwrap_err(), device.load_embedding(&blocks).unwrap_err()] {
        assert!(matches!(error, Error::NotFinite { row: 1, what: "scale", .. }), "{error}");
    }
}
