//! Models: functions of ops, one file an architecture. They name no device, no format and no width.

mod blocks;
mod deepseek4;
mod gemma3;
mod gemma4;
mod glm4_moe;
mod gpt_oss;
mod llama;
mod qwen;

use std::sync::Arc;

use tessera_ops::{Batch, Candidate, Device, KvEntry, KvFormat, KvLayout, PAGE_TOKENS, RingPart, ranking};

use crate::{
    Checkpoint, Config, Error,
    session::CHUNK_DEFAULT,
    state::{Identity, Owner},
    weights::{Loader, Progress},
};
use blocks::Head;

/// One architecture: its weights on a device, and what it does with them.
trait Architecture<D: Device>: Send + Sized {
    /// Takes the weights to the device.
    fn load(loader: &mut Loader<'_, D>) -> Result<Self, Error>;

    /// What the last layer leaves of every row: (rows, hidden).
    fn forward(&self, ops: &D, cache: &mut D::KvCache, batch: &Batch) -> D::Tensor;

    /// What comes after it.
    fn head(&self) -> &Head<D>;

    /// Whether it has a layer that drafts.
    fn drafts(&self) -> bool {
        false
    }

    /// A step of the layer that drafts, from what the last layer, or it itself, left of the token before each row's.
    fn draft(&self, _ops: &D, _previous: &D::Tensor, _cache: &mut D::KvCache, _batch: &Batch) -> Option<Drafted<D>> {
        None
    }
}

/// What a layer that drafts gives.
struct Drafted<D: Device> {
    /// Of every row, for drafts that go on from it.
    left: D::Tensor,
    /// Of the wanted rows: (wanted rows, vocabulary).
    logits: D::Tensor,
}

/// What the rows of a draft go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftFrom {
    /// Rows of the last [`LanguageModel::forward`].
    Step,
    /// Rows of the last [`LanguageModel::draft`].
    Draft,
}

/// A loaded model with its cache, on a device that no longer matters.
pub trait LanguageModel: Send {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// Tokens that the cache holds, over all sequences.
    fn cache_tokens(&self) -> usize;

    /// Bytes of the cache.
    fn cache_bytes(&self) -> usize;

    /// Whether it computes rows of prompts and of replies alike ([`Device::roles_agree`]): if not, what is cached of one cannot
    /// stand for the other.
    fn roles_agree(&self) -> bool {
        true
    }

    /// Its rings, if it keeps any.
    fn rings(&self) -> Option<Rings> {
        None
    }

    /// Runs one step and leaves the logits of the wanted rows, (rows, vocabulary), in `logits`.
    ///
    /// # Errors
    /// If a token does not exist, or the device fails.
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error>;

    /// Whether [`LanguageModel::forward_best`] costs less than [`LanguageModel::forward`].
    fn ranks(&self) -> bool {
        false
    }

    /// As [`LanguageModel::forward`], but leaves of each wanted row its `count` likeliest tokens (or all there are) alone, in the order
    /// of [`ranking`]. `count` is at most [`ranking::BEST_MAX`].
    ///
    /// # Errors
    /// As [`LanguageModel::forward`].
    fn forward_best(&mut self, batch: &Batch, count: usize, best: &mut Vec<Candidate>) -> Result<(), Error> {
        let mut logits = vec![];
        self.forward(batch, &mut logits)?;
        best.clear();
        logits.chunks_exact(self.config().vocabulary).for_each(|row| ranking::best(row, count, best));
        Ok(())
    }

    /// As [`LanguageModel::forward`], and leaves what the head is given of every row, (rows, hidden), in `hidden`: embeddings
    /// are made of it.
    ///
    /// # Errors
    /// As [`LanguageModel::forward`].
    fn forward_hidden(&mut self, batch: &Batch, logits: &mut Vec<f32>, hidden: &mut Vec<f32>) -> Result<(), Error>;

    /// Whether it has a layer that drafts ([`LanguageModel::draft`]).
    fn drafts(&self) -> bool {
        false
    }

