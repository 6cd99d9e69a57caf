//! How packed weights lie: one family for all formats, which one kernel family reads (`kernels/matmul/codes.cu`).
//!
//! 16 rows make a tile, and 32 features of it a *unit*: what one matrix instruction takes. A chunk is a few units with their
//! scales. Codes are unsigned and lie in planes, for each thread of the warp the four registers that the instruction wants:
//! 8, 4 or 2 low bits, and 1 or 2 high ones where a format needs 3, 5 or 6. Codes of few levels name bytes of a small table, which
//! a kernel looks up in registers. Nothing is rounded.

use tessera_formats::codec::grids::{LEVELS_FP4, LEVELS_IQ2, LEVELS_IQ3_S, LEVELS_IQ3_XXS, LEVELS_IQ4};

use super::{
    select::{Packed, select},
    tile::MMA_ROWS,
};

/// Features of a unit: of a block of activations.
pub const UNIT: usize = tessera_ops::numerics::ACTIVATION_BLOCK;

/// How scales (and minima) are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// One f16 a sub-block.
    F16,
    /// One f32 a sub-block.
    F32,
    /// One f16 for a chunk of 256 features, and a small integer a sub-block.
    Super,
}

/// The levels that codes name, where they are no numbers themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Codes are numbers.
    None,
    /// Three sizes, with a sign: of IQ2.
    Iq2,
    /// Eight sizes, with a sign: of IQ3_XXS.
    Iq3Xxs,
    /// The same of IQ3_S.
    Iq3S,
    /// Sixteen, of IQ4.
    Iq4,
    /// Sixteen, of 4-bit floats, doubled.
    Fp4,
}

impl Levels {
    /// The level of each code: 8, 16 or none.
    pub(super) fn table(self) -> Vec<i8> {
        let signed = |sizes: &[i8]| sizes.iter().copied().chain(sizes.iter().map(|size| -size)).collect();
        match self {
            Levels::None => vec![],
            Levels::Iq2 => signed(&LEVELS_IQ2),
            Levels::Iq3Xxs => signed(&LEVELS_IQ3_XXS),
            Levels::Iq3S => signed(&LEVELS_IQ3_S),
            Levels::Iq4 => LEVELS_IQ4.to_vec(),
            Levels::Fp4 => LEVELS_FP4.to_vec(),
        }
    }
}

/// The layout of a quantized format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Bits of a code in the first plane: 8, 4 or 2.
    pub low: usize,
    /// Bits in the second: 0, 1 or 2.
    pub high: usize,
    /// Units of a chunk.
    pub units: usize,
    /// Features that share a scale: 16 or 32.
    pub sub: usize,
    /// How scales are kept.
    pub scales: Scales,
    /// Whether there are minima, in the same form.
    pub has_min: bool,
    /// What is subtracted from a code.
    pub offset: usize,
    /// What codes name.
    pub levels: Levels,
    /// Units of scales are so many times halved.
    pub halvings: usize,
}

impl Layout {
    /// The layouts of all formats, each once.
    pub fn all() -> Vec<Layout> {
        let mut all = vec![];
        for dtype in tessera_formats::DType::all() {
            if let Some(Packed::Codes(layout)) = select(dtype)
                && !all.contains(&layout)
            {
                all.push(layout);
            }
        }
        all
    }

    /// Scales of a row in a chunk.
    pub const fn subs(self) -> usize {
        self.units * UNIT / self.sub
    }

    /// Features of a chunk.
    pub const fn chunk_features(self) -> usize {
        self.units * UNIT
    }

    /// Bytes of a plane of so many bits.
    const fn plane_bytes(self, bits: usize) -> usize {
        self.units * UNIT * MMA_ROWS * bits / 8
    }

    /// Bytes of all scales, or all minima, of a chunk.
    const fn scale_bytes(self) -> usize {
        MMA_ROWS
            * match self.scales {
                Scales::F16 => 2 * self.subs(),
                Scales::F32 => 4 * self.subs(),
                Scales::Super => 2 + self.subs(),
            }
    }

    /// Bytes of a chunk.
    pub const fn chunk_bytes(self) -> usize {
        let scales = self.scale_bytes() * if self.has_min { 2 } else { 1 };
        self.plane_bytes(self.low) + self.plane_bytes(self.high) + scales
    }

    /// Bytes of 16 rows.
    pub const fn tile_bytes(self, depth: usize) -> usize {
        depth / self.chunk_features() * self.chunk_bytes()
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        let Layout { low, high, units, sub, scales, has_min, offset, levels, halvings } = self;
        let scales = match scales {
            Scales::F16 => 0,
            Scales::F32 => 1,
            Scales::Super => 2,
        };
        let table = levels.table();
        let word = |i: usize| {
            let bytes = table.get(4 * i..4 * i + 4).and_then(|some| some.first_chunk()).copied().unwrap_or([0i8; 4]);
            u32::from_le_bytes(bytes.map(|level| level as u8)) as usize
        };
        vec![
            ("TABLE", table.len()),
            ("LEVELS_0", word(0)),
            ("LEVELS_1", word(1)),
            ("LEVELS_2", word(2)),
            ("LEVELS_3", word(3)),
            ("UNIT_HALVINGS", halvings),
            ("LOW", low),
            ("HIGH", high),
            ("UNITS", units),
            ("SUB", sub),
            ("SCALES", scales),
            ("HAS_MIN", has_min.into()),
            ("OFFSET", offset),
            ("CHUNK", self.chunk_bytes()),
        ]
    }

    /// The code that is packed for a format's code: that of its level.
    pub(super) fn code_of(self) -> [u8; 256] {
        let table = self.levels.table();
        std::array::from_fn(|code| {
            let level = code as i32 - self.offset as i32;
            let place = table.iter().position(|l| i32::from(*l) == level);
            if table.is_empty() { code as u8 } else { place.unwrap_or(0) as u8 }
        })
    }

