//! HTTP in front of the serving engine: the APIs of OpenAI and of Anthropic, and this server's own routes.
//!
//! A request goes one way. A *reader* of its API takes the JSON apart field by field ([`fields`]: what is not known is refused
//! by name) and makes an [`ask::Ask`]: prompts, sampling, grammar. That becomes jobs of the model's engine, whose events come
//! back as an [`answer::Answer`]. A *narrator* of the API tells it, at once or as server-sent events. Whoever drops the
//! answer ends the jobs: a client that goes away frees its slots at once.
//!
//! The crate knows no device: a [`Loader`] that the caller gives makes engines from names.

#![forbid(unsafe_code)]

mod access;
mod admin;
mod again;
mod answer;
mod anthropic;
mod app;
mod ask;
mod body;
mod calls;
mod catalog;
mod connections;
mod conversation;
mod described;
mod engine_view;
mod fields;
mod grammar;
mod keys;
mod metrics;
mod openai;
mod openapi;
mod page;
mod problem;
mod routes;
mod sampled;
mod serve;
mod settings;
mod sse;
mod text;
mod tools;

pub use catalog::{Loaded, Loader};
pub use keys::{ApiKeys, KeyError};
pub use problem::Problem;
pub use serve::{Closing, Server, Stop, StopSwitch};
pub use settings::Settings;
