//! The inner loop of attention: chains of fused multiply-adds, a tile of them at a time.
//!
//! `c[q][n] = fma(a[q][k], b[k][n], c[q][n])` for k in order: scores are q · keys over features, outputs are weights ·
//! values over tokens. Each element is one chain, so tiles of any size give the same bits; a tile only keeps enough
//! chains in registers to hide the latency of each.

use crate::{
    isa::{Isa, Kernel},
    kv::cells::Operand,
    simd::{LANES, LINE_BYTES, Simd},
};

/// Cache lines asked for with a step over up to four vectors: as many as the step itself reads of 16-bit numbers.
const LINES_AHEAD: usize = 2;

/// A product of (columns, depth) with (depth, vectors · 16).
pub(super) struct Chain<B> {
    /// (columns, depth), `a_stride` numbers apart.
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// (rows, vectors · 16), of which this product takes those from row and vector `b_from` on.
    pub(super) b: B,
    pub(super) b_from: (usize, usize),
    /// (columns, vectors · 16), `c_stride` numbers apart.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) columns: usize,
    pub(super) vectors: usize,
    pub(super) depth: usize,
    /// What is read after this product, asked for meanwhile: [`LINES_AHEAD`] lines with each step of the first columns, which
    /// comes to a page's keys or values. May be null or point anywhere: nothing is read.
    pub(super) ahead: *const u8,
    /// Whether sums start from zero instead of from what `c` holds.
    pub(super) from_zero: bool,
}

/// A chain as a kernel: a function of its own for each instruction set and operand, so that its many tiles are compiled once
/// and not wherever one is used.
struct Alone<'a, B>(&'a Chain<B>);

impl<B: Operand> Kernel for Alone<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: what `Chain::run` was promised.
        unsafe { self.0.tiles(simd) };
    }
}

impl<B: Operand> Chain<B> {
    /// Computes it.
    ///
    /// # Safety
    /// `a`, `b` and `c` are valid for the shapes and strides given, and `c` overlaps neither of the others.
    pub(super) unsafe fn run(&self, isa: Isa) {
        isa.run(Alone(self));
    }

    /// Computes it, tile by tile.
    ///
    /// # Safety
    /// As [`Chain::run`].
    #[inline(always)]
    unsafe fn tiles<S: Simd>(&self, simd: S) {
        let mut vector = 0;
        while vector < self.vectors {
            let left = self.vectors - vector;
            // SAFETY: the caller's promise, and all tiles lie inside.
            unsafe {
                // An instruction set that can hold 12 columns of a product has 32 registers.
                if S::TOKENS_MAX >= 12 && left >= 4 {
                    self.columns::<S, 4>(simd, vector);
                    vector += 4;
                } else if S::TOKENS_MAX >= 12 && left >= 2 {
                    self.columns::<S, 2>(simd, vector);
                    vector += 2;
                } else {
                    self.columns::<S, 1>(simd, vector);
                    vector += 1;
                }
            }
        }
    }

    /// Vectors `vector..vector + V` of all columns.
    ///
    /// # Safety
    /// As [`Chain::run`], and the vectors exist.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&self, simd: S, vector: usize) {
        let mut column = 0;
        while column < self.columns {
            // SAFETY: the tile is no wider than what is left.
            column += unsafe {
                if column == 0 && !self.ahead.is_null() {
                    self.widest::<S, V, true>(simd, column, vector)
                } else {
                    self.widest::<S, V, false>(simd, column, vector)
                }
            };
        }
    }

    /// As many columns as fit a tile; gives how many.
    ///
    /// # Safety
    /// As [`Chain::run`], and the column and the vectors exist.
    #[inline(always)]
    unsafe fn widest<S: Simd, const V: usize, const AHEAD: bool>(
        &self,
        simd: S,
        column: usize,
        vector: usize,
    ) -> usize {
        // SAFETY: the tile is no wider than what is left.
        unsafe {
            match self.columns - column {
                6.. => self.tile::<S, 6, V, AHEAD>(simd, column, vector),
                4 | 5 => self.tile::<S, 4, V, AHEAD>(simd, column, vector),
                3 => self.tile::<S, 3, V, AHEAD>(simd, column, vector),
                2 => self.tile::<S, 2, V, AHEAD>(simd, column, vector),
                _ => self.tile::<S, 1, V, AHEAD>(simd, column, vector),
            }
        }
    }

    /// Q columns by V vectors; gives Q.
    ///
    /// # Safety
    /// As [`Chain::run`], and the columns and vectors exist.
    #[inline(always)]
    unsafe fn tile<S: Simd, const Q: usize, const V: usize, const AHEAD: bool>(
        &self,
        simd: S,
        column: usize,
        vector: usize,
    ) -> usize {
        let mut sums = [[simd.splat(0.0); V]; Q];
        // SAFETY: the caller's promise: every address is inside the shapes.
        unsafe {
            let c = self.c.add(column * self.c_stride + vector * LANES);
            if !self.from_zero {
                for (q, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.load_at(c.add(q * self.c_stride + v * LANES));
                    }
                }
            }
            let a = self.a.add(column * self.a_stride);
            let (b_row, b_vector) = (self.b_from.0, self.b_from.1 + vector);
            let ahead = self.ahead.wrapping_add(vector / V * self.depth * LINES_AHEAD * LINE_BYTES);
            for k in 0..self.depth {
                if AHEAD {
                    for line in 0..LINES_AHEAD {
                        simd.prefetch(ahead.wrapping_add((k * LINES_AHEAD + line) * LINE_BYTES));
                    }
                }
                let mut operands = [simd.splat(0.0); V];
                for (v, operand) in operands.iter_mut().enumerate() {
                    *operand = self.b.load(simd, b_row + k, b_vector + v);
                }
                for (q, sums) in sums.iter_mut().enumerate() {
                    let factor = simd.splat(*a.add(q * self.a_stride + k));
                    for (sum, operand) in sums.iter_mut().zip(operands) {
                        *sum = simd.fma(factor, operand, *sum);
                    }
                }
            }
            for (q, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    simd.store_at(c.add(q * self.c_stride + v * LANES), *sum);
                }
            }
        }
        Q
    }
}
