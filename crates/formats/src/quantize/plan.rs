//! Which format each tensor of a file gets. Pure rules on names, shapes and formats; no weight is looked at.

use super::QuantizeError;
use crate::{
    DType, Gguf, Tensor,
    codec::{EncodeError, can_encode},
};

/// What the user wants.
#[derive(Clone, Debug)]
pub struct QuantizePlan {
    /// The format of all matrices.
    pub dtype: DType,
    /// Another format for the output matrix (`output.weight`; the token embedding where the file has none, for that
    /// one then serves as both).
    pub output: Option<DType>,
    /// Another format for the token embedding (`token_embd.weight`).
    pub embedding: Option<DType>,
    /// Threads to encode with; 0 counts as 1.
    pub threads: usize,
}

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Its format in the source.
    pub from: DType,
    /// Its format in the result; equal formats are copied byte for byte.
    pub to: DType,
    /// What its user should know; a fallback is told first, so see [`Assignment::requantized`] too.
    pub note: Option<Note>,
}

impl Assignment {
    /// Whether a quantized tensor is decoded and quantized again, and so takes the errors of both formats.
    pub fn requantized(&self) -> bool {
        !self.from.is_float() && self.from != self.to
    }
}

/// What a user should know about a tensor's new format. One line for each, with the tensor's name before it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // said by `Display`
pub enum Note {
    /// Its rows do not divide into blocks of the wanted format.
    Fallback { wanted: DType, used: DType, depth: usize },
    /// It was quantized before, so it takes the errors of both formats. A warning: start from F16 or BF16 if possible.
    Requantized { from: DType },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Note::Fallback { wanted, used, depth } => {
                let block = wanted.block_len();
                write!(f, "rows of {depth} do not divide into {wanted} blocks of {block}; written as {used}")
            }
            Note::Requantized { from } => {
                write!(f, "was {from} already, and errors add up; start from an F16 or BF16 file if there is one")
            }
        }
    }
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

impl QuantizePlan {
    /// The new format of every tensor, in the file's order.
    ///
    /// # Errors
    /// If one of the formats asked for has no encoder.
    pub fn assign(&self, source: &Gguf) -> Result<Vec<Assignment>, QuantizeError> {
        for dtype in [Some(self.dtype), self.output, self.embedding].into_iter().flatten() {
            if !can_encode(dtype) {
                return Err(QuantizeError::Format(EncodeError::NoEncoder { dtype }));
            }
        }
        let tied = source.tensor(OUTPUT).is_none();
        Ok(source.tensors().iter().map(|t| self.assignment(t, tied)).collect())
    }

    fn assignment(&self, tensor: &Tensor, tied: bool) -> Assignment {
        let from = tensor.dtype;
        let to = self.wanted(tensor, tied);
        let used = fallback(to, tensor.depth());
        let mut assignment = Assignment { from, to: used, note: None };
        if used != to {
            assignment.note = Some(Note::Fallback { wanted: to, used, depth: tensor.depth() });
        } else if assignment.requantized() {
            assignment.note = Some(Note::Requantized { from });
        }
        assignment
    }

    fn wanted(&self, tensor: &Tensor, tied: bool) -> DType {
        if !tensor.dtype.is_weight() || keeps_format(&tensor.name, tensor.shape.len()) {
            return tensor.dtype;
        }
        if tensor.shape.len() < 2 {
            return DType::F32; // norms and biases: next to no bytes, and every token feels them
        }
        match tensor.name.as_str() {
            OUTPUT => self.output,
            EMBEDDING if tied => self.embedding.or(self.output),
            EMBEDDING => self.embedding,
            _ => None,
        }
        .unwrap_or(self.dtype)
    }
}

/// Tensors that are no plain matrices, by their names: tables of the rotary embedding and the like do not end in
/// `.weight` or `.bias`, norms may have two dimensions, and a router's small matrix decides which experts run.
fn keeps_format(name: &str, dimensions: usize) -> bool {
    let named = name.ends_with(".weight") || (name.ends_with(".bias") && dimensions == 1);
    !named || name.ends_with("ffn_gate_inp.weight") || (name.ends_with("norm.weight") && dimensions > 1)
}

/// The wanted format, or where rows do not divide into its blocks the nearest one that keeps the weights well.
fn fallback(wanted: DType, depth: usize) -> DType {
    let legal = |d: &DType| d.row_bytes(depth).is_some();
    [wanted, DType::Q8_0].into_iter().find(legal).unwrap_or(DType::F16)
}

/// The value of `general.file_type` that says "mostly this format": llama.cpp's numbering of whole files. K formats
/// are called small there where all matrices have the same one.
pub(super) fn file_type(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q4_K => 14,
        DType::Q5_K => 16,
        DType::Q6_K => 18,
        DType::BF16 => 32,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode::ENCODABLE;

    #[test]
    fn every_encodable_format_has_a_file_type() {
        let mut types: Vec<u32> = ENCODABLE.iter().map(|d| file_type(*d).expect("a number")).collect();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), ENCODABLE.len());
    }

    #[test]
    fn fallbacks_divide() {
        for dtype in ENCODABLE {
            for depth in [1, 31, 32, 96, 100, 256, 576, 1024] {
                assert!(fallback(dtype, depth).row_bytes(depth).is_some(), "{dtype} {depth}");
            }
        }
        assert_eq!(fallback(DType::Q4_K, 576), DType::Q8_0);
        assert_eq!(fallback(DType::Q4_K, 100), DType::F16);
        assert_eq!(fallback(DType::Q4_0, 576), DType::Q4_0);
    }
}
