//! One sequence on a model: its tokens, its pages of the cache, and the steps that compute it.

use tessera_ops::{Batch, Role};

use crate::{Config, Error, models::LanguageModel};

/// Prompt tokens computed in one step, unless chosen otherwise. It changes memory and speed, never a result.
pub const CHUNK_DEFAULT: usize = 512;

/// A sequence that owns a model and all of its cache.
pub struct Session {
    model: Box<dyn LanguageModel>,
    /// Tokens whose keys and values are in the cache.
    tokens: Vec<u32>,
    /// The first of them that was not computed as part of a prompt.
    prompt_len: usize,
    /// The pages of the sequence, in order.
    pages: Vec<u32>,
    chunk: usize,
    /// Of the last step's wanted rows: (rows, vocabulary).
    logits: Vec<f32>,
}

impl Session {
    /// An empty sequence. Prompts are computed in steps of `chunk` tokens (at least 1).
    pub fn new(model: Box<dyn LanguageModel>, chunk: usize) -> Session {
        let pages = (0..model.cache_tokens().div_ceil(tessera_ops::PAGE_TOKENS) as u32).collect();
        Session { model, tokens: Vec::new(), prompt_len: 0, pages, chunk: chunk.max(1), logits: Vec::new() }
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

    /// Forgets all tokens from position `len` on.
    pub fn rewind(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.prompt_len = self.prompt_len.min(len);
    }

    /// How many tokens of a prompt are computed already, as they would be anew.
    pub fn common_prefix(&self, tokens: &[u32]) -> usize {
        let usable = if self.model.roles_agree() { self.tokens.len() } else { self.prompt_len };
        self.tokens[..usable].iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// Computes prompt tokens after those that are there. The logits of the last are kept.
    ///
    /// # Errors
    /// If they do not fit the context, one does not exist, or the device fails.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.room_for(tokens.len())?;
        let chunks = tokens.len().div_ceil(self.chunk);
        for (i, chunk) in tokens.chunks(self.chunk).enumerate() {
            self.step(chunk, Role::Prefill, usize::from(i + 1 == chunks))?;
        }
        Ok(())
    }

    /// Computes one sampled token. Its logits are kept.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<(), Error> {
        self.room_for(1)?;
        self.step(&[token], Role::Decode, 1)
    }

    /// Computes tokens as a prompt and gives the logits after each, (vocabulary), with its index in `tokens`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn score(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.room_for(tokens.len())?;
        let vocabulary = self.config().vocabulary;
        for (c, chunk) in tokens.chunks(self.chunk).enumerate() {
            self.step(chunk, Role::Prefill, chunk.len())?;
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

    fn step(&mut self, tokens: &[u32], role: Role, logits: usize) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.push(tokens, self.tokens.len(), &self.pages, role, logits);
        self.model.forward(&batch, &mut self.logits)?;
        if role == Role::Prefill && self.prompt_len == self.tokens.len() {
            self.prompt_len += tokens.len();
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }
}
