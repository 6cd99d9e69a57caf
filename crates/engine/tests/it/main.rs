//! The engine's tests, from the outside.

mod chat_cuts;
mod chat_families;
mod chat_parser;
mod chat_rendering;
mod chat_template;
mod deepseek4;
mod generation;
mod golden;
mod mlx;
mod packed;
mod profile;
mod reply_text;
mod sampler;
mod sequences;
mod serving;
mod state;
mod stop_strings;
mod support;
mod synth;
mod text_stream;
mod tokenizer;
mod tokenizer_errors;
mod tokenizer_json;
