//! Embeddings: one vector for all tokens of a text, made of what a model's head is given of each.

/// Which rows make an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first.
    First,
    /// The last.
    Last,
}

impl Pooling {
    /// All kinds with their names.
    pub const NAMES: [(&str, Pooling); 3] =
        [("mean", Pooling::Mean), ("first", Pooling::First), ("last", Pooling::Last)];

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Pooling> {
        Pooling::NAMES.iter().find(|(known, _)| *known == name).map(|(_, pooling)| *pooling)
    }

    /// Whether rows before the last are needed.
    pub(crate) fn needs_all(self) -> bool {
        self != Pooling::Last
    }
}

/// Rows on their way to an embedding. They are added in 64 bits and one after another, so the chunks in which they come
/// change no bit.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pooling: Pooling,
    rows: usize,
    sum: Vec<f64>,
}

impl Pool {
    pub(crate) fn new(pooling: Pooling) -> Pool {
        Pool { pooling, rows: 0, sum: Vec::new() }
    }

    pub(crate) fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        (self.rows, self.sum) = (0, Vec::new());
    }

    /// Takes the next rows: (rows, hidden).
    pub(crate) fn add(&mut self, rows: &[f32], hidden: usize) {
        for row in rows.chunks_exact(hidden) {
            let replaces = self.rows == 0 || self.pooling == Pooling::Last;
            if replaces {
                self.sum = row.iter().map(|x| f64::from(*x)).collect();
            } else if self.pooling == Pooling::Mean {
                self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            self.rows += 1;
        }
    }

    /// The embedding: a vector of length one (the number of rows does not change its direction), or of zeros.
    pub(crate) fn embedding(&self) -> Vec<f32> {
        let norm = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
        self.sum.iter().map(|x| (x * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_takes_its_rows_in_any_chunks() {
        let rows = [3.0, 0.0, 0.0, 0.0, -4.0, 0.0, 0.0, 0.0, 12.0];
        let lengths = [13.0, 3.0, 12.0];
        let expected = [[3.0, -4.0, 12.0], [3.0, 0.0, 0.0], [0.0, 0.0, 12.0]];
        for (((_, pooling), expected), length) in Pooling::NAMES.into_iter().zip(expected).zip(lengths) {
            for cut in [0, 3, 6, 9] {
                let mut pool = Pool::new(pooling);
                pool.add(&[7.0, 7.0, 7.0], 3);
                pool.clear();
                pool.add(&rows[..cut], 3);
                pool.add(&rows[cut..], 3);
                let expected = expected.map(|x: f64| (x / length) as f32);
                pool.embedding().iter().zip(expected).for_each(|(x, e)| assert!((x - e).abs() < 1e-7, "{pooling:?}"));
            }
        }
    }

    #[test]
    fn nothing_has_no_direction() {
        let mut pool = Pool::new(Pooling::Mean);
        pool.add(&[0.0, 0.0], 2);
        assert_eq!(pool.embedding(), [0.0, 0.0]);
    }
}
