//! Measurements of single kernels on the card, which hold the result to the reference in the same run.

pub mod attention;
pub mod prompt;

use tessera_formats::{DType, codec::RandomBlocks};
use tessera_ops::{Device, Error, Linear, MatrixSource, reference};

use crate::{
    CudaDevice,
    driver::Gpu,
    kernels::Module,
    matmul::{Columns, Operand, Packed, PackedMatrix, product, project, tile::CodesTile},
    tensor::Tensor,
};

/// Bytes of weights that are gone through before one is read again: several times the L2 cache of any card.
const COLD_BYTES: usize = 600 << 20;

/// Samples; the median counts.
const SAMPLES: usize = 15;

/// Launches of a sample.
const LAUNCHES: usize = 12;

/// Rows at both ends of the matrix that are held to the reference.
const CHECKED_ROWS: usize = 24;

/// The median of `samples`, each of so many launches in turn: microseconds of a launch.
fn median(gpu: &Gpu, samples: usize, launches: usize, launch: &dyn Fn(usize)) -> Result<f64, Error> {
    let sample = |first: usize| Ok(gpu.time(|| (first..first + launches).for_each(launch))? / launches as f64);
    let mut times = (0..samples).map(|i| sample(i * launches)).collect::<Result<Vec<f64>, Error>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[samples / 2])
}

/// A matrix of random weights to be multiplied.
pub struct Subject<'a> {
    device: &'a CudaDevice,
    source: MatrixSource,
    copies: Vec<PackedMatrix>,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The product alone, with its codes there.
    pub product_us: f64,
    /// Quantizing the input, where weights are quantized.
    pub quantize_us: f64,
    /// Bytes of the weights in their file's format: what a speed is reckoned from.
    pub file_bytes: usize,
    /// Bytes of the packed weights.
    pub packed_bytes: usize,
}

impl<'a> Subject<'a> {
    /// Makes weights of a format, in as many copies as keep the cache cold.
    ///
    /// # Errors
    /// As [`Device::load_matrix`].
    pub fn new(device: &'a CudaDevice, dtype: DType, rows: usize, depth: usize) -> Result<Subject<'a>, Error> {
        let row_bytes = dtype.row_bytes(depth).unwrap_or(0);
        let mut bytes = vec![0; rows * row_bytes];
        RandomBlocks::new(dtype, 0.02).fill(1, 0, &mut bytes);
        let source = MatrixSource { name: "random".to_owned(), dtype, rows, depth, bytes: bytes.into() };
        let count = COLD_BYTES.div_ceil(source.bytes.len().max(1)).max(2);
        let copies = (0..count).map(|_| device.load_matrix(&source)).collect::<Result<_, _>>()?;
        Ok(Subject { device, source, copies })
    }

    /// Compiles the kernels of tiles, all at once.
    ///
    /// # Errors
    /// If one does not compile.
    pub fn prepare(&self, tiles: &[CodesTile]) -> Result<(), Error> {
        let Some(Packed::Codes(layout)) = self.copies.first().map(PackedMatrix::form) else { return Ok(()) };
        let modules: Vec<Module> = tiles.iter().map(|tile| Module::Codes(layout, *tile)).collect();
        self.device.gpu().prepare(&modules)
    }

    /// Multiplies in a tile from now on.
    ///
    /// # Errors
    /// If its kernel does not compile.
    pub fn force_tile(&mut self, tile: CodesTile) -> Result<(), Error> {
        if let Some(Packed::Codes(layout)) = self.copies.first().map(PackedMatrix::form) {
            self.device.gpu().prepare(&[Module::Codes(layout, tile)])?;
            self.copies.iter_mut().for_each(|m| m.force_tile(tile));
        }
        Ok(())
    }

    /// Measures the product with `columns` tokens; none where it is not the reference's, bit for bit.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, columns: usize) -> Result<Option<Measured>, Error> {
        let (device, gpu, depth) = (self.device, self.device.gpu(), self.source.depth);
        let input: Vec<f32> = (0..columns * depth).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect();
        if !self.is_right(columns, &input)? {
            return Ok(None);
        }
        let x = device.sent_rows(columns, &input);
        let shares = Columns::Dense.shares(&x);
        let [share] = &shares[..] else { return Ok(None) };
        let first = &self.copies[0];
        let operand = Operand::of(gpu, &x, &[first], share);
        let y = Tensor::like(gpu, &x, self.source.rows);
        let product_us = self.median(|turn| {
            product(gpu, &x, &operand, (&self.copies[turn % self.copies.len()], None), share, &y);
        })?;
        let is_coded = matches!(first.form(), Packed::Codes(_));
        let quantize_us = if is_coded { self.median(|_| drop(Operand::of(gpu, &x, &[first], share)))? } else { 0.0 };
        let (file_bytes, packed_bytes) = (self.source.bytes.len(), self.copies[0].bytes());
        Ok(Some(Measured { product_us, quantize_us, file_bytes, packed_bytes }))
    }

    fn median(&self, work: impl Fn(usize)) -> Result<f64, Error> {
        // Each launch goes at once: the host's work is not measured.
        let launch = |turn| {
            work(turn);
            self.device.gpu().flush();
        };
        (0..LAUNCHES).for_each(&launch);
        median(self.device.gpu(), SAMPLES, LAUNCHES, &launch)
    }

    /// Holds the first and the last rows to the reference.
    fn is_right(&self, columns: usize, input: &[f32]) -> Result<bool, Error> {
        let (rows, row_bytes) = (self.source.rows, self.source.row_bytes()?);
        let x = self.device.sent_rows(columns, input);
        let [y] = project(self.device.gpu(), &x, [(&self.copies[0], None)], Columns::Dense);
        let mut got = vec![];
        self.device.read(&y, &mut got)?;
        let count = CHECKED_ROWS.min(rows);
        for first in [0, rows - count] {
            let bytes = self.source.bytes[first * row_bytes..][..count * row_bytes].to_vec();
            let part = MatrixSource { rows: count, bytes: bytes.into(), ..self.source.clone() };
            let matrix = reference::ReferenceDevice.load_matrix(&part)?;
            let x = reference::Tensor { rows: columns, width: self.source.depth, values: input.to_vec() };
            let [want] = reference::ReferenceDevice.project(&x, [&Linear { matrix, bias: None }]);
            let same = |token: usize| {
                let got = &got[token * rows + first..][..count];
                got.iter().zip(want.row(token)).all(|(g, w)| g.to_bits() == w.to_bits())
            };
            if !(0..columns).all(same) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
