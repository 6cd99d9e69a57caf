//! Weights from a file's blocks to packed tiles, once, when a model is loaded: in parallel, losing nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

use half::f16;
use tessera_formats::codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS};
use tessera_ops::{Error, MatrixSource};

use super::{
    layout::{Float, Layout, Scale, Scales},
    prefill_tile::PrefillTile,
    select::{Packed, select, units_at},
    tile::{FloatsTile, MMA_ROWS},
    wide_tile::{Shape, Tile},
};
use crate::{
    driver::{Gpu, Memory},
    kernels::Module,
};

/// Bytes that are packed before they go to the card.
const PART_BYTES: usize = 64 << 20;

/// A weight matrix, or several of one shape, on the card.
pub struct PackedMatrix {
    pub(super) form: Packed,
    pub(super) segments: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) memory: Memory,
    /// The tiles of its layout, from the narrowest; of plain weights, none. Each launch looks.
    tiles: Vec<Tile>,
    /// Multiplied in this tile whatever the width, to measure it.
    pub(super) forced: Option<Tile>,
    /// The same of prompt rows.
    pub(super) forced_prefill: Option<PrefillTile>,
    /// The power of two that brings the largest weight near the largest f16, for prefill's operands.
    pub(super) up: f32,
}

impl PackedMatrix {
    /// Packs `segments` matrices that lie one after another, and compiles the kernels that multiply by them.
    ///
    /// # Errors
    /// Formats that hold no weights, shapes that do not fit, scales or weights that are not finite, no memory, a kernel that
    /// does not compile.
    pub(crate) fn load(gpu: &Arc<Gpu>, source: &MatrixSource, segments: usize) -> Result<PackedMatrix, Error> {
        let rows = source.rows_each(segments)?;
        let form = select(source.dtype).ok_or_else(|| Error::Unsupported {
            device: gpu.name().to_owned(),
            what: format!("a projection with {} weights (tensor {})", source.dtype, source.name),
            remedy: "convert the model to a format of weights, such as Q8_0",
        })?;
        gpu.prepare(&form.modules(gpu, (rows, segments)))?;
        let prefill = Module::prefill(form).into_iter().filter(|m| m.runs_on(gpu.arch()));
        gpu.prepare(&prefill.collect::<Vec<_>>())?;
        let (tile_rows, tile_bytes) = (form.tile_rows(), form.tile_bytes(source.depth));
        let tiles = rows.div_ceil(tile_rows) * segments;
        let what = format!("tensor {}", source.name);
        let memory = gpu.reserve(tiles.saturating_mul(tile_bytes), &what)?;
        let tiles_at_once = (PART_BYTES / tile_bytes.max(1)).max(1);
        let mut largest = 0.0f32;
        for first in (0..tiles).step_by(tiles_at_once) {
            let count = tiles_at_once.min(tiles - first);
            let part = pack(source, form, rows, first, count)?;
            gpu.upload(&memory, first * tile_bytes, &part.bytes)?;
            largest = largest.max(part.largest);
        }
        let up = form.up(largest);
        let tiles = form.tiles(gpu.arch());
        Ok(PackedMatrix {
            form,
            segments,
            rows,
            depth: source.depth,
            memory,
            tiles,
            forced: None,
            forced_prefill: None,
            up,
        })
    }
}

impl PackedMatrix {
    /// How it lies on the card.
    pub fn form(&self) -> Packed {
        self.form
    }

    /// The tile of a launch that meets some matrices, with so many columns each.
    pub(super) fn tile(&self, gpu: &Gpu, segments: usize, columns: usize) -> Tile {
        let shape = Shape { rows: self.rows, segments, columns };
        self.forced.unwrap_or_else(|| gpu.tile(&self.tiles, shape))
    }

    /// Multiplies in this tile from now on, whatever the width: no bit depends on it.
    pub fn force_tile(&mut self, tile: Tile) {
        self.forced = Some(tile);
    }

    /// The same of prompt rows; none: in the table's choice. Parts of a sum stay what they are, so no bit depends on it either.
    pub fn force_prefill_tile(&mut self, tile: Option<PrefillTile>) {
        self.forced_prefill = tile;
    }

