//! The inner loops: one tile of 16 rows by C tokens over the whole depth, for a run of groups.
//!
//! For each block the weights' codes are loaded once and serve all C columns; columns go four at a time, so that four
//! independent integer sums hide the latency of one. The accumulators of a segment stay in registers; at a segment's end they are
//! added to the output, which is the canonical order's tree (`numerics`). Nothing here depends on how many tokens or
//! rows there are but the addresses: a row's bits cannot know their neighbours.

#![allow(non_upper_case_globals)] // constants that count: see `unroll`

use std::{marker::PhantomData, ops::Range};

use half::{bf16, f16};

use super::{
    layout::Layout,
    select::{Packed, Visitor},
    tile::{BLOCK, COLUMN_RUN, QUAD, QUADS, ROWS, TOKENS_MAX, halves_bytes, record_bytes, unroll},
};
use crate::{
    isa::{Isa, Kernel},
    simd::{LINE_BYTES, Simd},
};

mod plain;

use plain::Floats;

/// The segments of a depth, cut once for a projection by quantized weights.
#[derive(Clone, Copy)]
pub(super) struct Segments {
    ends: [usize; tessera_ops::numerics::SEGMENTS_MAX],
    count: usize,
}

impl Segments {
    /// The segments of `depth`.
    pub(super) fn new(depth: usize) -> Segments {
        let mut segments = Segments { ends: [0; _], count: 0 };
        for segment in tessera_ops::numerics::segments(depth) {
            segments.ends[segments.count] = segment.end;
            segments.count += 1;
        }
        segments
    }

    #[inline(always)]
    fn get(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        start..self.ends[index]
    }
}

/// What a strip of tiles reads and writes: some groups of rows, some panels of one width. Pointers, because workers share
/// all of it; see [`run`] for what must hold.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    /// The first packed group, how many, and bytes from one to the next.
    pub(super) group: *const u8,
    pub(super) groups: usize,
    pub(super) group_bytes: usize,
    pub(super) depth: usize,
    pub(super) segments: &'a Segments,
    /// Tokens of a panel, and how many panels.
    pub(super) tokens: usize,
    pub(super) panels: usize,
    /// The first panel's records and their halves (for layouts of codes), and bytes from one panel's to the next.
    pub(super) panel: *const u8,
    pub(super) halves: *const u8,
    pub(super) strides: (usize, usize),
    /// The panels' activations themselves, and numbers from one row to the next (for layouts of floats).
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// Where the results go.
    pub(super) to: Outputs,
    /// Rows that are left from the first group's first row on; at most the last group is partial.
    pub(super) rows: usize,
    /// The bias of those rows.
    pub(super) bias: Option<&'a [f32]>,
    /// How the strip asks for weights that are still to come.
    pub(super) prefetch: Prefetch,
}

/// Weights are read while the first panel of a group is computed and again for each further one. Memory should be busy
/// all the time, so panels take turns at asking for what comes next: of every `turns` blocks, a panel asks for one.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// How far ahead.
    pub(super) bytes: usize,
    /// The turn of the strip's first panel, and how many panels read the group in all.
    pub(super) first: usize,
    pub(super) turns: usize,
}

impl Prefetch {
    /// Blocks from `index` on until it is this panel's turn.
    #[inline(always)]
    fn blocks_to_wait(&self, index: usize) -> usize {
        (self.turns + self.first % self.turns - index % self.turns) % self.turns
    }
}

/// Where results go: row c of a panel is written to `out + places[c] * stride`. The next panel's places start where its own
/// end; or, where rows stand one after another, they are 0, 1, 2, … again and `out` moves on.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    out: *mut f32,
    stride: usize,
    places: *const u32,
    scattered: bool,
}

/// The places of rows that stand one after another.
static IN_ORDER: [u32; TOKENS_MAX] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

impl Outputs {
    /// Rows one after another, `stride` numbers apart.
    pub(super) fn in_order(out: *mut f32, stride: usize) -> Outputs {
        Outputs { out, stride, places: IN_ORDER.as_ptr(), scattered: false }
    }

    /// Rows at these places, counted in strides from `out`.
    pub(super) fn scattered(out: *mut f32, stride: usize, places: &[u32]) -> Outputs {
        Outputs { out, stride, places: places.as_ptr(), scattered: true }
    }

    /// The outputs `tokens` rows and `features` numbers further on.
    #[inline(always)]
    fn skip(&self, tokens: usize, features: usize) -> Outputs {
        let (rows, places) = if self.scattered { (0, tokens) } else { (tokens, 0) };
        let out = self.out.wrapping_add(rows * self.stride + features);
        Outputs { out, places: self.places.wrapping_add(places), ..*self }
    }

