//! Tokens of one sequence, in as many steps as it takes.

use tessera_ops::Role;

use super::{Part, SequenceId, Sequences};
use crate::Error;

impl Sequences {
    /// Computes tokens of one sequence in steps of at most `chunk`, and gives the logits of the last.
    ///
    /// # Errors
    /// As [`Sequences::step`], and if there are no tokens.
    pub fn prefill(&mut self, sequence: SequenceId, tokens: &[u32], chunk: usize) -> Result<&[f32], Error> {
        self.go_on(sequence, tokens, chunk, Role::Prefill)
    }

    /// The same as tokens of a reply are computed, in as few steps as there can be.
    ///
    /// # Errors
    /// As [`Sequences::prefill`].
    pub fn decode_at_once(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<&[f32], Error> {
        self.go_on(sequence, tokens, usize::MAX, Role::Decode)
    }

    fn go_on(&mut self, sequence: SequenceId, tokens: &[u32], chunk: usize, role: Role) -> Result<&[f32], Error> {
        let chunks = tokens.chunks(chunk.clamp(1, self.rows_max()));
        let last = chunks.len().checked_sub(1).ok_or(Error::EmptyPrompt)?;
        for (i, tokens) in chunks.enumerate() {
            self.step(&[Part { sequence, tokens, role, logits: usize::from(i == last) }])?;
        }
        Ok(&self.logits)
    }
}
