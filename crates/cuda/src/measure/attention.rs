//! Measurements of attention on the card, held to float64 and to what rows have alone in the same run.

use tessera_ops::{
    Attention, Device, Error, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, Role, reference::float64::Float64Device,
};

use super::{batch, distance, in_float64, median, numbers};
use crate::{
    CudaDevice, KvPages,
    attention::{Way, spans_tile::SpansTile, warps::WarpsTile, warps_prompt::WarpsPromptTile},
    kernels::{Module, Pages},
    roles::Roles,
    tensor::Tensor,
};

/// Bytes of keys and values that are gone through before some are read again: several times the L2 cache of any card.
const COLD_BYTES: usize = 400 << 20;

/// Samples; the median counts.
const SAMPLES: usize = 11;

/// Launches of a sample.
const LAUNCHES: usize = 8;

/// Tokens that are stored at once.
const STORED_ROWS: usize = 1024;

/// Tokens whose result is held to float64, which takes its time.
const CHECKED_TOKENS: usize = 700;

/// Rows that are computed alone as well.
const ALONE: usize = 5;

/// Attention over a cache of random numbers, in as many entries as keep the L2 cache cold.
pub struct AttentionSubject<'a> {
    device: &'a CudaDevice,
    spec: Attention,
    layers: usize,
    format: KvFormat,
    cache: KvPages,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredAttention {
    /// All launches of one attention.
    pub us: f64,
    /// Bytes of the keys and values that are seen, each once.
    pub kv_bytes: usize,
    /// Products and sums of the pairs of tokens that see each other.
    pub operations: f64,
    /// Distance from float64 at a shorter length, relative, root mean square.
    pub error: f64,
    /// Of a few rows, those whose bits are not what they have alone.
    pub rows_differ: usize,
}

fn fill<D: Device>(
    device: &D,
    tensor: &dyn Fn(usize, &[f32]) -> D::Tensor,
    (spec, layers, format): (&Attention, usize, KvFormat),
    tokens: usize,
) -> Result<D::KvCache, Error> {
    let layout = KvLayout::new(vec![KvEntry::pairs(spec.kv_heads, spec.head_dim); layers], format);
    let mut cache = device.kv_cache(&layout, tokens.div_ceil(PAGE_TOKENS), 0)?;
    let width = spec.kv_heads * spec.head_dim;
    for first in (0..tokens).step_by(STORED_ROWS) {
        let rows = STORED_ROWS.min(tokens - first);
        let keys = tensor(rows, &numbers(rows * width, first * width));
        let values = tensor(rows, &numbers(rows * width, first * width + 1_000_003));
        for layer in 0..layers {
            device.store_kv(&mut cache, layer, &keys, &values, &batch(first..first + rows, first + rows));
        }
    }
    Ok(cache)
}

