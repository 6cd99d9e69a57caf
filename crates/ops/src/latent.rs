//! Attention over a latent cache, as DeepSeek V4 has it: rows that are key and value at once, raw ones in a window and compressed
//! ones of all that is older, of which an indexer may select a few. This file says what the ops are given; [`crate::numerics`] has
//! the order of their sums, [`crate::KvEntry`] where rows lie.

use crate::{
    Batch, Device, PAGE_TOKENS, Rope, Rounding,
    kv::KvEntry,
    mask::{check_line, check_ring},
    routing::order,
};

/// How rows of inputs become compressed rows: a softmax-weighted mean of tokens, feature by feature, then a norm, a rotation, and a
/// rounding.
///
/// A token's input is values and then scores, [`Compressor::input_width`] of each. Compressed row c is made of tokens
/// `c · ratio ..` (its *block*) and, where there is overlap, of the block before: then a token has two halves of each, the first
/// for the row after its own, the second for its own.
pub struct Compressor<D: Device> {
    /// The cache entry of the inputs, (values | scores).
    pub inputs: usize,
    /// The cache entry of the compressed rows.
    pub output: usize,
    /// Tokens of a block.
    pub ratio: usize,
    /// Whether the block before takes part.
    pub overlap: bool,
    /// Numbers of a compressed row.
    pub head_dim: usize,
    /// (ratio, input width) added to the scores of a block's tokens.
    pub ape: D::Vector,
    /// (head_dim) weight of the norm.
    pub norm: D::Vector,
    /// Epsilon of the norm.
    pub epsilon: f32,
    /// Turns the last features of the row, as many as it has, to the position of the block's first token.
    pub rope: Rope,
    /// What the row is rounded to before it is stored.
    pub rounding: Option<Rounding>,
}

impl<D: Device> Compressor<D> {
    /// Values of a token, and scores.
    pub fn input_width(&self) -> usize {
        if self.overlap { 2 * self.head_dim } else { self.head_dim }
    }

    /// Tokens that a row is made of.
    pub fn window(&self) -> usize {
        if self.overlap { 2 * self.ratio } else { self.ratio }
    }

    /// The index of the row that a token at `position` completes.
    pub fn completed_by(&self, position: usize) -> Option<usize> {
        (position + 1).is_multiple_of(self.ratio).then(|| position / self.ratio)
    }

    /// The tokens of row `index`, in order: the position of each, and where its values begin in an input's values.
    pub fn tokens(&self, index: usize) -> impl Iterator<Item = (usize, usize)> + use<D> {
        let (head_dim, overlap, first) = (self.head_dim, self.overlap, index * self.ratio);
        let start = if overlap { first.saturating_sub(self.ratio) } else { first };
        (start..first + self.ratio).map(move |p| (p, if overlap && p >= first { head_dim } else { 0 }))
    }

    /// The first of the features that turn.
    pub fn rotated_from(&self) -> usize {
        self.head_dim - 2 * self.rope.frequencies.len()
    }

    /// Holds that it fits the entries that it names, and a step that reads them.
    ///
    /// # Panics
    /// Where it does not: a model's loader has to refuse that.
    pub fn check(&self, entry: impl Fn(usize) -> KvEntry, batch: &Batch) {
        let (inputs, output, width) = (entry(self.inputs), entry(self.output), 2 * self.input_width());
        assert!(matches!(inputs, KvEntry::Inputs { width: w, .. } if w == width), "inputs are values and scores");
        check_compressed(output, self.head_dim, self.ratio);
        assert!(2 * self.rope.frequencies.len() <= self.head_dim, "a row has the features that turn");
        assert!(self.rounding.is_none_or(|r| r.fits(self.head_dim)), "a row fits its rounding");
        check_line(batch);
        check_ring(Some(self.window()), inputs.ring_pages(), batch);
    }
}

/// How the indexer selects compressed rows (DeepSeek-AI 2025, "lightning indexer"): those with the largest
/// `sum over heads of max(0, query · key) · weight · scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selector {
    /// The cache entry of the keys: compressed rows.
    pub entry: usize,
    /// Tokens of a compressed row.
    pub ratio: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Numbers of a head, and of a key.
    pub head_dim: usize,
    /// How many rows are selected, at most.
    pub top_k: usize,
    /// Factor on the heads' weights.
    pub scale: f32,
}

impl Selector {
    /// The most heads of queries.
    pub const HEADS_MAX: usize = 128;

    /// Holds that it fits the entry that it names, and a step; `queries` and `head_weights` are the (rows, width) of these.
    ///
    /// # Panics
    /// Where it does not, or selects nothing: a model's loader has to refuse that.
    pub fn check(&self, entry: KvEntry, batch: &Batch, queries: (usize, usize), head_weights: (usize, usize)) {
        check_compressed(entry, self.head_dim, self.ratio);
        assert!(self.top_k > 0 && (1..=Selector::HEADS_MAX).contains(&self.heads), "at least one row, by a few heads");
        check_line(batch);
        assert_eq!(queries, (batch.len(), self.heads * self.head_dim), "queries fill all heads");
        assert_eq!(head_weights, (batch.len(), self.heads), "each head has a weight");
    }
}

