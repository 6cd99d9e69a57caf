//! Measurements of single kernels on the card, which hold the result to the reference in the same run.

pub mod attention;
pub mod choice;
pub mod latent_rows;
pub mod prompt;

use std::ops::Range;

use tessera_formats::{DType, codec::RandomBlocks};
use tessera_ops::{
    Batch, Device, Error, Linear, LinearStack, MatrixSource, PAGE_TOKENS, Role, Router, Routing, Score,
    reference::{self, float64::Tensor64},
};

use crate::{
    CudaDevice,
    driver::Gpu,
    kernels::Module,
    latent,
    matmul::{Columns, Operand, Packed, PackedMatrix, Share, product, wide_tile::Tile},
    routes::Routes,
    steps::Steps,
    tensor::Tensor,
};

/// Bytes of weights that are gone through before one is read again: several times the L2 cache of any card.
const COLD_BYTES: usize = 300 << 20;

/// Samples; the median counts.
const SAMPLES: usize = 15;

/// Launches of a sample.
const LAUNCHES: usize = 12;

/// Rows at both ends of each matrix that are held to the reference.
const CHECKED_ROWS: usize = 24;

/// Choices of experts that are gone through in turn.
const CHOICES: usize = 24;

/// The median of `samples`, each of so many launches in turn: microseconds of a launch.
fn median(gpu: &Gpu, samples: usize, launches: usize, launch: &dyn Fn(usize)) -> Result<f64, Error> {
    let sample = |first: usize| Ok(gpu.time(|| (first..first + launches).for_each(launch))? / launches as f64);
    let mut times = (0..samples).map(|i| sample(i * launches)).collect::<Result<Vec<f64>, Error>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[samples / 2])
}

/// Numbers from -1 to 1 that look random.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Decoded rows at these positions of a sequence that has the pages of so many tokens, the first ones of a cache.
fn batch(positions: Range<usize>, tokens: usize) -> Batch {
    let table: Vec<u32> = (0..tokens.div_ceil(PAGE_TOKENS) as u32).collect();
    let mut batch = Batch::default();
    batch.push(&vec![0; positions.len()], positions.start, &table, Role::Decode, 0);
    batch
}

/// Rows as float64 has them.
fn in_float64(rows: usize, values: &[f32]) -> Tensor64 {
    Tensor64 { rows, width: values.len() / rows.max(1), values: values.iter().map(|v| f64::from(*v)).collect() }
}

/// How far what a card computed is from float64: relative, root mean square.
fn distance(got: &[f32], want: &Tensor64) -> f64 {
    let off: f64 = got.iter().zip(&want.values).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    (off / want.values.iter().map(|w| w.powi(2)).sum::<f64>()).sqrt()
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One matrix.
    Dense,
    /// So many, each by its slice of a row.
    Grouped(usize),
    /// So many, of which a row meets some.
    Experts {
        /// Matrices.
        count: usize,
        /// Of a row.
        slots: usize,
    },
}

impl Form {
    fn segments(self) -> usize {
        match self {
            Form::Dense => 1,
            Form::Grouped(count) | Form::Experts { count, .. } => count,
        }
    }
}

/// Random weights to be multiplied.
pub struct Subject<'a> {
    device: &'a CudaDevice,
    form: Form,
    /// Rows of each matrix.
    rows: usize,
    source: MatrixSource,
    copies: Vec<PackedMatrix>,
    is_crowded: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The product alone, with its codes there.
    pub product_us: f64,
    /// Quantizing the input, where weights are quantized.
    pub quantize_us: f64,
    /// Bytes of the weights that are met, in their file's format: what a speed is reckoned from.
    pub file_bytes: f64,
    /// The same of packed weights.
    pub packed_bytes: f64,
}

