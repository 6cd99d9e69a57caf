//! One matrix. Copies of it take turns, more than the caches hold, unless it is to stay there.

use anyhow::Result;
use tessera_cpu::tensor::Tensor;
use tessera_formats::DType;
use tessera_ops::{Device, Linear};

use super::{
    About, Subject,
    input::{self, Table},
};
use crate::device::{self, Chosen};

/// A matrix in many copies, and activations for it.
pub(crate) struct Dense {
    dtype: DType,
    rows: usize,
    depth: usize,
    copies: Vec<Linear<Chosen>>,
    /// (widest) tokens.
    inputs: Vec<(usize, Tensor)>,
    table: Table,
}

impl Dense {
    /// (rows, depth) weights, in as many copies as have `cold_bytes` together and one more; inputs of all `widths`.
    ///
    /// # Errors
    /// If blocks of the format do not divide a row, or there is no memory.
    pub(crate) fn new(
        device: &Chosen,
        dtype: DType,
        (rows, depth): (usize, usize),
        widths: &[usize],
        cold_bytes: usize,
    ) -> Result<Dense> {
        let source = input::weights(dtype, rows, depth, 1)?;
        let load = || -> Result<Linear<Chosen>> { Ok(Linear { matrix: device.load_matrix(&source)?, bias: None }) };
        let mut copies = vec![load()?];
        for _ in 0..cold_bytes / copies[0].matrix.bytes() {
            copies.push(load()?);
        }
        let widest = widths.iter().copied().max().unwrap_or(1);
        let table = Table::new(device, widest, depth, 2)?;
        let scale = (depth as f32).sqrt();
        let inputs = widths.iter().map(|width| (*width, table.take(device, 0, *width, scale))).collect();
        Ok(Dense { dtype, rows, depth, copies, inputs, table })
    }
}

impl Subject for Dense {
    fn turns(&self, _width: usize) -> usize {
        self.copies.len()
    }

    fn run(&self, device: &Chosen, width: usize, turn: usize) -> Tensor {
        let (_, x) = self.inputs.iter().find(|(w, _)| *w == width).expect("inputs of all widths were made");
        let [y] = device.project(x, [&self.copies[turn]]);
        y
    }

    fn alone(&self, device: &Chosen, _width: usize, turn: usize, token: usize) -> Tensor {
        let x = self.table.take(device, token, 1, (self.depth as f32).sqrt());
        let [y] = device.project(&x, [&self.copies[turn]]);
        y
    }

    fn about(&self) -> About {
        About { kind: "dense", rows: self.rows, depth: self.depth, experts: None }
    }

    fn variants(&self, device: &Chosen, width: usize) -> String {
        device::variant(device, self.dtype, self.rows, self.depth, width).unwrap_or_default()
    }

    fn touched(&self, _device: &Chosen, _width: usize) -> Option<f64> {
        None
    }

    fn operations(&self, width: usize) -> f64 {
        2.0 * (self.rows * self.depth * width) as f64
    }

    fn bytes(&self, _device: &Chosen, _width: usize) -> f64 {
        self.copies[0].matrix.bytes() as f64
    }
}
