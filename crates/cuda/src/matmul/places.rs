//! Where codes go in the planes of a chunk, see [`super::layout`].
//!
//! The four codes that a register of the matrix instruction holds lie together: as bytes of a word, or as nibbles or bits
//! side by side. So they are put at once, at places that are reckoned once for a layout.

use super::{
    layout::{Layout, Levels, UNIT},
    tile::MMA_ROWS,
};

/// The places of a layout's codes.
pub(super) struct Places {
    low: Plane,
    high: Option<Plane>,
    /// Bytes of the first plane.
    low_bytes: usize,
}

impl Places {
    pub(super) fn new(layout: Layout) -> Places {
        let high = (layout.high > 0).then(|| Plane::new(layout, layout.high, layout.low));
        Places { low: Plane::new(layout, layout.low, 0), high, low_bytes: layout.plane_bytes(layout.low) }
    }

    /// Puts the codes of row `row` (of 16) into a chunk of zeros.
    pub(super) fn put(&self, chunk: &mut [u8], row: usize, codes: &[u8]) {
        let (low, high) = chunk.split_at_mut(self.low_bytes);
        self.low.put(low, row, codes);
        if let Some(plane) = &self.high {
            plane.put(high, row, codes);
        }
    }
}

/// Of places in a plane.
const WHOLE: &str = "a plane has all of a place";

/// A plane: some bits of all codes.
struct Plane {
    /// Of each row, its codes by fours.
    fours: Vec<Place>,
    form: Form,
    /// The lowest bit that it keeps.
    first_bit: usize,
    /// One bit for each that it keeps, of four codes.
    mask: u32,
}

/// How four codes stand together.
#[derive(Clone, Copy)]
enum Form {
    /// A word of four bytes.
    Bytes,
    /// Four nibbles.
    Nibbles,
    /// A nibble.
    Bits,
}

impl Plane {
    fn new(layout: Layout, bits: usize, first_bit: usize) -> Plane {
        let form = match bits {
            _ if layout.levels != Levels::None => Form::Nibbles,
            1 => Form::Bits,
            _ => Form::Bytes,
        };
        let rows = 0..MMA_ROWS;
        let of_row =
            |row| (0..layout.chunk_features()).step_by(4).map(move |first| Place::new(layout, bits, row, first));
        Plane { fours: rows.flat_map(of_row).collect(), form, first_bit, mask: 0x0101_0101 * (0xff >> (8 - bits)) }
    }

    fn put(&self, plane: &mut [u8], row: usize, codes: &[u8]) {
        let count = self.fours.len() / MMA_ROWS;
        let fours = codes.as_chunks::<4>().0.iter().zip(&self.fours[row * count..][..count]);
        let fours = fours.map(|(four, at)| (u32::from_le_bytes(*four) >> self.first_bit & self.mask, at));
        match self.form {
            Form::Bytes => fours.for_each(|(four, at)| {
                let word: &mut [u8; 4] = plane[at.byte..].first_chunk_mut().expect(WHOLE);
                *word = (u32::from_le_bytes(*word) | four << at.shift).to_le_bytes();
            }),
            Form::Nibbles => fours.for_each(|(four, at)| {
                let half: &mut [u8; 2] = plane[at.byte..].first_chunk_mut().expect(WHOLE);
                let pairs = (four | four >> 4) & 0x00ff_00ff;
                *half = (u16::from_le_bytes(*half) | ((pairs | pairs >> 8) as u16) << at.shift).to_le_bytes();
            }),
            // The product brings the lowest bits of four bytes side by side.
            Form::Bits => fours.for_each(|(four, at)| {
                plane[at.byte] |= (four.wrapping_mul(0x1020_4080) >> 28 << at.shift) as u8;
            }),
        }
    }
}

/// Where a code's bits are in a plane.
#[derive(Clone, Copy, Debug)]
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
}
