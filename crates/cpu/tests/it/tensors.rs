//! Tensors of given numbers on any device, and the devices to compare.

use std::num::NonZero;

use tessera_cpu::{CpuDevice, isa::Isa};
use tessera_formats::{Bytes, DType};
use tessera_ops::{Batch, Device, MatrixSource, Role};

/// A CPU device for each instruction set and 1 to 3 threads.
pub(crate) fn devices() -> Vec<CpuDevice> {
    let isas = Isa::available();
    let threads = [1, 2, 3].map(NonZero::new);
    threads.iter().flat_map(|t| isas.iter().map(|isa| CpuDevice::new(*t, Some(*isa)).unwrap())).collect()
}

/// A table of f32 as a matrix of a file.
pub(crate) fn source(rows: usize, depth: usize, values: &[f32]) -> MatrixSource {
    assert_eq!(values.len(), rows * depth);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    MatrixSource { name: "table".to_owned(), dtype: DType::F32, rows, depth, bytes: Bytes::new(bytes) }
}

/// `values` as a tensor of `device`, by way of an embedding: the one way in. A table holds finite numbers alone, so
/// infinities are made by the scale, and NaN as infinity less infinity.
pub(crate) fn tensor<D: Device>(device: &D, rows: usize, width: usize, values: &[f32]) -> D::Tensor {
    let ids: Vec<u32> = (0..rows as u32).collect();
    let doubled = |half: &dyn Fn(f32) -> f32| {
        let halves: Vec<f32> = values.iter().map(|v| half(*v)).collect();
        let table = device.load_embedding(&source(rows, width, &halves)).unwrap();
        device.embed(&table, &batch(&ids, 0), 2.0)
    };
    let mut x = doubled(&|v| match v {
        v if v.is_finite() => v / 2.0,
        v if v.is_nan() => f32::MAX,
        v => v.clamp(f32::MIN, f32::MAX),
    });
    if values.iter().any(|v| v.is_nan()) {
        device.add(&mut x, &doubled(&|v| if v.is_nan() { f32::MIN } else { 0.0 }));
    }
    x
}

/// One sequence of these tokens, from position `start`, in pages 0, 1, 2, …
pub(crate) fn batch(tokens: &[u32], start: usize) -> Batch {
    let mut batch = Batch::default();
    let pages: Vec<u32> = (0..(start + tokens.len()).div_ceil(64) as u32).collect();
    batch.push(tokens, start, &pages, Role::Prefill, 0);
    batch
}

pub(crate) fn read<D: Device>(device: &D, x: &D::Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    device.read(x, &mut out).unwrap();
    out
}

/// Holds that both are the same bits; any NaN equals any other.
#[track_caller]
pub(crate) fn same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what}: element {i} of {} is {g:e}, not {w:e}", got.len());
    }
}
