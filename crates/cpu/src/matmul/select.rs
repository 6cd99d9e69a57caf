//! Which packed layout a format gets: the only place that decides it, as data.

use tessera_formats::DType;

use super::{
    layout::{Layout, blocks, folded, supers},
    tile::BLOCK,
};

/// A packed layout, by name. [`Packed::visit`] turns those of codes into types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // see `layout::blocks` and `layout::supers`
pub enum Packed {
    BlocksOf1,
    BlocksOf2,
    BlocksGrid1Halves,
    BlocksOf4,
    BlocksOf4Min,
    BlocksOf4WideMin,
    BlocksUneven,
    BlocksFp4,
    BlocksFp4Halves,
    BlocksOf5,
    BlocksOf5Min,
    BlocksOf8,
    BlocksOf8WideMin,
    SupersOf2,
    SupersOf3,
    SupersOf4,
    SupersOf5,
    SupersOf6,
    SupersUneven,
    SupersGrid1,
    SupersGrid2,
    SupersGrid2Halves,
    SupersGrid3,
    SupersOdd3,
    F32,
    F16,
    BF16,
}

impl Packed {
    /// Every layout.
    pub const ALL: [Packed; 27] = [
        Packed::BlocksOf1,
        Packed::BlocksOf2,
        Packed::BlocksGrid1Halves,
        Packed::BlocksOf4,
        Packed::BlocksOf4Min,
        Packed::BlocksOf4WideMin,
        Packed::BlocksUneven,
        Packed::BlocksFp4,
        Packed::BlocksFp4Halves,
        Packed::BlocksOf5,
        Packed::BlocksOf5Min,
        Packed::BlocksOf8,
        Packed::BlocksOf8WideMin,
        Packed::SupersOf2,
        Packed::SupersOf3,
        Packed::SupersOf4,
        Packed::SupersOf5,
        Packed::SupersOf6,
        Packed::SupersUneven,
        Packed::SupersGrid1,
        Packed::SupersGrid2,
        Packed::SupersGrid2Halves,
        Packed::SupersGrid3,
        Packed::SupersOdd3,
        Packed::F32,
        Packed::F16,
        Packed::BF16,
    ];

    /// Whether weights are numbers rather than codes, and activations are not quantized.
    pub fn is_float(self) -> bool {
        matches!(self, Packed::F32 | Packed::F16 | Packed::BF16)
    }

    /// Whether scales belong to 16 weights.
    pub fn has_halves(self) -> bool {
        struct Halves;
        impl Visitor for Halves {
            type Output = bool;

            fn visit<L: Layout>(self) -> bool {
                L::SUB_BLOCK < BLOCK
            }
        }
        !self.is_float() && self.visit(Halves)
    }

    /// Runs a visitor with the layout's type.
    ///
    /// # Panics
    /// If the layout is one of floats.
    #[inline]
    pub(super) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
        match self {
            Packed::BlocksOf1 => visitor.visit::<blocks::BlocksOf1>(),
            Packed::BlocksOf2 => visitor.visit::<blocks::BlocksOf2>(),
            Packed::BlocksGrid1Halves => visitor.visit::<blocks::BlocksGrid1Halves>(),
            Packed::BlocksOf4 => visitor.visit::<blocks::BlocksOf4>(),
            Packed::BlocksOf4Min => visitor.visit::<blocks::BlocksOf4Min>(),
            Packed::BlocksOf4WideMin => visitor.visit::<blocks::BlocksOf4WideMin>(),
            Packed::BlocksUneven => visitor.visit::<blocks::BlocksUneven>(),
            Packed::BlocksFp4 => visitor.visit::<blocks::BlocksFp4>(),
            Packed::BlocksFp4Halves => visitor.visit::<blocks::BlocksFp4Halves>(),
            Packed::BlocksOf5 => visitor.visit::<blocks::BlocksOf5>(),
            Packed::BlocksOf5Min => visitor.visit::<blocks::BlocksOf5Min>(),
            Packed::BlocksOf8 => visitor.visit::<blocks::BlocksOf8>(),
            Packed::BlocksOf8WideMin => visitor.visit::<blocks::BlocksOf8WideMin>(),
            Packed::SupersOf2 => visitor.visit::<folded::SupersOf2>(),
            Packed::SupersOf3 => visitor.visit::<supers::SupersOf3>(),
            Packed::SupersOf4 => visitor.visit::<supers::SupersOf4>(),
            Packed::SupersOf5 => visitor.visit::<supers::SupersOf5>(),
            Packed::SupersOf6 => visitor.visit::<supers::SupersOf6>(),
            Packed::SupersUneven => visitor.visit::<supers::SupersUneven>(),
            Packed::SupersGrid1 => visitor.visit::<supers::SupersGrid1>(),
            Packed::SupersGrid2 => visitor.visit::<supers::SupersGrid2>(),
            Packed::SupersGrid2Halves => visitor.visit::<supers::SupersGrid2Halves>(),
            Packed::SupersGrid3 => visitor.visit::<supers::SupersGrid3>(),
            Packed::SupersOdd3 => visitor.visit::<supers::SupersOdd3>(),
            Packed::F32 | Packed::F16 | Packed::BF16 => unreachable!("a layout of floats has no codes"),
        }
    }
}

