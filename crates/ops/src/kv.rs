//! How keys and values are kept: in pages of a fixed number of tokens, so that sequences share and free them, and in rings of
//! pages that belong to one sequence each.

use std::ops::Range;

use half::f16;

use crate::{Packing, numerics};

/// Tokens in a page. Attention also cuts its sums here, at absolute positions, so that the cut never depends on the
/// batch: a page is the unit of the cache and of the canonical order alike.
pub const PAGE_TOKENS: usize = 64;

/// Features of a head that share a scale in [`KvFormat::Q8_0`].
pub const CODE_BLOCK: usize = numerics::ACTIVATION_BLOCK;

/// How a cached number is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the formats' own names
pub enum KvFormat {
    /// 4 bytes: exact; for tests against float references.
    F32,
    /// 2 bytes, rounded to nearest even: the default.
    #[default]
    F16,
    /// A byte, and two for the scale of each 32 features of a token's head: half of F16, at the cost of some accuracy.
    Q8_0,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];

    /// `f32`, `f16` or `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one head's key or value of `head_dim` numbers. A device may widen scales.
    pub const fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::F16 => 2 * head_dim,
            KvFormat::Q8_0 => head_dim + 2 * head_dim.div_ceil(CODE_BLOCK),
        }
    }

    /// What the cache keeps of a head's key or value: the definition for every device. Q8_0 has the codes of
    /// [`numerics::quantize_block`], and its scale rounded to F16; the product of both is exact.
    pub fn round(self, head: &mut [f32]) {
        match self {
            KvFormat::F32 => {}
            KvFormat::F16 => head.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            KvFormat::Q8_0 => {
                for block in head.chunks_mut(CODE_BLOCK) {
                    let quantized = numerics::quantize_block(block);
                    let scale = f16::from_f32(quantized.scale).to_f32();
                    block.iter_mut().zip(quantized.codes).for_each(|(v, code)| *v = scale * f32::from(code));
                }
            }
        }
    }
}

/// How the numbers of one row are stored: as the cache's are, or packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// As keys and values of a head.
    Plain(KvFormat),
    /// As small floats, which is without loss where a model rounds its rows to these.
    Packed(Packing),
}

impl RowFormat {
    /// Bytes of a row of `width` numbers. A device may widen scales.
    pub const fn row_bytes(self, width: usize) -> usize {
        match self {
            RowFormat::Plain(format) => format.head_bytes(width),
            RowFormat::Packed(packing) => packing.row(width).bytes,
        }
    }

    /// What the cache keeps of a row: the definition for every device.
    pub fn round(self, row: &mut [f32]) {
        match self {
            RowFormat::Plain(format) => format.round(row),
            RowFormat::Packed(packing) => packing.round(row),
        }
    }
}

/// What a cache keeps for a layer, or for a part of one. Everything is addressed by position: nothing of a sequence is ever
/// "partial", so chunks, rewinding, drafts and copies need no special cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvEntry {
    /// A key and a value of each token, in heads.
    Pairs {
        /// Heads of keys and values.
        heads: usize,
        /// Numbers in a head.
        head_dim: usize,
        /// The entry is a ring of this many pages of each sequence ([`crate::mask`]); none: all positions are kept.
        ring_pages: Option<usize>,
    },
    /// A row of each token that is key and value at once, of one head.
    Latent {
        /// Numbers in a row.
        head_dim: usize,
        /// As of pairs.
        ring_pages: Option<usize>,
        /// How rows are packed, if they are.
        packing: Option<Packing>,
    },
    /// A row for each `ratio` tokens that is key and value at once, of one head. Row c, of the tokens from `c · ratio` on, lies in the
    /// page of its last token ([`KvEntry::compressed_place`]).
    Compressed {
        /// Numbers in a row.
        head_dim: usize,
        /// Tokens of a row: a divisor or a multiple of [`PAGE_TOKENS`].
        ratio: usize,
        /// How rows are packed, if they are.
        packing: Option<Packing>,
    },
    /// A row of each token that later rows are made of. Never rounded, and always a ring.
    Inputs {
        /// Numbers in a row.
        width: usize,
        /// As of pairs.
        ring_pages: usize,
    },
}

