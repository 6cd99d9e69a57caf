//! What bytes mean: containers (GGUF, safetensors), block formats and their codecs, memory-mapped files.
//!
//! This crate computes nothing with a model and knows no device. It turns a file into named, checked, borrowed
//! byte ranges ([`Bytes`]) with a [`DType`], and a range into numbers ([`codec`]).

#![deny(unsafe_code)]

pub mod bytes;
pub mod codec;
pub mod dtype;
pub mod error;
pub mod gguf;
pub mod mmap;

pub use bytes::Bytes;
pub use dtype::DType;
pub use error::FormatError;
pub use gguf::{Gguf, GgufWriter, Tensor};