    /// Bytes on the card.
    pub fn bytes(&self) -> usize {
        self.segments * self.rows.div_ceil(self.form.tile_rows()) * self.form.tile_bytes(self.depth)
    }

    /// Rows of all matrices together.
    pub fn rows_of_all(&self) -> usize {
        self.segments * self.rows
    }
}

impl Packed {
    /// Rows that lie together.
    pub fn tile_rows(self) -> usize {
        match self {
            Packed::Codes(_) => MMA_ROWS,
            Packed::Float(_) => FloatsTile::ROWS,
        }
    }

    /// Bytes of as many.
    pub fn tile_bytes(self, depth: usize) -> usize {
        match self {
            Packed::Codes(layout) => layout.tile_bytes(depth),
            Packed::Float(float) => float.tile_bytes(depth),
        }
    }

    /// The power of two that units of scales are multiplied by, beside what brings weights near the largest f16.
    pub(super) fn halved(self) -> f32 {
        if let Packed::Codes(layout) = self { 0.5f32.powi(layout.halvings as i32) } else { 1.0 }
    }

    /// The power of two that takes weights whose bound is `largest` up to 2^15, as far as the form's scales may be multiplied by it.
    fn up(self, largest: f32) -> f32 {
        let exponent = 15 - f64::from(largest).log2().ceil() as i32;
        let limit = match self {
            // Multiplied as they are.
            Packed::Float(Float::F16) => 0..=0,
            Packed::Float(_) | Packed::Codes(Layout { scales: Scales::F32, .. }) => -100..=100,
            Packed::Codes(_) => -14..=15,
        };
        if largest > 0.0 { 2.0f32.powi(exponent.clamp(*limit.start(), *limit.end())) } else { 1.0 }
    }

    /// The tiles of its layout.
    fn tiles(self, arch: &str) -> Vec<Tile> {
        if let Packed::Codes(layout) = self { Tile::all(layout, arch) } else { vec![] }
    }

    /// The kernels that multiply by matrices of a shape, at any width.
    fn modules(self, gpu: &Gpu, shape: (usize, usize)) -> Vec<Module> {
        match self {
            Packed::Codes(layout) => {
                let tiles = Tile::of_matrix(&self.tiles(gpu.arch()), gpu.processors(), shape);
                tiles.into_iter().map(|tile| Module::product(layout, tile)).collect()
            }
            Packed::Float(float) => FloatsTile::ALL.map(|tile| Module::Floats(float, tile)).to_vec(),
        }
    }
}

/// Tiles, packed.
struct Part {
    bytes: Vec<u8>,
    /// No weight is larger, nor any number that scales are made of.
    largest: f32,
}

