//! Weight matrices on the card: packed when a model is loaded, part by part.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{channel, sync_channel},
    },
    thread,
};

use tessera_ops::{Error, MatrixSource};

use super::{
    layout::{Float, Layout, Scales},
    originals::Originals,
    packing::{Packer, pack},
    prefill_tile::PrefillTile,
    select::{Packed, select},
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
    pub(super) memory: Arc<Memory>,
    /// The tiles of its layout, from the narrowest; of plain weights, none.
    tiles: Vec<Tile>,
    /// The tile of the last launch, and the shape that it was picked for: most steps are like the one before.
    picked: Mutex<Option<(Shape, Tile)>>,
    /// Multiplied in this tile whatever the width, to measure it.
    pub(super) forced: Option<Tile>,
    /// The same of prompt rows.
    pub(super) forced_prefill: Option<PrefillTile>,
    /// The power of two that brings the largest weight near the largest f16, for prefill's operands.
    pub(super) up: f32,
}

impl PackedMatrix {
    /// Packs `segments` matrices that lie one after another, or copies those that are the same, and compiles the kernels that multiply by
    /// them.
    ///
    /// # Errors
    /// Formats that hold no weights, shapes that do not fit, scales or weights that are not finite, no memory, a kernel that
    /// does not compile.
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        originals: &Originals,
        source: &MatrixSource,
        segments: usize,
    ) -> Result<PackedMatrix, Error> {
        let rows = source.rows_each(segments)?;
        let form = select(source.dtype).ok_or_else(|| Error::Unsupported {
            device: gpu.name().to_owned(),
            what: format!("a projection with {} weights (tensor {})", source.dtype, source.name),
            remedy: "convert the model to a format of weights, such as Q8_0",
        })?;
        gpu.prepare(&form.modules(gpu, (rows, segments)))?;
        let prefill = Module::prefill(form).into_iter().filter(|m| m.runs_on(gpu.arch()));
        gpu.prepare(&prefill.collect::<Vec<_>>())?;
        let tile_bytes = form.tile_bytes(source.depth);
        let tiles = rows.div_ceil(form.tile_rows()) * segments;
        let memory = Arc::new(gpu.reserve(tiles.saturating_mul(tile_bytes), &format!("tensor {}", source.name))?);
        let largest = match originals.find(source, segments) {
            Some((original, largest)) => {
                gpu.copy(&original, &memory);
                largest
            }
            None => fill(gpu, source, form, (rows, tiles), &memory)?,
        };
        originals.add(source, segments, &memory, largest);
        let up = form.up(largest);
        let tiles = form.tiles(gpu.arch());
        Ok(PackedMatrix {
            form,
            segments,
            rows,
            depth: source.depth,
            memory,
            tiles,
            picked: Mutex::default(),
            forced: None,
            forced_prefill: None,
            up,
        })
    }
}

/// Packs matrices of `rows` rows each into the card's memory, part by part: so many tiles in all. Gives a bound of their weights.
fn fill(
    gpu: &Gpu,
    source: &MatrixSource,
    form: Packed,
    (rows, tiles): (usize, usize),
    memory: &Memory,
) -> Result<f32, Error> {
    let tile_bytes = form.tile_bytes(source.depth);
    let tiles_at_once = (PART_BYTES / tile_bytes.max(1)).max(1);
    let mut largest = 0.0f32;
    let packer = Packer::new(source.dtype, form);
    thread::scope(|scope| {
        // The next part is packed while one is sent, and takes the memory of the one before.
        let (sender, parts) = sync_channel(0);
        let (left, given_back) = channel();
        scope.spawn(move || {
            for first in (0..tiles).step_by(tiles_at_once) {
                let memory = given_back.try_recv().unwrap_or_default();
                let part = pack(source, &packer, rows, first, tiles_at_once.min(tiles - first), memory);
                if sender.send((first, part)).is_err() {
                    return;
                }
            }
        });
        for (first, part) in parts {
            let part = part?;
            gpu.upload(memory, first * tile_bytes, &part.memory[..part.bytes])?;
            largest = largest.max(part.largest);
            // Behind the last part nobody wants it.
            let _ = left.send(part.memory);
        }
        Ok(largest)
    })
}

impl PackedMatrix {
    /// How it lies on the card.
    pub fn form(&self) -> Packed {
        self.form
    }

    /// The tile of a launch that meets some matrices of so many rows, with so many columns each.
    pub(super) fn tile(&self, gpu: &Gpu, rows: usize, segments: usize, columns: usize) -> Tile {
        let shape = Shape { rows, segments, columns };
        if let Some(forced) = self.forced {
            return forced;
        }
        let mut picked = self.picked.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, tile) = match *picked {
            Some(last) if last.0 == shape => last,
            _ => *picked.insert((shape, gpu.tile(&self.tiles, shape))),
        };
        tile
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
                // What they multiply.
                let numbers = tiles.iter().any(|tile| matches!(tile, Tile::Many(_))).then_some(Module::Numbers);
                tiles.into_iter().map(|tile| Module::product(layout, tile)).chain(numbers).collect()
            }
            Packed::Float(float) => {
                let tiles = FloatsTile::of_matrix(shape.0 * shape.1);
                tiles.into_iter().map(|tile| Module::Floats(float, tile)).collect()
            }
        }
    }
}
