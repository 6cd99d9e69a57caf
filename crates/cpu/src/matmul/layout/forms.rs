//! Forms: how the codes of a block of 32 features and 16 rows lie, at the file's own number of bits.
//!
//! What the dot instruction takes is a vector of bytes a *quad* of features. Codes of eight bits are those vectors. Codes
//! of fewer bits are cut into planes of 4, 2 or 1 bits; a plane holds several quads in the same bytes, each at bits of its
//! own, and a shift and a mask bring one back. So a code costs its bits of memory, and unpacking a few instructions
//! that all the token columns share.

use tessera_formats::codec::grids::{LEVELS_FP4, LEVELS_IQ2, LEVELS_IQ3_S, LEVELS_IQ3_XXS, LEVELS_IQ4};

use crate::{
    matmul::tile::{BLOCK, QUAD, QUADS, ROWS},
    simd::{CODE_BYTES, Simd},
};

/// How codes lie.
pub(in crate::matmul) trait Form: Copy + Send + Sync + 'static {
    /// Bytes of a block; whole vectors.
    const BYTES: usize;
    /// Whether codes stay below 128, which some instruction sets multiply faster.
    const SMALL: bool;

    /// The codes of a quad.
    ///
    /// # Safety
    /// `at` is valid for reading [`Form::BYTES`].
    unsafe fn load<S: Simd>(simd: S, at: *const u8, quad: usize) -> S::U8;

    /// Writes the 32 codes of lane `row` into a block that holds zeros there.
    ///
    /// # Panics
    /// If a code is none that the form can hold.
    fn put(to: &mut [u8], row: usize, codes: &[u8; BLOCK]);
}

/// A plane of `BITS` bits a code, 8 / `BITS` quads to a vector.
struct Plane<const BITS: usize>;

impl<const BITS: usize> Plane<BITS> {
    const BYTES: usize = ROWS * BLOCK * BITS / 8;
    const MASK: u8 = ((1u16 << BITS) - 1) as u8;
    /// Vectors of the plane; quad `q` lies in vector `q % VECTORS`.
    const VECTORS: usize = QUADS * BITS / 8;

    /// The quad's bits, moved up to bit `to`.
    ///
    /// # Safety
    /// `at` is valid for reading the plane.
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8, quad: usize, to: usize) -> S::U8 {
        let from = quad / Self::VECTORS * BITS;
        // SAFETY: the vector lies in the plane.
        let vector = unsafe { simd.load_codes(at.add(quad % Self::VECTORS * CODE_BYTES)) };
        simd.field(vector, to as i32 - from as i32, Self::MASK << to)
    }

    /// Adds the bits of the codes from bit `from` on.
    fn put(to: &mut [u8], row: usize, codes: &[u8; BLOCK], from: usize) {
        for (quad, codes) in codes.as_chunks::<QUAD>().0.iter().enumerate() {
            let at = quad % Self::VECTORS * CODE_BYTES + row * QUAD;
            for (byte, code) in to[at..at + QUAD].iter_mut().zip(codes) {
                *byte |= (code >> from & Self::MASK) << (quad / Self::VECTORS * BITS);
            }
        }
    }
}

/// Eight bits.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Whole;

impl Form for Whole {
    const BYTES: usize = Plane::<8>::BYTES;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8, quad: usize) -> S::U8 {
        // SAFETY: the caller's block has a vector for each quad.
        unsafe { simd.load_codes(at.add(quad * CODE_BYTES)) }
    }

    fn put(to: &mut [u8], row: usize, codes: &[u8; BLOCK]) {
        Plane::<8>::put(to, row, codes, 0);
    }
}

/// `LOW` bits in one plane (1, 2 or 4) and `HIGH` more in a second one behind it (0, 1 or 2). A code is
/// `bits << SHIFT`.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Planes<const LOW: usize, const HIGH: usize, const SHIFT: usize>;

/// The sign bit of a binary format: codes 0 and 2.
pub(in crate::matmul) type Signs = Planes<1, 0, 1>;
/// Two bits.
pub(in crate::matmul) type Pairs = Planes<2, 0, 0>;
/// Three bits.
pub(in crate::matmul) type Threes = Planes<2, 1, 0>;
/// Four bits.
pub(in crate::matmul) type Nibbles = Planes<4, 0, 0>;
/// Five bits.
pub(in crate::matmul) type Fives = Planes<4, 1, 0>;
/// Six bits.
pub(in crate::matmul) type Sixes = Planes<4, 2, 0>;

