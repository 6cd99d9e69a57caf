//! Numbers that look random, and tensors of them on any device.

use tessera_formats::{Bytes, DType};
use tessera_ops::{Batch, Device, MatrixSource, Role};

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Values in -1..1.
    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Valid blocks of a format: random bytes whose scales decode to finite, moderate numbers.
    pub(crate) fn matrix(&mut self, dtype: DType, rows: usize, depth: usize) -> MatrixSource {
        let count = rows * depth / dtype.block_len();
        let mut bytes = Vec::with_capacity(count * dtype.block_bytes());
        let mut decoded = vec![0.0f32; dtype.block_len()];
        for _ in 0..count {
            loop {
                let block: Vec<u8> = (0..dtype.block_bytes()).map(|_| self.bits() as u8).collect();
                tessera_formats::codec::decode(dtype, &block, &mut decoded);
                if decoded.iter().all(|v| v.is_finite() && v.abs() < 1e3) {
                    bytes.extend(block);
                    break;
                }
            }
        }
        MatrixSource { name: format!("{dtype}"), dtype, rows, depth, bytes: Bytes::new(bytes) }
    }
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
    let mut x = doubled(&|v| {
        if v.is_nan() { f32::MAX } else { v.clamp(f32::MIN, f32::MAX) / if v.is_finite() { 2.0 } else { 1.0 } }
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

/// Bits, so that a comparison is exact.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Holds |got - want| <= tolerance for each element.
#[track_caller]
pub(crate) fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "{what}: element {i} is {g}, not {w}");
    }
}
