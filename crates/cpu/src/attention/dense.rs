//! The dense product with a matrix of numbers of any type, as [`tessera_ops::reference::dense`] defines it.
//!
//! [`Chain`] widens each number as it reads it, once for every six columns. For halves that hides behind the multiply-adds;
//! codes with scales do not. With many columns it is cheaper to widen a *panel* of the matrix, 64 deep and 64 wide, into f32
//! first: 16 KiB, which stay in the first cache while all columns pass. A sum waits in `c` between panels, and goes on where
//! it was: the chain over the depth is the same, and so are the bits.
//!
//! What it costs: a panel is 256 vectors, each a load, two conversions, a multiplication by the scales and a store. A column takes
//! 256 fused multiply-adds of it. So with 96 columns widening is 3 % of the work, with 24 columns 10 %; the chain's own
//! conversions are 12 instructions for every 24 multiply-adds. For halves they are 4, which run beside: there panels
//! lost 6 to 12 %.

use std::ptr::null;

use half::f16;
use tessera_ops::{MatrixView, Numbers};

use super::chain::Chain;
use crate::{
    isa::{Isa, Kernel},
    kv::cells::{Operand, Rows},
    lanes::load,
    simd::{LANES, Simd},
};

/// Rows of a panel.
const PANEL_DEPTH: usize = 64;

/// Vectors of a panel's row.
const PANEL_VECTORS: usize = 4;

/// Numbers of a panel.
pub(super) const PANEL_LEN: usize = PANEL_DEPTH * PANEL_VECTORS * LANES;

/// With fewer columns a panel does not pay.
const PANEL_COLUMNS_MIN: usize = 12;

impl<B: Operand> Chain<B> {
    /// Whether it is worth widening `b` first.
    pub(super) fn is_for_panels(&self) -> bool {
        B::IS_SLOW && self.columns >= PANEL_COLUMNS_MIN
    }

    /// Computes it panel by panel; `panel` is [`PANEL_LEN`] numbers of memory.
    ///
    /// # Safety
    /// As [`Chain::run`], and `panel` overlaps none of the operands.
    #[inline(always)]
    pub(super) unsafe fn run_in_panels<S: Simd>(&self, simd: S, isa: Isa, panel: &mut [f32]) {
        assert!(panel.len() >= PANEL_LEN, "a panel has its memory");
        for vector in (0..self.vectors).step_by(PANEL_VECTORS) {
            let vectors = PANEL_VECTORS.min(self.vectors - vector);
            // At least once: a chain of no links is zero.
            for first in (0..self.depth.max(1)).step_by(PANEL_DEPTH) {
                let depth = PANEL_DEPTH.min(self.depth - first);
                // SAFETY: the caller's promise, and the panel is large enough for 64 rows of four vectors.
                unsafe {
                    for k in 0..depth {
                        for v in 0..vectors {
                            let (row, at) = (self.b_from.0 + first + k, self.b_from.1 + vector + v);
                            let to = panel.as_mut_ptr().add((k * PANEL_VECTORS + v) * LANES);
                            simd.store_at(to, self.b.load(simd, row, at));
                        }
                    }
                    Chain {
                        a: self.a.add(first),
                        a_stride: self.a_stride,
                        b: Rows { start: panel.as_ptr(), stride: PANEL_VECTORS * LANES },
                        b_from: (0, 0),
                        c: self.c.add(vector * LANES),
                        c_stride: self.c_stride,
                        columns: self.columns,
                        vectors,
                        depth,
                        ahead: null(),
                        from_zero: self.from_zero && first == 0,
                    }
                    .run(isa);
                }
            }
        }
    }
}

impl Operand for MatrixView<'_> {
    const IS_SLOW: bool = true;

    #[inline(always)]
    fn address(self, _k: usize, _vector: usize) -> *const u8 {
        null()
    }

    /// The lanes behind the last column are zeros.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, vector: usize) -> S::F32 {
        let column = vector * LANES;
        let at = self.offset() + k * self.leading() + column;
        if !self.is_transposed() && column + LANES <= self.columns() {
            match self.numbers() {
                Numbers::F32(numbers) => return load(simd, &numbers[at..at + LANES]),
                // SAFETY: 16 numbers that are there.
                Numbers::F16(numbers) => unsafe { return f16_vector(simd, &numbers[at..at + LANES]) },
                Numbers::Codes { .. } => {}
            }
        }
        let mut lanes = [0.0; LANES];
        for (lane, number) in lanes.iter_mut().enumerate().take(self.columns() - column.min(self.columns())) {
            *number = self.get(k, column + lane);
        }
        simd.load(&lanes)
    }
}

/// # Safety
/// There are 16 numbers.
#[inline(always)]
unsafe fn f16_vector<S: Simd>(simd: S, numbers: &[f16]) -> S::F32 {
    // SAFETY: the caller's promise.
    unsafe { simd.load_f16_at(numbers.as_ptr()) }
}

/// `c[r][n] = fma chain over k of a[r][k] * b[k][n]`, from what `c` holds or from zero: see
/// [`tessera_ops::reference::dense::dense`]. Its memory is a panel and 64 outputs of each row.
///
/// # Panics
/// Where `a` or `c` are too short.
pub fn dense(
    isa: Isa,
    rows: usize,
    (a, a_leading): (&[f32], usize),
    b: &MatrixView<'_>,
    (c, c_leading): (&mut [f32], usize),
    accumulate: bool,
) {
    let end = |leading: usize, width: usize| rows.checked_sub(1).map_or(0, |last| last * leading + width);
    assert!(end(a_leading, b.rows()) <= a.len() && end(c_leading, b.columns()) <= c.len(), "rows lie inside");
    assert!(c_leading >= b.columns() || rows < 2, "rows of outputs do not overlap");
    isa.run(Dense { isa, rows, a: (a, a_leading), b, c: (c, c_leading), accumulate });
}

