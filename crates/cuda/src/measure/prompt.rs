//! Measurements of products of prompt rows, dense and routed. Each result is held to float64 on sampled rows, every number of it has to
//! be written, and all tiles have to give the same bits.

use std::hash::{DefaultHasher, Hash, Hasher};

use tessera_formats::{
    DType,
    codec::{self, RandomBlocks},
};
use tessera_ops::{Device, Error, MatrixSource, Role, Routing, Score};

use crate::{
    CudaDevice,
    matmul::{
        Columns, Operand, PackedMatrix,
        prefill_tile::{self, PrefillTile},
        product,
    },
    roles::Roles,
    routes::Routes,
    tensor::Tensor,
};

/// Bytes of weights that are gone through before one is read again.
const COLD_BYTES: usize = 300 << 20;

/// Samples; the median counts.
const SAMPLES: usize = 7;

/// Microseconds that a sample lasts, at least.
const SAMPLE_US: f64 = 3000.0;

/// Tokens, and rows of a matrix, that are held to float64.
const CHECKED: usize = 24;

/// Random weights to be multiplied by prompt rows: one matrix, or experts.
pub struct PromptSubject<'a> {
    device: &'a CudaDevice,
    source: MatrixSource,
    /// Matrices, and how many a token is routed to; none of either: dense.
    experts: Option<(usize, usize)>,
    copies: Vec<PackedMatrix>,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptMeasured {
    /// The product, with its operand there.
    pub product_us: f64,
    /// Bringing the input into 16 bits, in the order of columns.
    pub halves_us: f64,
    /// Products and sums of the step.
    pub operations: f64,
    /// Distance from float64, relative, root mean square.
    pub error: f64,
    /// Numbers of the result that were not written, or are none.
    pub unwritten: usize,
    /// Of all bits of the result.
    pub hash: u64,
}

