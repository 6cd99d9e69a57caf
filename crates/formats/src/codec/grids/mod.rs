//! The codebooks of the IQ formats: a code names a whole group of four or eight weights.
//!
//! An entry is 16 bits of level indices (see the generated files); the levels are below. The unpacked tables hold
//! what [`super::integers`] adds to a format's offset.

mod iq1;
mod iq2;
mod iq3;

pub use iq1::*;
pub use iq2::*;
pub use iq3::*;

/// IQ1's levels in eighths, to which a shift of plus or minus one eighth is added.
const LEVELS_IQ1: [i8; 4] = [-8, 0, 8, 0];
/// The sizes of IQ2's weights; the fourth does not occur.
pub const LEVELS_IQ2: [i8; 4] = [0x08, 0x19, 0x2b, 0];
/// The sizes of IQ3_XXS's weights.
pub const LEVELS_IQ3_XXS: [i8; 8] = [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e];
/// The sizes of IQ3_S's weights.
pub const LEVELS_IQ3_S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

pub(super) static UNPACKED_IQ1: [[i8; 8]; 2048] = unpack(&IQ1_S, &LEVELS_IQ1);
pub(super) static UNPACKED_IQ2_XXS: [[i8; 8]; 256] = unpack(&IQ2_XXS, &LEVELS_IQ2);
pub(super) static UNPACKED_IQ2_XS: [[i8; 8]; 512] = unpack(&IQ2_XS, &LEVELS_IQ2);
pub(super) static UNPACKED_IQ2_S: [[i8; 8]; 1024] = unpack(&IQ2_S, &LEVELS_IQ2);
pub(super) static UNPACKED_IQ3_XXS: [[i8; 4]; 256] = unpack(&IQ3_XXS, &LEVELS_IQ3_XXS);
pub(super) static UNPACKED_IQ3_S: [[i8; 4]; 512] = unpack(&IQ3_S, &LEVELS_IQ3_S);

/// The sixteen levels of IQ4_NL and IQ4_XS.
pub const LEVELS_IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The sixteen FP4 (E2M1) values, doubled so that they are integers; bit 3 is the sign.
pub const LEVELS_FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Entries of `N` level indices (16 / N bits each) to entries of `N` levels, at compile time.
const fn unpack<const COUNT: usize, const N: usize>(packed: &[u16; COUNT], levels: &[i8]) -> [[i8; N]; COUNT] {
    let bits = 16 / N;
    let mut out = [[0; N]; COUNT];
    let mut i = 0;
    while i < COUNT {
        let mut j = 0;
        while j < N {
            out[i][j] = levels[(packed[i] as usize >> (j * bits)) & ((1 << bits) - 1)];
            j += 1;
        }
        i += 1;
    }
    out
}

/// The sign bits of eight weights from seven: the eighth makes their number even.
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_even_in_number() {
        assert!((0..128).all(|i| even_signs(i).count_ones().is_multiple_of(2) && u32::from(even_signs(i)) & 0x7f == i));
    }

    #[test]
    fn entries_are_distinct() {
        for (name, grid) in
            [("IQ1", &IQ1_S[..]), ("IQ2_XXS", &IQ2_XXS), ("IQ2_XS", &IQ2_XS), ("IQ2_S", &IQ2_S), ("IQ3_S", &IQ3_S)]
        {
            let distinct: std::collections::HashSet<_> = grid.iter().collect();
            assert_eq!(distinct.len(), grid.len(), "{name}");
        }
    }
}