struct Dense<'a> {
    isa: Isa,
    rows: usize,
    a: (&'a [f32], usize),
    b: &'a MatrixView<'a>,
    c: (&'a mut [f32], usize),
    accumulate: bool,
}

impl Kernel for Dense<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        const WIDTH: usize = PANEL_VECTORS * LANES;
        let (mut panel, mut sums) = (vec![0.0; PANEL_LEN], vec![0.0; self.rows * WIDTH]);
        for column in (0..self.b.columns()).step_by(WIDTH) {
            let width = WIDTH.min(self.b.columns() - column);
            for (sums, row) in sums.chunks_exact_mut(WIDTH).zip(0..self.rows) {
                let from = &self.c.0[row * self.c.1 + column..][..width];
                sums[..width].copy_from_slice(from);
                sums[width..].fill(0.0);
            }
            let chain = Chain {
                a: self.a.0.as_ptr(),
                a_stride: self.a.1,
                b: *self.b,
                b_from: (0, column / LANES),
                c: sums.as_mut_ptr(),
                c_stride: WIDTH,
                columns: self.rows,
                vectors: width.div_ceil(LANES),
                depth: self.b.rows(),
                ahead: null(),
                from_zero: !self.accumulate,
            };
            // SAFETY: rows of `a` are inside, as `dense` has checked; the view pads its last vector; sums are (rows, 64).
            unsafe { chain.run_in_panels(simd, self.isa, &mut panel) };
            for (sums, row) in sums.chunks_exact(WIDTH).zip(0..self.rows) {
                self.c.0[row * self.c.1 + column..][..width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_ops::reference;

    use super::*;

    /// Numbers of a kind: F32, F16, or codes with scales of some shape.
    #[derive(Clone, Copy, Debug)]
    enum Kind {
        F32,
        F16,
        Codes((usize, usize)),
    }

    struct Store {
        floats: Vec<f32>,
        halves: Vec<f16>,
        codes: Vec<i8>,
    }

    impl Store {
        /// Numbers in -1..1 that follow from the count.
        fn new(count: usize) -> Store {
            let floats: Vec<f32> = (0..count).map(|i| (i * 7919 % 4093) as f32 / 2046.5 - 1.0).collect();
            let halves = floats.iter().map(|v| f16::from_f32(*v)).collect();
            let codes = floats.iter().map(|v| (v * 127.0) as i8).collect();
            Store { floats, halves, codes }
        }

        fn numbers(&self, kind: Kind) -> Numbers<'_> {
            match kind {
                Kind::F32 => Numbers::F32(&self.floats),
                Kind::F16 => Numbers::F16(&self.halves),
                Kind::Codes(block) => Numbers::Codes { codes: &self.codes, scales: &self.floats, block },
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn products_have_the_reference_s_bits(
            rows in 0usize..40,
            depth in 0usize..150,
            columns in 0usize..150,
            offset in 0usize..40,
            gap in 0usize..9,
            is_transposed: bool,
            accumulate: bool,
            kind in prop::sample::select(vec![Kind::F32, Kind::F16, Kind::Codes((32, 1)), Kind::Codes((1, 32)), Kind::Codes((2, 3))]),
        ) {
            let (lines, width) = if is_transposed { (columns, depth) } else { (depth, columns) };
            let leading = width + gap;
            let store = Store::new(offset + lines * leading + 2);
            let view = MatrixView::new(store.numbers(kind), (depth, columns), offset, leading.max(1), is_transposed);
            let view = view.expect("it fits");
            let (a, a_leading, c_leading) = (Store::new(rows * (depth + 3)).floats, depth + 3, columns + 1);
            let mut want = Store::new(rows * c_leading).floats;
            let start = want.clone();
            reference::dense::dense(rows, (&a, a_leading), &view, (&mut want, c_leading), accumulate);
            for isa in Isa::available() {
                let mut got = start.clone();
                dense(isa, rows, (&a, a_leading), &view, (&mut got, c_leading), accumulate);
                let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&got), bits(&want), "{}", isa.name());
            }
        }
    }

    #[test]
    fn a_product_over_nothing_is_zero() {
        let view = MatrixView::new(Numbers::F32(&[]), (0, 17), 0, 17, false).unwrap();
        for isa in Isa::available() {
            for (accumulate, expect) in [(false, 0.0), (true, 7.0)] {
                let mut c = [7.0; 40];
                dense(isa, 2, (&[], 0), &view, (&mut c, 20), accumulate);
                assert!(c[..17].iter().chain(&c[20..37]).all(|v| *v == expect), "{}: {c:?}", isa.name());
                assert!(c[17..20].iter().chain(&c[37..]).all(|v| *v == 7.0), "{}: {c:?}", isa.name());
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows lie inside")]
    fn short_operands_are_refused() {
        let numbers = [0.0; 32];
        let view = MatrixView::new(Numbers::F32(&numbers), (2, 16), 0, 16, false).unwrap();
        dense(Isa::best(), 3, (&[0.0; 5], 2), &view, (&mut [0.0; 48], 16), false);
    }
}
