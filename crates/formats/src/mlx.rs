//! MLX's quantized tensors: `NAME.weight` (codes in u32 words, low bits first), `NAME.scales` and `NAME.biases` become
//! one [`Tensor`] in the block layout of [`DType::MLX4_G64`] and its like.
//!
//! Nothing is lost: codes are copied, and 16-bit scales and biases are widened to f32.
//! weight = scale * code + bias, for groups of 32, 64 or 128 weights of a row.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    Bytes, DType, FormatError, Tensor, codec,
    error::TensorFault,
    safetensors::{Stored, StoredType},
};

/// Which formats a checkpoint's configuration gives to its quantized modules.
#[derive(Debug, Default)]
pub struct Quantization {
    default: Option<DType>,
    /// By module path (`model.layers.0.mlp.down_proj`); none for a module that is not quantized.
    overrides: HashMap<String, Option<DType>>,
}

impl Quantization {
    /// Reads `quantization` of a `config.json`: `group_size`, `bits`, and entries for single modules. `file` is named
    /// in errors.
    ///
    /// # Errors
    /// If the group size, the bits or the mode is none that can be read.
    pub fn from_config(file: &str, config: &Value) -> Result<Quantization, FormatError> {
        let wrong = |problem| FormatError::Checkpoint { file: file.to_owned(), problem };
        let table = match config.get("quantization") {
            None | Some(Value::Null) => return Ok(Quantization::default()),
            Some(Value::Object(table)) => table,
            Some(_) => return Err(wrong("`quantization` is not a table".to_owned())),
        };
        let default = group_format(table, table).map_err(|p| wrong(format!("`quantization`: {p}")))?;
        let mut overrides = HashMap::new();
        for (module, value) in table {
            let format = match value {
                Value::Object(own) => Some(
                    group_format(own, table).map_err(|p| wrong(format!("`quantization`, module `{module}`: {p}")))?,
                ),
                Value::Bool(true) => Some(default),
                Value::Bool(false) => None,
                _ => continue, // `group_size` and `bits` themselves
            };
            overrides.insert(module.clone(), format);
        }
        Ok(Quantization { default: Some(default), overrides })
    }

    fn of(&self, module: &str) -> Option<DType> {
        self.overrides.get(module).copied().unwrap_or(self.default)
    }
}

/// The format that `own` asks for; what it lacks is in `defaults`.
fn group_format(
    own: &serde_json::Map<String, Value>,
    defaults: &serde_json::Map<String, Value>,
) -> Result<DType, String> {
    let entry = |key| own.get(key).or_else(|| defaults.get(key));
    match entry("mode") {
        None => {}
        Some(mode) if mode == "affine" => {}
        Some(mode) => return Err(format!("mode {mode} cannot be read; \"affine\" can")),
    }
    let number = |key| match entry(key) {
        Some(value) => value.as_u64().ok_or_else(|| format!("`{key}` is {value}, not a number")),
        None => Err(format!("`{key}` is missing")),
    };
    match (number("bits")?, number("group_size")?) {
        (4, 32) => Ok(DType::MLX4_G32),
        (4, 64) => Ok(DType::MLX4_G64),
        (4, 128) => Ok(DType::MLX4_G128),
        (8, 32) => Ok(DType::MLX8_G32),
        (8, 64) => Ok(DType::MLX8_G64),
        (8, 128) => Ok(DType::MLX8_G128),
        (bits, group) => Err(format!(
            "{bits} bits in groups of {group} cannot be read; 4 and 8 bits in groups of 32, 64 and 128 can"
        )),
    }
}

/// All tensors of a checkpoint, with the parts of quantized ones joined. Each comes with its file, for errors.
///
/// # Errors
/// If a part is missing, has a wrong type or shape, or if a tensor's type cannot be read.
pub fn assemble(stored: Vec<(String, Stored)>, quantization: &Quantization) -> Result<Vec<Tensor>, FormatError> {
    let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
    // Where each tensor comes out: a quantized one in the place of its weight.
    let mut order = Vec::new();
    for (file, tensor) in &stored {
        if let Some(module) = tensor.name.strip_suffix(".scales") {
            parts.entry(module.to_owned()).or_default().scales = Some((file, tensor));
        } else if let Some(module) = tensor.name.strip_suffix(".biases") {
            parts.entry(module.to_owned()).or_default().biases = Some((file, tensor));
        } else {
            order.push((file, tensor));
        }
    }
    let mut tensors = Vec::new();
    for (file, tensor) in order {
        let module = tensor.name.strip_suffix(".weight");
        let joined = match module.and_then(|m| parts.remove(m).zip(Some(m))) {
            Some((parts, module)) => quantized(tensor, &parts, quantization.of(module)),
            None => plain(tensor),
        };
        tensors.push(joined.map_err(|fault| fault_of(file, &tensor.name, fault))?);
    }
    // A part whose weight never came.
    if let Some(Parts { scales, biases }) = parts.into_values().next() {
        let (file, part) = scales.or(biases).expect("an entry has a part");
        let problem = "has no `.weight` beside it; only MLX's quantized checkpoints and plain ones can be read";
        return Err(fault_of(file, &part.name, TensorFault::Other(problem.to_owned())));
    }
    Ok(tensors)
}

