//! The tensors of a synthetic model: names, shapes, formats, and how large their numbers are.

use tessera_formats::{DType, codec::random};

use super::{
    error::SynthError,
    families::{Dim, Kind, Part, Size, Where},
    spec::{EMBEDDING, HEAD, Spec},
};

/// Deviation of a norm's weights from one, and of biases from zero.
const VECTOR_DEVIATION: f32 = 0.2;

/// One pair in so many turns where frequencies have divisors, and the divisor of the others.
const TURNING_PART: usize = 4;
const STILL: f32 = 1e30;

/// A tensor to be made.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// In GGUF's order: row length first.
    pub(super) shape: Vec<usize>,
    pub(super) deviation: f32,
    pub(super) key: u64,
    kind: Kind,
    /// Experts that a table may name.
    experts: usize,
    /// Whether one is to be added to every number.
    around_one: bool,
}

impl Planned {
    /// One of the model, or of a layer, whose name begins with `prefix`.
    fn new(spec: &Spec, prefix: &str, name: &str, kind: Kind, dtype: DType, shape: Vec<usize>) -> Planned {
        let whole = format!("{prefix}{name}");
        let (dtype, deviation) = match kind {
            Kind::Matrix => (dtype, (shape[0] as f32).sqrt().recip()),
            Kind::Router => (DType::F32, (shape[0] as f32).sqrt().recip()),
            Kind::Half => (DType::F16, (shape[0] as f32).sqrt().recip()),
            Kind::Table => (DType::I32, 0.0),
            Kind::Norm | Kind::Scale | Kind::Bias | Kind::Sinks | Kind::RopeFactors => (DType::F32, VECTOR_DEVIATION),
        };
        let key = random::key(spec.seed, if spec.alike { name } else { &whole });
        let (name, around_one) = (whole, matches!(kind, Kind::Norm | Kind::Scale));
        let experts = spec.sizes.or_zero(Size::Experts);
        Planned { name, dtype, shape, deviation, key, kind, experts, around_one }
    }

    /// The length in bytes; a parsed spec's rows are whole blocks.
    pub(super) fn bytes(&self) -> usize {
        let row = self.dtype.row_bytes(self.shape[0]).expect("blocks divide rows, which parsing has checked");
        row * self.shape[1..].iter().product::<usize>()
    }

    /// Whether it is made of random blocks.
    pub(super) fn is_random(&self) -> bool {
        self.kind != Kind::Table
    }

    /// Makes what the random blocks in `bytes`, from `first_block` on, are to be.
    pub(super) fn finish(&self, first_block: usize, bytes: &mut [u8]) {
        if self.kind == Kind::Table {
            let slots = self.shape[0];
            for (i, number) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                let (token, slot) = ((first_block + i) / slots, (first_block + i) % slots);
                // Neighbours from a place that looks random, so that they differ.
                let first = random::key(self.key, &token.to_string()) as usize % self.experts.max(1);
                *number = (((first + slot) % self.experts.max(1)) as i32).to_le_bytes();
            }
        } else if self.kind == Kind::RopeFactors {
            let turning = self.shape[0] / TURNING_PART;
            for (i, number) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                *number = if first_block + i < turning { 1f32 } else { STILL }.to_le_bytes();
            }
        } else if self.around_one {
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
        let mut all = vec![Planned::new(self, "", "token_embd.weight", Kind::Matrix, embedding, table.clone())];
        for layer in self.family.layers(&self.sizes) {
            let windowed = self.family.is_windowed(layer);
            let parts = self.family.parts().filter(|part| self.family.has(&self.sizes, layer, part.place));
            all.extend(parts.map(|part| self.planned(&format!("blk.{layer}."), part, windowed)));
        }
        let parts = self.family.model.iter().filter(|part| part.place != Where::PerLayer || self.has_per_layer());
        all.extend(parts.map(|part| self.planned("", part, false)));
        let mut norm = Planned::new(self, "", "output_norm.weight", Kind::Norm, DType::F32, vec![width]);
        if self.tied {
            // The residual stream still holds the last token's embedding, which would find itself in the head: every
            // reply would be that token for ever. Weights of both signs hide it.
            (norm.deviation, norm.around_one) = (1.0, false);
        }
        all.push(norm);
        if !self.tied {
            all.push(Planned::new(self, "", "output.weight", Kind::Matrix, self.formats.head, table));
        }
        all
    }

    fn has_per_layer(&self) -> bool {
        self.sizes.or_zero(Size::PerLayer) > 0
    }

    fn planned(&self, prefix: &str, part: &Part, windowed: bool) -> Planned {
        let name = format!("{}.{}", part.name, part.kind.suffix());
        let shape = part.shape.iter().map(|dim| dim.of(&self.sizes, windowed)).collect();
        Planned::new(self, prefix, &name, part.kind, self.formats.of_part(part.name), shape)
    }
}

/// Refuses formats whose blocks do not divide the rows of their matrices.
pub(super) fn check_blocks(spec: &Spec) -> Result<(), SynthError> {
    let layers = spec.family.layers(&spec.sizes);
    let width = Dim::Size(Size::Width);
    let tables = [(EMBEDDING, width, spec.formats.embedding), (HEAD, width, spec.formats.head)];
    let tables = tables.into_iter().map(|(name, dim, dtype)| (name, dim, dtype, false));
    let used = |part: &&Part| layers.clone().any(|layer| spec.family.has(&spec.sizes, layer, part.place));
    let parts = spec.family.parts().chain(spec.family.model).filter(|part| part.kind == Kind::Matrix).filter(used);
    // Heads of layers with a window may have another width than those without.
    let kinds = [true, false];
    let parts = parts.flat_map(|p| kinds.map(|windowed| (p.name, p.shape[0], spec.formats.of_part(p.name), windowed)));
    for (name, dim, dtype, windowed) in tables.chain(parts) {
        let (len, block) = (dim.of(&spec.sizes, windowed), dtype.block_len());
        if !len.is_multiple_of(block) {
            let source_of_len = dim.source();
            let other = if len.is_multiple_of(DType::Q8_0.block_len()) { DType::Q8_0 } else { DType::F16 };
            let (format, other) = (dtype.name(), other.name());
            return Err(SynthError::PartialBlock { tensor: name, len, format, block, source_of_len, key: name, other });
        }
    }
    Ok(())
}
