//! One sequence on a model: its tokens, its pages of the cache, and the steps that compute it.

use std::path::Path;

use tessera_ops::{Batch, Candidate, PAGE_TOKENS, Role};

use crate::{
    Config, Error, Snapshot,
    models::LanguageModel,
    sequences::rings::Reach,
    state::{self, Identity},
};

/// Prompt tokens computed in one step, unless chosen otherwise. It changes memory and speed, never a result.
pub const CHUNK_DEFAULT: usize = 512;

/// A sequence that owns a model and all of its cache.
pub struct Session {
    model: Box<dyn LanguageModel>,
    /// Tokens whose keys and values are in the cache.
    tokens: Vec<u32>,
    /// The first of them that was not computed as part of a prompt.
    prompt_len: usize,
    /// Of its ring, where the model keeps one.
    reach: Reach,
    /// The pages of the sequence, in order.
    pages: Vec<u32>,
    chunk: usize,
    /// Of the last step's wanted rows: (rows, vocabulary).
    logits: Vec<f32>,
    /// How many of the likeliest tokens a step leaves in their place, if it does.
    wanted: Option<usize>,
    best: Vec<Candidate>,
}

impl Session {
    /// An empty sequence. Prompts are computed in steps of `chunk` tokens (at least 1).
    pub fn new(model: Box<dyn LanguageModel>, chunk: usize) -> Session {
        let pages = (0..model.cache_tokens().div_ceil(PAGE_TOKENS) as u32).collect();
        let chunk = chunk.clamp(1, model.rings().map_or(usize::MAX, |rings| rings.rows_max));
        let reach = Reach::default();
        let (tokens, logits, best) = Default::default();
        Session { model, tokens, prompt_len: 0, reach, pages, chunk, logits, wanted: None, best }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// Tokens that there is room for.
    pub fn context(&self) -> usize {
        self.model.cache_tokens()
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> usize {
        self.model.cache_bytes()
    }

    /// The tokens computed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The logits after the last token, (vocabulary); empty before the first.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    /// From now on steps leave the `wanted` likeliest tokens alone, where the model has them for less than all logits; where that is
    /// none, all logits.
    pub fn want_best(&mut self, wanted: Option<usize>) {
        self.wanted = wanted.filter(|_| self.model.ranks());
    }

    /// The likeliest tokens after the last, in order, where they stand in for the logits; else nothing.
    pub fn best(&self) -> &[Candidate] {
        &self.best
    }

    /// Forgets all tokens from position `len` on. Where the model's ring has not kept what goes on from there sees, it forgets
    /// all.
    pub fn rewind(&mut self, len: usize) {
        let len = len.min(self.tokens.len());
        let len = if self.reach.can_go_on_at(len, self.model.rings()) { len } else { 0 };
        if len == 0 {
            self.reach = Reach::default();
        }
        self.tokens.truncate(len);
        self.prompt_len = self.prompt_len.min(len);
    }

    /// How many tokens of a prompt are computed already, as they would be anew.
    pub fn common_prefix(&self, tokens: &[u32]) -> usize {
        let usable = if self.model.roles_agree() { self.tokens.len() } else { self.prompt_len };
        self.tokens[..usable].iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Copies the sequence out of the cache.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        Snapshot::take(&*self.model, (&self.tokens, self.prompt_len), &self.pages, (Some(0), self.reach))
    }

    /// Makes the sequence what it was when the snapshot was taken, but for the logits: at least one token has to be computed
    /// before these are there.
    ///
    /// # Errors
    /// If it is longer than the context, or of another model's cache, or the device fails. The sequence is empty then.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.rewind(0);
        self.logits.clear();
        self.room_for(snapshot.tokens.len())?;
        self.reach = snapshot.put(&mut *self.model, &self.pages[..snapshot.page_count()], 0)?;
        self.tokens.clone_from(&snapshot.tokens);
        self.prompt_len = snapshot.prompt_tokens;
        Ok(())
    }

    /// Writes the sequence to a file, as of the model of this identity. What was there is replaced once the new one is whole.
    ///
    /// # Errors
    /// If the device fails, or the file cannot be written.
    pub fn save(&self, file: &Path, identity: &Identity) -> Result<(), Error> {
        Ok(state::write(file, &self.model.owner(identity)?, &self.snapshot()?)?)
    }

    /// Goes on from what [`Session::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged or of another version, model or cache; the sequence is as it was then.
    pub fn load(&mut self, file: &Path, identity: &Identity) -> Result<(), Error> {
        let snapshot = state::read(file, &self.model.owner(identity)?)?;
        self.restore(&snapshot)
    }

    /// Computes prompt tokens after those that are there. The logits of the last are kept.
    ///
    /// # Errors
    /// If they do not fit the context, one does not exist, or the device fails.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.room_for(tokens.len())?;
        let chunks = tokens.len().div_ceil(self.chunk);
        for (i, chunk) in tokens.chunks(self.chunk).enumerate() {
            self.step(chunk, Role::Prefill, usize::from(i + 1 == chunks), self.wanted)?;
        }
        Ok(())
    }

    /// Computes one sampled token. Its logits are kept.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<(), Error> {
        self.room_for(1)?;
        self.step(&[token], Role::Decode, 1, self.wanted)
    }

    /// Computes tokens as a prompt and gives the logits after each, (vocabulary), with its index in `tokens`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn score(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.room_for(tokens.len())?;
        let vocabulary = self.config().vocabulary;
        for (c, chunk) in tokens.chunks(self.chunk).enumerate() {
            self.step(chunk, Role::Prefill, chunk.len(), None)?;
            for (i, logits) in self.logits.chunks_exact(vocabulary).enumerate() {
                each(c * self.chunk + i, logits);
            }
        }
        Ok(())
    }

    fn room_for(&self, more: usize) -> Result<(), Error> {
        let (tokens, context) = (self.tokens.len() + more, self.context());
        if tokens > context {
            return Err(Error::ContextFull { tokens, context, trained: self.config().context });
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[u32], role: Role, logits: usize, wanted: Option<usize>) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.push(tokens, self.tokens.len(), &self.pages, role, logits);
        self.logits.clear();
        self.best.clear();
        match wanted {
            Some(count) if logits > 0 => self.model.forward_best(&batch, count, &mut self.best)?,
            _ => self.model.forward(&batch, &mut self.logits)?,
        }
        if role == Role::Prefill && self.prompt_len == self.tokens.len() {
            self.prompt_len += tokens.len();
        }
        self.tokens.extend_from_slice(tokens);
        self.reach.wrote(self.tokens.len());
        Ok(())
    }
}