impl<const LOW: usize, const HIGH: usize, const SHIFT: usize> Form for Planes<LOW, HIGH, SHIFT> {
    const BYTES: usize = Plane::<LOW>::BYTES + Plane::<HIGH>::BYTES;
    const SMALL: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8, quad: usize) -> S::U8 {
        // SAFETY: the caller's block has both planes.
        unsafe {
            let low = Plane::<LOW>::load(simd, at, quad, SHIFT);
            if HIGH == 0 {
                low
            } else {
                simd.or(low, Plane::<HIGH>::load(simd, at.add(Plane::<LOW>::BYTES), quad, LOW + SHIFT))
            }
        }
    }

    fn put(to: &mut [u8], row: usize, codes: &[u8; BLOCK]) {
        let fits = |code: &u8| code >> SHIFT < 1 << (LOW + HIGH) && code >> SHIFT << SHIFT == *code;
        assert!(codes.iter().all(fits), "a layout of {} bits got a code that has more", LOW + HIGH);
        Plane::<LOW>::put(to, row, codes, SHIFT);
        if HIGH > 0 {
            Plane::<HIGH>::put(&mut to[Plane::<LOW>::BYTES..], row, codes, LOW + SHIFT);
        }
    }
}

/// Bits that choose one of a few levels: four, unless the form `F` says otherwise.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Chosen<T, F = Nibbles>(std::marker::PhantomData<(T, F)>);

/// Up to sixteen levels, as codes. Fewer are filled up with a repetition of one of them.
pub(in crate::matmul) trait Levels: Copy + Send + Sync + 'static {
    /// The codes.
    const CODES: [u8; 16];
    /// Where each code stands among them; 16 for those that do not.
    const INDICES: [u8; 256] = {
        let (mut indices, mut i) = ([16; 256], 16);
        while i > 0 {
            i -= 1;
            indices[Self::CODES[i] as usize] = i as u8;
        }
        indices
    };
}

/// The uneven levels of IQ4_NL and IQ4_XS.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Uneven;

impl Levels for Uneven {
    const CODES: [u8; 16] = with_offset(LEVELS_IQ4, 128);
}

/// The values of FP4, doubled.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Fp4;

impl Levels for Fp4 {
    const CODES: [u8; 16] = with_offset(LEVELS_FP4, 16);
}

/// IQ1's three sizes with both shifts, in eighths, which three bits choose. Here and below, that a codebook has but some of all
/// groups of sizes, and that a parity fixes some signs, is spent on speed.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Grid1;

impl Levels for Grid1 {
    const CODES: [u8; 16] = with_offset([-9, -7, -1, 1, 7, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 9);
}

/// IQ2's three sizes with both signs, which three bits choose.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Grid2;

impl Levels for Grid2 {
    const CODES: [u8; 16] = {
        let [a, b, c, _] = LEVELS_IQ2;
        with_offset([a, b, c, -a, -b, -c, a, a, a, a, a, a, a, a, a, a], 43)
    };
}

/// The eight sizes of IQ3_XXS with both signs.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Grid3;

impl Levels for Grid3 {
    const CODES: [u8; 16] = with_offset(with_signs(LEVELS_IQ3_XXS), 62);
}

/// The eight sizes of IQ3_S with both signs.
#[derive(Clone, Copy)]
pub(in crate::matmul) struct Odd3;

impl Levels for Odd3 {
    const CODES: [u8; 16] = with_offset(with_signs(LEVELS_IQ3_S), 15);
}

const fn with_signs(sizes: [i8; 8]) -> [i8; 16] {
    let (mut levels, mut i) = ([0; 16], 0);
    while i < 8 {
        (levels[i], levels[8 + i]) = (sizes[i], -sizes[i]);
        i += 1;
    }
    levels
}

const fn with_offset(levels: [i8; 16], offset: u8) -> [u8; 16] {
    let (mut codes, mut i) = ([0; 16], 0);
    while i < 16 {
        codes[i] = offset.wrapping_add_signed(levels[i]);
        i += 1;
    }
    codes
}

impl<T: Levels, F: Form> Form for Chosen<T, F> {
    const BYTES: usize = F::BYTES;
    const SMALL: bool = {
        let (mut small, mut i) = (true, 0);
        while i < 16 {
            small &= T::CODES[i] < 128;
            i += 1;
        }
        small
    };

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8, quad: usize) -> S::U8 {
        // SAFETY: the caller's promise.
        simd.look_up(&T::CODES, unsafe { F::load(simd, at, quad) })
    }

