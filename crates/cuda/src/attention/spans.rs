//! Where a row's tokens are cut into spans: at fixed positions, `kernels/attention/parts.cuh`, `Cut`.

/// Tokens of a span, up to some position.
const SHORT_SPAN: usize = 128;

/// Where short spans end.
const SHORT_END: usize = 4096;

/// A window of so many tokens, or fewer, has short spans alone.
const SHORT_WINDOW: usize = 4096;

/// Positions stay below this.
const NO_END: usize = 1 << 31;

/// Tokens of a later span. Measured on an H200: 256 are as fast for one row of 32,768 tokens, and for eight slower by 17 to 30 %, since
/// each span's parts are written and read.
const LONG_SPAN: usize = 512;

/// The span that a position is in.
pub(crate) fn of(window: usize) -> impl Fn(usize) -> usize {
    let short_end = if (1..=SHORT_WINDOW).contains(&window) { NO_END } else { SHORT_END };
    move |position| {
        if position < short_end {
            position / SHORT_SPAN
        } else {
            short_end / SHORT_SPAN + (position - short_end) / LONG_SPAN
        }
    }
}

pub(crate) fn constants() -> Vec<(&'static str, usize)> {
    let short = [("SHORT_SPAN", SHORT_SPAN), ("SHORT_END", SHORT_END), ("SHORT_WINDOW", SHORT_WINDOW)];
    short.into_iter().chain([("LONG_SPAN", LONG_SPAN)]).collect()
}
