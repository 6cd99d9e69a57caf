//! Perplexity and divergence over chunks of tokens, whoever computes the logits.

use std::ops::Range;

use anyhow::Result;

use crate::{
    divergence::{Distribution, Summary, Tally},
    reference_file::{Chunk, ReferenceFile},
    ui::Failure,
};

/// Computes one chunk from an empty cache and shows the logits (vocabulary) that follow each position of a range, in
/// order.
pub(crate) type LogitsOf<'a> =
    dyn FnMut(&[u32], Range<usize>, &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> + 'a;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// e to the mean negative log-likelihood; none where no token was scored.
    pub(crate) perplexity: Option<f64>,
    /// Tokens whose likelihood went into it.
    pub(crate) tokens: usize,
    /// Against a reference.
    pub(crate) divergence: Option<Summary>,
}

/// Chunks of a text: all of `window` tokens, or one shorter one if there are no more. With `bos`, each begins with it.
pub(crate) fn chunks(tokens: &[u32], window: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    let mut chunks: Vec<Vec<u32>> = tokens.chunks_exact(window).map(<[u32]>::to_vec).collect();
    if chunks.is_empty() && tokens.len() >= 2 {
        chunks.push(tokens.to_vec());
    }
    if let Some(bos) = bos {
        chunks.iter_mut().for_each(|chunk| chunk[0] = bos);
    }
    chunks
}

/// Perplexity over the second half of each whole chunk, where each token has a context; of a single short chunk, over
/// all of it. `done` is told after each chunk.
///
/// # Errors
/// Where the logits cannot be computed, or are not finite.
pub(crate) fn of_text(chunks: &[Vec<u32>], window: usize, logits: &mut LogitsOf<'_>, done: impl Fn()) -> Result<Score> {
    let (mut total, mut tokens) = (0.0, 0);
    for chunk in chunks {
        let first = if chunk.len() < window { 0 } else { chunk.len() / 2 };
        logits(chunk, first..chunk.len() - 1, &mut |position, logits| {
            total -= likelihood(&distribution(logits, position)?, chunk[position + 1])?;
            tokens += 1;
            Ok(())
        })?;
        done();
    }
    Ok(Score { perplexity: Some(mean(total, tokens)?.exp()), tokens, divergence: None })
}

/// Perplexity and divergence at every `every`-th listed position.
///
/// # Errors
/// As [`of_text`].
pub(crate) fn of_reference(
    reference: &ReferenceFile,
    every: usize,
    logits: &mut LogitsOf<'_>,
    done: impl Fn(),
) -> Result<Score> {
    let (mut total, mut tokens, mut tally) = (0.0, 0, Tally::default());
    for Chunk { tokens: chunk, first_scored: first, top } in &reference.chunks {
        logits(chunk, *first..first + top.len(), &mut |position, logits| {
            let index = position - first;
            if !index.is_multiple_of(every) {
                return Ok(());
            }
            let model = distribution(logits, position)?;
            if !tally.add(&model, &top[index]) {
                return Err(outside().into());
            }
            if let Some(next) = chunk.get(position + 1) {
                total -= likelihood(&model, *next)?;
                tokens += 1;
            }
            Ok(())
        })?;
        done();
    }
    // The last position of a chunk has no next token: a reference of such positions alone has no perplexity.
    let perplexity = if tokens == 0 { None } else { Some(mean(total, tokens)?.exp()) };
    Ok(Score { perplexity, tokens, divergence: tally.summary() })
}

fn distribution(logits: &[f32], position: usize) -> Result<Distribution<'_>> {
    Distribution::new(logits).ok_or_else(|| {
        let message = format!("the logits at position {position} are not finite");
        Failure::new(message, "the model's weights are damaged: fetch or convert it again").into()
    })
}

fn likelihood(model: &Distribution<'_>, token: u32) -> Result<f64> {
    model.log_probability(token).ok_or_else(|| outside().into())
}

