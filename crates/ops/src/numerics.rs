//! The canonical order: what every kernel of every device computes, bit for bit.
//!
//! A row of activations is quantized once, for each block of [`ACTIVATION_BLOCK`] features, by itself:
//!
//! ```text
//! amax = max |x|            (as integers on the bit patterns, so that NaN wins)
//! dx   = amax / 127         q[i] = round_ties_even(x[i] * (127 / amax)), 0 where amax = 0
//! ```
//!
//! A block whose amax is not finite gets `dx = NaN` and codes 0, so the row ends in NaN and is reported.
//!
//! A product with a quantized weight row (`weight = scale * (code - offset) + min`, [`tessera_formats::DType`]) cuts the
//! depth into [`segments`]. Inside a segment, sub-blocks (16 or 32 features) are taken in order, unless the format folds them:
//!
//! ```text
//! acc = 0
//! for each sub-block b:  acc = fma(f32(I_b), scale_b * dx_b, acc)      I_b = sum (code - offset) * q, an exact integer
//!                        if the format has minima:  acc = fma(min_b, dx_b * f32(S_b), acc)     S_b = sum q over b
//! ```
//!
//! and the segments are added in order: `y = ((acc_0 + acc_1) + acc_2) + …`. |I_b| < 2^24, so its conversion is exact.
//!
//! Where a format folds ([`tessera_formats::DType::is_folded`]), the scales of a block of 32 are whole numbers c_h of a unit `d` that many
//! blocks share, the minima whole numbers m_h of a unit `n`. The scales go into the codes, and a block has two exact integers:
//!
//! ```text
//! acc = 0
//! for each block b:  t = fma(n, f32(M_b), fma(d, f32(I_b), 0))       I_b = sum c_h * code * q,  M_b = sum over both halves of m_h * S_h
//!                    acc = fma(t, dx_b, acc)                         S_h = sum q over the half
//! ```
//!
//! A product with a plain floating-point weight row (F32, F16, BF16) multiplies unquantized activations. The depth is cut every
//! [`PART_DEPTH`] features into [`parts`], and these every [`CHAIN_DEPTH`] features into chains: short ones, since a GPU
//! waits for each of their links.
//!
//! ```text
//! chain  acc = fma(w[k], x[k], acc) in order, from 0
//! part   (chain_0 + chain_1) + …                  y = (part_0 + part_1) + …
//! ```
//!
//! A *fine* product quantizes its input twice: a row `x` becomes the codes above and, as a second row, what they leave,
//! `fma(-dx, f32(q), x)`, quantized in the same way. Both rows are multiplied as above and added: `y = y_codes + y_rest`.
//! That is int8 arithmetic to about 15 bits. Plain floating-point weights have no codes, so there it changes nothing.
//!
//! Sums along a row (softmax) run in [`LANES`] lanes: lane `l` takes elements `l, l + 16, …` in order, and
//! [`add_lanes`] folds the lanes by halves. Sums of squares (norms) run part by part, each in [`SQUARE_LANES`] lanes of their own,
//! which are folded in the same way; the parts are added in order.
//!
//! Each op between the products rounds after every operation written here, and nowhere else:
//!
//! ```text
//! embed      weight * scale
//! rms_norm   inverse = 1 / sqrt(sum(x²) / n + epsilon);  (x * inverse) * weight
//! angles     cos(position * frequency) * magnitude,      sin likewise
//! rotate     a' = fma(a, cos, -(b * sin));               b' = fma(b, cos, a * sin);  turned back, sin has the other sign
//! round      as crate::rounding says
//! bias       y + bias, after the segments
//! gate       gate(x) * up
//! gates      t = fma(mix, scale of the part, base);      into the block 1 / (1 + exp(-t)) + epsilon, out of it 2 * (1 / (1 + exp(-t)))
//!            matrix: e = exp(t - m), m = max t of the row (NaN never becomes it); then as crate::streams says
//! collapse   fma chain over streams in order, from 0, of gate * stream
//! spread     fma chain over source streams in order, from out * y, of matrix * stream
//! ```
//!
//! Segments of grouped and routed projections are products as above, each with its own matrix: which rows share a segment
//! changes nothing. A row of router logits is routed by ([`crate::routing`] says how the choice is made):
//!
//! ```text
//! softmax    m = max l (NaN never becomes it);  e = exp(l - m);  score = e / sum(e), the sum in lanes
//! sigmoid    score = 1 / (1 + exp(-l))
//! softplus   score = sqrt(max(l, 0) + ln_1p(exp(-|l|))), as crate::math has it
//! choice     score + bias  (logit + bias, where weights are the softmax of the chosen, taken over slots in order)
//! weight     score of the chosen;  w / max(total, least sum), total = sum over slots in order, where normalised;
//!            w * scale;  w * factor of the expert
//! combine    y = fma chain over slots in order, from 0, of weight * row of the slot
//! ```
//!
//! Attention of one query head at position p goes through the pages of [`crate::PAGE_TOKENS`] tokens, in order, that
//! hold a visible key (t in `max(0, p - window + 1)..=p`). Pages lie at absolute positions, so the order is a function
//! of p alone. Slots that are not visible take no part in a product: they may hold anything. A *sink* is a score of
//! the query head's own, neither scaled nor capped, of a key whose value is zero: it stands before the first page.
//!
//! ```text
//! q = query * scale;  m = -inf;  l = 0;  o = 0        where the head has a sink:  m = sink;  l = 1
//! for each page:
//!     s_t = fma chain over d, from 0, of q[d] * k_t[d];   s_t = soft_cap(s_t) where there is one      t visible
//!     m'  = max(m, s_t)             `if s > m then s else m`: NaN never becomes the maximum
//!     w_t = exp(s_t - m')           ... but its weight is NaN, and so is the output;   0 for t not visible
//!     a   = exp(m - m'), 0 at the first page where there is no sink
//!     l   = fma(l, a, sum(w))       in lanes, slot t in lane t mod 16
//!     o[d] = o[d] * a;              o[d] = fma(w_t, v_t[d], o[d]) for visible t in order
//!     m   = m'
//! y[d] = o[d] / l               0 where no key is visible and l is 0
//! ```
//!
//! Latent rows are key and value at once ([`crate::latent`]). A compressed row is made feature by feature of the tokens of its block
//! and, where there is overlap, of those of the block before it; of the first block there is none before, and what is absent takes
//! no part, whatever lies there. Tokens come in the order of positions:
//!
//! ```text
//! s_t = score_t + ape[position mod ratio]
//! m   = max s_t (NaN never becomes it);  w_t = exp(s_t - m);  l = sum of w_t in order;  o = fma chain, from 0, of w_t * value_t
//! row = o / l;  then rms_norm;  its last features rotate by the position of the block's first token;  then its rounding, and the
//!       format of the cache
//! ```
//!
//! A compressed row's score for the choice of rows, heads in order, and features in order for each:
//!
//! ```text
//! d_h   = fma chain, from 0, of q_h[d] * k[d];   0 where that is less than 0 (NaN stays)
//! score = fma chain, from 0, of d_h * (weight_h * scale)
//! ```
//!
//! Attention over latent rows is attention with a sink, whose pages are first those of the window, cut at absolute positions, and then
//! the compressed rows in runs of [`crate::PAGE_TOKENS`] of the list that the row sees: all that are complete, or those selected,
//! ascending.
//! A page's slots are places in the list, so its first slot is lane 0.

