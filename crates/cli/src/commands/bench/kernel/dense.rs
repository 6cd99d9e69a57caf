//! One matrix. Copies of it take turns, more than the caches hold, unless it is to stay there.

use anyhow::Result;
use tessera_cpu::tensor::Tensor;
use tessera_formats::DType;
use tessera_ops::{Device, Linear};

use super::{
    super::{args::Kernel, machine},
    Subject,
    input::{self, Table},
};
use crate::{
    commands::bench::row::Row,
    device::{self, Chosen},
};

/// A matrix in many copies, and activations for it.
pub(super) struct Dense {
    dtype: DType,
    rows: usize,
    depth: usize,
    copies: Vec<Linear<Chosen>>,
    /// (widest) tokens.
    inputs: Vec<(usize, Tensor)>,
    table: Table,
}

impl Dense {
    pub(super) fn new(device: &Chosen, args: &Kernel) -> Result<Dense> {
        let (rows, depth) = (args.rows, args.depth);
        let source = input::weights(args.format, rows, depth, 1)?;
        let load = || -> Result<Linear<Chosen>> { Ok(Linear { matrix: device.load_matrix(&source)?, bias: None }) };
        let mut copies = vec![load()?];
        let cold_bytes = if args.hot { 0 } else { 3 * machine::cache_bytes() };
        for _ in 0..cold_bytes / copies[0].matrix.bytes() {
            copies.push(load()?);
        }
        let widest = args.widths.iter().copied().max().unwrap_or(1);
        let table = Table::new(device, widest, depth, 2)?;
        let scale = (depth as f32).sqrt();
        let inputs = args.widths.iter().map(|width| (*width, table.take(device, 0, *width, scale))).collect();
        Ok(Dense { dtype: args.format, rows, depth, copies, inputs, table })
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

    fn row(&self, device: &Chosen, width: usize) -> Row {
        let variants = device::variant(device, self.dtype, self.rows, self.depth, width).unwrap_or_default();
        Row { phase: "dense", matrix: Some(format!("{}x{}", self.rows, self.depth)), variants, ..Row::default() }
    }

    fn operations(&self, width: usize) -> f64 {
        2.0 * (self.rows * self.depth * width) as f64
    }

    fn bytes(&self, _device: &Chosen, _width: usize) -> f64 {
        self.copies[0].matrix.bytes() as f64
    }
}
