//! Which packed layout a format gets: the only place that decides it, as data.

use tessera_formats::DType;

use super::layout::{Layout, blocks, q4_k};

/// A packed layout, by name. [`Packed::visit`] turns those of codes into types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // see `layout::blocks` and `layout::q4_k`
pub enum Packed {
    Nibbles,
    NibblesMin,
    NibblesWideMin,
    Q4K,
    Bytes,
    BytesMin,
    BytesWide,
    BytesWideMin,
    BytesHalves,
    BytesHalvesMin,
    F32,
    F16,
    BF16,
}

impl Packed {
    /// Every layout.
    pub const ALL: [Packed; 13] = [
        Packed::Nibbles,
        Packed::NibblesMin,
        Packed::NibblesWideMin,
        Packed::Q4K,
        Packed::Bytes,
        Packed::BytesMin,
        Packed::BytesWide,
        Packed::BytesWideMin,
        Packed::BytesHalves,
        Packed::BytesHalvesMin,
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
        matches!(self, Packed::BytesHalves | Packed::BytesHalvesMin)
    }

    /// Runs a visitor with the layout's type.
    ///
    /// # Panics
    /// If the layout is one of floats.
    #[inline]
    pub(super) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
        match self {
            Packed::Nibbles => visitor.visit::<blocks::Nibbles>(),
            Packed::NibblesMin => visitor.visit::<blocks::NibblesMin>(),
            Packed::NibblesWideMin => visitor.visit::<blocks::NibblesWideMin>(),
            Packed::Q4K => visitor.visit::<q4_k::Q4K>(),
            Packed::Bytes => visitor.visit::<blocks::Bytes>(),
            Packed::BytesMin => visitor.visit::<blocks::BytesMin>(),
            Packed::BytesWide => visitor.visit::<blocks::BytesWide>(),
            Packed::BytesWideMin => visitor.visit::<blocks::BytesWideMin>(),
            Packed::BytesHalves => visitor.visit::<blocks::BytesHalves>(),
            Packed::BytesHalvesMin => visitor.visit::<blocks::BytesHalvesMin>(),
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
        DType::Q4_0 => Packed::Nibbles,
        DType::Q4_1 => Packed::NibblesMin,
        DType::Q4_K => Packed::Q4K,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => Packed::NibblesWideMin,
        // Scales that are f16 in the file stay f16.
        DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL => Packed::Bytes,
        DType::Q5_1 => Packed::BytesMin,
        // The others' scales are products; f32 holds them exactly.
        DType::IQ1_S | DType::IQ2_XXS | DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS => Packed::BytesWide,
        DType::TQ1_0 | DType::TQ2_0 | DType::MXFP4 | DType::Q1_0 => Packed::BytesWide,
        DType::Q5_K | DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => Packed::BytesWideMin,
        DType::Q3_K | DType::Q6_K | DType::IQ1_M | DType::IQ2_XS | DType::IQ2_S | DType::NVFP4 => Packed::BytesHalves,
        DType::Q2_K => Packed::BytesHalvesMin,
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
            assert_eq!(L::HAS_MIN, dtype.has_min(), "{dtype}");
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
