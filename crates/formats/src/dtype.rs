//! The list of weight formats. Every table of the project (codecs, kernels, dispatch, audit) is checked against it.
//!
//! A format stores weights in *blocks* of [`DType::block_len`] consecutive values of a row. All quantized formats
//! share one meaning, whatever their bit tricks: `weight = scale * (code - code_offset) + min`, with a small unsigned
//! integer `code` for each weight and one f32 `scale` (and, where [`DType::has_min`], one f32 `min`) for each
//! *sub-block* of [`DType::sub_block_len`] weights. `codec::integers` yields exactly that view; kernels rest on it.

/// A weight format: how a block of consecutive weights of one row lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)] // the names are ggml's own
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    /// MLX affine groups: f32 scale, f32 bias (widened from the file's 16 bits), then the group's codes, low bits
    /// first. Not a ggml type: the safetensors reader assembles it from MLX's three separate tensors.
    MLX4_G32,
    MLX4_G64,
    MLX4_G128,
    MLX8_G32,
    MLX8_G64,
    MLX8_G128,
    /// Tables, not weights: files carry them beside weights (token maps, for one), and no kernel multiplies by them.
    I8,
    I16,
    I32,
    I64,
    F64,
}

/// One row of the format table.
struct Row {
    dtype: DType,
    name: &'static str,
    ggml_id: Option<u32>,
    block_len: usize,
    block_bytes: usize,
    /// Weights that share a scale; 0 for plain numbers.
    sub_block_len: usize,
    code_offset: u8,
    has_min: bool,
}

const fn row(
    dtype: DType,
    name: &'static str,
    ggml_id: i32,
    (block_len, block_bytes): (usize, usize),
    (sub_block_len, code_offset, has_min): (usize, u8, bool),
) -> Row {
    let ggml_id = if ggml_id < 0 { None } else { Some(ggml_id as u32) };
    Row { dtype, name, ggml_id, block_len, block_bytes, sub_block_len, code_offset, has_min }
}

const PLAIN: (usize, u8, bool) = (0, 0, false);

/// In the order of the enum, which a test holds.
static TABLE: [Row; 38] = [
    row(DType::F32, "F32", 0, (1, 4), PLAIN),
    row(DType::F16, "F16", 1, (1, 2), PLAIN),
    row(DType::BF16, "BF16", 30, (1, 2), PLAIN),
    row(DType::Q4_0, "Q4_0", 2, (32, 18), (32, 8, false)),
    row(DType::Q4_1, "Q4_1", 3, (32, 20), (32, 0, true)),
    row(DType::Q5_0, "Q5_0", 6, (32, 22), (32, 16, false)),
    row(DType::Q5_1, "Q5_1", 7, (32, 24), (32, 0, true)),
    row(DType::Q8_0, "Q8_0", 8, (32, 34), (32, 128, false)),
    row(DType::Q2_K, "Q2_K", 10, (256, 84), (16, 0, true)),
    row(DType::Q3_K, "Q3_K", 11, (256, 110), (16, 4, false)),
    row(DType::Q4_K, "Q4_K", 12, (256, 144), (32, 0, true)),
    row(DType::Q5_K, "Q5_K", 13, (256, 176), (32, 0, true)),
    row(DType::Q6_K, "Q6_K", 14, (256, 210), (16, 32, false)),
    // Codebook formats: the code is the codebook's value plus the offset. IQ1's values are eighths: 8 * grid + delta.
    row(DType::IQ1_S, "IQ1_S", 19, (256, 50), (32, 16, false)),
    row(DType::IQ1_M, "IQ1_M", 29, (256, 56), (16, 16, false)),
    row(DType::IQ2_XXS, "IQ2_XXS", 16, (256, 66), (32, 64, false)),
    row(DType::IQ2_XS, "IQ2_XS", 17, (256, 74), (16, 64, false)),
    row(DType::IQ2_S, "IQ2_S", 22, (256, 82), (16, 64, false)),
    row(DType::IQ3_XXS, "IQ3_XXS", 18, (256, 98), (32, 64, false)),
    row(DType::IQ3_S, "IQ3_S", 21, (256, 110), (32, 64, false)),
    row(DType::IQ4_NL, "IQ4_NL", 20, (32, 18), (32, 128, false)),
    row(DType::IQ4_XS, "IQ4_XS", 23, (256, 136), (32, 128, false)),
    row(DType::TQ1_0, "TQ1_0", 34, (256, 54), (32, 1, false)),
    row(DType::TQ2_0, "TQ2_0", 35, (256, 66), (32, 1, false)),
    // FP4 codes are doubled E2M1 values (0, 1, 2, 3, 4, 6, 8, 12 and their negatives); the scale is halved.
    row(DType::MXFP4, "MXFP4", 39, (32, 17), (32, 16, false)),
    row(DType::NVFP4, "NVFP4", 40, (64, 36), (16, 16, false)),
    row(DType::Q1_0, "Q1_0", 41, (128, 18), (32, 1, false)),
    row(DType::MLX4_G32, "MLX4_G32", -1, (32, 8 + 16), (32, 0, true)),
    row(DType::MLX4_G64, "MLX4_G64", -1, (64, 8 + 32), (32, 0, true)),
    row(DType::MLX4_G128, "MLX4_G128", -1, (128, 8 + 64), (32, 0, true)),
    row(DType::MLX8_G32, "MLX8_G32", -1, (32, 8 + 32), (32, 0, true)),
    row(DType::MLX8_G64, "MLX8_G64", -1, (64, 8 + 64), (32, 0, true)),
    row(DType::MLX8_G128, "MLX8_G128", -1, (128, 8 + 128), (32, 0, true)),
    row(DType::I8, "I8", 24, (1, 1), PLAIN),
    row(DType::I16, "I16", 25, (1, 2), PLAIN),
    row(DType::I32, "I32", 26, (1, 4), PLAIN),
    row(DType::I64, "I64", 27, (1, 8), PLAIN),
    row(DType::F64, "F64", 28, (1, 8), PLAIN),
];