use std::ops::Range;

/// Features that share one activation scale.
pub const ACTIVATION_BLOCK: usize = 32;

/// Lanes of a sum along a row.
pub const LANES: usize = 16;

/// Lanes of a sum of squares over a part.
pub const SQUARE_LANES: usize = 64;

/// A depth is cut every so many features into parts: those of products with plain weights, and of sums of squares. The last may be short.
pub const PART_DEPTH: usize = 512;

/// Links of a chain of products with plain weights, at most: those of a part are so long, and the last may be shorter.
pub const CHAIN_DEPTH: usize = 128;

/// The largest activation code.
pub const ACTIVATION_CODE_MAX: f32 = 127.0;

/// How many parts a depth has.
pub const fn part_count(depth: usize) -> usize {
    depth.div_ceil(PART_DEPTH)
}

/// The parts of a depth, in order.
pub fn parts(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..part_count(depth)).map(move |i| i * PART_DEPTH..depth.min((i + 1) * PART_DEPTH))
}

/// The product of a row of plain weights with activations in the canonical order.
pub fn dot_plain(weights: &[f32], x: &[f32]) -> f32 {
    let chain = |(w, x): (&[f32], &[f32])| w.iter().zip(x).fold(0.0f32, |acc, (w, x)| w.mul_add(*x, acc));
    let part =
        |(w, x): (&[f32], &[f32])| w.chunks(CHAIN_DEPTH).zip(x.chunks(CHAIN_DEPTH)).map(chain).reduce(|a, b| a + b);
    let parts = weights.chunks(PART_DEPTH).zip(x.chunks(PART_DEPTH)).filter_map(part);
    parts.reduce(|a, b| a + b).unwrap_or(0.0)
}