impl KvEntry {
    /// Keys and values that are kept at all positions.
    pub const fn pairs(heads: usize, head_dim: usize) -> KvEntry {
        KvEntry::Pairs { heads, head_dim, ring_pages: None }
    }

    /// Rows of tokens that are key and value at once, not packed.
    pub const fn latent(head_dim: usize, ring_pages: Option<usize>) -> KvEntry {
        KvEntry::Latent { head_dim, ring_pages, packing: None }
    }

    /// Rows for `ratio` tokens each, not packed.
    pub const fn compressed(head_dim: usize, ratio: usize) -> KvEntry {
        KvEntry::Compressed { head_dim, ratio, packing: None }
    }

    /// The same entry with rows packed, where it has rows that can be.
    #[must_use]
    pub const fn packed(self, packing: Packing) -> KvEntry {
        let packing = Some(packing);
        match self {
            KvEntry::Latent { head_dim, ring_pages, .. } => KvEntry::Latent { head_dim, ring_pages, packing },
            KvEntry::Compressed { head_dim, ratio, .. } => KvEntry::Compressed { head_dim, ratio, packing },
            KvEntry::Pairs { .. } | KvEntry::Inputs { .. } => self,
        }
    }

    /// How its rows are stored in a cache of this format; of pairs, how each head's keys and values are.
    pub const fn row_format(&self, format: KvFormat) -> RowFormat {
        match *self {
            KvEntry::Latent { packing: Some(packing), .. } | KvEntry::Compressed { packing: Some(packing), .. } => {
                RowFormat::Packed(packing)
            }
            KvEntry::Inputs { .. } => RowFormat::Plain(KvFormat::F32),
            KvEntry::Pairs { .. } | KvEntry::Latent { .. } | KvEntry::Compressed { .. } => RowFormat::Plain(format),
        }
    }

    /// The same entry as a ring of so many pages, or as none. Compressed rows have no ring.
    #[must_use]
    pub const fn in_ring(self, ring_pages: Option<usize>) -> KvEntry {
        match self {
            KvEntry::Pairs { heads, head_dim, .. } => KvEntry::Pairs { heads, head_dim, ring_pages },
            KvEntry::Latent { head_dim, packing, .. } => KvEntry::Latent { head_dim, ring_pages, packing },
            KvEntry::Compressed { .. } | KvEntry::Inputs { .. } => self,
        }
    }

    /// The pages of its ring, where it is one.
    pub const fn ring_pages(&self) -> Option<usize> {
        match *self {
            KvEntry::Pairs { ring_pages, .. } | KvEntry::Latent { ring_pages, .. } => ring_pages,
            KvEntry::Compressed { .. } => None,
            KvEntry::Inputs { ring_pages, .. } => Some(ring_pages),
        }
    }

    /// Rows of a page: its tokens, or fewer where a row stands for several.
    pub const fn page_rows(&self) -> usize {
        match *self {
            KvEntry::Compressed { ratio, .. } if ratio >= PAGE_TOKENS => 1,
            KvEntry::Compressed { ratio, .. } if ratio > 0 => PAGE_TOKENS / ratio,
            _ => PAGE_TOKENS,
        }
    }

    /// Numbers of a row, of keys and values together.
    pub const fn row_numbers(&self) -> usize {
        match *self {
            KvEntry::Pairs { heads, head_dim, .. } => 2 * heads * head_dim,
            KvEntry::Latent { head_dim, .. } | KvEntry::Compressed { head_dim, .. } => head_dim,
            KvEntry::Inputs { width, .. } => width,
        }
    }

