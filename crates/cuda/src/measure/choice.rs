//! Measurements of the choice of compressed rows on the card, held to the definition's choice in the same run.

use std::ops::Range;

use tessera_ops::{
    Batch, Compressor, Device, Error, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, Rope, RopeLayout, Rounding, Selector,
    latent::complete_rows,
    reference::{self, ReferenceDevice},
};

use super::{median, numbers};
use crate::{
    CudaDevice, KvPages,
    latent::{self, IndexTile},
    tensor::Tensor,
};

/// Keys that are gone through in turn, and launches of a sample, which come again as one graph.
const LAYERS: usize = 16;

/// Samples; the median counts.
const SAMPLES: usize = 15;

/// Tokens of a compressed row.
const RATIO: usize = 4;

/// The entry of what rows are made of; those of keys follow.
const INPUTS: usize = 0;

/// A sequence whose compressed rows an indexer chooses from, with keys and queries rounded as a model does.
pub struct ChoiceSubject<'a> {
    device: &'a CudaDevice,
    heads: usize,
    head_dim: usize,
    top_k: usize,
    tokens: usize,
    cache: KvPages,
    reference: <ReferenceDevice as Device>::KvCache,
}

/// What came out, in microseconds a launch; 0 where nothing was timed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeasuredChoice {
    /// Scores and choice, as a step has them.
    pub us: f64,
    /// Scores alone, by blocks of many keys and of few.
    pub scores_us: [f64; 2],
    /// The choice alone, of the same scores each time.
    pub select_us: f64,
    /// Rows that are chosen otherwise than the definition has it.
    pub rows_differ: usize,
}

/// Rows of the sequence, in its ring.
fn batch(positions: Range<usize>, tokens: usize) -> Batch {
    let mut batch = super::batch(positions, tokens);
    batch.in_ring(0);
    batch
}

/// Keys of all tokens, the same in each of so many entries.
fn fill<D: Device>(
    device: &D,
    rows: &dyn Fn(usize, &[f32]) -> D::Tensor,
    (head_dim, tokens, layers): (usize, usize, usize),
) -> Result<D::KvCache, Error> {
    let width = 2 * head_dim;
    let keys = KvEntry::compressed(head_dim, RATIO);
    let entries = std::iter::once(KvEntry::Inputs { width, ring_pages: 2 }).chain(std::iter::repeat_n(keys, layers));
    let layout = KvLayout::new(entries.collect(), KvFormat::F16);
    let mut cache = device.kv_cache(&layout, tokens.div_ceil(PAGE_TOKENS), 1)?;
    let compressors = (INPUTS + 1..=layers).map(|output| {
        Ok(Compressor {
            inputs: INPUTS,
            output,
            ratio: RATIO,
            overlap: false,
            head_dim,
            ape: device.load_vector(&numbers(RATIO * head_dim, 7))?,
            norm: device.load_vector(&vec![1.0; head_dim])?,
            epsilon: 1e-6,
            rope: Rope { layout: RopeLayout::Interleaved, frequencies: vec![1.0, 0.1], magnitude: 1.0 },
            rounding: Some(Rounding::HadamardFp4),
        })
    });
    let compressors = compressors.collect::<Result<Vec<Compressor<D>>, Error>>()?;
    for first in (0..tokens).step_by(PAGE_TOKENS) {
        let batch = batch(first..tokens.min(first + PAGE_TOKENS), tokens);
        let inputs = rows(batch.len(), &numbers(batch.len() * width, first * width));
        device.store_rows(&mut cache, INPUTS, &inputs, &batch);
        compressors.iter().for_each(|compressor| device.compress(&mut cache, compressor, &batch));
    }
    Ok(cache)
}

fn reference_rows(rows: usize, values: &[f32]) -> reference::Tensor {
    reference::Tensor { rows, width: values.len() / rows, values: values.to_vec() }
}

