//! The model under measurement: loaded, with the names of what computes it.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use tessera_engine::{
    Checkpoint, Config, LanguageModel, LoadOptions, Sequences, models, serving::speculation::DEPTH_MAX, synth,
    weights::Progress,
};
use tessera_formats::Tensor;
use tessera_ops::{Device, KvFormat, PAGE_TOKENS};

use super::{args::Common, machine, row::Facts};
use crate::{
    args::{Cache, Placement},
    cache::CacheFormat,
    device::{self, Chosen, Opened, Projection, Shape},
    model::{self, Mtp},
    ui,
};

/// An opened model and the device it will run on.
pub(super) struct Subject {
    pub(super) config: Config,
    /// What it runs on, if that is the CPU; where it does not, this names the kernels of none.
    pub(super) device: Arc<Chosen>,
    opened: Opened,
    cache: Cache,
    step_rows: usize,
    checkpoint: Checkpoint,
    name: String,
}

impl Subject {
    /// Opens what the flags name.
    ///
    /// # Errors
    /// Where the model cannot be read, or the device lacks what is asked for.
    pub(super) fn open(common: &Common, placement: &Placement) -> Result<Subject> {
        let device = device::open(&common.compute)?;
        let opened = Opened::card(placement)?.unwrap_or_else(|| Opened::Cpu(device.clone()));
        let checkpoint = model::open_checkpoint(&common.model)?;
        models::check_architecture(&checkpoint)?;
        let config = Config::read(&checkpoint)?;
        let name = common.model.rsplit(['/', '\\']).next().unwrap_or(&common.model).to_owned();
        let (cache, step_rows) = (common.cache.clone(), common.chunk);
        Ok(Subject { config, device, opened, cache, step_rows, checkpoint, name })
    }

    /// With a layer that drafts from a file of its own, if one is named, and with room to verify drafts.
    ///
    /// # Errors
    /// Where it cannot be read, or does not fit the model.
    pub(super) fn drafting(self, mtp: &Mtp) -> Result<Subject> {
        let checkpoint = mtp.join(self.checkpoint)?;
        let config = Config::read(&checkpoint)?;
        Ok(Subject { checkpoint, config, step_rows: self.step_rows.max(DEPTH_MAX + 1), ..self })
    }

    /// Loads it with room for sequences of these lengths.
    ///
    /// # Errors
    /// Where weights are not sound, or too large for the memory.
    pub(super) fn load(&self, lengths: impl IntoIterator<Item = usize>) -> Result<Sequences> {
        self.loaded(lengths, |options, report| self.opened.load(&self.checkpoint, options, report))
    }

    /// Refuses a model that is to be made in memory which this machine does not have.
    ///
    /// # Errors
    /// As [`synth::check_memory`].
    pub(super) fn check_memory(&self) -> Result<()> {
        Ok(synth::check_memory(&self.checkpoint)?)
    }

    /// As [`Subject::load`], on another device.
    ///
    /// # Errors
    /// As [`Subject::load`].
    pub(super) fn load_on<D: Device>(
        &self,
        device: Arc<D>,
        lengths: impl IntoIterator<Item = usize>,
    ) -> Result<Sequences> {
        self.loaded(lengths, |options, report| Ok(models::load(&self.checkpoint, device, options, report)?))
    }

    fn loaded(
        &self,
        lengths: impl IntoIterator<Item = usize>,
        load: impl FnOnce(&LoadOptions, &mut dyn FnMut(Progress)) -> Result<Box<dyn LanguageModel>>,
    ) -> Result<Sequences> {
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length.next_multiple_of(PAGE_TOKENS)).collect();
        let (context, sequences) = (lengths.iter().sum(), lengths.len());
        let options =
            LoadOptions { context: Some(context), sequences, step_rows: self.step_rows, ..self.cache.options() };
        let bar = ui::bytes_bar("loading", self.checkpoint.tensors().iter().map(|t| t.bytes.len() as u64).sum());
        let model = load(&options, &mut |progress: Progress| bar.set_position(progress.bytes_done));
        bar.finish_and_clear();
        Ok(Sequences::new(model?))
    }

    /// What every row of it says.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            commit: machine::COMMIT,
            machine: match &self.opened {
                Opened::Cpu(_) => machine::name(),
                card @ Opened::Card(_) => format!("{}, {}", machine::name(), card.name()),
            },
            isa: device::isa_name(&self.device),
            threads: self.device.threads(),
            tuning: device::tuned(&self.device),
            model: self.name.clone(),
            formats: self.formats(),
        }
    }

    /// The variants that compute the projections of its layers for this many tokens, each once.
    pub(super) fn variants(&self, tokens: usize) -> String {
        let shape =
            |t: &Tensor| Shape { projection: Projection::Dense, dtype: t.dtype, rows: t.rows(), depth: t.shape[0] };
        let mut names: Vec<_> = self
            .matrices()
            .filter(|t| t.name.starts_with("blk."))
            .filter_map(|t| self.opened.kernel(&shape(t), tokens))
            .collect();
        names.sort_unstable();
        names.dedup();
        names.join(" ")
    }

    /// A synthetic token: the `i`-th of sequence `sequence`.
    pub(super) fn token(&self, sequence: usize, i: usize) -> u32 {
        // Low ids are control tokens in most vocabularies.
        let vocabulary = self.config.vocabulary;
        let margin = if vocabulary > 400 { 100 } else { 0 };
        (margin + (i * 7919 + sequence * 31) % (vocabulary - 2 * margin)) as u32
    }

    /// The first `count` synthetic tokens of a sequence.
    pub(super) fn tokens(&self, sequence: usize, count: usize) -> Vec<u32> {
        (0..count).map(|i| self.token(sequence, i)).collect()
    }

    fn formats(&self) -> String {
        let mut bytes = BTreeMap::new();
        self.matrices().for_each(|t| *bytes.entry(t.dtype.name()).or_insert(0) += t.bytes.len());
        let mut formats: Vec<_> = bytes.into_iter().collect();
        formats.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let formats = formats.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ");
        match self.cache.format {
            CacheFormat::Plain(KvFormat::F16) => formats,
            other => format!("{formats} cache:{}", other.name()),
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        self.checkpoint.tensors().iter().filter(|t| t.dtype.is_weight() && t.shape.len() > 1 && t.rows() > 1)
    }
}