impl<'a> Subject<'a> {
    /// Makes weights of a format, matrices of `rows` rows each, in as many copies as keep the cache cold.
    ///
    /// # Errors
    /// As [`Device::load_matrix`].
    pub fn new(
        device: &'a CudaDevice,
        dtype: DType,
        form: Form,
        (rows, depth): (usize, usize),
    ) -> Result<Subject<'a>, Error> {
        // Two, which a launch may have at once.
        let bytes = form.segments() * rows * dtype.row_bytes(depth).unwrap_or(0);
        Subject::with(device, dtype, form, (rows, depth), COLD_BYTES.div_ceil(bytes.max(1)).max(2))
    }

    /// As [`Subject::new`], once: what is right is of interest, and no time.
    ///
    /// # Errors
    /// As [`Subject::new`].
    pub fn single(
        device: &'a CudaDevice,
        dtype: DType,
        form: Form,
        of_one: (usize, usize),
    ) -> Result<Subject<'a>, Error> {
        Subject::with(device, dtype, form, of_one, 1)
    }

    fn with(
        device: &'a CudaDevice,
        dtype: DType,
        form: Form,
        (rows, depth): (usize, usize),
        count: usize,
    ) -> Result<Subject<'a>, Error> {
        let row_bytes = dtype.row_bytes(depth).unwrap_or(0);
        let mut bytes = vec![0; form.segments() * rows * row_bytes];
        RandomBlocks::new(dtype, 0.02).fill(1, 0, &mut bytes);
        let all_rows = form.segments() * rows;
        let source = MatrixSource { name: "random".to_owned(), dtype, rows: all_rows, depth, bytes: bytes.into() };
        let copies = (0..count).map(|_| device.load_stack(&source, form.segments())).collect::<Result<_, _>>()?;
        Ok(Subject { device, form, rows, source, copies, is_crowded: false })
    }

    /// Every token goes to one of the experts from now on, and to others besides.
    pub fn crowd(&mut self) {
        self.is_crowded = true;
    }

    /// Compiles the kernels of tiles, all at once.
    ///
    /// # Errors
    /// If one does not compile.
    pub fn prepare(&self, tiles: &[Tile]) -> Result<(), Error> {
        let Some(Packed::Codes(layout)) = self.copies.first().map(PackedMatrix::form) else { return Ok(()) };
        let modules: Vec<Module> = tiles.iter().map(|tile| Module::product(layout, *tile)).collect();
        self.device.gpu().prepare(&modules)
    }

    /// Multiplies in a tile from now on; its kernel has to be compiled.
    pub fn force_tile(&mut self, tile: Tile) {
        self.copies.iter_mut().for_each(|m| m.force_tile(tile));
    }

    /// Measures the product with `tokens` rows; none where it is not the reference's, bit for bit.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, tokens: usize) -> Result<Option<Measured>, Error> {
        self.step(tokens, true)
    }

    /// Whether the product with `tokens` rows is the reference's, bit for bit.
    ///
    /// # Errors
    /// As [`Subject::measure`].
    pub fn check(&self, tokens: usize) -> Result<bool, Error> {
        Ok(self.step(tokens, false)?.is_some())
    }

    /// Microseconds of two products of one input, as gate and up of experts are: one launch. Nothing is held to the reference.
    ///
    /// # Errors
    /// As [`Subject::measure`].
    pub fn measure_pair(&self, tokens: usize) -> Result<f64, Error> {
        let (device, gpu) = (self.device, self.device.gpu());
        let slices = if let Form::Grouped(count) = self.form { count } else { 1 };
        let slots = if let Form::Experts { slots, .. } = self.form { slots } else { 1 };
        let width = slices * self.source.depth;
        let inputs = [0.5, 0.25].map(|v| device.sent_rows(tokens, &vec![v; tokens * width]));
        let routes: Vec<Routes> = (0..CHOICES).map_while(|choice| self.routes(tokens, choice)).collect();
        let columns = |turn: usize| match (&routes[..], self.form) {
            ([], Form::Grouped(_)) => Columns::Grouped,
            ([], _) => Columns::Dense,
            (routes, _) => Columns::Routed { routes: &routes[turn % CHOICES], places_each: slots },
        };
        let first = |turn: usize| columns(turn).shares(&inputs[0]).swap_remove(0);
        let shares: Vec<_> = (0..CHOICES).map(|turn| Share { joined: 2, ..first(turn) }).collect();
        let operands = inputs.each_ref().map(|x| Operand::of(gpu, x, &[&self.copies[0]], &shares[0]));
        let results =
            [(); 2].map(|()| Tensor::new(gpu, tokens * slots, slices * self.rows, inputs[0].roles.times(slots)));
        let count = self.copies.len();
        let both = |turn: usize| {
            for (i, y) in results.iter().enumerate() {
                let matrix = &self.copies[(2 * turn + i) % count];
                product(gpu, &inputs[turn % 2], &operands[turn % 2], (matrix, None), &shares[turn % CHOICES], y);
            }
        };
        let choices = if matches!(self.form, Form::Experts { .. }) { CHOICES } else { 1 };
        self.median(count.next_multiple_of(2 * choices), both)
    }

    /// Microseconds of a norm and the product of its result, as steps of a model have them, and of the norm alone. Nothing is held to the
    /// reference.
    ///
    /// # Errors
    /// As [`Subject::measure`].
    pub fn measure_in_turn(&self, tokens: usize) -> Result<[f64; 2], Error> {
        let (device, gpu) = (self.device, self.device.gpu());
        let slices = if let Form::Grouped(count) = self.form { count } else { 1 };
        let slots = if let Form::Experts { slots, .. } = self.form { slots } else { 1 };
        let width = slices * self.source.depth;
        let weight = device.load_vector(&vec![1.0; width])?;
        let x = device.sent_rows(tokens, &vec![0.5; tokens * width]);
        let routes = self.routes(tokens, 0);
        let columns = match (&routes, self.form) {
            (Some(routes), _) => Columns::Routed { routes, places_each: slots },
            (None, Form::Grouped(_)) => Columns::Grouped,
            (None, _) => Columns::Dense,
        };
        let shares = columns.shares(&x);
        let y = Tensor::new(gpu, tokens * slots, slices * self.rows, x.roles.times(slots));
        let norm = || device.rms_norm(&x, &weight, 1e-6);
        let both = |turn: usize| {
            let (normed, matrix) = (norm(), &self.copies[turn % self.copies.len()]);
            let operand = Operand::of(gpu, &normed, &[matrix], &shares[0]);
            product(gpu, &normed, &operand, (matrix, None), &shares[0], &y);
        };
        let period = self.copies.len();
        Ok([self.median(period, both)?, self.median(period, |_| drop(norm()))?])
    }

    fn step(&self, tokens: usize, is_timed: bool) -> Result<Option<Measured>, Error> {
        let (device, gpu) = (self.device, self.device.gpu());
        let slices = if let Form::Grouped(count) = self.form { count } else { 1 };
        let width = slices * self.source.depth;
        let input: Vec<f32> = (0..tokens * width).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect();
        let x = device.sent_rows(tokens, &input);
        let routes: Vec<Routes> = (0..CHOICES).map_while(|choice| self.routes(tokens, choice)).collect();
        let columns = |turn: usize| match (self.form, &routes[..]) {
            (Form::Experts { slots, .. }, routes) => {
                Columns::Routed { routes: &routes[turn % CHOICES], places_each: slots }
            }
            (Form::Grouped(_), _) => Columns::Grouped,
            (Form::Dense, _) => Columns::Dense,
        };
        let slots = if let Form::Experts { slots, .. } = self.form { slots } else { 1 };
        let y = Tensor::new(gpu, tokens * slots, slices * self.rows, x.roles.times(slots));
        let first = &self.copies[0];
        let shares: Vec<_> = (0..CHOICES).map(|turn| columns(turn).shares(&x)).collect();
        // Two, so that products of one input do not become one launch.
        let again = device.sent_rows(tokens, &input);
        let operands = [&x, &again].map(|x| (x, Operand::of(gpu, x, &[first], &shares[0][0])));
        let launch = |turn: usize| {
            let (matrix, (x, operand)) = (&self.copies[turn % self.copies.len()], &operands[turn % 2]);
            product(gpu, x, operand, (matrix, None), &shares[turn % CHOICES][0], &y);
        };
        gpu.poison(&y.memory);
        launch(0);
        if !self.is_right(tokens, &input, &y)? {
            return Ok(None);
        }
        let (mut product_us, mut quantize_us) = (0.0, 0.0);
        if is_timed {
            let choices = if matches!(self.form, Form::Experts { .. }) { CHOICES } else { 1 };
            product_us = self.median(self.copies.len().next_multiple_of(2 * choices), launch)?;
        }
        if is_timed && matches!(first.form(), Packed::Codes(_)) {
            quantize_us = self.median(1, |_| drop(Operand::of(gpu, &x, &[first], &shares[0][0])))?;
        }
        let met = self.met(&routes)?;
        let part = |bytes: usize| bytes as f64 * met;
        Ok(Some(Measured {
            product_us,
            quantize_us,
            file_bytes: part(self.source.bytes.len()),
            packed_bytes: part(first.bytes()),
        }))
    }

    /// Microseconds of one of `period` launches, which are repeated, so that the card gets graphs of them: a host that sends one by one is
    /// slower than small products are.
    fn median(&self, period: usize, launch: impl Fn(usize)) -> Result<f64, Error> {
        let launches = period * LAUNCHES.div_ceil(period);
        let sample = || Ok(self.device.gpu().time(|| (0..launches).for_each(&launch))? / launches as f64);
        // Graphs are made the second time.
        for _ in 0..3 {
            sample()?;
        }
        let mut times = (0..SAMPLES).map(|_| sample()).collect::<Result<Vec<f64>, Error>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[SAMPLES / 2])
    }

    /// What experts are chosen by: all are as likely, or one is better than any other.
    fn logits(&self, tokens: usize, choice: usize) -> Vec<f32> {
        let hash = |i: usize| (i + choice * 65_537 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let experts = self.form.segments();
        let better = |i: usize| f32::from(u8::from(self.is_crowded && i % experts == experts / 2));
        (0..tokens * experts).map(|i| hash(i) as f32 / (1 << 24) as f32 + better(i)).collect()
    }

    fn routing(slots: usize) -> Routing {
        Routing { slots, score: Score::Softmax, groups: None, normalise: true, scale: 1.0 }
    }

    fn routes(&self, tokens: usize, choice: usize) -> Option<Routes> {
        let Form::Experts { slots, .. } = self.form else { return None };
        let logits = self.device.sent_rows(tokens, &self.logits(tokens, choice));
        Some(Routes::new(self.device.gpu(), &logits, &Subject::routing(slots), None, None, None))
    }

    /// The share of all matrices that a launch meets, in the mean.
    fn met(&self, routes: &[Routes]) -> Result<f64, Error> {
        let Form::Experts { count, .. } = self.form else { return Ok(1.0) };
        let mut met = 0;
        for routes in routes {
            let (mut chosen, mut weights) = (vec![], vec![]);
            self.device.read_routes(routes, &mut chosen, &mut weights)?;
            chosen.sort_unstable();
            chosen.dedup();
            met += chosen.len();
        }
        Ok(met as f64 / (routes.len() * count) as f64)
    }

    /// Holds the first and the last rows of each matrix to the reference.
    fn is_right(&self, tokens: usize, input: &[f32], y: &Tensor) -> Result<bool, Error> {
        let (rows, row_bytes, segments) = (self.rows, self.source.row_bytes()?, self.form.segments());
        let mut got = vec![];
        self.device.read(y, &mut got)?;
        let count = CHECKED_ROWS.min(rows);
        for first in [0, rows - count] {
            let of = |segment: usize| &self.source.bytes[(segment * rows + first) * row_bytes..][..count * row_bytes];
            let bytes: Vec<u8> = (0..segments).flat_map(of).copied().collect();
            let part = MatrixSource { rows: segments * count, bytes: bytes.into(), ..self.source.clone() };
            let want = self.reference(&part, tokens, input)?;
            // Slices of a row, or rows of places, of the reference's few rows among all.
            let same = |index: usize, want: &[f32]| {
                let got = &got[index * rows + first..][..count];
                got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits())
            };
            if !want.chunks_exact(count).enumerate().all(|(index, want)| same(index, want)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn reference(&self, part: &MatrixSource, tokens: usize, input: &[f32]) -> Result<Vec<f32>, Error> {
        let device = reference::ReferenceDevice;
        let tensor =
            |values: &[f32]| reference::Tensor { rows: tokens, width: values.len() / tokens, values: values.to_vec() };
        let x = tensor(input);
        Ok(match self.form {
            Form::Dense => {
                let [y] = device.project(&x, [&Linear { matrix: device.load_matrix(part)?, bias: None }]);
                y.values
            }
            Form::Grouped(count) => {
                let stack = LinearStack { matrices: device.load_stack(part, count)?, bias: None };
                device.project_grouped(&x, &stack).values
            }
            Form::Experts { count, slots } => {
                let router = Router { routing: Subject::routing(slots), bias: None, factors: None };
                let routes = device.route(&tensor(&self.logits(tokens, 0)), &router);
                let stack = LinearStack { matrices: device.load_stack(part, count)?, bias: None };
                let [y] = device.project_routed(&x, [&stack], &routes);
                y.values
            }
        })
    }
}

/// The places of the `top_k` highest of each row's scores, `complete` of them, ascending: what chooses compressed rows.
///
/// # Errors
/// If the card fails.
///
/// # Panics
/// Unless there are more scores than are wanted.
pub fn highest(device: &CudaDevice, scores: &[f32], complete: usize, top_k: usize) -> Result<Vec<u32>, Error> {
    assert!(0 < top_k && top_k < complete && scores.len().is_multiple_of(complete), "more scores than are wanted");
    latent::highest_of(device.gpu(), scores, (complete, top_k), &Steps::default())
}