/// Segments are cut at multiples of this many features (the longest quantized block).
pub const SEGMENT_UNIT: usize = 256;

/// A depth is cut into segments no shorter than this, ...
pub const SEGMENT_DEPTH_MIN: usize = 512;

/// ... and into at most this many, so that a device may give each to a worker of its own.
pub const SEGMENTS_MAX: usize = 8;

/// How many segments a depth is cut into.
pub const fn segment_count(depth: usize) -> usize {
    let n = depth / SEGMENT_DEPTH_MIN;
    if n < 1 {
        1
    } else if n > SEGMENTS_MAX {
        SEGMENTS_MAX
    } else {
        n
    }
}

/// The features of segment `index` of a depth: near-equal runs of whole [`SEGMENT_UNIT`]s; the last takes the rest.
pub const fn segment(depth: usize, index: usize) -> Range<usize> {
    let count = segment_count(depth);
    let units = depth / SEGMENT_UNIT;
    let start = units * index / count * SEGMENT_UNIT;
    let end = if index + 1 == count { depth } else { units * (index + 1) / count * SEGMENT_UNIT };
    start..end
}

/// All segments of a depth, in order; none of a depth of zero is an empty range alone.
pub fn segments(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..segment_count(depth)).map(move |i| segment(depth, i))
}

/// The quantized form of one block of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationBlock {
    /// Codes in -127..=127.
    pub codes: [i8; ACTIVATION_BLOCK],
    /// Scale: an activation is about `scale * code`.
    pub scale: f32,
}

/// Quantizes one block of activations (fewer than 32 at the end of a row count as zeros behind it).
pub fn quantize_block(x: &[f32]) -> ActivationBlock {
    assert!(x.len() <= ACTIVATION_BLOCK, "a block has at most 32 activations");
    let amax = f32::from_bits(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0));
    let mut block = ActivationBlock { codes: [0; ACTIVATION_BLOCK], scale: amax / ACTIVATION_CODE_MAX };
    if !amax.is_finite() {
        block.scale = f32::NAN;
    } else if amax > 0.0 {
        // The reciprocal of a subnormal amax overflows; such a block is zero to all the accuracy that matters.
        let inverse = ACTIVATION_CODE_MAX / amax;
        if inverse.is_finite() {
            for (code, v) in block.codes.iter_mut().zip(x) {
                *code = (v * inverse).round_ties_even() as i8;
            }
        }
    }
    block
}

/// What the codes of a row leave of it, for a fine product: `rest[i] = fma(-dx, q[i], x[i])`, and 0 where a block is not
/// finite (its codes carry the NaN already).
pub fn quantization_rest(x: &[f32], rest: &mut [f32]) {
    for (x, rest) in x.chunks(ACTIVATION_BLOCK).zip(rest.chunks_mut(ACTIVATION_BLOCK)) {
        let block = quantize_block(x);
        for ((r, v), q) in rest.iter_mut().zip(x).zip(block.codes) {
            *r = if block.scale.is_nan() { 0.0 } else { (-block.scale).mul_add(f32::from(q), *v) };
        }
    }
}

