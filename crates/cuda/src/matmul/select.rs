//! Which layout a format gets: the only place that decides it, as data.

use tessera_formats::DType;

use super::layout::{Float, Layout, Levels, Scales};

/// The form of a matrix on the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packed {
    /// Codes and scales.
    Codes(Layout),
    /// Plain numbers.
    Float(Float),
}

/// Where the f16 units of a block's scales, and of its minima, stand among its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitsAt {
    pub(super) scale: usize,
    pub(super) min: usize,
}

/// Bits of the planes, units of a chunk, form of scales.
const fn form(low: usize, high: usize, units: usize, scales: Scales) -> (usize, usize, usize, Scales) {
    (low, high, units, scales)
}

/// The layout of a format's weights, or none where it is no weight format.
///
/// Codebooks of many weights at once become levels and signs, by three or four bits; IQ1's, five.
pub fn select(dtype: DType) -> Option<Packed> {
    let (low, high, units, scales) = match dtype {
        DType::F32 => return Some(Packed::Float(Float::F32)),
        DType::F16 => return Some(Packed::Float(Float::F16)),
        DType::BF16 => return Some(Packed::Float(Float::BF16)),
        DType::Q4_0 | DType::Q4_1 => form(4, 0, 1, Scales::F16),
        DType::Q5_0 | DType::Q5_1 => form(4, 1, 1, Scales::F16),
        DType::Q8_0 => form(8, 0, 1, Scales::F16),
        DType::IQ4_NL => form(4, 0, 1, Scales::F16),
        DType::TQ1_0 | DType::TQ2_0 | DType::Q1_0 => form(2, 0, 4, Scales::F16),
        DType::Q2_K => form(2, 0, 8, Scales::Folded),
        DType::Q3_K => form(2, 1, 8, Scales::Super),
        DType::Q4_K => form(4, 0, 8, Scales::Super),
        DType::Q5_K => form(4, 1, 8, Scales::Super),
        DType::Q6_K => form(4, 2, 8, Scales::Super),
        DType::IQ1_S | DType::IQ1_M => form(4, 1, 2, Scales::F32),
        DType::MXFP4 | DType::NVFP4 => form(4, 0, 1, Scales::F32),
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => form(2, 1, 8, Scales::Super),
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS => form(4, 0, 8, Scales::Super),
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 => form(4, 0, 1, Scales::F32),
        DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => form(8, 0, 1, Scales::F32),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64 => return None,
    };
    let (sub, has_min, offset) = (dtype.sub_block_len(), dtype.has_min(), dtype.code_offset().into());
    let (levels, halvings) = match dtype {
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => (Levels::Iq2, 3),
        DType::IQ3_XXS => (Levels::Iq3Xxs, 2),
        DType::IQ3_S => (Levels::Iq3S, 0),
        DType::IQ4_NL | DType::IQ4_XS => (Levels::Iq4, 0),
        DType::MXFP4 | DType::NVFP4 => (Levels::Fp4, 0),
        _ => (Levels::None, 0),
    };
    Some(Packed::Codes(Layout { low, high, units, sub, scales, has_min, offset, levels, halvings }))
}

/// Where a format of [`Scales::Super`] keeps its units.
pub(super) fn units_at(dtype: DType) -> Option<UnitsAt> {
    let (scale, min) = match dtype {
        DType::Q3_K => (108, 108),
        DType::Q4_K | DType::Q5_K => (0, 2),
        DType::Q6_K => (208, 208),
        // The first two bytes are the scale of all.
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS => (0, 0),
        _ => return None,
    };
    Some(UnitsAt { scale, min })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_format_has_a_layout() {
        for dtype in DType::all() {
            match select(dtype) {
                Some(Packed::Codes(layout)) => {
                    assert!(!dtype.is_float(), "{dtype}");
                    assert_eq!(layout.scales == Scales::Super, units_at(dtype).is_some(), "{dtype}");
                    assert_eq!(layout.scales == Scales::Folded, dtype.is_folded(), "{dtype}");
                    // A chunk is within a block, or a block is whole chunks.
                    assert_eq!(dtype.block_len() % layout.chunk_features(), 0, "{dtype}");
                }
                Some(Packed::Float(_)) => assert!(dtype.is_float(), "{dtype}"),
                None => panic!("{dtype} has no layout"),
            }
        }
    }
}
