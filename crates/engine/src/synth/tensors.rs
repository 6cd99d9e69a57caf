//! The tensors of a synthetic model: names, shapes, formats, and how large their numbers are.

use tessera_formats::{DType, codec::random};

use super::{
    error::SynthError,
    families::{Dim, Kind, Size},
    spec::{EMBEDDING, HEAD, Spec},
};

/// Deviation of a norm's weights from one, and of biases from zero.
const VECTOR_DEVIATION: f32 = 0.2;

/// A tensor to be made.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// In GGUF's order: row length first.
    pub(super) shape: Vec<usize>,
    pub(super) deviation: f32,
    pub(super) key: u64,
    /// Whether one is to be added to every number.
    around_one: bool,
}

impl Planned {
    fn new(spec: &Spec, name: String, kind: Kind, dtype: DType, shape: Vec<usize>) -> Planned {
        let (dtype, deviation) = match kind {
            Kind::Matrix => (dtype, (shape[0] as f32).sqrt().recip()),
            Kind::Norm | Kind::Bias => (DType::F32, VECTOR_DEVIATION),
        };
        let key = random::key(spec.seed, &name);
        Planned { name, dtype, shape, deviation, key, around_one: kind == Kind::Norm }
    }

    /// The length in bytes; a parsed spec's rows are whole blocks.
    pub(super) fn bytes(&self) -> usize {
        let row = self.dtype.row_bytes(self.shape[0]).expect("blocks divide rows, which parsing has checked");
        row * self.shape[1..].iter().product::<usize>()
    }

    /// Makes what the random blocks in `bytes` are to be.
    pub(super) fn finish(&self, bytes: &mut [u8]) {
        if self.around_one {
            for number in bytes.as_chunks_mut().0 {
                *number = (1.0 + f32::from_le_bytes(*number)).to_le_bytes();
            }
        }
    }
}

impl Spec {
    /// All tensors, in the order of a file.
    pub(super) fn tensors(&self) -> Vec<Planned> {
        let width = self.sizes.get(Size::Width);
        let table = vec![width, self.sizes.get(Size::Vocabulary)];
        let embedding = self.formats.embedding;
        let mut all = vec![Planned::new(self, "token_embd.weight".to_owned(), Kind::Matrix, embedding, table.clone())];
        for layer in 0..self.sizes.get(Size::Layers) {
            for part in self.family.layer.iter().copied().flatten() {
                let suffix = if part.kind == Kind::Bias { "bias" } else { "weight" };
                let name = format!("blk.{layer}.{}.{suffix}", part.name);
                let shape = part.shape.iter().map(|dim| dim.of(&self.sizes)).collect();
                all.push(Planned::new(self, name, part.kind, self.formats.of_part(part.name), shape));
            }
        }
        let mut norm = Planned::new(self, "output_norm.weight".to_owned(), Kind::Norm, DType::F32, vec![width]);
        if self.tied {
            // The residual stream still holds the last token's embedding, which would find itself in the head: every
            // reply would be that token for ever. Weights of both signs hide it.
            (norm.deviation, norm.around_one) = (1.0, false);
        }
        all.push(norm);
        if !self.tied {
            all.push(Planned::new(self, "output.weight".to_owned(), Kind::Matrix, self.formats.head, table));
        }
        all
    }
}

/// Refuses formats whose blocks do not divide the rows of their matrices.
pub(super) fn check_blocks(spec: &Spec) -> Result<(), SynthError> {
    let parts = spec.family.layer.iter().copied().flatten().filter(|part| part.kind == Kind::Matrix);
    let parts = parts.map(|part| (part.name, part.shape[0], spec.formats.of_part(part.name)));
    let width = Dim::Size(Size::Width);
    let tables = [(EMBEDDING, width, spec.formats.embedding), (HEAD, width, spec.formats.head)];
    for (name, dim, dtype) in tables.into_iter().chain(parts) {
        let (len, block) = (dim.of(&spec.sizes), dtype.block_len());
        if !len.is_multiple_of(block) {
            let source_of_len = match dim {
                Dim::Size(size) => size.key(),
                Dim::Queries => "heads × head_dim",
                Dim::Keys => "kv_heads × head_dim",
            };
            let other = if len.is_multiple_of(DType::Q8_0.block_len()) { DType::Q8_0 } else { DType::F16 };
            let (format, other) = (dtype.name(), other.name());
            return Err(SynthError::PartialBlock { tensor: name, len, format, block, source_of_len, key: name, other });
        }
    }
    Ok(())
}