    /// Runs one step of the layer that drafts, and leaves the logits of the wanted rows. Row i of the batch goes on from row
    /// `rows[i]` of what `from` says: its position is that row's, its token the one that follows that row's, and its logits are of
    /// the token after that. The layer keeps rows of its own in the rings, so it sees what it was run on.
    ///
    /// # Errors
    /// As [`LanguageModel::forward`].
    ///
    /// # Panics
    /// Where there is no such layer or row.
    fn draft(&mut self, _from: DraftFrom, _rows: &[u32], _batch: &Batch, _logits: &mut Vec<f32>) -> Result<(), Error> {
        panic!("the model has no layer that drafts")
    }

    /// Whose state a snapshot of a sequence is, of the model of this identity.
    ///
    /// # Errors
    /// If the device fails.
    fn owner(&self, identity: &Identity) -> Result<Owner, Error>;

    /// Appends one page of the cache to `out`, as [`Device::read_page`].
    ///
    /// # Errors
    /// If the device fails.
    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), Error>;

    /// Writes one page of the cache, as [`Device::write_page`].
    ///
    /// # Errors
    /// If the bytes are of another cache, or the device fails.
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error>;

    /// Appends a part of one ring of the cache to `out`, as [`Device::read_ring`]; nothing, where there are none.
    ///
    /// # Errors
    /// If the device fails.
    fn read_ring(&self, _ring: u32, _part: RingPart, _out: &mut Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    /// Writes a part of one ring of the cache, as [`Device::write_ring`]; nothing, where there are none.
    ///
    /// # Errors
    /// If the bytes are of another cache, or the device fails.
    fn write_ring(&mut self, _ring: u32, _part: RingPart, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// What may be chosen when a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Tokens of context to make room for; none: what the model was trained for, at most [`CONTEXT_DEFAULT`].
    pub context: Option<usize>,
    /// How cached keys and values are stored.
    pub kv_format: KvFormat,
    /// Sequences that are open at once, at least 1: a model that keeps rings has one for each.
    pub sequences: usize,
    /// Rows of one sequence in a step: rings have room for so many beside what these see.
    pub step_rows: usize,
    /// Whether a model that was trained with rounded latent rows rounds them ([`tessera_ops::Rounding`]).
    pub latent_rounding: bool,
    /// Whether latent rows are kept as what they are rounded to ([`tessera_ops::Packing`]), which loses nothing. Only where they are.
    pub packed_rows: bool,
}

/// The rings of a model's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// How many sequences can be open.
    pub count: usize,
    /// The most rows of a sequence in a step. As many of its last tokens can be forgotten, and it can go on from there.
    pub rows_max: usize,
}

/// The largest context that is reserved without being asked for.
pub const CONTEXT_DEFAULT: usize = 4096;

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        let step_rows = CHUNK_DEFAULT;
        let (kv_format, latent_rounding, packed_rows) = (KvFormat::F16, true, false);
        LoadOptions { context: None, kv_format, sequences: 1, step_rows, latent_rounding, packed_rows }
    }
}

impl LoadOptions {
    /// Pages that a model of this shape gets.
    pub fn pages(&self, config: &Config) -> usize {
        self.context.unwrap_or(config.context.min(CONTEXT_DEFAULT)).div_ceil(PAGE_TOKENS)
    }
}

/// What a model of this shape keeps of a sequence.
pub fn kv_layout(config: &Config, options: &LoadOptions) -> KvLayout {
    if let Some(latent) = &config.latent {
        return KvLayout::new(latent.entries(options.step_rows.max(1), options.packed_rows).0, options.kv_format);
    }
    let entry = |layer: usize| KvEntry::pairs(config.layers[layer].kv_heads, config.layers[layer].head_dim);
    KvLayout::new(config.kv_layers().map(entry).collect(), options.kv_format)
}

/// The names of all architectures.
pub const ARCHITECTURES: [&str; 9] =
    ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "gemma4", "gpt-oss", "glm4moe", "deepseek4"];

/// Whether an architecture is one of [`ARCHITECTURES`].
///
/// # Errors
/// If it is not, or the metadata does not say.
pub fn check_architecture(checkpoint: &Checkpoint) -> Result<(), Error> {
    let architecture = checkpoint.architecture()?;
    if ARCHITECTURES.contains(&architecture) { Ok(()) } else { Err(unknown(checkpoint, architecture)) }
}

