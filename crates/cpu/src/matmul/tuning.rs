//! Numbers that a tuner may change. They move time and never a bit; rules that must hold are in `tile` and `dispatch`.

/// What was measured on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Weights are asked for this many bytes ahead of their use.
    pub prefetch_bytes: usize,
    /// With at least this many tokens of a segment for each worker, workers take tokens (all rows); with fewer they take
    /// rows (all tokens).
    pub tokens_per_worker_min: usize,
    /// Up to this many activations are quantized by the caller alone; more pay for a parallel region of their own.
    pub quantize_alone_max: usize,
    /// Panels of two widths take turns at about this many bytes of weights, which stay in a core's own cache meanwhile.
    pub turn_bytes: usize,
    /// The most tokens of a dense or grouped segment that one read of its weights serves.
    pub pass_tokens: usize,
    /// The same for routed experts.
    pub routed_pass_tokens: usize,
    /// Reading a byte of weights costs a worker as much time as this many products; used to deal out work evenly.
    pub products_per_byte: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            // Measured: 8 to 12 KiB is best at every width, and nothing else gains as much (1.3 times at one token, 1.5
            // at eight).
            prefetch_bytes: 8 << 10,
            // Taking tokens keeps activations with one core but reads the weights once a worker.
            tokens_per_worker_min: 8,
            quantize_alone_max: 8 << 10,
            turn_bytes: 128 << 10,
            pass_tokens: 512,
            routed_pass_tokens: 128,
            products_per_byte: 12,
        }
    }
}
