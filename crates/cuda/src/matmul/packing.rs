//! From a file's blocks to packed tiles, in parallel, losing nothing.

use std::{
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    thread,
};

use half::f16;
use tessera_formats::{
    DType,
    codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS},
};
use tessera_ops::{Error, MatrixSource};

use super::{
    layout::{Float, Layout, Levels, Scale, Scales},
    places::Places,
    select::{Packed, units_at},
    tile::FloatsTile,
};
use crate::threads;

/// Tiles, packed.
pub(super) struct Part {
    /// What they begin; what lies behind them is of no meaning.
    pub(super) memory: Vec<u8>,
    pub(super) bytes: usize,
    /// No weight is larger, nor any number that scales are made of.
    pub(super) largest: f32,
}

/// Packs `count` tiles from tile `first` on, of matrices of `rows` rows each, into memory that an earlier part may have left: what a
/// system gives anew it gives page by page, and all processors wait for that.
///
/// # Errors
/// A scale or weight that is not finite.
pub(super) fn pack(
    source: &MatrixSource,
    packer: &Packer,
    rows: usize,
    first: usize,
    count: usize,
    mut memory: Vec<u8>,
) -> Result<Part, Error> {
    let form = packer.form();
    let (row_bytes, tile_bytes, tile_rows) = (source.row_bytes()?, form.tile_bytes(source.depth), form.tile_rows());
    if memory.len() < count * tile_bytes {
        memory = vec![0; count * tile_bytes];
    }
    let packed = &mut memory[..count * tile_bytes];
    let tiles_each = rows.div_ceil(tile_rows);
    let bad_row = AtomicUsize::new(usize::MAX);
    // Bits of numbers that are not negative are in their order.
    let largest = AtomicU32::new(0);
    let bytes: &[u8] = &source.bytes;
    let pack_tile = |index: usize, tile: &mut [u8]| {
        tile.fill(0);
        let (segment, in_matrix) = (index / tiles_each, index % tiles_each);
        for row_here in 0..tile_rows.min(rows - in_matrix * tile_rows) {
            let row = segment * rows + in_matrix * tile_rows + row_here;
            let raw = &bytes[row * row_bytes..][..row_bytes];
            match packer.put(tile, row_here, raw) {
                Some(bound) => largest.fetch_max(bound.to_bits(), Ordering::Relaxed) as usize,
                None => bad_row.fetch_min(row, Ordering::Relaxed),
            };
        }
    };
    let share = count.div_ceil(threads::most()).max(1);
    thread::scope(|scope| {
        for (t, part) in packed.chunks_mut((share * tile_bytes).max(1)).enumerate() {
            let pack_tile = &pack_tile;
            scope.spawn(move || {
                part.chunks_mut(tile_bytes).enumerate().for_each(|(i, tile)| pack_tile(first + t * share + i, tile));
            });
        }
    });
    let what = if matches!(form, Packed::Float(_)) { "weight" } else { "scale" };
    match bad_row.into_inner() {
        usize::MAX => Ok(Part { memory, bytes: count * tile_bytes, largest: f32::from_bits(largest.into_inner()) }),
        row => Err(Error::NotFinite { tensor: source.name.clone(), row, what }),
    }
}

/// What puts a row's blocks into its tile: made once for all parts of a matrix.
pub(super) enum Packer {
    Codes(Box<CodesPacker>),
    Float(Float),
}

impl Packer {
    pub(super) fn new(dtype: DType, form: Packed) -> Packer {
        match form {
            Packed::Codes(layout) => Packer::Codes(Box::new(CodesPacker::new(dtype, layout))),
            Packed::Float(float) => Packer::Float(float),
        }
    }

    fn form(&self) -> Packed {
        match self {
            Packer::Codes(codes) => Packed::Codes(codes.layout),
            Packer::Float(float) => Packed::Float(*float),
        }
    }