/// Packs `count` tiles from tile `first` on, of matrices of `rows` rows each.
fn pack(source: &MatrixSource, form: Packed, rows: usize, first: usize, count: usize) -> Result<Part, Error> {
    let (row_bytes, tile_bytes, tile_rows) = (source.row_bytes()?, form.tile_bytes(source.depth), form.tile_rows());
    let mut packed = vec![0u8; count * tile_bytes];
    let tiles_each = rows.div_ceil(tile_rows);
    let bad_row = AtomicUsize::new(usize::MAX);
    // Bits of numbers that are not negative are in their order.
    let largest = AtomicU32::new(0);
    let bytes: &[u8] = &source.bytes;
    let pack_tile = |index: usize, tile: &mut [u8]| {
        let (segment, in_matrix) = (index / tiles_each, index % tiles_each);
        for row_here in 0..tile_rows.min(rows - in_matrix * tile_rows) {
            let row = segment * rows + in_matrix * tile_rows + row_here;
            let raw = &bytes[row * row_bytes..][..row_bytes];
            let bound = match form {
                Packed::Codes(layout) => put_codes(layout, source, tile, row_here, raw),
                Packed::Float(float) => put_floats(float, tile, row_here, raw),
            };
            match bound {
                Some(bound) => largest.fetch_max(bound.to_bits(), Ordering::Relaxed) as usize,
                None => bad_row.fetch_min(row, Ordering::Relaxed),
            };
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(threads).max(1);
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
        usize::MAX => Ok(Part { bytes: packed, largest: f32::from_bits(largest.into_inner()) }),
        row => Err(Error::NotFinite { tensor: source.name.clone(), row, what }),
    }
}

/// Puts a row of blocks into its tile. Gives a bound of its weights, or none where a scale is not finite.
fn put_codes(layout: Layout, source: &MatrixSource, tile: &mut [u8], row: usize, raw: &[u8]) -> Option<f32> {
    let dtype = source.dtype;
    let (length, subs) = (dtype.block_len(), dtype.block_len() / layout.sub);
    let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
    let (codes, scales, mins) = (&mut codes[..length], &mut scales[..subs], &mut mins[..subs]);
    let (code_max, code_of) = (layout.code_max(), layout.code_of());
    let (mut is_good, mut bound) = (true, 0.0f32);
    for (block, raw) in raw.chunks_exact(dtype.block_bytes()).enumerate() {
        codec::integers(dtype, raw, Integers { codes, scales, mins });
        if !scales.iter().chain(mins.iter()).all(|v| v.is_finite()) {
            is_good = false;
            continue;
        }
        let halved = 0.5f32.powi(layout.halvings as i32);
        let units = units_at(dtype).map(|at| [at.scale, at.min].map(|at| Unit { bits: half_at(raw, at), halved }));
        if let Some([scale, min]) = units {
            let least = if layout.has_min { min.value().abs() } else { 0.0 };
            bound = bound.max(scale.value().abs() * code_max + least);
        }
        for (i, code) in codes.iter().enumerate() {
            let feature = block * length + i;
            let chunk = &mut tile[feature / layout.chunk_features() * layout.chunk_bytes()..];
            layout.put_code(chunk, row, feature % layout.chunk_features(), code_of[usize::from(*code)]);
        }
        for sub in 0..subs {
            bound = bound.max(scales[sub].abs() * code_max + if layout.has_min { mins[sub].abs() } else { 0.0 });
            let at = block * subs + sub;
            let chunk = &mut tile[at / layout.subs() * layout.chunk_bytes()..][..layout.chunk_bytes()];
            let mut put = |is_min, value, unit| match kept(layout.scales, value, unit) {
                Some(scale) => layout.put_scale(chunk, is_min, row, at % layout.subs(), scale),
                None => is_good = false,
            };
            put(false, scales[sub], units.map(|u| u[0]));
            if layout.has_min {
                put(true, mins[sub], units.map(|u| u[1]));
            }
        }
    }
    is_good.then_some(bound)
}

fn half_at(raw: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([raw[at], raw[at + 1]])
}

/// What factors count: an f16, halved some times.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    bits: f16,
    halved: f32,
}

impl Unit {
    fn value(self) -> f32 {
        self.bits.to_f32() * self.halved
    }
}

/// A scale in the form of its layout, or none where that would not be the same number.
fn kept(scales: Scales, value: f32, unit: Option<Unit>) -> Option<Scale> {
    match (scales, unit) {
        (Scales::F32, _) => Some(Scale::F32(value)),
        (Scales::F16, _) => {
            let half = f16::from_f32(value);
            (half.to_f32() == value).then_some(Scale::F16(half.to_bits()))
        }
        (Scales::Super, Some(unit)) => {
            let factor = if value == 0.0 { 0.0 } else { (value / unit.value()).round() };
            let fits = (-128.0..=127.0).contains(&factor) && (value == 0.0 || unit.value() * factor == value);
            fits.then_some(Scale::Super { unit: unit.bits.to_bits(), factor: factor as i8 })
        }
        (Scales::Super, None) => None,
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
    use tessera_formats::{DType, codec::RandomBlocks};

    use super::*;
    use crate::matmul::layout::UNIT;

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
            let packed = pack(&source, Packed::Codes(layout), ROWS, 0, 2).unwrap().bytes;
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
        let unit = Unit { bits: f16::from_f32(0.01234), halved: 0.25 };
        for factor in -128i8..=127 {
            let kept = kept(Scales::Super, unit.value() * f32::from(factor), Some(unit));
            assert_eq!(kept, Some(Scale::Super { unit: unit.bits.to_bits(), factor }));
        }
        assert_eq!(kept(Scales::Super, 0.5, Some(unit)), None);
        assert_eq!(kept(Scales::F16, 0.1, None), None);
    }
}
