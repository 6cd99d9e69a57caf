//! Measurements of attention over latent rows on the card, held to float64 and to what rows have alone in the same run.

use tessera_ops::{
    Device, Error, KvEntry, KvFormat, KvLayout, LatentAttention, PAGE_TOKENS, Role, reference::float64::Float64Device,
};

use super::{batch, distance, in_float64, median, numbers};
use crate::{CudaDevice, KvPages, roles::Roles, tensor::Tensor};

/// Layers that are gone through in turn.
const LAYERS: usize = 16;

/// Samples; the median counts.
const SAMPLES: usize = 11;

/// Tokens of the sequence.
const TOKENS: usize = 1024;

/// Attention of the last rows of a sequence, in many heads, over latent rows of random numbers.
pub struct LatentSubject<'a> {
    device: &'a CudaDevice,
    heads: usize,
    head_dim: usize,
    sinks: <CudaDevice as Device>::Vector,
    cache: KvPages,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredLatent {
    /// All launches of one attention, in microseconds; 0 where they were not timed.
    pub us: f64,
    /// Distance from float64, relative, root mean square.
    pub error: f64,
    /// Rows whose bits are not what they have alone.
    pub rows_differ: usize,
}

fn fill<D: Device>(device: &D, rows: &D::Tensor, head_dim: usize, layers: usize) -> Result<D::KvCache, Error> {
    let layout = KvLayout::new(vec![KvEntry::latent(head_dim, None); layers], KvFormat::F16);
    let mut cache = device.kv_cache(&layout, TOKENS.div_ceil(PAGE_TOKENS), 0)?;
    (0..layers).for_each(|layer| device.store_rows(&mut cache, layer, rows, &batch(0..TOKENS, TOKENS)));
    Ok(cache)
}

impl<'a> LatentSubject<'a> {
    /// Fills a cache.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(device: &'a CudaDevice, heads: usize, head_dim: usize) -> Result<LatentSubject<'a>, Error> {
        let rows = device.sent_rows(TOKENS, &numbers(TOKENS * head_dim, 1));
        let cache = fill(device, &rows, head_dim, LAYERS)?;
        Ok(LatentSubject { device, heads, head_dim, sinks: device.load_vector(&numbers(heads, 3))?, cache })
    }

    fn spec(&self, entry: usize, window: usize) -> LatentAttention {
        let (heads, head_dim) = (self.heads, self.head_dim);
        LatentAttention { entry, window, compressed: None, heads, head_dim, scale: (head_dim as f32).sqrt().recip() }
    }

    fn queries(&self, from: usize, end: usize, role: Role) -> Tensor {
        let width = self.heads * self.head_dim;
        let mut queries = self.device.sent_rows(end - from, &numbers((end - from) * width, 5 + from * width));
        queries.roles = Roles::all(role, end - from);
        queries
    }

    fn bits(&self, window: usize, (from, end): (usize, usize), role: Role) -> Result<Vec<f32>, Error> {
        let (queries, spec) = (self.queries(from, end, role), self.spec(0, window));
        let y = self.device.attend_latent(&queries, &self.cache, &spec, None, &self.sinks, &batch(from..end, TOKENS));
        let mut got = vec![];
        self.device.read(&y, &mut got)?;
        Ok(got)
    }

    /// Compares the last `rows` rows, each of which sees so many tokens.
    ///
    /// # Errors
    /// If the card fails.
    pub fn compare(&self, window: usize, rows: usize, role: Role) -> Result<MeasuredLatent, Error> {
        let (from, width) = (TOKENS - rows, self.heads * self.head_dim);
        let all = self.bits(window, (from, TOKENS), role)?;
        let mut rows_differ = 0;
        for row in 0..rows {
            let own = self.bits(window, (from + row, from + row + 1), role)?;
            let is_same = own.iter().zip(&all[row * width..]).all(|(a, b)| a.to_bits() == b.to_bits());
            rows_differ += usize::from(!is_same);
        }
        let cache = fill(&Float64Device, &in_float64(TOKENS, &numbers(TOKENS * self.head_dim, 1)), self.head_dim, 1)?;
        let (queries, spec) = (in_float64(rows, &numbers(rows * width, 5 + from * width)), self.spec(0, window));
        let sinks = Float64Device.load_vector(&numbers(self.heads, 3))?;
        let want = Float64Device.attend_latent(&queries, &cache, &spec, None, &sinks, &batch(from..TOKENS, TOKENS));
        let error = distance(&all, &want);
        Ok(MeasuredLatent { us: 0.0, error, rows_differ })
    }

    /// The same, and times them.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, window: usize, rows: usize, role: Role) -> Result<MeasuredLatent, Error> {
        let (from, compared) = (TOKENS - rows, self.compare(window, rows, role)?);
        let (queries, batch) = (self.queries(from, TOKENS, role), batch(from..TOKENS, TOKENS));
        let attend = |turn: usize| {
            let spec = self.spec(turn % LAYERS, window);
            drop(self.device.attend_latent(&queries, &self.cache, &spec, None, &self.sinks, &batch));
            self.device.gpu().flush();
        };
        (0..LAYERS).for_each(attend);
        let us = median(self.device.gpu(), SAMPLES, LAYERS, &attend)?;
        Ok(MeasuredLatent { us, ..compared })
    }
}