    /// Gives a bound of the row's weights, or none where a scale or a weight is not finite.
    fn put(&self, tile: &mut [u8], row: usize, raw: &[u8]) -> Option<f32> {
        match self {
            Packer::Codes(codes) => codes.put(tile, row, raw),
            Packer::Float(float) => put_floats(*float, tile, row, raw),
        }
    }
}

/// What packing codes needs to know, reckoned once.
pub(super) struct CodesPacker {
    dtype: DType,
    layout: Layout,
    places: Places,
    code_max: f32,
    code_of: [u8; 256],
    /// What units of scales are multiplied by.
    halved: f32,
}

impl CodesPacker {
    fn new(dtype: DType, layout: Layout) -> CodesPacker {
        let halved = 0.5f32.powi(layout.halvings as i32);
        let (code_max, code_of) = (layout.code_max(), layout.code_of());
        CodesPacker { dtype, layout, places: Places::new(layout), code_max, code_of, halved }
    }

    fn put(&self, tile: &mut [u8], row: usize, raw: &[u8]) -> Option<f32> {
        let (layout, length) = (self.layout, self.dtype.block_len());
        let subs = length / layout.sub;
        let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
        let (codes, scales, mins) = (&mut codes[..length], &mut scales[..subs], &mut mins[..subs]);
        let mut bound = 0.0f32;
        let mut chunks = tile.chunks_exact_mut(layout.chunk_bytes());
        for raw in raw.chunks_exact(self.dtype.block_bytes()) {
            codec::integers(self.dtype, raw, Integers { codes, scales, mins });
            if !(scales.iter().all(|v| v.is_finite()) && mins.iter().all(|v| v.is_finite())) {
                return None;
            }
            let units =
                units_at(self.dtype).map(|at| [at.scale, at.min].map(|at| Unit::new(half_at(raw, at), self.halved)));
            if let Some([scale, min]) = units {
                let least = if layout.has_min { min.value.abs() } else { 0.0 };
                bound = bound.max(scale.value.abs() * self.code_max + least);
            }
            if layout.levels != Levels::None {
                codes.iter_mut().for_each(|code| *code = self.code_of[usize::from(*code)]);
            }
            let factors = self.dtype.is_folded().then(|| codec::factors(self.dtype, raw));
            let of_chunks = scales.chunks_exact(layout.subs()).zip(mins.chunks_exact(layout.subs()));
            for (codes, (scales, mins)) in codes.chunks_exact(layout.chunk_features()).zip(of_chunks) {
                let chunk = chunks.next()?;
                self.places.put(chunk, row, codes);
                for (sub, (scale, min)) in scales.iter().zip(mins).enumerate() {
                    bound = bound.max(scale.abs() * self.code_max + if layout.has_min { min.abs() } else { 0.0 });
                    if let Some(factors) = &factors {
                        let own = [(factors.units[0], factors.scales[sub]), (factors.units[1], factors.mins[sub])];
                        let [scale, min] = own.map(|(unit, factor)| Scale::Folded { unit: unit.to_bits(), factor });
                        layout.put_scale(chunk, false, row, sub, scale);
                        layout.put_scale(chunk, true, row, sub, min);
                        continue;
                    }
                    layout.put_scale(chunk, false, row, sub, kept(layout.scales, *scale, units.map(|u| u[0]))?);
                    if layout.has_min {
                        layout.put_scale(chunk, true, row, sub, kept(layout.scales, *min, units.map(|u| u[1]))?);
                    }
                }
            }
        }
        Some(bound)
    }
}

fn half_at(raw: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([raw[at], raw[at + 1]])
}

/// What factors count: an f16, halved some times.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    bits: f16,
    value: f32,
    /// One over it: a product is quicker than a division.
    inverse: f32,
}

impl Unit {
    fn new(bits: f16, halved: f32) -> Unit {
        let value = bits.to_f32() * halved;
        Unit { bits, value, inverse: 1.0 / value }
    }
}