fn unknown(checkpoint: &Checkpoint, architecture: &str) -> Error {
    let (file, known) = (checkpoint.file().to_owned(), ARCHITECTURES.to_vec());
    Error::Architecture { file, architecture: architecture.to_owned(), known }
}

/// Loads a checkpoint onto a device.
///
/// # Errors
/// If the architecture is unknown, metadata or tensors are missing or wrong, or the device refuses them.
pub fn load<D: Device>(
    checkpoint: &Checkpoint,
    device: Arc<D>,
    options: &LoadOptions,
    report: &mut dyn FnMut(Progress),
) -> Result<Box<dyn LanguageModel>, Error> {
    match checkpoint.architecture()? {
        "llama" => Loaded::<D, llama::Llama<D>>::boxed(checkpoint, device, options, report),
        "qwen2" => Loaded::<D, qwen::Qwen2<D>>::boxed(checkpoint, device, options, report),
        "qwen3" => Loaded::<D, qwen::Qwen3<D>>::boxed(checkpoint, device, options, report),
        "qwen3moe" => Loaded::<D, qwen::Qwen3Moe<D>>::boxed(checkpoint, device, options, report),
        "gemma3" => Loaded::<D, gemma3::Gemma3<D>>::boxed(checkpoint, device, options, report),
        "gemma4" => Loaded::<D, gemma4::Gemma4<D>>::boxed(checkpoint, device, options, report),
        "gpt-oss" => Loaded::<D, gpt_oss::GptOss<D>>::boxed(checkpoint, device, options, report),
        "glm4moe" => Loaded::<D, glm4_moe::Glm4Moe<D>>::boxed(checkpoint, device, options, report),
        "deepseek4" => Loaded::<D, deepseek4::DeepSeek4<D>>::boxed(checkpoint, device, options, report),
        other => Err(unknown(checkpoint, other)),
    }
}

/// A model, its device and its cache.
struct Loaded<D: Device, A> {
    device: Arc<D>,
    config: Config,
    model: A,
    cache: D::KvCache,
    pages: usize,
    rings: Option<Rings>,
    cache_bytes: usize,
    /// The file, for messages.
    name: String,
    /// What the bytes of its cache depend on.
    cache_form: String,
    /// What the last step and the last draft left of their rows, if the model drafts.
    left: [Option<D::Tensor>; 2],
}

impl<D: Device, A: Architecture<D> + 'static> Loaded<D, A> {
    fn boxed(
        checkpoint: &Checkpoint,
        device: Arc<D>,
        options: &LoadOptions,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Box<dyn LanguageModel>, Error> {
        let config = Config::read(checkpoint)?;
        let not_rounded = match &config.latent {
            None => Some("a model of this architecture rounds none"),
            Some(_) => (!options.latent_rounding).then_some("rounding is switched off"),
        };
        if let Some(why) = not_rounded.filter(|_| options.packed_rows) {
            return Err(Error::PackedRows { file: checkpoint.file().to_owned(), why });
        }
        let mut loader = Loader::new(checkpoint, &config, &*device, report);
        loader.rounds_latent_rows = options.latent_rounding;
        let model = A::load(&mut loader)?;
        let (layout, pages) = (kv_layout(&config, options), options.pages(&config));
        let rings = (layout.ring_bytes() > 0)
            .then(|| Rings { count: options.sequences.max(1), rows_max: options.step_rows.max(1) });
        let count = rings.map_or(0, |r| r.count);
        let (cache, cache_bytes) = (device.kv_cache(&layout, pages, count)?, layout.cache_bytes(pages, count));
        let name = checkpoint.file().to_owned();
        let rounded = match (&config.latent, options.packed_rows) {
            (Some(_), true) => ", packed rows",
            (Some(_), false) if options.latent_rounding => ", rounded rows",
            _ => "",
        };
        let cache_form = format!("{} with {} pages{rounded}", device.cache_form(), options.kv_format.name());
        let left = [None, None];
        Ok(Box::new(Loaded { device, config, model, cache, pages, rings, cache_bytes, name, cache_form, left }))
    }
}

impl<D: Device, A: Architecture<D>> Loaded<D, A> {
    /// What the last layer leaves of every row.
    fn rows(&mut self, batch: &Batch) -> Result<D::Tensor, Error> {
        self.check(batch)?;
        Ok(self.model.forward(&self.device, &mut self.cache, batch))
    }