    /// Where the row of a panel's token starts.
    ///
    /// # Safety
    /// The panel has this token.
    #[inline(always)]
    unsafe fn row(&self, token: usize) -> *mut f32 {
        // SAFETY: there is a place for each token.
        let place = unsafe { self.places.add(token).read() };
        self.out.wrapping_add(place as usize * self.stride)
    }
}

/// Computes a strip.
///
/// # Safety
/// The strip's groups are packed in `layout`, its panels (and halves, where the layout has them) hold quantized blocks
/// of `tokens` tokens of `depth` features each, `x` as many rows, and the outputs of its rows for its tokens are valid for
/// writing and touched by no other thread.
pub(super) unsafe fn run(isa: Isa, layout: Packed, strip: Strip<'_>) {
    match layout {
        Packed::F32 => widths(isa, strip, Floats::<f32>(PhantomData)),
        Packed::F16 => widths(isa, strip, Floats::<f16>(PhantomData)),
        Packed::BF16 => widths(isa, strip, Floats::<bf16>(PhantomData)),
        codes => codes.visit(RunCodes { isa, strip }),
    }
}

struct RunCodes<'a> {
    isa: Isa,
    strip: Strip<'a>,
}

impl Visitor for RunCodes<'_> {
    type Output = ();

    fn visit<L: Layout>(self) {
        widths(self.isa, self.strip, Codes::<L>(PhantomData));
    }
}

/// Picks the tile of the panel's width. The widths listed for an instruction set are those up to its
/// [`Simd::TOKENS_MAX`]; wider ones are never planned, and not compiled.
fn widths<A: Chain>(isa: Isa, strip: Strip<'_>, _chain: A) {
    macro_rules! pick {
        ($simd:ident, $($c:literal)*) => {
            match strip.tokens {
                $($c => $simd.vectorize(Tile::<A, $c> { strip, chain: PhantomData }),)*
                c => unreachable!("no tile is {c} tokens wide"),
            }
        };
    }
    match isa {
        Isa::Portable(simd) => pick!(simd, 1 2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(simd) => pick!(simd, 1 2 3 4),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(simd) => pick!(simd, 1 2 3 4 5 6 7 8 9 10 11 12),
    }
}

/// What one tile of a strip reads.
#[derive(Clone, Copy)]
struct Operands {
    group: *const u8,
    panel: *const u8,
    halves: *const u8,
    x: *const f32,
    x_stride: usize,
    depth: usize,
    /// The tile's own turn is `first`.
    prefetch: Prefetch,
}

/// One segment of a tile, of plain weights a part: what differs between codes and floats.
trait Chain: Copy {
    /// How many there are.
    fn count(segments: &Segments, depth: usize) -> usize;

    /// The features of one.
    fn features(segments: &Segments, depth: usize, index: usize) -> Range<usize>;

    /// Sums of a segment for C tokens, 16 rows each.
    ///
    /// # Safety
    /// As [`run`], for one group and one panel.
    unsafe fn segment<S: Simd, const C: usize>(simd: S, from: &Operands, features: Range<usize>) -> [S::F32; C];
}

/// A strip of tiles C tokens wide.
struct Tile<'a, A, const C: usize> {
    strip: Strip<'a>,
    chain: PhantomData<A>,
}

impl<A: Chain, const C: usize> Kernel for Tile<'_, A, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strip = &self.strip;
        for g in 0..strip.groups {
            let rows = strip.rows - g * ROWS;
            let bias = strip.bias.map(|b| &b[g * ROWS..(g * ROWS + rows.min(ROWS))]);
            for p in 0..strip.panels {
                // SAFETY: the strip's promises: group g, panel p and their outputs are there.
                unsafe {
                    let from = Operands {
                        group: strip.group.add(g * strip.group_bytes),
                        panel: strip.panel.wrapping_add(p * strip.strides.0),
                        halves: strip.halves.wrapping_add(p * strip.strides.1),
                        x: strip.x.wrapping_add(p * C * strip.x_stride),
                        x_stride: strip.x_stride,
                        depth: strip.depth,
                        prefetch: Prefetch { first: strip.prefetch.first + p, ..strip.prefetch },
                    };
                    let out = strip.to.skip(p * C, g * ROWS);
                    // A partial group is computed whole, beside the output.
                    let mut whole = [[0.0f32; ROWS]; C];
                    let to = if rows >= ROWS { out } else { Outputs::in_order(whole.as_mut_ptr().cast(), ROWS) };
                    tile::<S, A, C>(simd, strip.segments, &from, &to);
                    if rows < ROWS {
                        for (token, lanes) in whole.iter().enumerate() {
                            out.row(token).copy_from_nonoverlapping(lanes.as_ptr(), rows);
                        }
                    }
                    if let Some(bias) = bias {
                        add_bias::<S, C>(simd, bias, &out);
                    }
                }
            }
        }
    }
}

