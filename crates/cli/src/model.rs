//! A model as the commands use it: opened, its text turned into tokens, and loaded when the first step needs it.
//!
//! Opening reads the file's header only, so that a prompt that does not fit, or a template that fails, is known
//! before weights are packed.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;
use tessera_engine::{
    ChatTemplate, Checkpoint, Config, Error, LoadOptions, Session, Special, Tokenizer,
    models::{self, CONTEXT_DEFAULT},
    state::Identity,
    synth,
};

use crate::{
    args::Engine,
    device::Opened,
    machine,
    store::{Reference, Store},
    talk::{Conversation, Talk},
    ui::{self, Failure},
};

/// What stays when the program ends.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct Keep {
    /// Keep what was computed in FILE. Where it is there already, begin from it: what the text shares with that is not computed
    /// again. It belongs to one model and its settings
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
}

/// A layer that drafts, apart from the model.
#[derive(Clone, Debug, Args)]
pub(crate) struct Mtp {
    /// The layer that drafts for the model (multi-token prediction), where it is in a GGUF file of its own
    #[arg(long = "mtp", value_name = "FILE")]
    pub(crate) file: Option<String>,
}

impl Mtp {
    /// The model with that layer, if one is named.
    ///
    /// # Errors
    /// Where it cannot be fetched or read, or does not fit the model.
    pub(crate) fn join(&self, model: Checkpoint) -> Result<Checkpoint> {
        match &self.file {
            Some(file) => Ok(model.with_draft_layer(&open_checkpoint(file)?)?),
            None => Ok(model),
        }
    }
}

/// An opened model.
pub(crate) struct Model {
    checkpoint: Checkpoint,
    config: Config,
    tokenizer: Tokenizer,
    engine: Engine,
    /// Where the session begins, and what it leaves.
    state: Option<PathBuf>,
    /// None until it is loaded.
    session: Option<Session>,
}

/// Opens what `model` names, fetching or making it first if need be.
///
/// # Errors
/// Where it cannot be fetched or read.
pub(crate) fn open_checkpoint(model: &str) -> Result<Checkpoint> {
    match Reference::parse(model)? {
        Reference::Synthetic(spec) => Ok(synth::checkpoint(&spec, machine::cores())?),
        stored => Ok(Checkpoint::open(&Store::open()?.obtain(&stored)?)?),
    }
}

impl Model {
    /// Opens what `model` names, fetching it first if need be.
    ///
    /// # Errors
    /// Where it cannot be fetched or read, or is of an unknown architecture.
    pub(crate) fn open(model: &str, engine: &Engine) -> Result<Model> {
        let checkpoint = open_checkpoint(model)?;
        models::check_architecture(&checkpoint)?;
        let config = Config::read(&checkpoint)?;
        let tokenizer = checkpoint.tokenizer()?;
        Ok(Model { checkpoint, config, tokenizer, engine: engine.clone(), state: None, session: None })
    }

    /// The same, its session beginning from a state file if that is there.
    pub(crate) fn keeping(self, keep: &Keep) -> Model {
        Model { state: keep.state.clone(), ..self }
    }

    /// Writes the session to its state file, if it has one.
    ///
    /// # Errors
    /// Where the device fails, or the file cannot be written.
    pub(crate) fn save_state(&self) -> Result<()> {
        if let (Some(file), Some(session)) = (&self.state, &self.session) {
            session.save(file, &Identity::of(&self.checkpoint))?;
        }
        Ok(())
    }

    /// Tokens in its vocabulary.
    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// The token that begins every text of this model, if one does.
    pub(crate) fn leading_token(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }

    /// The tokens of a text that is to be continued as it is.
    ///
    /// # Errors
    /// Where the tokenizer knows no token for a part of it.
    pub(crate) fn raw_prompt(&self, text: &[u8]) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, Special::Plain, true)?)
    }

    /// Whether it has a chat template of its own.
    ///
    /// # Errors
    /// Where its file cannot be read.
    pub(crate) fn has_template(&self) -> Result<bool> {
        Ok(self.checkpoint.chat_template()?.is_some_and(|source| !source.trim().is_empty()))
    }

    /// A conversation with the model's own template, or another one that the flags name.
    ///
    /// # Errors
    /// Where there is none, or it does not compile, or the tools cannot be read.
    pub(crate) fn conversation(&self, flags: &Talk, tools: Option<&Path>) -> Result<Conversation> {
        let own = || {
            let source = self.checkpoint.chat_template()?;
            Ok(ChatTemplate::new(self.checkpoint.file(), source.as_deref(), &self.tokenizer)?)
        };
        Conversation::new(flags, own, &self.tokenizer, tools)
    }

    /// How it cuts text.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Computes `tokens` from an empty cache and shows the logits that follow each position of `range`.
    ///
    /// # Errors
    /// Where they do not fit, or the device or `show` fails.
    pub(crate) fn logits(
        &mut self,
        tokens: &[u32],
        range: Range<usize>,
        show: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (_, session) = self.session(tokens.len())?;
        session.rewind(0);
        session.prefill(&tokens[..range.start])?;
        let mut shown = Ok(());
        session.score(&tokens[range.clone()], &mut |index, logits| {
            if shown.is_ok() {
                shown = show(range.start + index, logits);
            }
        })?;
        shown
    }

    /// Tokenizer and session, loaded, with room for `tokens` at least where no flag says how much.
    ///
    /// # Errors
    /// Where the tokens do not fit, or the weights are not sound or too large for the memory.
    pub(crate) fn session(&mut self, tokens: usize) -> Result<(&Tokenizer, &mut Session)> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.load(tokens)?,
        };
        if tokens > session.context() {
            let context = session.context();
            self.session = Some(session);
            return Err(self.too_long(tokens, context));
        }
        Ok((&self.tokenizer, self.session.insert(session)))
    }

    fn load(&self, tokens: usize) -> Result<Session> {
        // What the model was trained for, up to a limit, or more where the text is known to be longer.
        let usual = self.config.context.min(CONTEXT_DEFAULT);
        let context = self.engine.context.unwrap_or(usual.max(tokens.min(self.config.context)));
        if tokens > context.next_multiple_of(tessera_ops::PAGE_TOKENS) {
            return Err(self.too_long(tokens, context)); // before all the work
        }
        let device = Opened::open(&self.engine.compute, &self.engine.placement)?;
        let chunk = self.engine.chunk.unwrap_or(device.chunk());
        let options = LoadOptions { context: Some(context), step_rows: chunk, ..self.engine.cache.options() };
        let bar = ui::bytes_bar("loading", self.checkpoint.tensors().iter().map(|t| t.bytes.len() as u64).sum());
        let progress = &mut |progress: tessera_engine::weights::Progress| bar.set_position(progress.bytes_done);
        let model = device.load(&self.checkpoint, &options, progress);
        bar.finish_and_clear();
        let mut session = Session::new(model?, chunk);
        if let Some(file) = self.state.as_deref().filter(|file| file.exists()) {
            session.load(file, &Identity::of(&self.checkpoint))?;
        }
        Ok(session)
    }

    /// The error of a text that is too long, in the words of the command line.
    pub(crate) fn too_long(&self, tokens: usize, context: usize) -> anyhow::Error {
        let message = format!("{tokens} tokens do not fit the context of {context}");
        let trained = self.config.context;
        let remedy = format!("shorten the text, or make room with --context (the model was trained for {trained})");
        Failure::new(message, remedy).caused_by(Error::ContextFull { tokens, context, trained }).into()
    }
}
