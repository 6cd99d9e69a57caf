//! Where a row's tokens are cut into spans: at fixed positions, `kernels/attention/parts.cuh`, `Cut`.

use crate::kernels::Pages;

/// Tokens of a span, up to some position.
const SHORT_SPAN: usize = 128;

/// Where short spans end.
const SHORT_END: usize = 2048;

/// A window of so many tokens, or fewer, has short spans alone.
const SHORT_WINDOW: usize = 4096;

/// Positions stay below this.
const NO_END: usize = 1 << 31;

/// Tokens of a later span: as a block takes of a long sequence while the rest of the card takes others.
fn long_span(form: Pages) -> usize {
    if form.head_dim >= 256 { 512 } else { 256 }
}

/// The span that a position is in.
pub(crate) fn of(form: Pages, window: usize) -> impl Fn(usize) -> usize {
    let short_end = if (1..=SHORT_WINDOW).contains(&window) { NO_END } else { SHORT_END };
    let long = long_span(form);
    move |position| {
        if position < short_end {
            position / SHORT_SPAN
        } else {
            short_end / SHORT_SPAN + (position - short_end) / long
        }
    }
}

pub(crate) fn constants(form: Pages) -> Vec<(&'static str, usize)> {
    let short = [("SHORT_SPAN", SHORT_SPAN), ("SHORT_END", SHORT_END), ("SHORT_WINDOW", SHORT_WINDOW)];
    short.into_iter().chain([("LONG_SPAN", long_span(form))]).collect()
}
