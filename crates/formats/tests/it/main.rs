//! Tests of the formats crate from the outside.

mod gguf_bytes;
mod gguf_hostile;
mod gguf_read;