impl<'a> ChoiceSubject<'a> {
    /// Fills a cache with the keys of `tokens` tokens.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(
        device: &'a CudaDevice,
        (heads, head_dim): (usize, usize),
        top_k: usize,
        tokens: usize,
    ) -> Result<ChoiceSubject<'a>, Error> {
        let cache = fill(device, &|rows, values| device.sent_rows(rows, values), (head_dim, tokens, LAYERS))?;
        let reference = fill(&ReferenceDevice, &reference_rows, (head_dim, tokens, 1))?;
        Ok(ChoiceSubject { device, heads, head_dim, top_k, tokens, cache, reference })
    }

    fn selector(&self, turn: usize) -> Selector {
        let &ChoiceSubject { heads, head_dim, top_k, .. } = self;
        let scale = ((heads * head_dim) as f32).sqrt().recip();
        Selector { entry: INPUTS + 1 + turn % LAYERS, ratio: RATIO, heads, head_dim, top_k, scale }
    }

    /// Queries and weights of the last rows.
    fn inputs<D: Device>(
        &self,
        device: &D,
        tensor: &dyn Fn(usize, &[f32]) -> D::Tensor,
        rows: usize,
    ) -> [D::Tensor; 2] {
        let mut queries = tensor(rows, &numbers(rows * self.heads * self.head_dim, 5));
        device.round(&mut queries, self.head_dim, Rounding::HadamardFp4);
        [queries, tensor(rows, &numbers(rows * self.heads, 11))]
    }

    fn card_inputs(&self, rows: usize) -> [Tensor; 2] {
        self.inputs(self.device, &|rows, values| self.device.sent_rows(rows, values), rows)
    }

    /// Compares what is chosen for the last `rows` tokens, by each tile.
    ///
    /// # Errors
    /// If the card fails.
    pub fn compare(&self, rows: usize) -> Result<MeasuredChoice, Error> {
        let (selector, batch) = (self.selector(0), batch(self.tokens - rows..self.tokens, self.tokens));
        let [queries, weights] = self.inputs(&ReferenceDevice, &reference_rows, rows);
        let chosen = ReferenceDevice.select(&queries, &weights, &self.reference, &selector, &batch);
        let mut wanted = vec![];
        ReferenceDevice.read_selection(&chosen, &mut wanted)?;
        let [queries, weights] = self.card_inputs(rows);
        let mut rows_differ = 0;
        for tile in [None, Some(IndexTile::Many), Some(IndexTile::Few)] {
            let inputs = (&queries, &weights);
            let chosen = latent::select(
                self.device.gpu(),
                inputs,
                &self.cache,
                &selector,
                &batch,
                &self.device.step(&batch),
                tile,
            );
            let mut got = vec![];
            self.device.read_selection(&chosen, &mut got)?;
            rows_differ += got.iter().zip(&wanted).filter(|(got, wanted)| got != wanted).count();
        }
        Ok(MeasuredChoice { rows_differ, ..MeasuredChoice::default() })
    }

    /// The same, and times them.
    ///
    /// # Errors
    /// If the card fails.
    pub fn measure(&self, rows: usize) -> Result<MeasuredChoice, Error> {
        let compared = self.compare(rows)?;
        let batch = batch(self.tokens - rows..self.tokens, self.tokens);
        let (gpu, step) = (self.device.gpu(), self.device.step(&batch));
        let [queries, weights] = self.card_inputs(rows);
        let inputs = (&queries, &weights);
        let time = |launch: &dyn Fn(usize)| {
            // From the third time on all launches of a sample are a graph.
            (0..3).for_each(|_| {
                (0..LAYERS).for_each(launch);
                gpu.flush();
            });
            median(gpu, SAMPLES, LAYERS, launch)
        };
        let us = time(&|turn| {
            drop(latent::select(gpu, inputs, &self.cache, &self.selector(turn), &batch, &step, None));
        })?;
        let stride = latent::stride_of(complete_rows(self.tokens - 1, RATIO), self.top_k);
        let scores = |turn: usize, tile: IndexTile| {
            let (selector, chunk) = (self.selector(turn), ((0, rows), stride));
            latent::scores(gpu, inputs, self.cache.rows(selector.entry), &selector, &step, chunk, Some(tile))
        };
        let mut scores_us = [0.0; 2];
        for (us, tile) in scores_us.iter_mut().zip([IndexTile::Many, IndexTile::Few]) {
            *us = time(&|turn| drop(scores(turn, tile)))?;
        }
        let (of_first, selected) = (scores(0, IndexTile::Few), gpu.take(rows * self.top_k * size_of::<u32>()));
        let select = |_| latent::highest(gpu, &of_first, &selected, &step, (0, rows), (RATIO, self.top_k, stride));
        Ok(MeasuredChoice { us, scores_us, select_us: time(&select)?, ..compared })
    }
}
