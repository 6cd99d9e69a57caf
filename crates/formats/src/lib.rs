//! What bytes mean: containers (GGUF, safetensors), block formats and their codecs, memory-mapped files.
//!
//! This crate computes nothing with a model and knows no device. It turns a file into named, checked, borrowed
//! byte ranges ([`Bytes`]) with a [`DType`], and a range into numbers ([`codec`]).

#![deny(unsafe_code)]

pub mod bytes;
pub mod checkpoint;
pub mod codec;
pub mod dtype;
pub mod error;
pub mod gguf;
pub mod mlx;
pub mod mmap;
pub mod quantize;
pub mod safetensors;

pub use bytes::Bytes;
pub use checkpoint::Checkpoint;
pub use dtype::DType;
pub use error::FormatError;
pub use gguf::{Gguf, GgufWriter, Tensor};
