//! Grouped and routed projections: each row times the matrix of its segment, one row at a time.

use super::{Matrix, Routes, Tensor, matmul};
use crate::{Error, MatrixSource};

/// Matrices of one shape.
#[derive(Clone, Debug)]
pub struct Stack<M> {
    /// Output features of each.
    pub(super) rows: usize,
    /// Inputs of each.
    pub(super) depth: usize,
    pub(super) matrices: Vec<M>,
}

impl<M> Stack<M> {
    /// Cuts a source into `count` matrices and loads each. An error names the row of the whole.
    pub(super) fn load(
        source: &MatrixSource,
        count: usize,
        load: impl Fn(&MatrixSource) -> Result<M, Error>,
    ) -> Result<Stack<M>, Error> {
        let (rows, row_bytes) = (source.rows_each(count)?, source.row_bytes()?);
        let mut matrices = Vec::with_capacity(count);
        for index in 0..count {
            let bytes = source.bytes[index * rows * row_bytes..][..rows * row_bytes].to_vec();
            let part = MatrixSource { rows, bytes: bytes.into(), ..source.clone() };
            let matrix = load(&part).map_err(|error| match error {
                Error::NotFinite { tensor, row, what } => Error::NotFinite { tensor, row: index * rows + row, what },
                other => other,
            })?;
            matrices.push(matrix);
        }
        Ok(Stack { rows, depth: source.depth, matrices })
    }
}

impl Stack<Matrix> {
    /// One row of activations times matrix `index`.
    fn row(&self, index: usize, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let x = Tensor { rows: 1, width: x.len(), values: x.to_vec() };
        matmul::project(&x, &self.matrices[index], bias.map(|b| &b[index * self.rows..][..self.rows])).values
    }
}

pub(super) fn project_grouped(x: &Tensor, stack: &Stack<Matrix>, bias: Option<&[f32]>) -> Tensor {
    let groups = stack.matrices.len();
    assert_eq!(x.width, groups * stack.depth, "each group has its slice of a row");
    let mut y = Tensor::zeros(x.rows, groups * stack.rows);
    for token in 0..x.rows {
        for group in 0..groups {
            let slice = &x.row(token)[group * stack.depth..][..stack.depth];
            y.row_mut(token)[group * stack.rows..][..stack.rows].copy_from_slice(&stack.row(group, slice, bias));
        }
    }
    y
}

pub(super) fn project_routed(x: &Tensor, stack: &Stack<Matrix>, bias: Option<&[f32]>, routes: &Routes<f32>) -> Tensor {
    assert_eq!(x.rows * routes.slots, routes.experts.len(), "each token has its routes");
    let mut y = Tensor::zeros(routes.experts.len(), stack.rows);
    for (place, expert) in routes.experts.iter().enumerate() {
        let row = stack.row(*expert as usize, x.row(place / routes.slots), bias);
        y.row_mut(place).copy_from_slice(&row);
    }
    y
}

pub(super) fn combine_routed(x: &Tensor, stack: &Stack<Matrix>, bias: Option<&[f32]>, routes: &Routes<f32>) -> Tensor {
    assert_eq!(x.rows, routes.experts.len(), "each slot of a token has its row");
    let mut y = Tensor::zeros(x.rows / routes.slots, stack.rows);
    for (place, expert) in routes.experts.iter().enumerate() {
        let row = stack.row(*expert as usize, x.row(place), bias);
        for (out, v) in y.row_mut(place / routes.slots).iter_mut().zip(row) {
            *out = routes.weights[place].mul_add(v, *out);
        }
    }
    y
}