    /// Keeps what a step left, for drafts.
    fn keep(&mut self, left: D::Tensor) {
        if self.model.drafts() {
            self.left = [Some(left), None];
        }
    }

    /// Refuses a step that the model or its cache is not made for.
    fn check(&self, batch: &Batch) -> Result<(), Error> {
        let vocabulary = self.config.vocabulary;
        if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= vocabulary) {
            return Err(Error::Token { token: *token, vocabulary });
        }
        if let Some(Rings { count, rows_max }) = self.rings {
            if batch.rings.iter().any(|r| *r as usize >= count) {
                return Err(Error::RingsFull { rings: count });
            }
            let rows = batch.sequences.chunk_by(|a, b| a == b).map(<[u32]>::len).max().unwrap_or(0);
            if rows > rows_max {
                return Err(Error::StepRows { rows, most: rows_max });
            }
        }
        Ok(())
    }
}

impl<D: Device, A: Architecture<D>> LanguageModel for Loaded<D, A> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn cache_tokens(&self) -> usize {
        self.pages * PAGE_TOKENS
    }

    fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    fn roles_agree(&self) -> bool {
        self.device.roles_agree()
    }

    fn rings(&self) -> Option<Rings> {
        self.rings
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        let x = self.rows(batch)?;
        let y = self.model.head().forward(&self.device, &x, batch);
        self.keep(x);
        Ok(self.device.read(&y, logits)?)
    }

    fn ranks(&self) -> bool {
        self.device.ranks()
    }

    fn forward_best(&mut self, batch: &Batch, count: usize, best: &mut Vec<Candidate>) -> Result<(), Error> {
        let x = self.rows(batch)?;
        let logits = self.model.head().forward(&self.device, &x, batch);
        self.keep(x);
        best.clear();
        Ok(self.device.best(&logits, batch.logit_rows.len(), count, best)?)
    }

    fn forward_hidden(&mut self, batch: &Batch, logits: &mut Vec<f32>, hidden: &mut Vec<f32>) -> Result<(), Error> {
        let (x, ops) = (self.rows(batch)?, &*self.device);
        ops.read(&self.model.head().normed(ops, &x), hidden)?;
        ops.read(&self.model.head().forward(ops, &x, batch), logits)?;
        self.keep(x);
        Ok(())
    }

    fn drafts(&self) -> bool {
        self.model.drafts()
    }

    fn draft(&mut self, from: DraftFrom, rows: &[u32], batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        self.check(batch)?;
        let (ops, at) = (&*self.device, usize::from(from == DraftFrom::Draft));
        let picked = Batch { logit_rows: rows.to_vec(), ..batch.clone() };
        assert_eq!(rows.len(), batch.len(), "each row goes on from one");
        let previous = ops.logit_rows(self.left[at].as_ref().expect("there was such a step"), &picked);
        let drafted =
            self.model.draft(ops, &previous, &mut self.cache, batch).expect("the model has a layer that drafts");
        ops.read(&drafted.logits, logits)?;
        self.left[1] = Some(drafted.left);
        Ok(())
    }

    fn owner(&self, identity: &Identity) -> Result<Owner, Error> {
        // Devices may widen what a layout asks for: a page tells what it takes.
        let (mut page, mut ring) = (Vec::new(), Vec::new());
        self.read_page(0, &mut page)?;
        self.read_ring(0, RingPart::Whole, &mut ring)?;
        Ok(Owner {
            identity: identity.clone(),
            name: self.name.clone(),
            cache: self.cache_form.clone(),
            page_bytes: page.len(),
            ring_bytes: ring.len(),
            context: self.cache_tokens(),
        })
    }

    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        Ok(self.device.read_page(&self.cache, page, out)?)
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.device.write_page(&mut self.cache, page, bytes)?)
    }

    fn read_ring(&self, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        let Some(_) = self.rings else { return Ok(()) };
        Ok(self.device.read_ring(&self.cache, ring, part, out)?)
    }

    fn write_ring(&mut self, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        let Some(_) = self.rings else { return Ok(()) };
        Ok(self.device.write_ring(&mut self.cache, ring, part, bytes)?)
    }
}