    /// The largest that a code stands for.
    pub(super) fn code_max(self) -> f32 {
        let largest = self.levels.table().iter().map(|level| level.unsigned_abs()).max();
        let of_number = || self.offset.max((1 << (self.low + self.high)) - 1 - self.offset) as f32;
        largest.map_or_else(of_number, f32::from)
    }

    /// Puts a code of row `row` (of 16), feature `feature` (of the chunk), into a chunk of zeros.
    pub(super) fn put_code(self, chunk: &mut [u8], row: usize, feature: usize, code: u8) {
        let (low, high) = chunk.split_at_mut(self.plane_bytes(self.low));
        let place = |bits| Place::new(self, bits, row, feature);
        let at = place(self.low);
        low[at.byte] |= (code & (0xff >> (8 - self.low))) << at.shift;
        if self.high > 0 {
            let at = place(self.high);
            high[at.byte] |= (code >> self.low) << at.shift;
        }
    }

    /// Puts the scale (or minimum) of a sub-block, as the kernel's `Scales` reads it. `unit` is what `factor` counts.
    pub(super) fn put_scale(self, chunk: &mut [u8], is_min: bool, row: usize, sub: usize, scale: Scale) {
        let planes = self.plane_bytes(self.low) + self.plane_bytes(self.high);
        let part = &mut chunk[planes + if is_min { self.scale_bytes() } else { 0 }..][..self.scale_bytes()];
        let (group, half) = (row % 8, row / 8);
        match scale {
            Scale::F16(bits) => {
                part[((group * self.subs() + sub) * 2 + half) * 2..][..2].copy_from_slice(&bits.to_le_bytes())
            }
            Scale::F32(v) => {
                part[((group * self.subs() + sub) * 2 + half) * 4..][..4].copy_from_slice(&v.to_le_bytes())
            }
            Scale::Super { unit, factor } => {
                part[(group * 2 + half) * 2..][..2].copy_from_slice(&unit.to_le_bytes());
                part[2 * MMA_ROWS + (group * 2 + half) * self.subs() + sub] = (factor as u8) ^ 0x80;
            }
        }
    }
}

/// A scale in the form that a layout keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// The bits of an f16.
    F16(u16),
    F32(f32),
    /// The bits of an f16, and how many of it.
    Super {
        unit: u16,
        factor: i8,
    },
}

/// Where a code's bits are in a plane.
struct Place {
    byte: usize,
    shift: usize,
}

impl Place {
    fn new(layout: Layout, bits: usize, row: usize, feature: usize) -> Place {
        let units = layout.units;
        let (unit, k) = (feature / UNIT, feature % UNIT);
        let (half, thread, byte) = (k / 16, k % 16 / 4, k % 4);
        let (lane, register) = (row % 8 * 4 + thread, half * 2 + row / 8);
        // Within the bytes of the lane.
        // Of a table, the four codes of a register stand in neighbouring nibbles.
        let nibble = register % 2 * 16 + byte * 4;
        let looked_up = |word: usize, bit: usize| (word * 4 + bit / 8, bit % 8);
        let (at, shift) = match bits {
            4 if layout.levels != Levels::None => looked_up(2 * unit + half, nibble),
            2 if layout.levels != Levels::None => looked_up(unit, nibble + 2 * half),
            1 if layout.levels != Levels::None => looked_up(unit / 2, nibble + unit % 2 * 2 + half),
            8 => (unit * 16 + register * 4 + byte, 0),
            4 => (unit * 8 + register / 2 * 4 + byte, register % 2 * 4),
            2 => (unit * 4 + byte, register * 2),
            _ => (unit * 2 + register / 2, register % 2 * 4 + byte),
        };
        // Lanes take 16 bytes at a time where there are as many.
        let lane_bytes = units * bits * 2;
        let byte = if lane_bytes >= 16 { at / 16 * 512 + lane * 16 + at % 16 } else { lane * lane_bytes + at };
        Place { byte, shift }
    }
}

/// Plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the formats' own names
pub enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    /// All of them.
    pub const ALL: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::BF16 => 2,
        }
    }

    /// Numbers of a row that lie together: 16 bytes.
    pub const fn run(self) -> usize {
        16 / self.bytes()
    }

    /// Bytes of 32 rows, padded to whole runs.
    pub const fn tile_bytes(self, depth: usize) -> usize {
        depth.div_ceil(self.run()) * 32 * 16
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        vec![("VALUE_BYTES", self.bytes()), ("IS_BF16", (self == Float::BF16).into())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Every bit of every code has a place of its own, and together they fill the planes.
    #[test]
    fn codes_do_not_overlap() {
        for layout in Layout::all() {
            for bits in [layout.low, layout.high].into_iter().filter(|b| *b > 0) {
                let mut seen = HashSet::new();
                for row in 0..MMA_ROWS {
                    for feature in 0..layout.chunk_features() {
                        let at = Place::new(layout, bits, row, feature);
                        assert!(at.byte < layout.plane_bytes(bits) && at.shift + bits <= 8, "{layout:?}");
                        assert!((0..bits).all(|bit| seen.insert(at.byte * 8 + at.shift + bit)), "{layout:?}");
                    }
                }
                assert_eq!(seen.len(), layout.plane_bytes(bits) * 8);
            }
        }
    }

    #[test]
    fn chunks_are_aligned_for_wide_loads() {
        for layout in Layout::all() {
            assert_eq!(layout.chunk_bytes() % 16, 0, "{layout:?}");
            assert!(layout.scales != Scales::Super || layout.units == 8, "{layout:?}");
        }
    }
}