/// Folds the lanes of a sum by halves: 16 to 8 to 4 to 2 to 1. So many are a power of two.
pub fn add_lanes<const N: usize>(lanes: [f32; N]) -> f32 {
    const { assert!(N.is_power_of_two(), "lanes are folded by halves") };
    let mut lanes = lanes;
    let mut width = N / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of squares of a row in the canonical order.
pub fn sum_of_squares(row: &[f32]) -> f32 {
    let part = |part: &[f32]| {
        let mut lanes = [0.0f32; SQUARE_LANES];
        for (i, v) in part.iter().enumerate() {
            lanes[i % SQUARE_LANES] = v.mul_add(*v, lanes[i % SQUARE_LANES]);
        }
        add_lanes(lanes)
    };
    row.chunks(PART_DEPTH).map(part).reduce(|a, b| a + b).unwrap_or(0.0)
}

/// Sum of a row in the canonical order.
pub fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (i, v) in row.iter().enumerate() {
        lanes[i % LANES] += v;
    }
    add_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn segments_cover_every_depth_once() {
        for depth in (0..20_000).step_by(32) {
            let mut next = 0;
            for (i, s) in segments(depth).enumerate() {
                assert_eq!(s.start, next);
                assert!(i == 0 || s.start % SEGMENT_UNIT == 0, "{depth}");
                assert!(segment_count(depth) == 1 || s.len() >= SEGMENT_DEPTH_MIN, "{depth}: {s:?}");
                next = s.end;
            }
            assert_eq!(next, depth);
        }
    }

    #[test]
    fn parts_cover_every_depth_once() {
        for depth in 0..3000 {
            let mut next = 0;
            for part in parts(depth) {
                assert!(part.start == next && part.len() <= PART_DEPTH && !part.is_empty(), "{depth}: {part:?}");
                next = part.end;
            }
            assert_eq!(next, depth);
        }
        assert!(PART_DEPTH.is_multiple_of(CHAIN_DEPTH) && PART_DEPTH.is_multiple_of(SQUARE_LANES));
    }

    /// What the order is: numbers whose sum tells who was added to whom.
    #[test]
    fn chains_and_parts_are_added_in_order() {
        let (large, small) = (2f32.powi(24), 1.0);
        let sum_with = |at: &[(usize, f32)]| {
            let mut x = vec![0.0; 3 * PART_DEPTH];
            at.iter().for_each(|(at, v)| x[*at] = *v);
            dot_plain(&vec![1.0; x.len()], &x)
        };
        assert_eq!(sum_with(&[(0, large), (1, small), (2, small)]), large, "one chain loses both");
        assert_eq!(
            sum_with(&[(0, large), (CHAIN_DEPTH, small), (CHAIN_DEPTH + 1, small)]),
            large + 2.0,
            "a chain of its own"
        );
        let [second, third] = [CHAIN_DEPTH, 2 * CHAIN_DEPTH];
        assert_eq!(sum_with(&[(0, large), (second, small), (third, small)]), large, "chains of a part one by one");
        let [second, third] = [PART_DEPTH, PART_DEPTH + CHAIN_DEPTH];
        assert_eq!(sum_with(&[(0, large), (second, small), (third, small)]), large + 2.0, "parts by themselves");
        let squares = |at: &[(usize, f32)]| {
            let mut x = vec![0.0; 3 * PART_DEPTH];
            at.iter().for_each(|(at, v)| x[*at] = *v);
            sum_of_squares(&x)
        };
        let large = 2f32.powi(12);
        assert_eq!(squares(&[(0, large), (SQUARE_LANES, 1.0), (2 * SQUARE_LANES, 1.0)]), large * large, "a lane");
        assert_eq!(squares(&[(0, large), (1, 1.0), (SQUARE_LANES + 1, 1.0)]), large * large + 2.0, "two lanes");
        assert_eq!(squares(&[(0, large), (PART_DEPTH, 1.0), (2 * PART_DEPTH, 1.0)]), large * large, "parts in order");
    }

    #[test]
    fn not_a_number_marks_the_block() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let b = quantize_block(&[1.0, bad, 3.0]);
            assert!(b.scale.is_nan());
            assert_eq!(b.codes, [0; ACTIVATION_BLOCK]);
        }
    }

    proptest! {
        #[test]
        fn the_rest_completes_the_codes(x in prop::collection::vec(-1e4f32..1e4, 1..=70)) {
            let mut rest = vec![f32::NAN; x.len()];
            quantization_rest(&x, &mut rest);
            for (x, rest) in x.chunks(ACTIVATION_BLOCK).zip(rest.chunks(ACTIVATION_BLOCK)) {
                let (codes, fine) = (quantize_block(x), quantize_block(rest));
                for (i, v) in x.iter().enumerate() {
                    let sum = codes.scale * f32::from(codes.codes[i]) + fine.scale * f32::from(fine.codes[i]);
                    prop_assert!((v - sum).abs() <= codes.scale * 0.0021);
                }
            }
        }

        #[test]
        fn a_block_is_kept_to_half_a_step(x in prop::collection::vec(-1e4f32..1e4, 1..=32)) {
            let b = quantize_block(&x);
            for (v, q) in x.iter().zip(b.codes) {
                prop_assert!((v - b.scale * f32::from(q)).abs() <= b.scale * 0.5001);
            }
        }
    }
}
