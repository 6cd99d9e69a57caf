//! Penalties for tokens that were seen lately.

use super::SamplingParams;

/// Lowers the logits of the tokens in the window at the end of `history`, in place.
pub(super) fn apply(params: &SamplingParams, logits: &mut [f32], history: &[u32]) {
    let (repetition, frequency, presence) =
        (params.repetition_penalty, params.frequency_penalty, params.presence_penalty);
    if repetition == 1.0 && frequency == 0.0 && presence == 0.0 {
        return;
    }
    let mut seen = history[history.len().saturating_sub(params.penalty_window)..].to_vec();
    seen.sort_unstable();
    for run in seen.chunk_by(|a, b| a == b) {
        // A history from another vocabulary would be the caller's mistake; there is nothing to lower then.
        let Some(logit) = logits.get_mut(run[0] as usize) else { continue };
        let scaled = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        let lowered = scaled - run.len() as f32 * frequency - presence;
        // Huge penalties overflow: a banned token stays banned (-inf), all others stay finite, and -inf * 0 is no NaN.
        *logit = if *logit == f32::NEG_INFINITY { *logit } else { lowered.clamp(f32::MIN, f32::MAX) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ends_where_it_should() {
        let params = SamplingParams { presence_penalty: 1.0, penalty_window: 2, ..Default::default() };
        let mut logits = [0.0; 4];
        apply(&params, &mut logits, &[0, 1, 2]);
        assert_eq!(logits, [0.0, -1.0, -1.0, 0.0]);
    }

    #[test]
    fn repetition_scales_then_frequency_counts_then_presence() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.25,
            presence_penalty: 0.5,
            ..Default::default()
        };
        let mut logits = [4.0, -4.0, 4.0];
        apply(&params, &mut logits, &[0, 1, 0, 99]);
        assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.25 - 0.5, -4.0 * 2.0 - 0.25 - 0.5, 4.0]);
    }

    #[test]
    fn extremes_stay_numbers() {
        let params = SamplingParams { repetition_penalty: f32::MAX, frequency_penalty: f32::MAX, ..Default::default() };
        let mut logits = [-3.0, f32::NEG_INFINITY, 2.0];
        apply(&params, &mut logits, &[0, 1, 2, 2]);
        assert!(logits[0] == f32::MIN && logits[1] == f32::NEG_INFINITY && logits[2] == f32::MIN);
    }
}
