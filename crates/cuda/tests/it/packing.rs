//! What a caller may hold of layouts without a card: sizes, and that nothing grows beyond its format by more than its table says.

use tessera_cuda::matmul::{Packed, select};
use tessera_formats::DType;

/// How much larger than its file a format may become: codebooks of many weights become levels, scales of sub-blocks bytes.
fn growth_max(dtype: DType) -> f64 {
    match dtype {
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::F32 | DType::F16 | DType::BF16 => {
            1.0
        }
        DType::IQ4_NL | DType::Q2_K => 1.0,
        DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K | DType::IQ4_XS => 1.06,
        DType::MXFP4 => 1.2,
        DType::NVFP4 | DType::IQ3_S => 1.35,
        DType::MLX4_G32 | DType::MLX4_G64 | DType::MLX4_G128 | DType::MLX8_G32 | DType::MLX8_G64 | DType::MLX8_G128 => {
            1.4
        }
        DType::IQ2_S | DType::IQ3_XXS => 1.42,
        DType::IQ2_XS | DType::IQ2_XXS => 1.62,
        DType::TQ2_0 | DType::TQ1_0 | DType::Q1_0 => 2.3,
        _ => 4.5,
    }
}

#[test]
fn formats_stay_near_their_size() {
    for dtype in DType::all() {
        let (depth, form) = (4096, select(dtype).unwrap());
        let file = dtype.row_bytes(depth).unwrap() * form.tile_rows();
        let growth = form.tile_bytes(depth) as f64 / file as f64;
        assert!(growth <= growth_max(dtype), "{dtype}: {growth}");
        assert!(growth >= 1.0 || matches!(form, Packed::Codes(_)), "{dtype}: {growth}");
    }
}
