//! From text to text: tokenizer, templates, models, weights, caches, sampler. Knows ops, never a device.

#![forbid(unsafe_code)]