/// A scale in the form of its layout, or none where that would not be the same number.
#[inline]
fn kept(scales: Scales, value: f32, unit: Option<Unit>) -> Option<Scale> {
    match (scales, unit) {
        (Scales::F32, _) => Some(Scale::F32(value)),
        (Scales::F16, _) => {
            let half = f16::from_f32(value);
            (half.to_f32() == value).then_some(Scale::F16(half.to_bits()))
        }
        (Scales::Super, Some(unit)) => {
            // To the nearest, without a call: what is off by one is not the same number and is refused.
            let factor = if value == 0.0 { 0.0 } else { value * unit.inverse };
            let factor = (factor + 0.5f32.copysign(factor)) as i32;
            let fits = (-128..=127).contains(&factor) && (value == 0.0 || unit.value * factor as f32 == value);
            fits.then_some(Scale::Super { unit: unit.bits.to_bits(), factor: factor as i8 })
        }
        (Scales::Super | Scales::Folded, _) => None,
    }
}

/// Puts a row of plain numbers into its tile. Gives the largest, or none where one is not finite.
fn put_floats(float: Float, tile: &mut [u8], row: usize, raw: &[u8]) -> Option<f32> {
    let run_bytes = float.run() * float.bytes();
    for (run, numbers) in raw.chunks(run_bytes).enumerate() {
        tile[(run * FloatsTile::ROWS + row) * run_bytes..][..numbers.len()].copy_from_slice(numbers);
    }
    let larger = |bound: f32, v: f32| if v.is_finite() { bound.max(v.abs()) } else { f32::INFINITY };
    let bound = match float {
        Float::F32 => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).fold(0.0, larger),
        Float::F16 => raw.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).fold(0.0, larger),
        Float::BF16 => raw.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).fold(0.0, larger),
    };
    bound.is_finite().then_some(bound)
}

#[cfg(test)]
mod tests {
    use tessera_formats::codec::RandomBlocks;

    use super::*;
    use crate::matmul::{layout::UNIT, select::select, tile::MMA_ROWS};

    /// The four operand registers of a thread, as `planed` of codes.cu takes them from a plane.
    fn registers(plane: &[u8], layout: Layout, bits: usize, unit: usize, lane: usize) -> [u32; 4] {
        let units = layout.units;
        let lane_bytes = units * bits * 2;
        let byte = |at: usize| {
            plane[if lane_bytes >= 16 { at / 16 * 512 + lane * 16 + at % 16 } else { lane * lane_bytes + at }]
        };
        let word = |index: usize| u32::from_le_bytes(std::array::from_fn(|i| byte(4 * index + i)));
        // Codes of four bits, or parts of them, from neighbouring nibbles to bytes.
        let spread = |word: u32, i: usize, mask: u32| {
            (0..4).map(|b| ((word >> (i % 2 * 16 + 4 * b)) & mask) << (8 * b)).sum::<u32>()
        };
        let is_table = layout.levels != super::super::layout::Levels::None;
        std::array::from_fn(|i| match bits {
            4 if is_table => spread(word(2 * unit + i / 2), i, 15),
            2 if is_table => spread(word(unit) >> (i / 2 * 2), i, 3),
            1 if is_table => spread(word(unit / 2) >> (unit % 2 * 2 + i / 2), i, 1),
            8 => word(4 * unit + i),
            4 => (word(2 * unit + i / 2) >> (i % 2 * 4)) & 0x0f0f_0f0f,
            2 => (word(unit) >> (i * 2)) & 0x0303_0303,
            _ => {
                let bits = u32::from(byte(2 * unit)) | u32::from(byte(2 * unit + 1)) << 8;
                (((bits >> (i * 4)) & 15) * 0x0020_4081) & 0x0101_0101
            }
        })
    }