impl<'a> PromptSubject<'a> {
    /// Makes weights: of `experts` matrices of `rows` rows each, and how many a token goes to; or one. In as many copies as keep the
    /// cache cold.
    ///
    /// # Errors
    /// As [`Device::load_stack`].
    pub fn new(
        device: &'a CudaDevice,
        dtype: DType,
        rows: usize,
        depth: usize,
        experts: Option<(usize, usize)>,
    ) -> Result<PromptSubject<'a>, Error> {
        PromptSubject::of_bytes(device, dtype, rows, depth, experts, COLD_BYTES)
    }

    /// As [`PromptSubject::new`], once: what is right is of interest, and no time.
    ///
    /// # Errors
    /// As [`PromptSubject::new`].
    pub fn single(
        device: &'a CudaDevice,
        dtype: DType,
        rows: usize,
        depth: usize,
        experts: Option<(usize, usize)>,
    ) -> Result<PromptSubject<'a>, Error> {
        PromptSubject::of_bytes(device, dtype, rows, depth, experts, 0)
    }

    fn of_bytes(
        device: &'a CudaDevice,
        dtype: DType,
        rows: usize,
        depth: usize,
        experts: Option<(usize, usize)>,
        cold_bytes: usize,
    ) -> Result<PromptSubject<'a>, Error> {
        let count = experts.map_or(1, |(count, _)| count);
        let mut bytes = vec![0; count * rows * dtype.row_bytes(depth).unwrap_or(0)];
        RandomBlocks::new(dtype, 0.02).fill(1, 0, &mut bytes);
        let source = MatrixSource { name: "random".to_owned(), dtype, rows: count * rows, depth, bytes: bytes.into() };
        let copies = cold_bytes.div_ceil(source.bytes.len().max(1)).max(1);
        let copies = (0..copies).map(|_| device.load_stack(&source, count)).collect::<Result<_, _>>()?;
        Ok(PromptSubject { device, source, experts, copies })
    }

    /// Every tile that the weights may be multiplied in.
    pub fn tiles(&self) -> Vec<PrefillTile> {
        prefill_tile::all(self.copies[0].form())
    }

    /// Whether a tile computes what the shape asks for: one that adds parts, or one that need not.
    pub fn takes(&self, tile: PrefillTile) -> bool {
        let (segments, rows) = self.experts.map_or((1, self.source.rows), |(n, _)| (n, self.source.rows / n));
        !tile.has_totals || prefill_tile::parts(rows, self.source.depth, segments) > 1
    }

    /// Multiplies in a tile from now on; none: in the table's choice.
    pub fn force_tile(&mut self, tile: Option<PrefillTile>) {
        self.copies.iter_mut().for_each(|m| m.force_prefill_tile(tile));
    }

    /// Measures a step of `tokens` prompt rows.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, tokens: usize) -> Result<PromptMeasured, Error> {
        self.step(tokens, true)
    }

    /// Computes a step, once: times are 0.
    ///
    /// # Errors
    /// As [`PromptSubject::measure`].
    pub fn check(&self, tokens: usize) -> Result<PromptMeasured, Error> {
        self.step(tokens, false)
    }

    fn step(&self, tokens: usize, is_timed: bool) -> Result<PromptMeasured, Error> {
        let (device, gpu, depth) = (self.device, self.device.gpu(), self.source.depth);
        let input = numbers(tokens * depth, 7919, 2.0);
        let mut x = device.sent_rows(tokens, &input);
        x.roles = Roles::all(Role::Prefill, tokens);
        let routes = self.routes(tokens);
        let columns = match &routes {
            Some(routes) => Columns::Routed { routes, places_each: routes.slots },
            None => Columns::Dense,
        };
        let shares = columns.shares(&x);
        let share = &shares[0];
        let matrix = |turn: usize| &self.copies[turn % self.copies.len()];
        let operand = Operand::of(gpu, &x, &[matrix(0)], share);
        let slots = self.experts.map_or(1, |(_, slots)| slots);
        let rows = self.source.rows / self.experts.map_or(1, |(count, _)| count);
        let y = Tensor::new(gpu, tokens * slots, rows, Roles::all(Role::Prefill, tokens * slots));
        gpu.poison(&y.memory);
        product(gpu, &x, &operand, (matrix(0), None), share, &y);
        let mut got = vec![];
        device.read(&y, &mut got)?;
        let chosen = self.chosen(routes.as_ref())?;
        let error = self.error(&got, &input, &chosen, rows, slots);
        let unwritten = got.iter().filter(|v| !v.is_finite()).count();
        let mut hash = DefaultHasher::new();
        got.iter().for_each(|v| v.to_bits().hash(&mut hash));
        drop(got);
        let (mut product_us, mut halves_us) = (0.0, 0.0);
        if is_timed {
            product_us = self.median(&|turn| product(gpu, &x, &operand, (matrix(turn), None), share, &y))?;
            halves_us = self.median(&|turn| drop(Operand::of(gpu, &x, &[matrix(turn)], share)))?;
        }
        let operations = 2.0 * (tokens * slots * rows) as f64 * depth as f64;
        Ok(PromptMeasured { product_us, halves_us, operations, error, unwritten, hash: hash.finish() })
    }

    /// Random routes, all experts being as likely.
    fn routes(&self, tokens: usize) -> Option<Routes> {
        let (count, slots) = self.experts?;
        let mut logits = self.device.sent_rows(tokens, &numbers(tokens * count, 104_729, 1.0));
        logits.roles = Roles::all(Role::Prefill, tokens);
        let routing = Routing { slots, score: Score::Softmax, groups: None, normalise: true, scale: 1.0 };
        Some(Routes::new(self.device.gpu(), &logits, &routing, None, None, None))
    }

    /// (tokens · slots) matrices; empty where there is one.
    fn chosen(&self, routes: Option<&Routes>) -> Result<Vec<u32>, Error> {
        let (mut chosen, mut weights) = (vec![], vec![]);
        if let Some(routes) = routes {
            self.device.read_routes(routes, &mut chosen, &mut weights)?;
        }
        Ok(chosen)
    }

    /// Distance of sampled numbers from float64.
    fn error(&self, got: &[f32], input: &[f32], chosen: &[u32], rows: usize, slots: usize) -> f64 {
        let (depth, places) = (self.source.depth, got.len() / rows.max(1));
        let row_bytes = self.source.bytes.len() / self.source.rows.max(1);
        let spread = |count: usize, i: usize| i * count.saturating_sub(1) / (CHECKED - 1);
        let (mut off, mut all) = (0.0, 0.0);
        let mut weights = vec![0.0f32; depth];
        for r in 0..CHECKED {
            let row = spread(rows, r);
            for p in 0..CHECKED {
                let place = spread(places, p);
                let matrix = chosen.get(place).map_or(0, |m| *m as usize);
                let raw = &self.source.bytes[(matrix * rows + row) * row_bytes..][..row_bytes];
                if p == 0 || !chosen.is_empty() {
                    codec::decode(self.source.dtype, raw, &mut weights);
                }
                let x = &input[place / slots * depth..][..depth];
                let want: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                off += (f64::from(got[place * rows + row]) - want).powi(2);
                all += want.powi(2);
            }
        }
        (off / all).sqrt()
    }

    fn median(&self, launch: &dyn Fn(usize)) -> Result<f64, Error> {
        let once = |count: usize| Ok(self.device.gpu().time(|| (0..count).for_each(launch))? / count as f64);
        once(1)?;
        let count = (SAMPLE_US / once(2)?.max(1.0)).ceil().clamp(2.0, 200.0) as usize;
        let mut samples = (0..SAMPLES).map(|_| once(count)).collect::<Result<Vec<f64>, Error>>()?;
        samples.sort_by(f64::total_cmp);
        Ok(samples[SAMPLES / 2])
    }
}

/// Numbers from `-scale / 2` to `scale / 2` that look random.
fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * scale
    };
    std::iter::repeat_with(next).take(count).collect()
}