    /// Bytes of a page.
    pub const fn page_bytes(&self, format: KvFormat) -> usize {
        let row = match *self {
            KvEntry::Pairs { heads, head_dim, .. } => 2 * heads * format.head_bytes(head_dim),
            _ => self.row_format(format).row_bytes(self.row_numbers()),
        };
        self.page_rows() * row
    }

    /// Pages that the entry has room for, in a cache of so many pages and rings.
    pub const fn pages_of(&self, pages: usize, rings: usize) -> usize {
        match self.ring_pages() {
            Some(ring) => ring.saturating_mul(rings),
            None => pages,
        }
    }

    /// Where row `index` of compressed rows lies: the index of its page in the sequence, and its slot there.
    pub const fn compressed_place(ratio: usize, index: usize) -> (usize, usize) {
        let slots = if ratio >= PAGE_TOKENS { 1 } else { PAGE_TOKENS / ratio };
        ((index * ratio + ratio - 1) / PAGE_TOKENS, index % slots)
    }

    /// Holds what must be true of every entry.
    ///
    /// # Panics
    /// Where rows of compressed tokens do not fit into pages: a model's loader has to refuse these.
    pub fn check(&self) {
        if let KvEntry::Compressed { ratio, .. } = *self {
            let fits = ratio > 0 && (PAGE_TOKENS.is_multiple_of(ratio) || ratio.is_multiple_of(PAGE_TOKENS));
            assert!(fits, "the tokens of compressed rows divide a page, or fill whole ones");
        }
    }
}

/// Which pages of a ring are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// All of them.
    Whole,
    /// Those that hold what rows from position `end` on see, in steps of at most `step_rows` rows of a sequence, for which the ring was
    /// made. Whatever else a ring holds is written again before it is seen.
    Before {
        /// The position of the first row to come.
        end: usize,
        /// The most rows of a step.
        step_rows: usize,
    },
}

impl RingPart {
    /// The runs of pages, of a ring of so many, that are copied, from its first page on. The second may be empty.
    pub fn runs(self, ring_pages: usize) -> [Range<usize>; 2] {
        match self {
            RingPart::Whole => [0..ring_pages, 0..0],
            RingPart::Before { end, step_rows } => {
                // The widest window that such a ring serves; a row sees itself, too.
                let window = (ring_pages * PAGE_TOKENS).saturating_sub(step_rows);
                let first = end.saturating_sub(window.saturating_sub(1)) / PAGE_TOKENS;
                let end = end.div_ceil(PAGE_TOKENS);
                let (from, to) = (first % ring_pages, (end.max(1) - 1) % ring_pages + 1);
                match end - first {
                    0 => [0..0, 0..0],
                    count if count >= ring_pages => [0..ring_pages, 0..0],
                    _ if from < to => [from..to, 0..0],
                    _ => [0..to, from..ring_pages],
                }
            }
        }
    }
}

/// What a cache must hold for a model. Layers that share keys and values share an entry.
///
/// A cache has pages and rings. A page holds the rows of 64 positions of a sequence, of all entries that are no rings; a ring holds
/// the last positions of a sequence, of all entries that are. A sequence has as many pages as it needs and one ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Its entries, which ops name by their index.
    pub entries: Vec<KvEntry>,
    /// How numbers are stored.
    pub format: KvFormat,
}

impl KvLayout {
    /// A layout of these entries.
    pub fn new(entries: Vec<KvEntry>, format: KvFormat) -> KvLayout {
        KvLayout { entries, format }
    }

    /// Bytes of a cache of `pages` pages and `rings` rings.
    pub fn cache_bytes(&self, pages: usize, rings: usize) -> usize {
        let bytes = |e: &KvEntry| e.page_bytes(self.format).saturating_mul(e.pages_of(pages, rings));
        self.entries.iter().map(bytes).fold(0, usize::saturating_add)
    }

    /// Bytes of one page over all entries that are no rings.
    pub fn page_bytes(&self) -> usize {
        self.cache_bytes(1, 0)
    }

