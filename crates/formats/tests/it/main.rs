//! Tests of the formats crate from the outside.

mod checkpoints;
mod decode;
mod encode;
mod gguf_bytes;
mod gguf_hostile;
mod gguf_read;
mod gguf_write;
mod mutations;
mod quantize;
