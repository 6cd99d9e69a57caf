//! The row-wise ops: every instruction set and number of threads gives the reference's bits.

use tessera_cpu::CpuDevice;
use tessera_formats::DType;
use tessera_ops::{
    Device, Error, Gate, KvFormat, KvLayout, Linear, Rope, RopeLayout, Rotation, kv::KvEntry,
    reference::ReferenceDevice,
};

use crate::{
    tensors::{batch, devices, read, same, source, tensor},
    weights::{activations, matrix},
};

/// Runs `job` on the reference and on every device, and compares.
fn compare(what: &str, on_reference: impl Fn(&ReferenceDevice) -> Vec<f32>, on_cpu: impl Fn(&CpuDevice) -> Vec<f32>) {
    let want = on_reference(&ReferenceDevice);
    for device in devices() {
        same(&on_cpu(&device), &want, &format!("{what}, {}", device.name()));
    }
}

/// `compare` with one generic function.
macro_rules! on_all {
    ($what:expr, $device:ident => $body:expr) => {
        compare(&$what, |$device| $body, |$device| $body)
    };
}

/// Widths around vectors and heads; the last is spread over threads.
const SHAPES: [(usize, usize); 10] =
    [(1, 1), (1, 15), (2, 16), (3, 17), (1, 31), (5, 33), (1, 576), (70, 48), (2, 2049), (40, 576)];

#[test]
fn norms_give_the_reference_s_bits() {
    for (rows, width) in SHAPES {
        for run in [1, 3, 16, 64, width].into_iter().filter(|r| width % r == 0) {
            let (x, weight) = (activations(rows, width, 1), activations(1, run, 2));
            on_all!(format!("norm {rows}x{width}/{run}"), device => {
                let weight = device.load_vector(&weight).unwrap();
                read(device, &device.rms_norm(&tensor(device, rows, width, &x), &weight, 1e-6))
            });
        }
    }
}

#[test]
fn element_ops_give_the_reference_s_bits() {
    for (rows, width) in SHAPES {
        let (mut x, y) = (activations(rows, width, 3), activations(rows, width, 4));
        x[0] = f32::NAN;
        let last = x.len() - 1;
        x[last] = if last > 0 { -1e30 } else { f32::INFINITY };
        for gate in Gate::ALL {
            on_all!(format!("{gate:?} {rows}x{width}"), device => {
                let (x, y) = (tensor(device, rows, width, &x), tensor(device, rows, width, &y));
                read(device, &device.gate(&x, &y, gate))
            });
        }
        on_all!(format!("add, cap {rows}x{width}"), device => {
            let (mut x, y) = (tensor(device, rows, width, &x), tensor(device, rows, width, &y));
            device.add(&mut x, &y);
            device.soft_cap(&mut x, 2.5);
            read(device, &x)
        });
    }
}

#[test]
fn rotations_give_the_reference_s_bits() {
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        for (head_dim, pairs) in [(2, 1), (64, 32), (80, 10), (80, 40), (96, 48), (128, 64), (256, 32), (64, 0)] {
            for (rows, heads, start) in [(1, 1, 0), (3, 8, 1000), (70, 9, 62)] {
                let frequencies = (0..pairs).map(|i| 10_000f64.powf(-f64::from(i) / f64::from(pairs))).collect();
                let rope = Rope { layout, frequencies, magnitude: 1.1 };
                let x = activations(rows, heads * head_dim, 5);
                on_all!(format!("{layout:?} {head_dim}/{pairs} {rows}x{heads}"), device => {
                    let angles = device.rope_angles(&rope, &batch(&vec![0; rows], start));
                    let mut x = tensor(device, rows, heads * head_dim, &x);
                    device.rotate(&mut x, &Rotation::new(head_dim, layout), &angles);
                    [read(device, &angles), read(device, &x)].concat()
                });
            }
        }
    }
}

#[test]
fn embeddings_and_logit_rows_give_the_reference_s_bits() {
    for dtype in DType::all() {
        let (rows, width) = (7, 512);
        let table = matrix(dtype, rows, width, 6);
        let mut step = batch(&[3, 0, 6, 6, 1].repeat(8), 3);
        step.logit_rows = vec![0, 17, 39];
        on_all!(format!("{dtype}"), device => {
            let table = device.load_embedding(&table).unwrap();
            let x = device.embed(&table, &step, 3.7);
            [read(device, &device.logit_rows(&x, &step)), read(device, &x)].concat()
        });
    }
}

#[test]
fn fine_and_plain_projections_give_the_reference_s_bits() {
    for dtype in [DType::Q4_1, DType::Q6_K, DType::Q8_0, DType::F16] {
        for tokens in [1, 2, 13] {
            let (rows, depth) = (37, 768);
            let (weights, bias, x) =
                (matrix(dtype, rows, depth, 7), activations(1, rows, 8), activations(tokens, depth, 9));
            for bias in [None, Some(&bias)] {
                on_all!(format!("{dtype}, {tokens} tokens"), device => {
                    let linear = Linear {
                        matrix: device.load_matrix(&weights).unwrap(),
                        bias: bias.map(|b| device.load_vector(b).unwrap()),
                    };
                    let x = tensor(device, tokens, depth, &x);
                    let [plain, again] = device.project(&x, [&linear, &linear]);
                    let fine = device.project_fine(&x, &linear);
                    [read(device, &plain), read(device, &again), read(device, &fine)].concat()
                });
            }
        }
    }
}

#[test]
fn steps_without_rows_are_fine() {
    for device in devices() {
        let x = tensor(&device, 0, 32, &[]);
        let layer = KvEntry::pairs(1, 32);
        let mut cache = device.kv_cache(&KvLayout::new(vec![layer], KvFormat::F16), 0, 0).unwrap();
        device.store_kv(&mut cache, 0, &x, &x, &batch(&[], 0));
        let weight = device.load_vector(&[1.0; 32]).unwrap();
        assert!(read(&device, &device.rms_norm(&x, &weight, 1e-5)).is_empty());
        assert!(read(&device, &device.gate(&x, &x, Gate::Silu)).is_empty());
    }
}

#[test]
fn what_cannot_be_is_a_typed_error() {
    let device = CpuDevice::new(None, None).unwrap();
    let layer = KvEntry::pairs(8, 128);
    for pages in [1 << 44, usize::MAX / 100] {
        let layout = KvLayout::new(vec![layer, layer], KvFormat::F16);
        let error = device.kv_cache(&layout, pages, 0).err().unwrap();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }
    let error = device.load_embedding(&source(2, 2, &[0.0, 1.0, f32::NAN, 3.0])).err().unwrap();
    assert!(matches!(error, Error::NotFinite { row: 1, what: "weight", .. }), "{error}");
    let mut short = source(2, 2, &[0.0; 4]);
    short.rows = 3;
    assert!(matches!(device.load_embedding(&short).err().unwrap(), Error::Shape { rows: 3, .. }));
}
