//! From text to text: tokenizer, templates, models, weights, caches, sampler. Knows ops, never a device.

#![forbid(unsafe_code)]

pub mod sampler;
pub mod text_stream;

pub use sampler::{Sampled, Sampler, SamplingError, SamplingParams, StopStrings};
pub use text_stream::TextStream;
