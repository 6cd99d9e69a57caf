//! What subjects compute from: random weights, tables of input rows, and steps that pick rows from them.
//!
//! Activations enter a device by [`Device::embed`], the one way in: a table holds all input rows of a subject, and the
//! ids of a step's tokens say which of them stand where. A table holds finite numbers alone; the row that is not a
//! number comes from one that doubles to infinity.

use tessera_formats::{
    Bytes, DType,
    codec::{RandomBlocks, random},
};

use crate::{Batch, Device, Error, MatrixSource, Role};

/// Input rows of a subject. A prime, so that a step of many rows holds no row at the distance of a tile or a pass: a
/// row computed from, or written to, another's place differs.
pub(super) const IDS: u32 = 131;

/// Input rows of a subject that is not about width.
pub(super) const IDS_FEW: u32 = 37;

/// All weights and inputs follow from it.
const SEED: u64 = 33;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Weights whose products with a row of deviation one have deviation one: (rows, depth).
pub(super) fn weights(name: &str, dtype: DType, rows: usize, depth: usize) -> MatrixSource {
    let deviation = 1.0 / (depth as f32).sqrt();
    let mut bytes = vec![0; dtype.row_bytes(depth).expect("subjects have whole blocks") * rows];
    RandomBlocks::new(dtype, deviation).fill(random::key(SEED, name), 0, &mut bytes);
    MatrixSource { name: format!("{name} {dtype}"), dtype, rows, depth, bytes: Bytes::new(bytes) }
}

/// Numbers in -1..1, one in fifty eight times as large, as activations have outliers.
pub(super) fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut random = Random(random::key(SEED, name));
    (0..count).map(|_| random.unit() * if random.bits().is_multiple_of(50) { 8.0 } else { 1.0 }).collect()
}

/// A table of input rows, still to be loaded.
#[derive(Clone)]
pub(super) struct Inputs(MatrixSource);

impl Inputs {
    /// `rows` rows of [`numbers`] and, behind them, `bad` rows that become infinite.
    pub(super) fn new(name: &str, rows: usize, bad: usize, width: usize) -> Inputs {
        let mut values = numbers(name, rows * width);
        values.resize((rows + bad) * width, f32::INFINITY);
        Inputs::of(name, width, &values)
    }

    /// Rows of these numbers; infinite ones are allowed.
    pub(super) fn of(name: &str, width: usize, values: &[f32]) -> Inputs {
        // Doubled when they are read; half of a number is exact unless it is subnormal.
        let halves = values.iter().map(|v| if v.is_finite() { v / 2.0 } else { f32::MAX.copysign(*v) });
        let bytes: Vec<u8> = halves.flat_map(f32::to_le_bytes).collect();
        let rows = values.len() / width;
        Inputs(MatrixSource { name: name.to_owned(), dtype: DType::F32, rows, depth: width, bytes: Bytes::new(bytes) })
    }

    /// The same, rounded to f16.
    pub(super) fn to_f16(&self) -> Inputs {
        let source = &self.0;
        let stored = source.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        let values: Vec<f32> = stored.map(|v| half::f16::from_f32(2.0 * v).to_f32()).collect();
        Inputs::of(&source.name, source.depth, &values)
    }

    /// The table on a device.
    pub(super) fn load<D: Device>(&self, device: &D) -> Result<Table<D>, Error> {
        Ok(Table(device.load_embedding(&self.0)?))
    }
}

/// Input rows on a device.
pub(super) struct Table<D: Device>(D::Embedding);

impl<D: Device> Table<D> {
    /// The rows that a batch's ids name.
    pub(super) fn rows(&self, device: &D, batch: &Batch) -> D::Tensor {
        device.embed(&self.0, batch, 2.0)
    }
}

/// A step of these rows, each a sequence of its own at a position that follows from its id.
pub(super) fn batch(ids: &[u32]) -> Batch {
    Batch {
        tokens: ids.to_vec(),
        // From 0 to far beyond a page, the first few close together.
        positions: ids.iter().map(|id| id * id * 7 % 131_072).collect(),
        sequences: (0..ids.len() as u32).collect(),
        roles: vec![Role::Decode; ids.len()],
        parents: vec![],
        page_tables: vec![vec![]; ids.len()],
        rings: (0..ids.len() as u32).collect(),
        logit_rows: vec![],
    }
}

/// What a device has computed.
pub(super) fn read<D: Device>(device: &D, x: &D::Tensor) -> Result<Vec<f32>, Error> {
    let mut out = Vec::new();
    device.read(x, &mut out)?;
    Ok(out)
}

/// Puts the rows of several results side by side: (rows, sum of widths).
pub(super) fn beside(parts: &[Vec<f32>], rows: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for row in 0..rows {
        for part in parts {
            let width = part.len() / rows;
            out.extend_from_slice(&part[row * width..][..width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::ReferenceDevice;

    #[test]
    fn rows_come_in_as_they_are_written() {
        let device = ReferenceDevice;
        let table = Inputs::new("x", 3, 1, 5).load(&device).unwrap();
        let rows = read(&device, &table.rows(&device, &batch(&[2, 0, 3]))).unwrap();
        let want = numbers("x", 15);
        assert_eq!((&rows[..5], &rows[5..10]), (&want[10..], &want[..5]));
        assert!(rows[10..].iter().all(|v| *v == f32::INFINITY));
    }

    #[test]
    fn results_are_put_side_by_side() {
        assert_eq!(beside(&[vec![1.0, 2.0], vec![3.0, 4.0, 5.0, 6.0]], 2), [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
        assert!(beside(&[vec![], vec![]], 0).is_empty());
    }
}
