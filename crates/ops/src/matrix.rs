//! Views of matrices: numbers of some type that lie somewhere in memory, row by row or column by column.
//!
//! The second operand of a dense product ([`crate::reference::dense`]) is one: keys and values of a page are, and so is any
//! part of them.

use half::f16;

/// Numbers as they lie in memory, in lines of `leading` numbers.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Widened, exactly.
    F16(&'a [f16]),
    /// Codes with scales: `scale * code`. `block` = (lines, numbers of a line) share one; scales lie in lines of
    /// `leading / block.1` (rounded up).
    Codes {
        /// (lines, leading)
        codes: &'a [i8],
        /// (lines / block.0, leading / block.1), both rounded up
        scales: &'a [f32],
        /// How many lines, and how many numbers of a line, share a scale.
        block: (usize, usize),
    },
}

impl Numbers<'_> {
    fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::F16(numbers) => numbers.len(),
            Numbers::Codes { codes, .. } => codes.len(),
        }
    }
}

/// A matrix (rows, columns) among numbers.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    numbers: Numbers<'a>,
    rows: usize,
    columns: usize,
    offset: usize,
    leading: usize,
    is_transposed: bool,
}

impl<'a> MatrixView<'a> {
    /// The matrix of this `shape` (rows, columns) whose first element is number `offset`. Element (i, j) is number
    /// `offset + i · leading + j`, or `offset + j · leading + i` where it is transposed. None where an element or a scale
    /// would lie outside.
    pub fn new(
        numbers: Numbers<'a>,
        shape: (usize, usize),
        offset: usize,
        leading: usize,
        is_transposed: bool,
    ) -> Option<MatrixView<'a>> {
        let ((rows, columns), (lines, width)) = (shape, if is_transposed { (shape.1, shape.0) } else { shape });
        let view = MatrixView { numbers, rows, columns, offset, leading, is_transposed };
        if lines == 0 || width == 0 {
            return Some(view);
        }
        let last = (lines - 1).checked_mul(leading)?.checked_add(offset)?.checked_add(width - 1)?;
        let fits = last < numbers.len() && width <= leading && view.scale_index(last).is_none_or(|s| s.1);
        fits.then_some(view)
    }

    /// Rows: the reduction length of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: outputs of a product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The numbers that it lies among.
    pub fn numbers(&self) -> Numbers<'a> {
        self.numbers
    }

    /// Where its first element is among them.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Numbers from one line to the next.
    pub fn leading(&self) -> usize {
        self.leading
    }

    /// Whether its columns are the lines.
    pub fn is_transposed(&self) -> bool {
        self.is_transposed
    }

    /// An element.
    pub fn get(&self, row: usize, column: usize) -> f32 {
        assert!(row < self.rows && column < self.columns, "an element of the matrix");
        let (line, place) = if self.is_transposed { (column, row) } else { (row, column) };
        let at = self.offset + line * self.leading + place;
        match self.numbers {
            Numbers::F32(numbers) => numbers[at],
            Numbers::F16(numbers) => numbers[at].to_f32(),
            Numbers::Codes { codes, scales, .. } => {
                scales[self.scale_index(at).map_or(0, |s| s.0)] * f32::from(codes[at])
            }
        }
    }

    /// The index of the scale of number `at`, and whether there is one; none where there are no scales.
    fn scale_index(&self, at: usize) -> Option<(usize, bool)> {
        let Numbers::Codes { scales, block, .. } = self.numbers else { return None };
        let (lines, width) = (block.0.max(1), block.1.max(1));
        let index = at / self.leading / lines * self.leading.div_ceil(width) + at % self.leading / width;
        Some((index, index < scales.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_where_they_should_be() {
        let numbers: Vec<f32> = (0..60).map(|i| i as f32).collect();
        let plain = MatrixView::new(Numbers::F32(&numbers), (3, 4), 5, 10, false).unwrap();
        assert_eq!((plain.get(0, 0), plain.get(2, 3)), (5.0, 28.0));
        let turned = MatrixView::new(Numbers::F32(&numbers), (4, 3), 5, 10, true).unwrap();
        assert_eq!((turned.get(0, 0), turned.get(3, 2), turned.get(1, 2)), (5.0, 28.0, 26.0));
        let halves: Vec<f16> = numbers.iter().map(|n| f16::from_f32(n / 4.0)).collect();
        assert_eq!(MatrixView::new(Numbers::F16(&halves), (6, 10), 0, 10, false).unwrap().get(5, 9), 14.75);
    }

    #[test]
    fn codes_have_the_scale_of_their_block() {
        let codes: Vec<i8> = (0..40).map(|i| i - 20).collect();
        // Five lines of eight; two lines share a scale, and three numbers of a line.
        let scales: Vec<f32> = (0..9).map(|i| 0.5 + i as f32).collect();
        let numbers = Numbers::Codes { codes: &codes, scales: &scales, block: (2, 3) };
        let view = MatrixView::new(numbers, (5, 8), 0, 8, false).unwrap();
        assert_eq!((view.get(0, 0), view.get(1, 2), view.get(1, 3)), (-20.0 * 0.5, -10.0 * 0.5, -9.0 * 1.5));
        assert_eq!((view.get(4, 7), view.get(2, 6)), (19.0 * 8.5, 2.0 * 5.5));
        let part = MatrixView::new(numbers, (2, 3), 2 * 8 + 5, 8, true).unwrap();
        assert_eq!((part.get(0, 0), part.get(1, 0), part.get(1, 2)), (view.get(2, 5), view.get(2, 6), view.get(4, 6)));
        assert!(
            MatrixView::new(Numbers::Codes { codes: &codes, scales: &scales[..8], block: (2, 3) }, (5, 8), 0, 8, false)
                .is_none()
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let numbers = [0.0; 20];
        let fits = |shape, offset, leading, turned| {
            MatrixView::new(Numbers::F32(&numbers), shape, offset, leading, turned).is_some()
        };
        assert!(fits((4, 5), 0, 5, false) && fits((2, 5), 10, 5, false) && fits((5, 2), 10, 5, true));
        assert!(!fits((4, 5), 1, 5, false), "one number too far");
        assert!(!fits((4, 5), 0, 4, false), "lines that overlap");
        assert!(!fits((usize::MAX, 5), 0, usize::MAX / 2, false), "an overflow");
        assert!(fits((0, 5), 1000, 5, false), "nothing lies nowhere");
    }
}