/// Compressed rows that attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedRows {
    /// Their cache entry.
    pub entry: usize,
    /// Tokens of a row.
    pub ratio: usize,
}

/// What attention over latent rows needs beside its tensors: all heads share one head of rows, which are keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentAttention {
    /// The cache entry of the raw rows.
    pub entry: usize,
    /// A row sees its own position and the `window - 1` before it.
    pub window: usize,
    /// The compressed rows that it sees too: all that are complete, or those that are selected.
    pub compressed: Option<CompressedRows>,
    /// Query heads.
    pub heads: usize,
    /// Numbers of a head, and of a row.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
}

impl LatentAttention {
    /// The raw positions that a row at `position` sees.
    pub fn raw(&self, position: usize) -> std::ops::Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// The pages of 64 keys that a row at `position` goes through, where it sees so many compressed rows.
    pub fn page_count(&self, position: usize, compressed: usize) -> usize {
        let raw = self.raw(position);
        raw.end.div_ceil(PAGE_TOKENS) - raw.start / PAGE_TOKENS + compressed.div_ceil(PAGE_TOKENS)
    }

    /// Holds that it fits the entries that it names, and a step; `queries` is the (rows, width) of these, `sinks` how many there are.
    ///
    /// # Panics
    /// Where it does not: a model's loader has to refuse that.
    pub fn check(&self, entry: impl Fn(usize) -> KvEntry, batch: &Batch, queries: (usize, usize), sinks: usize) {
        let head_dim = self.head_dim;
        assert!(self.window > 0, "a row sees at least itself");
        let raw = entry(self.entry);
        assert!(
            matches!(raw, KvEntry::Latent { head_dim: d, .. } if d == head_dim),
            "the entry keeps rows of this width"
        );
        if let Some(CompressedRows { entry: index, ratio }) = self.compressed {
            check_compressed(entry(index), head_dim, ratio);
        }
        check_line(batch);
        check_ring(Some(self.window), raw.ring_pages(), batch);
        assert_eq!(queries, (batch.len(), self.heads * head_dim), "queries fill all heads");
        assert_eq!(sinks, self.heads, "each query head has a sink");
    }
}

/// Holds that an entry keeps compressed rows of this kind.
fn check_compressed(entry: KvEntry, head_dim: usize, ratio: usize) {
    let is_kind = matches!(entry, KvEntry::Compressed { head_dim: d, ratio: r, .. } if (d, r) == (head_dim, ratio));
    assert!(is_kind, "the entry keeps compressed rows of this kind, not {entry:?}");
}

/// Compressed rows that are complete at `position`, and so are seen by the row there: also the one that it completes.
pub const fn complete_rows(position: usize, ratio: usize) -> usize {
    (position + 1) / ratio
}

/// The places of the `count` highest scores, ascending, in `rows`. Equal scores go by the lowest place, and NaN comes before every
/// number, so that it is selected and shows.
pub fn select_rows<T: Copy + PartialOrd>(scores: &[T], count: usize, rows: &mut Vec<u32>) {
    rows.clear();
    rows.extend(0..scores.len() as u32);
    if count < rows.len() {
        let order = |a: &u32, b: &u32| order(scores[*a as usize], scores[*b as usize]).then(a.cmp(b));
        rows.select_nth_unstable_by(count, order);
        rows.truncate(count);
        rows.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_are_counted() {
        let spec = LatentAttention { entry: 0, window: 128, compressed: None, heads: 1, head_dim: 1, scale: 1.0 };
        for (position, compressed, want) in
            [(0, 0, 1), (63, 1, 2), (64, 64, 3), (127, 65, 4), (128, 0, 3), (190, 0, 3), (191, 0, 2)]
        {
            assert_eq!(spec.page_count(position, compressed), want, "{position}");
        }
    }

    #[test]
    fn rows_are_complete_with_their_last_token() {
        for (position, ratio, want) in [(2, 4, 0), (3, 4, 1), (4, 4, 1), (126, 128, 0), (127, 128, 1), (255, 128, 2)] {
            assert_eq!(complete_rows(position, ratio), want);
        }
    }

    proptest! {
        /// As sorting all of them would have it.
        #[test]
        fn the_highest_are_selected(
            scores in prop::collection::vec(prop_oneof![Just(f32::NAN), Just(-0.0), Just(0.0), Just(1.0), -2f32..2.0], 0..200),
            count in 1usize..70,
        ) {
            let mut want: Vec<u32> = (0..scores.len() as u32).collect();
            // A stable sort: equal scores stay in their order.
            want.sort_by(|a, b| {
                let key = |i: u32| { let s = scores[i as usize]; (!s.is_nan(), if s.is_nan() { 0.0 } else { -s }) };
                key(*a).partial_cmp(&key(*b)).unwrap()
            });
            want.truncate(count);
            want.sort_unstable();
            let mut got = vec![7; 3];
            select_rows(&scores, count, &mut got);
            prop_assert_eq!(got, want);
        }
    }
}
