//! Numbers that a tuner may change. They move time and never a bit; rules that must hold are in `tile`.

/// Weights are asked for this many bytes ahead of their use. Measured: 8 to 12 KiB is best at every width, and nothing
/// else gains as much (1.3 times at one token, 1.5 at eight).
pub const PREFETCH_BYTES: usize = 8 << 10;

/// With at least this many tokens for each worker, workers take tokens (all rows); with fewer they take rows (all
/// tokens). Taking tokens keeps activations with one core but reads the weights once a worker.
pub const TOKENS_PER_WORKER_MIN: usize = 8;

/// Up to this many activations are quantized by the caller alone; more pay for a parallel region of their own.
pub const QUANTIZE_ALONE_MAX: usize = 8 << 10;

/// Panels of two widths take turns at about this many bytes of weights, which stay in a core's own cache meanwhile.
pub const TURN_BYTES: usize = 128 << 10;