fn outside() -> Failure {
    Failure::new("a token is outside the model's vocabulary", "use a tokenizer and a reference of the same model")
}

fn mean(total: f64, tokens: usize) -> Result<f64> {
    if tokens == 0 {
        return Err(Failure::new("the text has fewer than 2 tokens", "give a longer text").into());
    }
    Ok(total / tokens as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divergence::Listed;

    /// A model over 4 tokens that gives the next id (cyclic) probability 1/2 and the others 1/6.
    fn cyclic(tokens: &[u32], range: Range<usize>, show: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        for position in range {
            let next = (tokens[position] + 1) % 4;
            let logits: Vec<f32> = (0..4).map(|id| if id == next { 0.5f32.ln() } else { (1f32 / 6.0).ln() }).collect();
            show(position, &logits)?;
        }
        Ok(())
    }

    #[test]
    fn texts_are_cut_and_begin_with_bos() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(chunks(&tokens, 4, None), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(chunks(&tokens, 4, Some(9)), [[9, 1, 2, 3], [9, 5, 6, 7]]);
        assert_eq!(chunks(&tokens, 11, None), [&tokens[..]]);
        assert_eq!(chunks(&tokens[..1], 4, None), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn perplexity_is_that_of_the_second_half() {
        // Of the second half, 2 → 3 is likely, and nothing follows 3.
        let score = of_text(&[vec![0, 0, 2, 3]], 4, &mut cyclic, || {}).unwrap();
        assert!((score.perplexity.unwrap() - 2.0).abs() < 1e-5 && score.tokens == 1, "{score:?}");
        // A short text is scored whole: 1/6, 1/6, 1/2.
        let score = of_text(&[vec![0, 0, 2, 3]], 9, &mut cyclic, || {}).unwrap();
        assert!((score.perplexity.unwrap() - 72f64.powf(1.0 / 3.0)).abs() < 1e-4 && score.tokens == 3, "{score:?}");
        assert!(of_text(&[], 4, &mut cyclic, || {}).unwrap_err().to_string().contains("fewer than 2"));
    }

    #[test]
    fn references_are_scored_at_every_nth_position() {
        let same = Listed { tokens: vec![2, 0], log_probabilities: vec![0.5f64.ln(), (1f64 / 6.0).ln()] };
        let other = Listed { tokens: vec![2, 3], log_probabilities: vec![0.1f64.ln(), 0.8f64.ln()] };
        let chunk = Chunk { tokens: vec![0, 1, 1, 1], first_scored: 1, top: vec![same.clone(), other, same] };
        let reference = ReferenceFile { chunks: vec![chunk] };
        let score = of_reference(&reference, 2, &mut cyclic, || {}).unwrap();
        let summary = score.divergence.unwrap();
        assert!(summary.positions == 2 && summary.mean_kld.abs() < 1e-6 && summary.same_top == 1.0, "{summary:?}");
        // 1 → 1 has 1/6; nothing follows position 3.
        assert!((score.perplexity.unwrap() - 6.0).abs() < 1e-4 && score.tokens == 1, "{score:?}");
        let all = of_reference(&reference, 1, &mut cyclic, || {}).unwrap().divergence.unwrap();
        let expect = 0.1 * (0.1f64 / 0.5).ln() + 0.8 * (0.8f64 * 6.0).ln() + 0.1 * (0.1f64 * 3.0).ln();
        assert!((all.mean_kld - expect / 3.0).abs() < 1e-6 && all.same_top == 2.0 / 3.0, "{all:?} {expect}");
    }

    #[test]
    fn damaged_logits_are_an_error() {
        let mut broken =
            |_: &[u32], _: Range<usize>, show: &mut dyn FnMut(usize, &[f32]) -> Result<()>| show(0, &[0.0, f32::NAN]);
        let error = of_text(&[vec![0, 1]], 9, &mut broken, || {}).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }
}