impl<'a> AttentionSubject<'a> {
    /// Fills a cache of a format with `tokens` tokens.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(
        device: &'a CudaDevice,
        spec: Attention,
        format: KvFormat,
        tokens: usize,
    ) -> Result<AttentionSubject<'a>, Error> {
        let layers = COLD_BYTES.div_ceil(kv_bytes(&spec, format, tokens)).max(2);
        let cache = fill(device, &|rows, values| device.sent_rows(rows, values), (&spec, layers, format), tokens)?;
        Ok(AttentionSubject { device, spec, layers, format, cache })
    }

    /// Attends decode rows in a tile from now on.
    ///
    /// # Errors
    /// If its kernels do not compile.
    pub fn force_tile(&mut self, columns: usize, resident: usize) -> Result<(), Error> {
        let pages = self.pages();
        let tile = SpansTile::with_ring(pages, columns, resident);
        self.device.gpu().prepare(&[Module::Spans(pages, tile)])?;
        self.cache.forced = Some(Way::Spans(tile));
        Ok(())
    }

    /// Attends rows on the matrix instructions of warps from now on, in the tile that takes so many columns. Whether there is one.
    ///
    /// # Errors
    /// If its kernels do not compile.
    pub fn force_warps(&mut self, columns: usize) -> Result<bool, Error> {
        let (pages, gpu) = (self.pages(), self.device.gpu());
        let tile = WarpsTile::all(pages, gpu.attention_arch()).into_iter().find(|t| t.columns == columns);
        let Some(tile) = tile else { return Ok(false) };
        gpu.prepare(&[Module::Warps(pages, tile)])?;
        self.cache.forced = Some(Way::Warps(tile));
        Ok(true)
    }

    /// Attends rows of a prompt in tile `index` of those for warps from now on. Whether there is one.
    ///
    /// # Errors
    /// If its kernel does not compile.
    pub fn force_warps_prompt(&mut self, index: usize) -> Result<Option<WarpsPromptTile>, Error> {
        let (pages, gpu) = (self.pages(), self.device.gpu());
        let Some(tile) = WarpsPromptTile::all(pages, gpu.attention_arch()).get(index).copied() else { return Ok(None) };
        gpu.prepare(&[Module::WarpsPrompt(pages, tile)])?;
        self.cache.forced = Some(Way::WarpsPrompt(tile));
        Ok(Some(tile))
    }

    fn pages(&self) -> Pages {
        Pages { head_dim: self.spec.head_dim, format: self.format }
    }

    /// Measures `rows` rows of one sequence that sees `tokens` tokens.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, tokens: usize, rows: usize, role: Role) -> Result<MeasuredAttention, Error> {
        let error = self.error(tokens.min(CHECKED_TOKENS), rows.min(CHECKED_TOKENS / 2), role)?;
        let rows_differ = self.rows_differ(tokens, rows, role)?;
        let (device, batch) = (self.device, batch(tokens - rows..tokens, tokens));
        let queries = self.queries(rows, 0, role);
        let attend = |turn: usize| {
            let spec = Attention { layer: turn % self.layers, ..self.spec };
            drop(device.attention(&queries, &self.cache, &spec, None, &batch));
            device.gpu().flush();
        };
        (0..LAUNCHES).for_each(attend);
        let us = median(device.gpu(), SAMPLES, LAUNCHES, &attend)?;
        let pairs: usize = (tokens - rows..tokens).map(|position| position + 1).sum();
        let operations = 4.0 * pairs as f64 * (self.spec.heads * self.spec.head_dim) as f64;
        Ok(MeasuredAttention {
            us,
            kv_bytes: kv_bytes(&self.spec, self.format, tokens),
            operations,
            error,
            rows_differ,
        })
    }

    fn queries(&self, rows: usize, first: usize, role: Role) -> Tensor {
        let width = self.spec.heads * self.spec.head_dim;
        let mut queries = self.device.sent_rows(rows, &numbers(rows * width, 5 + first * width));
        queries.roles = Roles::all(role, rows);
        queries
    }

    /// Rows whose bits are not those that they have alone, of a few.
    fn rows_differ(&self, tokens: usize, rows: usize, role: Role) -> Result<usize, Error> {
        let (spec, width) = (Attention { layer: 0, ..self.spec }, self.spec.heads * self.spec.head_dim);
        let bits = |tokens: usize, rows: usize, first: usize| {
            let queries = self.queries(rows, first, role);
            let y = self.device.attention(&queries, &self.cache, &spec, None, &batch(tokens - rows..tokens, tokens));
            let mut got = vec![];
            self.device.read(&y, &mut got).map(|()| got.iter().map(|v| v.to_bits()).collect::<Vec<u32>>())
        };
        let all = bits(tokens, rows, 0)?;
        let mut differ = 0;
        for row in (0..ALONE).map(|i| i * (rows - 1) / (ALONE - 1)) {
            let own = bits(tokens - rows + row + 1, 1, row)?;
            differ += usize::from(own != all[row * width..][..width]);
        }
        Ok(differ)
    }

    /// Distance from float64.
    fn error(&self, tokens: usize, rows: usize, role: Role) -> Result<f64, Error> {
        let (spec, batch) = (Attention { layer: 0, ..self.spec }, batch(tokens - rows..tokens, tokens));
        let width = spec.heads * spec.head_dim;
        let y = self.device.attention(&self.queries(rows, 0, role), &self.cache, &spec, None, &batch);
        let mut got = vec![];
        self.device.read(&y, &mut got)?;
        let cache = fill(&Float64Device, &in_float64, (&spec, 1, self.format), tokens)?;
        let queries = in_float64(rows, &numbers(rows * width, 5));
        Ok(distance(&got, &Float64Device.attention(&queries, &cache, &spec, None, &batch)))
    }
}

fn kv_bytes(spec: &Attention, format: KvFormat, tokens: usize) -> usize {
    2 * tokens * spec.kv_heads * format.head_bytes(spec.head_dim)
}