/// What stands beside a quantized weight, with the files it is in.
#[derive(Default)]
struct Parts<'a> {
    scales: Option<(&'a String, &'a Stored)>,
    biases: Option<(&'a String, &'a Stored)>,
}

fn fault_of(file: &str, tensor: &str, fault: TensorFault) -> FormatError {
    FormatError::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), fault }
}

fn plain_format(stored: StoredType) -> Option<DType> {
    Some(match stored {
        StoredType::F32 => DType::F32,
        StoredType::F16 => DType::F16,
        StoredType::BF16 => DType::BF16,
        StoredType::F64 => DType::F64,
        StoredType::I8 => DType::I8,
        StoredType::I16 => DType::I16,
        StoredType::I32 => DType::I32,
        StoredType::I64 => DType::I64,
        _ => return None,
    })
}

/// A dimension list with the row length first; a scalar becomes one row of one value.
fn ggml_shape(stored: &Stored) -> Result<Vec<usize>, TensorFault> {
    if stored.shape.contains(&0) {
        return Err(TensorFault::Empty(stored.shape.iter().map(|&d| d as u64).collect()));
    }
    let mut shape: Vec<usize> = stored.shape.iter().rev().copied().collect();
    if shape.is_empty() {
        shape.push(1);
    }
    Ok(shape)
}

fn plain(stored: &Stored) -> Result<Tensor, TensorFault> {
    let Some(dtype) = plain_format(stored.dtype) else {
        let problem = match stored.dtype {
            StoredType::U32 => {
                "holds U32 words and has no `.scales` beside it; the checkpoint is incomplete, download it again"
                    .to_owned()
            }
            other => format!("elements of type {other} cannot be read; F32, F16, BF16 and MLX's groups can"),
        };
        return Err(TensorFault::Other(problem));
    };
    Ok(Tensor { name: stored.name.clone(), dtype, shape: ggml_shape(stored)?, bytes: stored.bytes.clone() })
}

fn quantized(weight: &Stored, parts: &Parts<'_>, dtype: Option<DType>) -> Result<Tensor, TensorFault> {
    let other = |problem: String| Err(TensorFault::Other(problem));
    let Some(dtype) = dtype else {
        return other("has scales, and config.json does not say that it is quantized".to_owned());
    };
    let (Some((_, scales)), Some((_, biases))) = (parts.scales, parts.biases) else {
        let absent = if parts.scales.is_none() { "scales" } else { "biases" };
        return other(format!("has no `.{absent}` beside it; the checkpoint is incomplete, download it again"));
    };
    if weight.dtype != StoredType::U32 {
        return other(format!("has scales, and its codes are {} instead of U32 words", weight.dtype));
    }
    let mut shape = ggml_shape(weight)?;
    let code_bytes = dtype.block_bytes() - 8;
    // Four bytes to a word; a whole row must be whole groups. The bytes exist, so none of this can overflow.
    let row_bytes = shape[0] * 4;
    let groups = row_bytes / code_bytes;
    if row_bytes % code_bytes != 0 {
        return other(format!("rows of {row_bytes} bytes do not divide into {dtype} groups of {code_bytes}"));
    }
    shape[0] = groups * dtype.block_len();
    let mut wanted = weight.shape.clone();
    *wanted.last_mut().ok_or(TensorFault::Rank(0))? = groups;
    for part in [scales, biases] {
        if part.shape != wanted {
            let (suffix, found) = (part.name.rsplit('.').next().unwrap_or_default(), &part.shape);
            return other(format!("its `.{suffix}` have shape {found:?} and, for {dtype}, should have {wanted:?}"));
        }
    }
    let bytes = interleave(&weight.bytes, &floats(scales)?, &floats(biases)?, code_bytes);
    Ok(Tensor { name: weight.name.clone(), dtype, shape, bytes: Bytes::new(bytes) })
}

/// A part's values, widened.
fn floats(part: &Stored) -> Result<Vec<f32>, TensorFault> {
    match plain_format(part.dtype) {
        Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => {
            let mut values = vec![0.0; part.shape.iter().product()];
            codec::decode(dtype, &part.bytes, &mut values);
            Ok(values)
        }
        _ => Err(TensorFault::Other(format!("`{}` is {}, not F16, BF16 or F32", part.name, part.dtype))),
    }
}

/// Blocks of scale, bias and codes.
fn interleave(codes: &[u8], scales: &[f32], biases: &[f32], code_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(codes.len() + 8 * scales.len());
    for ((codes, scale), bias) in codes.chunks_exact(code_bytes).zip(scales).zip(biases) {
        bytes.extend(scale.to_le_bytes());
        bytes.extend(bias.to_le_bytes());
        bytes.extend(codes);
    }
    bytes
}