    fn put(to: &mut [u8], row: usize, codes: &[u8; BLOCK]) {
        // A code that is no level becomes 16, which four bits refuse.
        F::put(to, row, &codes.map(|code| T::INDICES[usize::from(code)]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::{Isa, Kernel};

    /// Dots of each quad of a block with four numbers: what the codes are, whatever the instruction set's vectors.
    struct Dots<F: Form>(Vec<u8>, [i8; 4], std::marker::PhantomData<F>);

    impl<F: Form> Kernel for Dots<F> {
        type Output = Vec<[f32; ROWS]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let x = i32::from_le_bytes(self.1.map(|v| v as u8));
            let sum: i32 = self.1.iter().map(|v| i32::from(*v)).sum();
            let dot = |quad| {
                // SAFETY: the block has all its bytes.
                let codes = unsafe { F::load(simd, self.0.as_ptr(), quad) };
                let mut lanes = [f32::NAN; ROWS];
                let sums = if F::SMALL {
                    simd.dot_small(simd.splat_i32(0), codes, x)
                } else {
                    simd.dot_bytes(simd.splat_i32(S::BYTE_OFFSET * sum), codes, x)
                };
                simd.store(&mut lanes, simd.to_f32(sums));
                lanes
            };
            (0..QUADS).map(dot).collect()
        }
    }

    /// Codes of 16 rows go in and come out.
    fn check<F: Form>(random: &[u8], x: [i8; 4], code: impl Fn(u8) -> u8) {
        let rows: Vec<[u8; BLOCK]> = random.as_chunks::<BLOCK>().0.iter().map(|row| row.map(&code)).collect();
        let mut block = vec![0; F::BYTES];
        rows.iter().enumerate().for_each(|(row, codes)| F::put(&mut block, row, codes));
        for isa in Isa::available() {
            for (quad, got) in isa.run(Dots::<F>(block.clone(), x, std::marker::PhantomData)).iter().enumerate() {
                let four = |row: &[u8; BLOCK]| row[quad * QUAD..][..QUAD].to_vec();
                let dot = |row| four(row).iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(x)).sum::<i32>() as f32;
                assert_eq!(got.to_vec(), rows.iter().map(dot).collect::<Vec<_>>(), "{}, quad {quad}", isa.name());
            }
        }
    }

    proptest! {
        #[test]
        fn codes_come_back(random in prop::collection::vec(any::<u8>(), ROWS * BLOCK), x in prop::array::uniform4(-127i8..=127)) {
            check::<Whole>(&random, x, |v| v);
            check::<Signs>(&random, x, |v| v & 2);
            check::<Pairs>(&random, x, |v| v & 3);
            check::<Threes>(&random, x, |v| v & 7);
            check::<Nibbles>(&random, x, |v| v & 15);
            check::<Fives>(&random, x, |v| v & 31);
            check::<Sixes>(&random, x, |v| v & 63);
            check::<Chosen<Uneven>>(&random, x, |v| Uneven::CODES[usize::from(v & 15)]);
            check::<Chosen<Fp4>>(&random, x, |v| Fp4::CODES[usize::from(v & 15)]);
            check::<Chosen<Grid1, Threes>>(&random, x, |v| Grid1::CODES[usize::from(v & 7)]);
            check::<Chosen<Grid2, Threes>>(&random, x, |v| Grid2::CODES[usize::from(v & 7)]);
            check::<Chosen<Grid3>>(&random, x, |v| Grid3::CODES[usize::from(v & 15)]);
            check::<Chosen<Odd3>>(&random, x, |v| Odd3::CODES[usize::from(v & 15)]);
        }
    }

    #[test]
    #[should_panic(expected = "5 bits")]
    fn a_code_that_does_not_fit_is_refused() {
        Fives::put(&mut [0; Fives::BYTES], 0, &[32; BLOCK]);
    }
}
