//! Gates of feed-forward layers.

/// The gate of a gated feed-forward layer: `gate(x) * up`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// x · sigmoid(x)
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
    /// gpt-oss: `x · sigmoid(1.702 x) · (up + 1)`, where x is at most 7 and up from -7 to 7 ([`crate::math::swiglu_oai`]).
    SwigluOai,
    /// DeepSeek V4: x · sigmoid(x) · up, where x is at most this limit and up from minus it to it ([`crate::math::swiglu_clamped`]).
    SiluClamped(f32),
}

impl Gate {
    /// One of each kind.
    pub const ALL: [Gate; 4] = [Gate::Silu, Gate::GeluTanh, Gate::SwigluOai, Gate::SiluClamped(0.75)];
}
