//! The engine's tests, from the outside.

mod golden;
mod sampler;
mod stop_strings;
mod text_stream;
