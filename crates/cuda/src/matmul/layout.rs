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
    /// The same, four bits a sub-block: whole numbers that kernels fold into the codes, or into their sums.
    Folded,
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
    pub(super) const fn plane_bytes(self, bits: usize) -> usize {
        self.units * UNIT * MMA_ROWS * bits / 8
    }

    /// Bytes of all scales, or all minima, of a chunk.
    const fn scale_bytes(self) -> usize {
        MMA_ROWS
            * match self.scales {
                Scales::F16 => 2 * self.subs(),
                Scales::F32 => 4 * self.subs(),
                Scales::Super => 2 + self.subs(),
                Scales::Folded => 2 + self.subs() / 2,
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
            Scales::Folded => 3,
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

    /// Puts the scale (or minimum) of a sub-block, as the kernel's `Scales` reads it. `unit` is what `factor` counts.
    #[inline]
    pub(super) fn put_scale(self, chunk: &mut [u8], is_min: bool, row: usize, sub: usize, scale: Scale) {
        let planes = self.plane_bytes(self.low) + self.plane_bytes(self.high);
        let part = &mut chunk[planes + if is_min { self.scale_bytes() } else { 0 }..][..self.scale_bytes()];
        let (group, half) = (row % 8, row / 8);
        match scale {
            Scale::F16(bits) => put_at(part, ((group * self.subs() + sub) * 2 + half) * 2, bits.to_le_bytes()),
            Scale::F32(v) => put_at(part, ((group * self.subs() + sub) * 2 + half) * 4, v.to_le_bytes()),
            Scale::Super { unit, factor } => {
                put_at(part, (group * 2 + half) * 2, unit.to_le_bytes());
                part[2 * MMA_ROWS + (group * 2 + half) * self.subs() + sub] = (factor as u8) ^ 0x80;
            }
            // Four sub-blocks in the low nibbles of a word, the next four in the high ones.
            Scale::Folded { unit, factor } => {
                put_at(part, (group * 2 + half) * 2, unit.to_le_bytes());
                let byte = 2 * MMA_ROWS + (group * 2 + half) * self.subs() / 2 + sub / 8 * 4 + sub % 4;
                part[byte] |= factor << (sub / 4 % 2 * 4);
            }
        }
    }
}

/// As an array, which is a store and no call.
#[inline]
fn put_at<const BYTES: usize>(part: &mut [u8], at: usize, bytes: [u8; BYTES]) {
    *part[at..].first_chunk_mut().expect("a part has all of a scale") = bytes;
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
    /// The same of four bits.
    Folded {
        unit: u16,
        factor: u8,
    },
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
    use super::*;

    #[test]
    fn chunks_are_aligned_for_wide_loads() {
        for layout in Layout::all() {
            assert_eq!(layout.chunk_bytes() % 16, 0, "{layout:?}");
            assert!(!matches!(layout.scales, Scales::Super | Scales::Folded) || layout.units == 8, "{layout:?}");
        }
    }
}