/// Adds the bias of at most 16 rows to C tokens.
///
/// # Safety
/// `out` takes as many numbers as there are biases, for each token.
#[inline(always)]
unsafe fn add_bias<S: Simd, const C: usize>(simd: S, bias: &[f32], out: &Outputs) {
    let lanes = simd.load_partial(bias, 0.0);
    for token in 0..C {
        // SAFETY: the caller's promise.
        let y = unsafe { std::slice::from_raw_parts_mut(out.row(token), bias.len()) };
        let sum = simd.add(simd.load_partial(y, 0.0), lanes);
        simd.store_partial(y, sum);
    }
}

/// One tile: its segments in order, added up in the output.
///
/// # Safety
/// As [`run`] for one group and one panel; `out` takes 16 numbers for each token.
#[inline(always)]
unsafe fn tile<S: Simd, A: Chain, const C: usize>(simd: S, segments: &Segments, from: &Operands, out: &Outputs) {
    for index in 0..A::count(segments, from.depth) {
        // SAFETY: the caller's promises.
        unsafe {
            let acc = A::segment::<S, C>(simd, from, A::features(segments, from.depth, index));
            unroll!(12, c, {
                if const { c < C } {
                    let to = out.row(c);
                    let sum = if index == 0 { acc[c] } else { simd.add(simd.load_at(to), acc[c]) };
                    simd.store_at(to, sum);
                }
            });
        }
    }
}

/// Sums over codes of a layout.
struct Codes<L>(PhantomData<L>);

impl<L> Clone for Codes<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Codes<L> {}

impl<L: Layout> Chain for Codes<L> {
    #[inline(always)]
    fn count(segments: &Segments, _depth: usize) -> usize {
        segments.count
    }

    #[inline(always)]
    fn features(segments: &Segments, _depth: usize, index: usize) -> Range<usize> {
        segments.get(index)
    }

    #[inline(always)]
    unsafe fn segment<S: Simd, const C: usize>(simd: S, from: &Operands, features: Range<usize>) -> [S::F32; C] {
        const { assert!(!L::HAS_MIN || L::SUB_BLOCK == BLOCK || L::FOLDED, "minima are of blocks") };
        let mut acc = [simd.splat(0.0); C];
        let blocks = from.depth / BLOCK;
        let mut wait = from.prefetch.blocks_to_wait(features.start / BLOCK);
        for index in features.start / BLOCK..features.end / BLOCK {
            let at = L::block(from.group, blocks, index);
            if wait > 0 {
                wait -= 1;
            } else {
                wait = from.prefetch.turns - 1;
                // In even steps through the group, whatever the order of its parts: no line is left out.
                let ahead = from.group.wrapping_add(index * L::BLOCK_BYTES + from.prefetch.bytes);
                unroll!(12, line, {
                    if const { line < L::BLOCK_BYTES.div_ceil(LINE_BYTES) } {
                        simd.prefetch(ahead.wrapping_add(line * LINE_BYTES));
                    }
                });
            }
            // SAFETY: the panel and its halves hold a record for each block.
            unsafe {
                let record = from.panel.add(index * record_bytes(C));
                if const { L::FOLDED } {
                    let halves = from.halves.add(index * halves_bytes(C)).cast::<i32>();
                    folded_block::<S, L, C>(simd, at, record, halves, &mut acc);
                } else if const { L::SUB_BLOCK == BLOCK } {
                    let numbers = record.add(C * BLOCK).cast::<f32>();
                    let sums = Sums { scaled: numbers.add(C), plain: numbers.add(2 * C).cast() };
                    sub_block::<S, L, C>(simd, at, record, sums, 0, &mut acc);
                } else {
                    let halves = from.halves.add(index * halves_bytes(C)).cast::<i32>();
                    unroll!(2, half, {
                        let sums = Sums { scaled: std::ptr::null(), plain: halves.add((1 + half) * C) };
                        sub_block::<S, L, C>(simd, at, record, sums, half, &mut acc);
                    });
                }
            }
        }
        acc
    }
}

/// Sums of the activation codes of a sub-block, for each token.
#[derive(Clone, Copy)]
struct Sums {
    /// Times the scale, where there are minima.
    scaled: *const f32,
    plain: *const i32,
}