    /// Bytes of one ring over all entries that are.
    pub fn ring_bytes(&self) -> usize {
        self.cache_bytes(0, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_rows_lie_with_their_last_tokens() {
        for ratio in [1, 2, 4, 32, 64, 128, 256] {
            let entry = KvEntry::compressed(8, ratio);
            entry.check();
            let mut before = None;
            for index in 0..300 {
                let (page, slot) = KvEntry::compressed_place(ratio, index);
                assert_eq!(page, (index * ratio + ratio - 1) / PAGE_TOKENS);
                assert!(slot < entry.page_rows() && before < Some((page, slot)), "{ratio}: row {index}");
                before = Some((page, slot));
            }
        }
        for ratio in [0, 3, 48, 65, 96] {
            let entry = KvEntry::compressed(8, ratio);
            assert!(std::panic::catch_unwind(|| entry.check()).is_err(), "{ratio}");
        }
    }

    #[test]
    fn a_ring_s_part_is_what_is_seen_later() {
        use crate::mask::ring_pages_min;
        for (window, rows) in [(1, 1), (8, 64), (128, 512), (65, 3), (5, 512), (128, 100)] {
            let ring_pages = ring_pages_min(window, rows);
            for end in [0, 1, 63, 64, 65, 640, 1000, 5 * PAGE_TOKENS * ring_pages + 17] {
                let runs = RingPart::Before { end, step_rows: rows }.runs(ring_pages);
                let part: Vec<usize> = runs.into_iter().flatten().collect();
                assert!(part.is_sorted() && part.iter().all(|page| *page < ring_pages), "{part:?}");
                let seen = (end + 1).saturating_sub(window)..end;
                for position in seen {
                    assert!(part.contains(&(position / PAGE_TOKENS % ring_pages)), "{window}, {rows}: {position}");
                }
                // No more than rounding to pages asks for, at either end.
                assert!(part.len() <= (window + 3 * PAGE_TOKENS).div_ceil(PAGE_TOKENS), "{window}, {rows}: {part:?}");
            }
            assert_eq!(RingPart::Whole.runs(ring_pages), [0..ring_pages, 0..0]);
        }
    }

    #[test]
    fn packed_rows_are_a_half_of_halves() {
        let latent = KvEntry::compressed(512, 4).packed(Packing::Fp8 { features: 448 });
        let keys = KvEntry::compressed(128, 4).packed(Packing::Fp4);
        let bytes = |entry: KvEntry| entry.page_bytes(KvFormat::F16) / entry.page_rows();
        assert_eq!([bytes(latent), bytes(keys)], [584, 68]);
        assert_eq!(bytes(KvEntry::compressed(512, 4)), 1024);
        let inputs = KvEntry::Inputs { width: 8, ring_pages: 1 };
        assert_eq!(inputs.packed(Packing::Fp4), inputs, "never rounded");
        assert_eq!(inputs.row_format(KvFormat::F16), RowFormat::Plain(KvFormat::F32));
    }

    #[test]
    fn pages_and_rings_make_a_cache() {
        let entries = vec![
            KvEntry::pairs(2, 8),
            KvEntry::pairs(2, 8).in_ring(Some(3)),
            KvEntry::latent(8, Some(2)),
            KvEntry::compressed(8, 4),
            KvEntry::compressed(8, 128),
            KvEntry::Inputs { width: 10, ring_pages: 1 },
        ];
        let layout = KvLayout::new(entries, KvFormat::F16);
        assert_eq!(layout.page_bytes(), 64 * 2 * 2 * 16 + 16 * 16 + 16);
        assert_eq!(layout.ring_bytes(), 3 * 64 * 2 * 2 * 16 + 2 * 64 * 16 + 64 * 40);
        assert_eq!(layout.cache_bytes(5, 7), 5 * layout.page_bytes() + 7 * layout.ring_bytes());
        assert_eq!(layout.cache_bytes(usize::MAX, 1), usize::MAX);
    }
}
