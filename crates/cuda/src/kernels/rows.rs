//! How rows lie that are no keys and values of heads: latent and compressed rows, and inputs of others.

use tessera_ops::{KvFormat, Packing, kv::RowFormat};

use super::number_of;

/// How a row lies that is no key and value of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowForm {
    /// Its numbers.
    pub width: usize,
    /// How they are kept.
    pub format: RowFormat,
}

impl RowForm {
    /// Bytes of a row: a multiple of 16, or where it is packed of 4.
    pub fn bytes(self) -> usize {
        let bytes = match self.format {
            RowFormat::Plain(KvFormat::F32) => 4 * self.width,
            RowFormat::Plain(KvFormat::F16) => 2 * self.width,
            RowFormat::Plain(KvFormat::Q8_0) => {
                self.width.next_multiple_of(16) + 4 * self.width.div_ceil(tessera_ops::kv::CODE_BLOCK)
            }
            RowFormat::Packed(packing) => return packing.row(self.width).bytes,
        };
        bytes.next_multiple_of(16)
    }

    /// Its format as kernels know it.
    pub(crate) fn number(self) -> usize {
        match self.format {
            RowFormat::Plain(format) => number_of(format),
            RowFormat::Packed(Packing::Fp8 { .. }) => 3,
            RowFormat::Packed(Packing::Fp4) => 4,
        }
    }

    pub(crate) fn constants(self, threads: usize) -> Vec<(&'static str, usize)> {
        let (bytes, mut all) = (self.bytes(), vec![("WIDTH", self.width), ("FORMAT", self.number())]);
        if let RowFormat::Packed(packing) = self.format {
            let row = packing.row(self.width);
            all.extend([("CODED", packing.coded(self.width)), ("CODES_AT", row.codes), ("SCALES_AT", row.scales)]);
        }
        all.extend([("ROW_BYTES", bytes), ("THREADS", threads)]);
        all
    }
}

/// Packed rows that the compile check goes through: as models have them, of other parts, and where blocks are not whole.
pub(super) const PACKED: [(usize, Packing); 6] = [
    (512, Packing::Fp8 { features: 448 }),
    (128, Packing::Fp4),
    (128, Packing::Fp8 { features: 64 }),
    (384, Packing::Fp8 { features: 384 }),
    (80, Packing::Fp8 { features: 74 }),
    (64, Packing::Fp4),
];