/// Adds one sub-block to the accumulators.
///
/// # Safety
/// `at` is a block of a packed group; `record` and `sums` belong to the same block of a panel of C tokens.
#[inline(always)]
unsafe fn sub_block<S: Simd, L: Layout, const C: usize>(
    simd: S,
    at: super::layout::BlockAt,
    record: *const u8,
    sums: Sums,
    half: usize,
    acc: &mut [S::F32; C],
) {
    let quads = L::SUB_BLOCK / QUAD;
    // What is still to be taken off each code, beside what the instruction takes off itself.
    let offset = i32::from(L::CODE_OFFSET) - if const { L::SMALL_CODES } { 0 } else { S::BYTE_OFFSET };
    // SAFETY: the caller's promises; a record holds 32 codes a token and then a scale a token.
    unsafe {
        let scales = L::scales(simd, at, half);
        let zero = simd.splat_i32(0);
        let mins = if const { L::HAS_MIN } { L::mins(simd, at, half) } else { scales };
        unroll!(3, run, {
            let mut sum = [zero; COLUMN_RUN];
            if offset != 0 {
                unroll!(4, i, {
                    const c: usize = run * COLUMN_RUN + i;
                    if const { c < C } {
                        sum[i] = simd.splat_i32(sums.plain.add(c).read() * -offset);
                    }
                });
            }
            unroll!(8, q, {
                if const { q < L::SUB_BLOCK / QUAD } {
                    let quad = half * quads + q;
                    let codes = L::codes(simd, at, quad);
                    unroll!(4, i, {
                        const c: usize = run * COLUMN_RUN + i;
                        if const { c < C } {
                            let x = record.add(c * BLOCK + quad * QUAD).cast::<i32>().read_unaligned();
                            sum[i] = if const { L::SMALL_CODES } {
                                simd.dot_small(sum[i], codes, x)
                            } else {
                                simd.dot_bytes(sum[i], codes, x)
                            };
                        }
                    });
                }
            });
            unroll!(4, i, {
                const c: usize = run * COLUMN_RUN + i;
                if const { c < C } {
                    let dx = simd.splat(record.add(C * BLOCK).cast::<f32>().add(c).read());
                    acc[c] = simd.fma(simd.to_f32(sum[i]), simd.mul(scales, dx), acc[c]);
                    if const { L::HAS_MIN } {
                        acc[c] = simd.fma(mins, simd.splat(sums.scaled.add(c).read()), acc[c]);
                    }
                }
            });
        });
    }
}

/// Adds one block whose scales are folded to the accumulators.
///
/// # Safety
/// `at` is a block of a packed group; `record` and `halves` belong to the same block of a panel of C tokens.
#[inline(always)]
unsafe fn folded_block<S: Simd, L: Layout, const C: usize>(
    simd: S,
    at: super::layout::BlockAt,
    record: *const u8,
    halves: *const i32,
    acc: &mut [S::F32; C],
) {
    // SAFETY: the caller's promises; a record holds 32 codes a token and then a scale a token, and halves a pair of sums a token.
    unsafe {
        let (unit, min_unit, factors) = (L::scales(simd, at, 0), L::mins(simd, at, 0), L::factors(simd, at));
        let scales = [simd.nibbles(factors, 0, 0), simd.nibbles(factors, 4, 4)];
        let mins = simd.nibbles(factors, 8, 12);
        unroll!(3, run, {
            let mut sum = [simd.splat_i32(0); COLUMN_RUN];
            unroll!(8, quad, {
                if const { run * COLUMN_RUN < C } {
                    let codes = simd.times(L::codes(simd, at, quad), scales[quad * QUAD / L::SUB_BLOCK]);
                    unroll!(4, i, {
                        const c: usize = run * COLUMN_RUN + i;
                        if const { c < C } {
                            let x = record.add(c * BLOCK + quad * QUAD).cast::<i32>().read_unaligned();
                            sum[i] = simd.dot_small(sum[i], codes, x);
                        }
                    });
                }
            });
            unroll!(4, i, {
                const c: usize = run * COLUMN_RUN + i;
                if const { c < C } {
                    let dx = simd.splat(record.add(C * BLOCK).cast::<f32>().add(c).read());
                    let least = simd.to_f32(simd.dot_pairs(mins, halves.add(c).read()));
                    let scaled = simd.fma(unit, simd.to_f32(sum[i]), simd.splat(0.0));
                    acc[c] = simd.fma(simd.fma(min_unit, least, scaled), dx, acc[c]);
                }
            });
        });
    }
}

const _: () = assert!(QUADS == 8 && TOKENS_MAX == 3 * COLUMN_RUN);