/// Code over any layout of codes.
pub(super) trait Visitor {
    /// What it returns.
    type Output;

    /// Runs with layout `L`.
    fn visit<L: Layout>(self) -> Self::Output;
}

/// The layout of a format's weights, or none where it is no weight format.
pub fn select(dtype: DType) -> Option<Packed> {
    Some(match dtype {
        DType::F32 => Packed::F32,
        DType::F16 => Packed::F16,
        DType::BF16 => Packed::BF16,
        DType::Q1_0 => Packed::BlocksOf1,
        DType::TQ1_0 | DType::TQ2_0 => Packed::BlocksOf2,
        DType::IQ1_M => Packed::BlocksGrid1Halves,
        DType::Q4_0 => Packed::BlocksOf4,
        DType::Q4_1 => Packed::BlocksOf4Min,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => Packed::BlocksOf4WideMin,
        DType::IQ4_NL => Packed::BlocksUneven,
        DType::MXFP4 => Packed::BlocksFp4,
        DType::NVFP4 => Packed::BlocksFp4Halves,
        DType::Q5_0 => Packed::BlocksOf5,
        DType::Q5_1 => Packed::BlocksOf5Min,
        DType::Q8_0 => Packed::BlocksOf8,
        DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => Packed::BlocksOf8WideMin,
        DType::Q2_K => Packed::SupersOf2,
        DType::Q3_K => Packed::SupersOf3,
        DType::Q4_K => Packed::SupersOf4,
        DType::Q5_K => Packed::SupersOf5,
        DType::Q6_K => Packed::SupersOf6,
        DType::IQ4_XS => Packed::SupersUneven,
        // Codebooks of many weights at once: each weight's level by itself.
        DType::IQ1_S => Packed::SupersGrid1,
        DType::IQ2_XXS => Packed::SupersGrid2,
        DType::IQ2_XS | DType::IQ2_S => Packed::SupersGrid2Halves,
        DType::IQ3_XXS => Packed::SupersGrid3,
        DType::IQ3_S => Packed::SupersOdd3,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a layout can hold must cover what the format has.
    struct Fits(DType);

    impl Visitor for Fits {
        type Output = ();

        fn visit<L: Layout>(self) {
            let dtype = self.0;
            assert_eq!(L::SUB_BLOCK, dtype.sub_block_len(), "{dtype}");
            assert_eq!((L::HAS_MIN, L::FOLDED), (dtype.has_min(), dtype.is_folded()), "{dtype}");
            // Minima come with plain codes; without them codes may be shifted to the layout's offset.
            assert!(!L::HAS_MIN || L::CODE_OFFSET == 0 && dtype.code_offset() == 0, "{dtype}");
        }
    }

    #[test]
    fn every_format_gets_a_layout_that_fits() {
        for dtype in DType::all() {
            match select(dtype) {
                Some(packed) if packed.is_float() => assert!(dtype.is_float(), "{dtype}"),
                Some(packed) => {
                    assert!(!dtype.is_float(), "{dtype}");
                    assert_eq!(packed.has_halves(), dtype.sub_block_len() == 16, "{dtype}");
                    packed.visit(Fits(dtype));
                }
                None => assert!(matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64)),
            }
        }
    }

    #[test]
    fn every_layout_is_some_format_s() {
        for packed in Packed::ALL {
            assert!(DType::all().any(|d| select(d) == Some(packed)), "{packed:?}");
        }
    }
}
