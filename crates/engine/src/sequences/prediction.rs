//! Predictions of tokens further ahead, by models that were trained to make them (multi-token prediction; Gloeckle et al. 2024,
//! DeepSeek-AI 2024).
//!
//! A step leaves what the model knows of each row. With the token that came after a row, a prediction block guesses the token
//! after that; and from what it leaves itself, with its own guess, the next. It keeps keys and values of its own, at the
//! positions of the rows, so it has to see every row of a sequence once, in order: [`Sequences::predict`] after each step. What
//! it keeps of guesses that turn out wrong is overwritten when their positions come.

use tessera_ops::{PAGE_TOKENS, Role};

use super::{OPEN, SequenceId, Sequences};
use crate::{Error, models::DraftFrom};

/// What is predicted for one sequence after a step.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    /// A sequence of the last step.
    pub sequence: SequenceId,
    /// The tokens that came after its rows of that step, from the first row on, as far as they are known.
    pub tokens: &'a [u32],
    /// Whether a guess of the token after these is wanted.
    pub logits: bool,
}

/// Rows that a sequence has in what a step or a prediction left.
#[derive(Clone, Copy, Debug)]
struct Rows {
    sequence: SequenceId,
    /// The first of them.
    first: usize,
    count: usize,
    /// Of the first.
    position: usize,
}

/// What the last step and the last prediction left.
#[derive(Debug, Default)]
pub(super) struct Left {
    step: Vec<Rows>,
    /// Only the last row of each sequence is of use.
    prediction: Vec<Rows>,
    /// (sequences that wanted them) and their logits.
    guessed: Vec<SequenceId>,
    logits: Vec<f32>,
}

impl Left {
    /// A step begins.
    pub(super) fn clear(&mut self) {
        self.step.clear();
        self.prediction.clear();
        self.guessed.clear();
        self.logits.clear();
    }

    /// The step has these rows of a sequence, after those before.
    pub(super) fn add(&mut self, sequence: SequenceId, count: usize, position: usize) {
        let first = self.step.last().map_or(0, |r| r.first + r.count);
        self.step.push(Rows { sequence, first, count, position });
    }

    /// A sequence is no longer what it was.
    pub(super) fn forget(&mut self, sequence: SequenceId) {
        self.step.retain(|r| r.sequence != sequence);
        self.prediction.retain(|r| r.sequence != sequence);
    }
}

impl Sequences {
    /// Whether the model was trained to predict tokens further ahead.
    pub fn predicts(&self) -> bool {
        self.model.drafts()
    }

    /// Predicts after a step. The guesses that are wanted can be asked for ([`Sequences::predicted`]) until the next.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If a sequence was not in the last step, or has more tokens than rows there.
    pub fn predict(&mut self, parts: &[Ahead<'_>]) -> Result<(), Error> {
        let found = |part: &Ahead<'_>| {
            let rows = self.left.step.iter().find(|r| r.sequence == part.sequence).expect("it was in the last step");
            assert!((1..=rows.count).contains(&part.tokens.len()), "a row has one token after it");
            *rows
        };
        let rows: Vec<Rows> = parts.iter().map(found).collect();
        self.run_prediction(DraftFrom::Step, &rows, parts)
    }

    /// Goes on from the last prediction with the tokens that it guessed, and guesses the next of each sequence.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If a sequence was not in the last prediction.
    pub fn predict_on(&mut self, guesses: &[(SequenceId, u32)]) -> Result<(), Error> {
        let found = |sequence: SequenceId| {
            let rows = self.left.prediction.iter().find(|r| r.sequence == sequence).expect("it was predicted for");
            Rows { sequence, first: rows.first + rows.count - 1, count: 1, position: rows.position + rows.count }
        };
        let rows: Vec<Rows> = guesses.iter().map(|(sequence, _)| found(*sequence)).collect();
        let parts: Vec<Ahead<'_>> = guesses
            .iter()
            .map(|(sequence, token)| Ahead { sequence: *sequence, tokens: std::slice::from_ref(token), logits: true })
            .collect();
        self.run_prediction(DraftFrom::Draft, &rows, &parts)
    }

    /// The logits of the last prediction for a sequence, if they were wanted.
    pub fn predicted(&self, sequence: SequenceId) -> Option<&[f32]> {
        let at = self.left.guessed.iter().position(|s| *s == sequence)?;
        self.left.logits.chunks_exact(self.config().vocabulary).nth(at)
    }

    fn run_prediction(&mut self, from: DraftFrom, rows: &[Rows], parts: &[Ahead<'_>]) -> Result<(), Error> {
        let (mut sources, mut first) = (Vec::new(), 0);
        let (prediction, guessed) = (&mut Vec::new(), &mut Vec::new());
        self.batch.clear();
        for (rows, part) in rows.iter().zip(parts) {
            let (count, position) = (part.tokens.len(), rows.position);
            sources.extend((rows.first..rows.first + count).map(|r| r as u32));
            // Guesses may run behind the sequence's own pages; all that a prediction block keeps lies in rings.
            let mut pages = self.open[part.sequence.0].as_ref().expect(OPEN).pages.clone();
            let last = pages.last().copied().unwrap_or(0);
            pages.resize(pages.len().max((position + count).div_ceil(PAGE_TOKENS)), last);
            self.batch.push(part.tokens, position, &pages, Role::Decode, usize::from(part.logits));
            self.batch.in_ring(part.sequence.0 as u32);
            prediction.push(Rows { sequence: part.sequence, first, count, position });
            guessed.extend(part.logits.then_some(part.sequence));
            first += count;
        }
        self.model.draft(from, &sources, &self.batch, &mut self.left.logits)?;
        std::mem::swap(&mut self.left.prediction, prediction);
        std::mem::swap(&mut self.left.guessed, guessed);
        Ok(())
    }
}