    /// A scale as `Scales` of codes.cu reads it.
    fn scale(layout: Layout, part: &[u8], row: usize, sub: usize) -> f32 {
        let (group, half, subs) = (row % 8, row / 8, layout.subs());
        let half_at = |at: usize| f16::from_le_bytes([part[2 * at], part[2 * at + 1]]).to_f32();
        match layout.scales {
            Scales::F16 => half_at((group * subs + sub) * 2 + half),
            Scales::F32 => f32::from_le_bytes(*part[((group * subs + sub) * 2 + half) * 4..].first_chunk().unwrap()),
            Scales::Folded => {
                let byte = part[32 + group * subs + half * subs / 2 + sub / 8 * 4 + sub % 4];
                half_at(group * 2 + half) * f32::from(byte >> (sub / 4 % 2 * 4) & 15)
            }
            Scales::Super => {
                let biased = part[32 + group * 2 * subs + half * subs + sub];
                half_at(group * 2 + half) * 0.5f32.powi(layout.halvings as i32) * (f32::from(biased) - 128.0)
            }
        }
    }

    #[test]
    fn a_kernel_finds_every_code_and_scale() {
        const ROWS: usize = 19;
        for dtype in DType::all() {
            let Some(Packed::Codes(layout)) = select(dtype) else { continue };
            let depth = 2 * dtype.block_len().max(UNIT);
            let mut bytes = vec![0; ROWS * dtype.row_bytes(depth).unwrap()];
            RandomBlocks::new(dtype, 1.0).fill(7, 0, &mut bytes);
            let source = MatrixSource { name: "w".to_owned(), dtype, rows: ROWS, depth, bytes: bytes.clone().into() };
            let left = vec![0xa5; 1 << 16];
            let packed = pack(&source, &Packer::new(dtype, Packed::Codes(layout)), ROWS, 0, 2, left).unwrap().memory;
            let (mut codes, mut scales, mut mins) = (vec![0; dtype.block_len()], [0.0; 16], [0.0; 16]);
            let subs = dtype.block_len() / layout.sub;
            let blocks = depth / dtype.block_len();
            for (index, block) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
                let out = Integers { codes: &mut codes, scales: &mut scales[..subs], mins: &mut mins[..subs] };
                codec::integers(dtype, block, out);
                let (row, first) = (index / blocks, index % blocks * dtype.block_len());
                for (i, code) in codes.iter().enumerate() {
                    let (feature, r) = (first + i, row % MMA_ROWS);
                    let at = row / MMA_ROWS * layout.tile_bytes(depth)
                        + feature / layout.chunk_features() * layout.chunk_bytes();
                    let chunk = &packed[at..][..layout.chunk_bytes()];
                    let (unit, k) = (feature % layout.chunk_features() / UNIT, feature % UNIT);
                    let (lane, register) = (r % 8 * 4 + k % 16 / 4, k / 16 * 2 + r / 8);
                    let (low, rest) = chunk.split_at(64 * layout.units * layout.low);
                    let (high, rest) = rest.split_at(64 * layout.units * layout.high);
                    let mut word = registers(low, layout, layout.low, unit, lane)[register];
                    if layout.high > 0 {
                        word |= registers(high, layout, layout.high, unit, lane)[register] << layout.low;
                    }
                    let found = word.to_le_bytes()[k % 4];
                    let level =
                        layout.levels.table().get(usize::from(found)).map(|l| i32::from(*l) + layout.offset as i32);
                    assert_eq!(level.unwrap_or(found.into()), i32::from(*code), "{dtype} row {row} feature {feature}");
                    let sub = feature % layout.chunk_features() / layout.sub;
                    assert_eq!(scale(layout, rest, r, sub), scales[i / layout.sub], "{dtype}");
                    if layout.has_min {
                        let part = &rest[rest.len() / 2..];
                        assert_eq!(scale(layout, part, r, sub), mins[i / layout.sub], "{dtype}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_unit_holds_its_factors() {
        let unit = Unit::new(f16::from_f32(0.01234), 0.25);
        for factor in -128i8..=127 {
            let kept = kept(Scales::Super, unit.value * f32::from(factor), Some(unit));
            assert_eq!(kept, Some(Scale::Super { unit: unit.bits.to_bits(), factor }));
        }
        assert_eq!(kept(Scales::Super, 0.5, Some(unit)), None);
        assert_eq!(kept(Scales::F16, 0.1, None), None);
    }
}