/// Where the formats of weights end and those of tables begin.
const FIRST_TABLE_FORMAT: DType = DType::I8;

impl DType {
    /// Every format of weights, in the order of the table. The plain formats of tables (I32 and its like) are left
    /// out: files may hold them, but nothing multiplies by them.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|r| r.dtype).filter(|d| d.is_weight())
    }

    /// Whether kernels can multiply by it; false for I8, I16, I32, I64 and F64.
    pub fn is_weight(self) -> bool {
        self < FIRST_TABLE_FORMAT
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The format with this ggml type number, as GGUF files store it.
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        TABLE.iter().find(|r| r.ggml_id == Some(id)).map(|r| r.dtype)
    }

    /// The format of this name, whatever its case: `q4_k`, `Q4_K`.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|r| r.name.eq_ignore_ascii_case(name)).map(|r| r.dtype)
    }

    /// ggml's name of a type number that this crate does not read, for error messages.
    pub fn unsupported_ggml_name(id: u32) -> Option<&'static str> {
        Some(match id {
            4 => "Q4_2, removed from ggml in 2023",
            5 => "Q4_3, removed from ggml in 2023",
            9 => "Q8_1, meant for activations",
            15 => "Q8_K, meant for activations",
            31..=33 => "Q4_0 interleaved for one CPU, removed from ggml in 2024",
            36..=38 => "IQ4_NL interleaved for one CPU, removed from ggml in 2024",
            _ => return None,
        })
    }

    /// The number GGUF files store, or none for formats that live in other containers.
    pub fn ggml_id(self) -> Option<u32> {
        self.row().ggml_id
    }

    /// ggml's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Weights in a block; a row's length must be a multiple of it.
    pub fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Weights that share one scale (16 or 32), or 0 for a plain format.
    pub fn sub_block_len(self) -> usize {
        self.row().sub_block_len
    }

    /// Whether values are plain numbers without codes and scales.
    pub fn is_float(self) -> bool {
        self.row().sub_block_len == 0
    }

    /// What is subtracted from a code before scaling.
    pub fn code_offset(self) -> u8 {
        self.row().code_offset
    }

    /// Whether a sub-block has a minimum beside its scale.
    pub fn has_min(self) -> bool {
        self.row().has_min
    }

    /// Whether scales and minima are whole numbers of a block's two units, the scales so small that a code times one of them is a
    /// code again: [`crate::codec::factors`] gives them, and kernels fold the scales into the codes.
    pub fn is_folded(self) -> bool {
        self == DType::Q2_K
    }

    /// Bytes of a row of `len` weights, or none where `len` does not divide into blocks or overflows.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        (len.is_multiple_of(self.block_len())).then(|| (len / self.block_len()).checked_mul(self.block_bytes()))?
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_the_enum() {
        for (i, r) in TABLE.iter().enumerate() {
            assert_eq!(r.dtype as usize, i, "{}", r.name);
            assert_eq!(DType::from_name(&r.name.to_lowercase()), Some(r.dtype));
            if let Some(id) = r.ggml_id {
                assert_eq!(DType::from_ggml_id(id), Some(r.dtype));
            }
        }
    }

    #[test]
    fn tables_are_not_weights() {
        assert_eq!(DType::all().count(), 33);
        assert!(DType::all().all(|d| d.ggml_id().is_none_or(|id| DType::unsupported_ggml_name(id).is_none())));
        assert_eq!(DType::from_ggml_id(26), Some(DType::I32));
        assert!(!DType::I32.is_weight() && DType::MLX8_G128.is_weight());
    }

    #[test]
    fn sub_blocks_divide_blocks() {
        for d in DType::all().filter(|d| !d.is_float()) {
            assert!(matches!(d.sub_block_len(), 16 | 32));
            assert_eq!(d.block_len() % d.sub_block_len(), 0);
        }
    }

    #[test]
    fn row_bytes_refuses_a_partial_block() {
        assert_eq!(DType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(DType::Q4_K.row_bytes(500), None);
    }
}
