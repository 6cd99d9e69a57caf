//! The dense product of activations with a matrix of numbers: one chain of fused multiply-adds for each output.

use crate::MatrixView;

/// `c[r][n] = fma(a[r][k], b[k][n], c[r][n])` for k in order. `a` is rows of `b.rows()` numbers, `a_leading` apart; `c` is
/// rows of `b.columns()`, `c_leading` apart. Sums start from what `c` holds, or from zero where they do not `accumulate`.
pub fn dense(
    rows: usize,
    (a, a_leading): (&[f32], usize),
    b: &MatrixView<'_>,
    (c, c_leading): (&mut [f32], usize),
    accumulate: bool,
) {
    for row in 0..rows {
        for column in 0..b.columns() {
            let out = &mut c[row * c_leading + column];
            let mut sum = if accumulate { *out } else { 0.0 };
            for k in 0..b.rows() {
                sum = a[row * a_leading + k].mul_add(b.get(k, column), sum);
            }
            *out = sum;
        }
    }
}
