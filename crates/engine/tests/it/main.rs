//! The engine's tests, from the outside.

mod sampler;
mod stop_strings;
mod text_stream;
